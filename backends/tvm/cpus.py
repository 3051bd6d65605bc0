"""Whether LLVM knows the processor and the features of a target that a user described, and whether these have the
instructions that its dot product stands for.

Unknown ones would not stop LLVM: it compiles for the most general machine, and nobody notices. An instruction that
the machine has not ends the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from irc.errors import OptionError, suggest
from irc.targets.target import Target

_NEEDED_BY_DOT = {
    "vpdpbusd": ("avx512vnni", "avxvnni"),
    "sdot": ("dotprod",),
    "smmla": ("i8mm",),
    "vpadal": ("neon",),
    "smlad": ("dsp",),
    "mve": ("mve",),
    "rvv": ("v",),
    "wasm": ("simd128",),
}
"""Dot product -> LLVM's features, one of which it takes. The others are in every machine of their architecture."""


def check_machine(target: Target) -> None:
    """Raises OptionError, with near names, for a `cpu` or a feature that LLVM has not for this architecture, and for a
    `dot` that the machine has no instructions for."""
    if not target.base or not target.triple:
        return
    import tvm

    def of(name: str, cpu: str) -> set[str]:
        spec = tvm.target.Target({"kind": "llvm", "mtriple": target.triple, "mcpu": cpu})
        return {str(word) for word in tvm.get_global_func(f"target.{name}")(spec)}

    cpus = of("llvm_get_cpu_archlist", "generic")
    if target.cpu not in cpus and not _is_other_name(target, of):
        raise OptionError(
            f"LLVM knows no processor '{target.cpu}' of this architecture",
            where=f"target {target.name}: cpu",
            hint=suggest(target.cpu, cpus),
        )
    features: set[str] = set()
    for cpu in cpus:
        features |= of("llvm_get_cpu_features", cpu)
    for feature in target.features:
        if feature[1:] not in features:
            raise OptionError(
                f"LLVM knows no feature '{feature[1:]}' of this architecture",
                where=f"target {target.name}: features",
                hint=suggest(feature[1:], features),
            )
    _check_dot(target, of("llvm_get_cpu_features", target.cpu))


def _check_dot(target: Target, features: set[str]) -> None:
    """`features`: of the processor."""
    named = {feature[1:]: feature[0] == "+" for feature in target.features}
    needed = _NEEDED_BY_DOT.get(target.dot, ())
    if needed and not any(named.get(feature, feature in features) for feature in needed):
        raise OptionError(
            f"the machine has no instructions for the dot product '{target.dot}'",
            where=f"target {target.name}: dot",
            expected=f"a cpu or features with {' or '.join(needed)}",
            got=" ".join((target.cpu, *target.features)),
            hint=f'another base, or features = ["+{needed[0]}"]',
        )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """LLVM's remarks on names that it does not know go past Python, to the file descriptor."""
    if sys.stderr is None:  # closed: the descriptor may be another file's by now
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_other_name(target: Target, of: Callable[[str, str], set[str]]) -> bool:
    """LLVM has second names for some processors (apple-m1), which its list leaves out; a name that it does not know
    has the features of no processor in particular."""
    with _silent_stderr():
        return of("llvm_get_cpu_features", target.cpu) != of("llvm_get_cpu_features", "generic")
