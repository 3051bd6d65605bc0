"""Weights on their way before they are needed: each linear kernel asks for the first weights of the calls after it.

A network whose weights exceed the second-level cache reads each of them once per run, from further away. What a kernel
asks for while it computes, the next one finds near.
"""

from __future__ import annotations

from dataclasses import replace

from irc.backends.tvm.plan.planner import Call, Planner, Pointer
from irc.backends.tvm.specs import LinearSpec, SparseSpec, Spec
from irc.targets.target import Target

_LEAST = 8 * 1024  # bytes of weights that are worth asking for
_SHARE = 4  # part of the second-level cache that they may fill


def ask_ahead(planner: Planner, calls: list[Call], target: Target) -> None:
    """Give linear kernels in `calls` the place of the weights that come after theirs, and how much to ask for."""
    if not target.l2_bytes:
        return  # memory without caches
    if sum(data.nbytes for _, data, _ in planner.constants) <= target.l2_bytes // 2:
        return
    following: tuple[Pointer, int] | None = None
    for i in reversed(range(len(calls))):
        call = calls[i]
        if following is not None and _has_weights(call.spec):
            pointer, size = following
            spec = _asking(call.spec, min(_rounded(size), target.l2_bytes // _SHARE))
            calls[i] = replace(call, spec=spec, args=(*call.args[:-1], pointer, call.args[-1]))
        sizes = [(planner.storages[p.storage].nbytes, p) for p in call.args[:-1] if _is_weights(planner, p)]
        size, pointer = max(sizes, key=lambda s: s[0], default=(0, Pointer(0, 0)))
        if size >= _LEAST:
            following = (pointer, size)


def _has_weights(spec: Spec) -> bool:
    return isinstance(spec, SparseSpec) or (isinstance(spec, LinearSpec) and not spec.w_rows)


def _asking(spec: Spec, ahead: int) -> Spec:
    if isinstance(spec, SparseSpec):
        return replace(spec, linear=replace(spec.linear, ahead=ahead))
    assert isinstance(spec, LinearSpec)
    return replace(spec, ahead=ahead)


def _is_weights(planner: Planner, pointer: Pointer) -> bool:
    return planner.storages[pointer.storage].kind == "weights"


def _rounded(size: int) -> int:
    """To a power of two: layers before different ones shall share a kernel, and more weights lie behind."""
    return 1 << (size - 1).bit_length()
