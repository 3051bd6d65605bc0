"""Planes to pixels: elementwise kernels whose innermost output dimension is tiny (the channels of an image).

The inputs are contiguous along the next dimension (the columns). Vectors run along it, one for each channel, and are
shuffled into the order of the output, which then is one contiguous store.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, const
from irc.backends.tvm.kernels.emit import emit_expression, needs_scalar
from irc.backends.tvm.specs import ElementwiseSpec
from irc.targets.target import Target

_MOST_CHANNELS = 4


def fits(spec: ElementwiseSpec, target: Target) -> bool:
    """Whether this way serves the specification: 2 to 4 channels, columns contiguous in every operand."""
    if len(spec.shape) < 2 or not 2 <= spec.shape[-1] <= _MOST_CHANNELS:
        return False
    if lanes_of(target) == 1 or spec.shape[-2] < lanes_of(target):
        return False
    if spec.y_strides[-1] != 1 or spec.y_strides[-2] != spec.shape[-1] + spec.gap or needs_scalar(spec.expression):
        return False
    if any("64" in t for t in (spec.y_dtype, *(o.dtype for o in spec.operands), *(i.dtype for i in spec.expression))):
        return False
    return all(o.strides[-2] in (0, 1) for o in spec.operands) and any(o.strides[-2] == 1 for o in spec.operands)


def build(symbol: str, spec: ElementwiseSpec, target: Target) -> Any:
    """`symbol(operands..., y, part, parts)`."""
    k = KernelBuilder(symbol, target)
    # All that is read for some columns is read before they are written, as `overlap.py` supposes.
    shared = target.small
    operands = [k.pointer(f"e{i}", o.dtype, o.size, shared=shared) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size, shared=shared)
    *outer, columns, channels = spec.shape
    lanes = lanes_of(target)
    width = channels + spec.gap

    def value(place: list[Expr], column: Expr, channel: int, size: int) -> Expr:
        def read(n: int, lanes: int) -> Expr:
            s = spec.operands[n].strides
            at: Expr = column * s[-2] + channel * s[-1]
            for index, stride in zip(place, s, strict=False):
                at = at + index * stride
            return broadcast(k.load(operands[n], at), lanes) if s[-2] == 0 else k.load(operands[n], at, lanes)

        return k.let(emit_expression(k, spec.expression, size, read))

    with k.work(math.prod(outer), "r") as item:
        place: list[Expr] = []
        rest = item
        for d in reversed(outer):
            place.insert(0, k.let(rest % d, "p"))
            rest = k.let(rest // d, "q")
        row: Expr = tirx.const(0, "int32")
        for index, stride in zip(place, spec.y_strides, strict=False):
            row = row + index * stride
        row = k.let(row, "row")
        with k.loop(columns // lanes, "x") as x:
            first = k.let(x * lanes, "col")
            planes = [value(place, first, c, lanes) for c in range(channels)]
            planes += [const(spec.fill, spec.y_dtype, lanes)] * spec.gap
            order = [c * lanes + i for i in range(lanes) for c in range(width)]
            k.store(y, row + first * width, tirx.Shuffle(planes, order), lanes * width)
        with k.loop(columns % lanes, "x") as x:
            column = k.let(x + columns // lanes * lanes, "col")
            for c in range(channels):
                k.store(y, row + column * width + c, value(place, column, c, 1))
    return k.finish()
