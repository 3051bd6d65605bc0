"""One plan for several levels of a machine: the same memory, calls and packed weights, kernels of each level's own.

The plan is made for the widest level, with weights in blocks that vectors of every level divide. What a kernel reads
and writes then depends on no level; only its register tile does, which is chosen for each.
"""

from __future__ import annotations

from dataclasses import replace

from irc.backends.tvm.plan.lower_winograd import retiled as winograd_retiled
from irc.backends.tvm.plan.sparse_model import retiled as sparse_retiled
from irc.backends.tvm.plan.tiles import retiled
from irc.backends.tvm.specs import DepthwiseSpec, LinearSpec, SparseSpec, Spec, WinogradSpec
from irc.targets.catalogue import get_target, levels_of
from irc.targets.target import Target


def planning_target(target: Target) -> Target:
    """The target that a plan for `target` is made for."""
    if not target.upgrades:
        return target
    return replace(levels_of(target)[-1], name=target.name, upgrades=target.upgrades)


def versions_of(spec: Spec, target: Target) -> tuple[tuple[Spec, Target], ...]:
    """(kernel, target that it is compiled for) for each level, weakest first.

    Levels that differ in a dot product only share the kernels that have none.
    """
    if not target.upgrades:
        return ((spec, target),)
    found = []
    for level in levels_of(target):
        same = plain_level(spec, level)
        found.append((_suited(spec, same), same))
    return tuple(found)


def _suited(spec: Spec, level: Target) -> Spec:
    """`spec` with the tile that suits a level."""
    if isinstance(spec, WinogradSpec):
        return winograd_retiled(spec, level)
    return sparse_retiled(spec, level) if isinstance(spec, SparseSpec) else retiled(spec, level)


def plain_level(spec: Spec, level: Target) -> Target:
    """The level that the kernel needs: one without the dot product of `level` where it uses none."""
    return get_target(level.plain) if level.plain and not _sums_bytes(spec) else level


def _sums_bytes(spec: Spec) -> bool:
    """Whether the kernel may use the target's dot product."""
    if isinstance(spec, LinearSpec | SparseSpec | DepthwiseSpec):
        return spec.x_dtype != "float32"
    return type(spec).__name__ not in _PLAIN


_PLAIN = {
    *("PoolSpec", "ElementwiseSpec", "RowsSpec", "ReduceSpec", "FillSpec", "LibrarySpec"),
    *("WinogradSpec", "WinogradInputSpec", "RecurrentSpec", "ResizeSpec"),
}
