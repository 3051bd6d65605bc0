"""The target table and the detection of this machine."""

from __future__ import annotations

import pytest

from irc.errors import OptionError
from irc.targets import catalogue
from irc.targets.target import Target

V3 = "abm sse4_1 sse4_2 ssse3 popcnt cx16 movbe avx avx2 bmi1 bmi2 f16c fma"
TRIPLES = {
    "x86-64": "x86_64",
    "aarch64": ("aarch64", "arm64"),
    "arm32": ("armv7", "thumbv"),
    "riscv64": "riscv64",
    "riscv32": "riscv32",
    "wasm32": "wasm32",
    "c": "",
}
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("arch", "flags", "expected"),
    [
        ("x86-64", "fpu sse sse2", "x86-64"),
        ("x86-64", V3, "x86-64-v3"),
        ("x86-64", V3 + " avx_vnni", "x86-64-v3-vnni"),
        ("x86-64", V4, "x86-64-v4"),
        ("x86-64", V4 + " avx512_vnni", "x86-64-v4-vnni"),
        # VNNI with a part of AVX-512 missing must not reach above the level that is whole
        ("x86-64", V3 + " avx512f avx512_vnni", "x86-64-v3"),
        ("aarch64", "fp asimd", "aarch64"),
        ("aarch64", "fp asimd asimddp", "arm"),
    ],
)
def test_best_level(arch: str, flags: str, expected: str) -> None:
    assert catalogue.runnable_levels(arch, frozenset(flags.split()))[-1] == expected


def test_cpuinfo_takes_what_all_cores_have() -> None:
    text = "processor : 0\nFeatures : fp asimd asimddp\n\nprocessor : 1\nFeatures : fp asimd\n"
    assert catalogue.parse_cpuinfo(text) == {"fp", "asimd"}


def test_no_cpuinfo_means_baseline() -> None:
    assert catalogue.parse_cpuinfo("processor : 0\n") == frozenset()
    assert catalogue.runnable_levels("x86-64", frozenset()) == ["x86-64"]


def test_native_is_a_catalogue_entry_that_runs_here() -> None:
    native = catalogue.get_target("native")
    assert native is catalogue.TARGETS[native.name]
    assert catalogue.runs_here(native)


def test_foreign_architecture_does_not_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.platform, "machine", lambda: "x86_64")
    assert not catalogue.runs_here(catalogue.TARGETS["arm"])
    assert not catalogue.runs_here(catalogue.TARGETS["windows-x86-64"])
    monkeypatch.setattr(catalogue.platform, "machine", lambda: "aarch64")
    assert not catalogue.runs_here(catalogue.TARGETS["x86-64"])


def test_unknown_machine_is_a_readable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.platform, "machine", lambda: "s390x")
    with pytest.raises(OptionError, match="s390x"):
        catalogue.get_target("native")


def test_misspelt_target_is_suggested() -> None:
    with pytest.raises(OptionError, match="did you mean 'x86-64-v4-vnni'"):
        catalogue.get_target("x86-64-v4-vni")


@pytest.mark.parametrize("target", catalogue.TARGETS.values(), ids=lambda t: t.name)
def test_entries_are_consistent(target: Target) -> None:
    """The data type of the activations follows from the dot product instruction, and keys tell targets apart."""
    unsigned = {"vpdpbusd", "pmaddwd"}
    assert target.activations == ("uint8" if target.dot in unsigned else "int8")
    assert target.triple.startswith(TRIPLES[target.arch])
    assert (target.qemu != "") == target.runner.startswith("qemu")
    assert (target.board != "") == (target.runner == "qemu-system")
    assert len({target.linking == "source", target.object_format == "source", target.arch == "c"}) == 1
    assert target.pointer_bits == (32 if target.arch in ("arm32", "riscv32", "wasm32") else 64)
    assert (target.float_abi != "") == (target.arch == "arm32")
    assert (target.abi != "") == target.arch.startswith("riscv")
    if target.small:
        assert not target.threads
        assert target.linking in ("module", "source")
    assert [t.name for t in catalogue.TARGETS.values() if t.key == target.key] == [target.name]
