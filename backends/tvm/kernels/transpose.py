"""Elementwise kernels whose output and input are contiguous along different dimensions.

A square of the two innermost dimensions is loaded in vectors along the one, turned in registers (log2 stages of
shuffles of two vectors), and computed and stored in vectors along the other. Squares at the end of a dimension overlap
the ones before; the ones that overlap along the shared dimension belong to one work item, so shares stay disjoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, cast, const
from irc.backends.tvm.kernels.emit import emit_expression, needs_scalar
from irc.backends.tvm.specs import ElementwiseSpec
from irc.targets.target import Target

_TYPES = {"float32", "int32", "uint8", "int8"}


def fits(spec: ElementwiseSpec, target: Target) -> bool:
    """Whether this kernel exists for `spec`: some operand is contiguous along the last dimension but one.

    Not on small targets, where results may lie in an operand's memory (`overlap.py`): squares leave the order of
    elements, and where they overlap they read again what they have written over.
    """
    if target.small or len(spec.shape) < 2 or spec.y_strides[-1] != 1 or needs_scalar(spec.expression):
        return False
    types = {spec.y_dtype, *(o.dtype for o in spec.operands), *(i.dtype for i in spec.expression)}
    if not types <= _TYPES or _size(spec, target) < 4:
        return False
    others = [o.strides for o in spec.operands if not _turned(o.strides)]
    return len(others) < len(spec.operands) and all(s[-1] in (0, 1) for s in others)


def _turned(strides: Sequence[int]) -> bool:
    return strides[-1] not in (0, 1) and strides[-2] == 1


def _size(spec: ElementwiseSpec, target: Target) -> int:
    """Of the squares: a power of two."""
    smallest = min(lanes_of(target), *spec.shape[-2:])
    return 1 << (smallest.bit_length() - 1)


def turned(k: KernelBuilder, rows: Sequence[Expr]) -> list[Expr]:
    """Element j of vector i becomes element i of vector j; as many vectors as they have elements."""
    size, found = len(rows), list(rows)
    step = size // 2
    while step:
        low = [const(j if not j & step else size + j - step, "int32") for j in range(size)]
        high = [const(j + step if not j & step else size + j, "int32") for j in range(size)]
        for i in range(size):
            if i & step:
                continue
            a, b = found[i], found[i + step]
            found[i], found[i + step] = k.let(tirx.Shuffle([a, b], low), "l"), k.let(tirx.Shuffle([a, b], high), "h")
        step //= 2
    return found


def build(symbol: str, spec: ElementwiseSpec, target: Target) -> Any:
    """`symbol(operands..., y, part, parts)`."""
    k = KernelBuilder(symbol, target)
    operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size)
    *outer, height, width = spec.shape
    size = _size(spec, target)

    def square(place: list[Expr], row: Expr, column: Expr) -> None:
        def at(strides: Sequence[int], r: Expr, c: Expr) -> Expr:
            index: Expr = r * strides[-2] + c * strides[-1]
            for p, stride in zip(place, strides, strict=False):
                index = index + p * stride
            return index

        ready: dict[int, list[Expr]] = {}
        for n, o in enumerate(spec.operands):
            if _turned(o.strides):
                vectors = [k.load(operands[n], at(o.strides, row, column + i), size) for i in range(size)]
                if o.dtype in ("uint8", "int8"):  # bytes are turned as words
                    vectors = [cast(v, "int32", size) for v in vectors]
                ready[n] = turned(k, [k.let(v, "v") for v in vectors])
        for r in range(size):

            def read(n: int, lanes: int, r: int = r) -> Expr:
                o = spec.operands[n]
                if n in ready:
                    return ready[n][r] if o.dtype not in ("uint8", "int8") else cast(ready[n][r], o.dtype, lanes)
                index = at(o.strides, row + r, column)
                if o.strides[-1] == 0:
                    return broadcast(k.load(operands[n], index), lanes)
                return k.load(operands[n], index, lanes)

            value = emit_expression(k, spec.expression, size, read)
            k.store(y, at(spec.y_strides, row + r, column), value, size)

    def rows(place: list[Expr], row: Expr) -> None:
        with k.loop(-(-width // size), "x") as x:
            square(place, row, k.let(tirx.Min(x * size, const(width - size, "int32")), "col"))

    whole = height // size
    with k.work(math.prod(outer) * whole, "r") as item:
        place: list[Expr] = []
        rest = k.let(item // whole, "q")
        for d in reversed(outer):
            place.insert(0, k.let(rest % d, "p"))
            rest = k.let(rest // d, "q")
        block = k.let(item % whole, "b")
        # the last item does the rows at the end as well
        count = 1 if height % size == 0 else tirx.Select(block == whole - 1, const(2, "int32"), const(1, "int32"))
        with k.loop(count, "e") as extra:
            rows(place, k.let(tirx.Min((block + extra) * size, const(height - size, "int32")), "row"))
    return k.finish()
