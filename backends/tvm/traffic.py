"""How many bytes a kernel call reads and writes: each array once, as far as the kernel touches it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from irc.backends.tvm.plan.make import Plan
from irc.backends.tvm.plan.planner import Call
from irc.backends.tvm.specs import (
    DepthwiseSpec,
    ElementwiseSpec,
    FillSpec,
    LinearSpec,
    Operand,
    PoolSpec,
    ReduceSpec,
    RowsSpec,
    SparseSpec,
    Spec,
)


@dataclass(frozen=True)
class Traffic:
    """Bytes: constants read, other data read, data written."""

    weights: int
    read: int
    written: int

    @property
    def total(self) -> int:
        return self.weights + self.read + self.written


def traffic(call: Call, plan: Plan) -> Traffic:
    """Reuse is free here: what a kernel reads again, it reads from a cache or should. Whole storages where the kernel's
    specification does not say how much of them it touches."""
    weights = read = written = 0
    limits = _limits(call.spec, len(call.args))
    for i, pointer in enumerate(call.args):
        storage = plan.planner.storages[pointer.storage]
        size = min(max(storage.nbytes - pointer.offset, 0), limits.get(i, storage.nbytes))
        if storage.kind == "weights":
            weights += size
        elif pointer.storage in call.writes:
            written += size
        else:
            read += size
    return Traffic(weights, read, written)


def _limits(spec: Spec, count: int) -> dict[int, int]:
    """Most bytes that a kernel touches through its arguments, by position; those that are not known are left out."""
    found = {}
    out = _outputs(spec)
    if out is not None:
        found[count - 1] = out * np.dtype(getattr(spec, "y_dtype", getattr(spec, "dtype", "uint8"))).itemsize
    x = _inputs(spec)
    if x is not None:
        found[0] = x * np.dtype(getattr(spec, "x_dtype", "uint8")).itemsize
    operands: tuple[Operand, ...] = getattr(spec, "operands", ())
    first = 0 if isinstance(spec, ElementwiseSpec) else count - 1 - len(operands)
    for i, operand in enumerate(operands, first):
        found[i] = operand.size * np.dtype(operand.dtype).itemsize
    return found


def _outputs(spec: Spec) -> int | None:
    if isinstance(spec, SparseSpec):
        return _outputs(spec.linear)
    if isinstance(spec, LinearSpec):
        return math.prod(spec.batch) * math.prod(spec.out) * spec.oc
    if isinstance(spec, DepthwiseSpec | PoolSpec):
        return spec.batch * math.prod(spec.out) * spec.channels
    if isinstance(spec, ElementwiseSpec | ReduceSpec):
        return math.prod(spec.shape)
    if isinstance(spec, RowsSpec):
        return math.prod(spec.shape) * spec.width
    if isinstance(spec, FillSpec):
        return math.prod(spec.shape) - spec.shape[0] * math.prod(spec.inner[2:])
    return None


def _inputs(spec: Spec) -> int | None:
    if isinstance(spec, SparseSpec):
        return _inputs(spec.linear)
    if isinstance(spec, LinearSpec):
        return min(spec.x_size, math.prod(spec.batch) * math.prod(spec.out) * math.prod(spec.kernel) * spec.ic)
    if isinstance(spec, DepthwiseSpec | PoolSpec):
        return min(spec.x_size, spec.batch * math.prod(spec.out) * math.prod(spec.kernel) * spec.channels)
    return None
