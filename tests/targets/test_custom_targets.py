"""Targets that users describe in files, and how manifests bring them back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from irc.errors import OptionError
from irc.targets import TARGETS, Target, get_target, runs_here
from irc.targets.catalogue import target_of_manifest
from irc.targets.custom import target_record


def _written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = _written(tmp_path, 'base = "cortex-m4"\nram_bytes = "64 kB"\nflash_bytes = "0.25M"\nfeatures = ["-dsp"]\n')
    target = get_target(path)
    base = TARGETS["cortex-m4"]
    assert target == dataclasses.replace(
        base, name="mine", base="cortex-m4", ram_bytes=65536, flash_bytes=262144, features=("-dsp",)
    )
    assert target.key != base.key, "other code than that of the base"
    assert not runs_here(target)


def test_what_the_base_needs_of_this_machine_is_needed(tmp_path: Path) -> None:
    for name in ("x86-64-v4-vnni", "x86-64-v3", "aarch64"):
        target = get_target(_written(tmp_path, f'base = "{name}"\nl2_bytes = "2M"'))
        assert runs_here(target) == runs_here(TARGETS[name])
        assert (target.upgrades, target.plain) == ((), ""), "it stands for itself"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "base: a target starts from one of the table.*got nothing"),
        ('base = "cortex-m5"', "did you mean 'cortex-m55' or 'cortex-m7'"),
        ('base = "cortex-m4"\nrambytes = 1', "no field 'rambytes'; did you mean 'ram_bytes'"),
        ('base = "cortex-m4"\nfpu = "duble"', "fpu: .*expected none, single, double.*did you mean 'double'"),
        ('base = "cortex-m4"\nvector_bytes = 12', "vector_bytes: .*power of two"),
        ('base = "cortex-m4"\nram_bytes = "64 pages"', "ram_bytes: .*64k"),
        ('base = "cortex-m4"\nram_bytes = -1', "ram_bytes"),
        ('base = "cortex-m4"\nram_bytes = true', "ram_bytes"),
        ('base = "cortex-m4"\nfma = 1', "fma: .*expected bool"),
        ('base = "cortex-m4"\nfeatures = "dsp"', "features: .*list of strings"),
        ('base = "cortex-m4"\nfeatures = ["dsp"]', "features: .*begin with"),
        ('base = "cortex-m4"\narch = "aarch64"', "arch: 'arch' follows from the base"),
        ('base = "cortex-m4"\nupgrades = ["arm"]', "no field 'upgrades'"),
        ('base = "cortex-m4"\nname = "cortex-m7"', "name: a target of this name exists"),
        ('base = "cortex-m4"\nname = "a b"', "name: .*word.*try name = "),
        ('base = "cortex-m4"\nram_bytes = "0k"', "ram_bytes: the size cannot be read"),
        ('base = "cortex-m4"\ndot = "sdot"', "dot: .*expected mve, scalar, smlad"),
        ('base = "arm"\nrunner = "qemu-system"', "runner: .*expected qemu-user"),
        ("base = ", "no TOML"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message) as error:
        get_target(_written(tmp_path, text))
    assert "mine.toml" in str(error.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(OptionError, match=r"nowhere\.toml: cannot read"):
        get_target("nowhere.toml")


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_manifests_bring_targets_back(target: Target) -> None:
    assert target_of_manifest({"name": target.name, "record": target_record(target)}) == target


def test_manifests_bring_targets_of_users_back(tmp_path: Path) -> None:
    target = get_target(_written(tmp_path, 'base = "cortex-m55"\ncpu = "cortex-m85"\nlink_flags = ["-mthumb"]'))
    record = target_record(target)
    assert target_of_manifest({"name": target.name, "record": record}) == target
    assert target_of_manifest({"name": "arm"}) == TARGETS["arm"], "of an irc that wrote no record"
    with pytest.raises(OptionError, match="no target 'gone'"):
        target_of_manifest({"name": "gone"})
