"""Resize of images whose channels lie side by side: weighted sums of rows and columns from tables.

With one tap in both directions (nearest) elements are moved as they are. Sums run over the columns first, then over
the rows; where bytes or a quantization are involved every product is rounded on its own, so that all machines agree.
"""

from __future__ import annotations

from typing import Any

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, cast
from irc.backends.tvm.kernels.channels import channel_pieces, operand_reader
from irc.backends.tvm.kernels.emit import emit_expression, fence
from irc.backends.tvm.specs import ResizeSpec
from irc.targets.target import Target

_BYTES = ("uint8", "int8")
_QUANTIZED = (*_BYTES, "int16")


def build(symbol: str, spec: ResizeSpec, target: Target) -> Any:
    """`symbol(x, row offsets, [row weights], column offsets, [column weights], operands..., y, part, parts)`."""
    k = KernelBuilder(symbol, target)
    x = k.pointer("x", spec.x_dtype, spec.x_size)
    tables: list[tuple[Any, Any]] = []
    for axis, name in enumerate("rc"):
        entries = spec.out[axis] * spec.taps[axis]
        offsets = k.pointer(name, "int32", entries)
        tables.append((offsets, k.pointer("w" + name, "float32", entries) if spec.taps[axis] > 1 else None))
    operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size)
    moved = spec.taps == (1, 1)
    bytes_only = {spec.x_dtype, spec.y_dtype, *(i.dtype for i in spec.expression)} <= set(_BYTES) and not operands
    lanes = target.vector_bytes if moved and bytes_only else lanes_of(target)
    exact = spec.x_dtype in _QUANTIZED or any(i.op in ("requantize", "scale", "dequantize") for i in spec.expression)

    def places(axis: int, index: Expr) -> list[tuple[Expr, Expr]]:
        offsets, weights = tables[axis]
        found = []
        for t in range(spec.taps[axis]):
            at = index * spec.taps[axis] + t
            weight = None if weights is None else k.let(k.load(weights, at), "w")
            found.append((k.let(k.load(offsets, at), "o"), weight))
        return found

    def weighed(terms: list[tuple[Expr, Expr]], size: int) -> Expr:
        total = None
        for value, weight in terms:
            term = value if weight is None else value * broadcast(weight, size)
            term = fence(term, size) if exact and weight is not None else term
            total = term if total is None else total + term
        return k.let(total)

    def value(rows: list[tuple[Expr, Expr]], columns: list[tuple[Expr, Expr]], base: Expr, size: int) -> Expr:
        if moved:
            return k.load(x, base + rows[0][0] + columns[0][0], size)
        sums = []
        for row, weight in rows:
            found = [(k.load(x, base + row + column, size), w) for column, w in columns]
            if spec.x_dtype in _QUANTIZED:
                found = [(cast(cast(v, "int32", size), "float32", size), w) for v, w in found]
            sums.append((weighed(found, size), weight))
        return weighed(sums, size)

    with k.work(spec.batch * spec.out[0], "r") as item:
        n, h = k.let(item // spec.out[0], "n"), k.let(item % spec.out[0], "h")
        rows = places(0, h)
        with k.loop(spec.out[1], "x") as col:
            columns = places(1, col)
            for start, count, vectors, size in channel_pieces(spec.channels, lanes, 1):
                with k.loop(count, "c") as t:
                    channel = k.let(t * (vectors * size) + start, "ch")
                    read = operand_reader(k, operands, spec.operands, [n, h, col], channel)
                    found = value(rows, columns, n * spec.x_stride + channel, size)
                    result = emit_expression(k, spec.expression, size, read, found)
                    yn, yh, yw = spec.y_strides
                    k.store(y, n * yn + h * yh + col * yw + channel, result, size)
    return k.finish()
