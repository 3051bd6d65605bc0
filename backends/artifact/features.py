"""Does this machine have what a library was compiled for? Facts of the target in the manifest against /proc/cpuinfo."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irc.errors import OptionError
from irc.targets.catalogue import host_arch, host_features, levels_of
from irc.targets.custom import target_record
from irc.targets.target import Target

# /proc/cpuinfo flags of the micro-architecture levels (x86-64 psABI); each level contains the ones before.
_V2 = ("cx16", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_CPU_FLAGS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}

# LLVM feature -> /proc/cpuinfo flag, where they differ or where it is a flag at all.
_FEATURE_FLAGS = {
    "x86-64": {
        "avx": "avx",
        "avx2": "avx2",
        "fma": "fma",
        "f16c": "f16c",
        "avxvnni": "avx_vnni",
        "avx512f": "avx512f",
        "avx512bw": "avx512bw",
        "avx512dq": "avx512dq",
        "avx512vl": "avx512vl",
        "avx512vnni": "avx512_vnni",
        "avx512bf16": "avx512_bf16",
        "avx512fp16": "avx512_fp16",
        "amx-tile": "amx_tile",
        "amx-int8": "amx_int8",
    },
    "aarch64": {
        "neon": "asimd",
        "dotprod": "asimddp",
        "fullfp16": "asimdhp",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
        "sve2": "sve2",
        "sme": "sme",
    },
}


def required_flags(target: Target) -> tuple[str, ...]:
    """The /proc/cpuinfo flags that code for `target` needs."""
    table = _FEATURE_FLAGS.get(target.arch, {})
    wanted = {table[f[1:]] for f in target.features if f[:1] == "+" and f[1:] in table}
    return tuple(sorted(wanted.union(_CPU_FLAGS.get(target.cpu, ()))))


def target_facts(target: Target) -> dict[str, Any]:
    """What the manifest says about the machine (key "target"). "levels": those whose kernels the library holds, with
    what each needs of the machine; where there are none, all of it is for the target."""
    levels = levels_of(target) if target.upgrades else ()
    return {
        "name": target.name,
        "arch": target.arch,
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "cpu_flags": list(required_flags(target)),
        "record": target_record(target),
        "levels": [{"name": level.name, "cpu_flags": list(required_flags(level))} for level in levels],
    }


def level_names(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """All levels of a library with these facts, weakest first."""
    return tuple(level["name"] for level in facts.get("levels", ()))


def levels_here(facts: Mapping[str, Any], cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Levels of a library with these facts that this machine runs, weakest first; the library takes the last."""
    if obstacle(facts, cpuinfo):
        return []
    flags = host_features(cpuinfo)
    return [level["name"] for level in facts.get("levels", ()) if flags.issuperset(level["cpu_flags"])]


def obstacle(facts: Mapping[str, Any], cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Why code for the target of these facts cannot run on this machine; empty when it can."""
    if facts["arch"] == "c":
        return "it is C source, and holds no library"
    if facts["arch"] != host_arch():
        return f"it is for {facts['arch']}, this machine is {host_arch()}"
    if "linux" not in facts["triple"]:
        return f"it is for {facts['triple']}"
    if not sys.platform.startswith("linux"):
        return f"it is for Linux, this is {sys.platform}"
    missing = sorted(set(facts.get("cpu_flags", ())) - host_features(cpuinfo))
    return f"this CPU lacks {', '.join(missing)}" if missing else ""


def check_host(facts: Mapping[str, Any], *, where: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Raises OptionError unless this machine can run code for the target that `facts` describe."""
    reason = obstacle(facts, cpuinfo)
    if reason:
        raise OptionError(
            f"compiled for target '{facts['name']}', which this machine cannot run: {reason}",
            where=where,
            hint="--target native",
        )
