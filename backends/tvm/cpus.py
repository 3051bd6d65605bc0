"""Whether LLVM knows the processor and the features of a target that a user described.

Unknown ones would not stop LLVM: it compiles for the most general machine, and nobody notices.
"""

from __future__ import annotations

from collections.abc import Callable

from irc.errors import OptionError, suggest
from irc.targets.target import Target


def check_machine(target: Target) -> None:
    """Raises OptionError, with near names, for a `cpu` or a feature that LLVM has not for this architecture."""
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


def _is_other_name(target: Target, of: Callable[[str, str], set[str]]) -> bool:
    """LLVM has second names for some processors (apple-m1), which its list leaves out; a name that it does not know
    has the features of no processor in particular."""
    return of("llvm_get_cpu_features", target.cpu) != of("llvm_get_cpu_features", "generic")
