"""Elementwise groups, strided copies and border fills: one expression per element, over any strides."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, const
from irc.backends.tvm.kernels.channels import channel_pieces
from irc.backends.tvm.kernels.emit import emit_expression, needs_scalar
from irc.backends.tvm.specs import ElementwiseSpec, FillSpec
from irc.targets.target import Target

_BLOCK = 4096  # elements of a one-dimensional range that one work item takes
_SHORT = 64  # elements of a short row
_ENOUGH = 8  # items of work to share out


def build_elementwise(symbol: str, spec: ElementwiseSpec, target: Target) -> Any:
    """`symbol(operands..., y, part, parts)`."""
    k = KernelBuilder(symbol, target)
    # On small targets the result may grow over an operand that nobody reads afterwards (`overlap.py`).
    operands = [
        k.pointer(f"e{i}", o.dtype, o.size, shared=target.small and any(o.strides)) for i, o in enumerate(spec.operands)
    ]
    y = k.pointer("y", spec.y_dtype, spec.y_size, shared=target.small)
    shape = spec.shape or (1,)
    y_strides = spec.y_strides or (0,)
    strides = [o.strides or (0,) for o in spec.operands]
    width = shape[-1]
    vectors = y_strides[-1] == 1 and all(s[-1] in (0, 1) for s in strides) and not needs_scalar(spec.expression)
    lanes = _lanes(spec, target) if vectors else 1

    def element(place: list[Expr], first: Expr, size: int) -> None:
        def read(n: int, lanes: int) -> Expr:
            s = strides[n]
            at: Expr = first * s[-1]
            for index, stride in zip(place, s, strict=False):
                at = at + index * stride
            return broadcast(k.load(operands[n], at), lanes) if s[-1] == 0 else k.load(operands[n], at, lanes)

        def table(n: int, index: Expr) -> Expr:
            return k.load(operands[n], index)

        value = emit_expression(k, spec.expression, size, read, None, table)
        at: Expr = first * y_strides[-1]
        for index, stride in zip(place, y_strides, strict=False):
            at = at + index * stride
        k.store(y, at, value, size)

    def row(place: list[Expr], low: int | Expr, count: int) -> None:
        for start, tiles, vecs, size in channel_pieces(count, lanes, 1):
            with k.loop(tiles, "c") as t:
                element(place, k.let(t * (vecs * size) + (low + start), "i"), size)

    if len(shape) == 1 and width > _BLOCK and target.threads:
        whole = width // _BLOCK
        with k.work(whole, "b") as block:
            row([], k.let(block * _BLOCK, "lo"), _BLOCK)
        if width % _BLOCK:
            with k.first_part():
                row([], whole * _BLOCK, width % _BLOCK)
        return k.finish()
    if not target.threads:  # nothing to share out: loops, without divisions to find one's place
        with ExitStack() as loops:
            row([loops.enter_context(k.loop(d, "p")) for d in shape[:-1]], 0, width)
        return k.finish()
    # short rows: the items of work are rows of rows, so that finding one's place is not most of the work
    short = width <= _SHORT and math.prod(shape[:-2]) >= _ENOUGH
    shared = shape[:-2] if short else shape[:-1]
    with k.work(math.prod(shared), "r") as item:
        place: list[Any] = []
        rest = item
        for d in reversed(shared):
            place.insert(0, k.let(rest % d, "p"))
            rest = k.let(rest // d, "q")
        if short:
            with k.loop(shape[-2], "s") as inner:
                row([*place, inner], 0, width)
        else:
            row(place, 0, width)
    return k.finish()


def _lanes(spec: ElementwiseSpec, target: Target) -> int:
    """32-bit lanes, or bytes when nothing in the expression is wider than a byte."""
    narrow = {"uint8", "int8"}
    types = {i.dtype for i in spec.expression} | {o.dtype for o in spec.operands} | {spec.y_dtype}
    if types <= narrow:
        return target.vector_bytes
    if any(t.endswith("64") for t in types):
        return max(target.vector_bytes // 8, 1)
    return lanes_of(target)


def build_fill(symbol: str, spec: FillSpec, target: Target) -> Any:
    """`symbol(y, part, parts)`: the border of an image gets one value."""
    k = KernelBuilder(symbol, target)
    y = k.pointer("y", spec.dtype, spec.size)
    images, height, width, channels = spec.shape
    top, left, rows, columns, inner = spec.inner
    lanes = target.vector_bytes // (1 if spec.dtype in ("uint8", "int8") else 4)
    sn, sh, sw = spec.strides

    def run(at: Expr, count: int) -> None:
        for start, tiles, _, size in channel_pieces(count, lanes, 1):
            with k.loop(tiles, "c") as t:
                k.store(y, at + (t * size + start), const(spec.value, spec.dtype, size), size)

    def area(row: Expr, w0: int, wn: int, c0: int, cn: int) -> None:
        if wn <= 0 or cn <= 0:
            return
        base = row + (w0 * sw + c0)
        if sw == cn:  # neighbouring places touch: one run
            run(base, wn * cn)
        else:
            with k.loop(wn, "w") as w:
                run(base + w * sw, cn)

    with k.work(images * height, "r") as item:
        n, h = k.let(item // height, "n"), k.let(item % height, "h")
        row = k.let(n * sn + h * sh, "row")
        inside = (h >= top) & (h < top + rows)
        with k.when(tirx.Not(inside)):
            area(row, 0, width, 0, channels)
        with k.when(inside):
            area(row, 0, left, 0, channels)
            area(row, left + columns, width - left - columns, 0, channels)
            area(row, left, columns, inner, channels - inner)
    return k.finish()
