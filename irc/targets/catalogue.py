"""Finding targets by name, and the one this process runs on.

`get_target("native")` picks the best entry of this table that the CPU can execute, not the exact CPU model: artifacts
made on two machines of the same class are then the same bytes. Other distributions add targets through the entry
point group `irc.targets` (each entry point names a `Target`).

Micro-architecture levels: x86-64 psABI, "Micro-architecture levels" (x86-64-v2 .. v4). Arm: ARMv8.2 FEAT_DotProd.
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irc.errors import OptionError, suggest
from irc.targets import custom
from irc.targets.table import CATALOGUE
from irc.targets.target import Target

ENTRY_POINTS = "irc.targets"

TARGETS: Mapping[str, Target] = {t.name: t for t in CATALOGUE}
"""The built-in targets by name ("native" stands for one of them)."""

# What a level needs, in /proc/cpuinfo names; later entries are better.
_V3 = frozenset(
    ["abm", "avx", "avx2", "bmi1", "bmi2", "cx16", "f16c", "fma", "movbe", "popcnt", "sse4_1", "sse4_2", "ssse3"]
)
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_X86_LEVELS = (
    ("x86-64", frozenset[str]()),
    ("x86-64-v3", _V3),
    ("x86-64-v3-vnni", _V3 | {"avx_vnni"}),
    ("x86-64-v4", _V4),
    ("x86-64-v4-vnni", _V4 | {"avx512_vnni"}),
)
_ARM_LEVELS = (("aarch64", frozenset[str]()), ("arm", frozenset({"asimddp"})))
_NEEDS: Mapping[str, frozenset[str]] = {
    **dict(_X86_LEVELS),
    **dict(_ARM_LEVELS),
    "cortex-a76": frozenset({"asimddp"}),
    "neoverse-v1": frozenset({"asimddp", "i8mm"}),
}


def get_target(name: str) -> Target:
    """The target of this name, or of this file (`custom.py`). Raises OptionError, with the nearest names, where there
    is none."""
    if name == "native":
        return TARGETS[host_level()]
    known = all_targets()
    if name.endswith(custom.ENDING):
        return custom.read_target(name, known)
    if name not in known:
        raise OptionError(
            f"there is no target '{name}'",
            hint=suggest(name, ["native", *known]) + "; for others a file: --target mine.toml",
        )
    return known[name]


def target_of_manifest(facts: Mapping[str, Any]) -> Target:
    """The target that an artifact was compiled for, from the "target" of its manifest. Raises OptionError."""
    return custom.target_of_record(facts.get("record") or facts, all_targets())


def all_targets() -> dict[str, Target]:
    """Built-in targets, then those of other distributions. A built-in name cannot be taken over."""
    return {**_third_party(), **TARGETS}


@functools.cache
def _third_party() -> dict[str, Target]:
    from importlib.metadata import entry_points

    found: dict[str, Target] = {}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        target = entry.load()
        if not isinstance(target, Target):
            raise OptionError(
                f"the entry point '{entry.name}' ({entry.value}) of group {ENTRY_POINTS} is no target",
                expected="an irc.targets.target.Target",
                got=type(target).__name__,
            )
        found[target.name] = target
    return found


def host_level() -> str:
    """Name of the best built-in target that this machine can execute.

    Raises OptionError on a machine that is neither x86-64 nor 64-bit Arm.
    """
    return runnable_levels(host_arch(), host_features())[-1]


def runs_here(target: Target) -> bool:
    """Whether code for `target` can run in this process. Targets unknown to the table are taken to need their arch."""
    try:
        arch = host_arch()
    except OptionError:
        return False
    linux = sys.platform.startswith("linux") and target.object_format == "elf"
    if target.arch != arch or not linux:
        return False
    return _NEEDS.get(target.base or target.name, frozenset()) <= host_features()


def runnable_levels(arch: str, features: frozenset[str]) -> list[str]:
    """Names of the levels that a CPU with these /proc/cpuinfo flags runs, weakest first."""
    return [name for name, needed in (_X86_LEVELS if arch == "x86-64" else _ARM_LEVELS) if needed <= features]


def levels_of(target: Target) -> tuple[Target, ...]:
    """The targets whose kernels a library for `target` holds, weakest first; one when it has no upgrades."""
    return (target, *(TARGETS[name] for name in target.upgrades))


def host_arch() -> str:
    """ "x86-64" or "aarch64". Raises OptionError for any other machine."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return "x86-64"
    if machine in ("aarch64", "arm64"):
        return "aarch64"
    raise OptionError(
        f"irc has no native target for a '{machine}' machine",
        expected="x86-64 or aarch64",
        hint="naming a target: " + ", ".join(TARGETS),
    )


@functools.cache
def host_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """CPU flags as Linux names them ("avx2", "asimddp"); empty, hence the baseline, where they cannot be found."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return _features_without_proc()
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> frozenset[str]:
    """Flags that all CPUs of a /proc/cpuinfo have (big.LITTLE machines may differ between cores)."""
    found: list[frozenset[str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            found.append(frozenset(value.split()))
    return frozenset.intersection(*found) if found else frozenset()


def _features_without_proc() -> frozenset[str]:
    """macOS says it through sysctl; anywhere else nothing is assumed beyond the baseline."""
    if sys.platform != "darwin":
        return frozenset()
    return frozenset({"asimddp"}) if platform.machine() == "arm64" else frozenset()
