"""Depthwise convolution of bytes on x86: several kernel rows at a time through dot products.

The rows of the image under a kernel are packed into 32-bit words, one word per channel: four rows as bytes for
vpdpbusd, two rows as 16-bit numbers for pmaddwd (rows 0 and 2 of four, rows 1 and 3). One dot product then does two or
four taps for every channel of a vector, exactly. A column of the image is packed once and serves all taps of its rows,
so the work per output is about KW * ceil(KH / 4) dot products and the packing of one column.

Weights: [ceil(kh / rows), kw, padded channels, rows], int8; missing rows have weight zero. Weights with a zero point
need 16 bits and come in groups of two rows.
"""

from __future__ import annotations

from typing import Any

from irc.backends.tvm.geometry import (
    chunks,
    depthwise_channels,
    depthwise_columns,
    depthwise_rows,
    fields_of,
    lanes_of,
    spans,
)
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, cast, const, intrinsic, reinterpret
from irc.backends.tvm.kernels.channels import operand_reader
from irc.backends.tvm.kernels.emit import emit_expression
from irc.backends.tvm.kernels.steps import PMADDWD, VPDPBUSD, column_weights, split_bytes
from irc.backends.tvm.specs import DepthwiseSpec
from irc.targets.target import Target


class _Depthwise:
    def __init__(self, symbol: str, spec: DepthwiseSpec, target: Target) -> None:
        self.spec, self.target = spec, target
        self.lanes = lanes_of(target)
        self.rows = depthwise_rows(spec.x_dtype, spec.w_dtype, target)
        k = self.k = KernelBuilder(symbol, target)
        self.padded = depthwise_channels(spec.channels)
        self.halves = self.rows == 4 and target.dot != "vpdpbusd"
        self.groups = -(-spec.kernel[0] // self.rows)
        self.x = k.pointer("x", spec.x_dtype, spec.x_size)
        self.stored = depthwise_columns(spec.kernel[1], spec.w_dtype)
        dtype = "int8" if spec.w_dtype == "int4" else spec.w_dtype
        self.w = k.pointer("w", dtype, self.groups * self.stored * self.padded * self.rows)
        self.operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
        self.y = k.pointer("y", spec.y_dtype, spec.y_size)
        columns, vectors = spec.tile
        self.acc = k.local(columns * vectors * self.lanes, "int32")

    def build(self) -> Any:
        spec, k = self.spec, self.k
        pieces = self._pieces()
        with k.shares(spec.batch * spec.out[0], sum(p[1] for p in pieces), True, "r") as (item, low, high):
            n, h = k.let(item // spec.out[0], "n"), k.let(item % spec.out[0], "h")
            before = 0
            for start, count, vectors, size in pieces:
                with k.between(before, count, low, high, "c") as t:
                    channel = k.let(t * (vectors * size) + start, "ch")
                    for first, tiles, columns in spans(spec.out[1], spec.tile[0]):
                        with k.loop(tiles, "x") as tile:
                            self._tile(n, h, k.let(tile * columns + first, "col"), channel, columns, vectors, size)
                before += count
        return k.finish()

    def _pieces(self) -> list[tuple[int, int, int, int]]:
        """(first channel, tiles, vectors, lanes): whole vectors, then parts of 8 and 4 lanes, then single channels."""
        whole, used = divmod(self.spec.channels, self.lanes)
        found = [(start * self.lanes, n, size, self.lanes) for start, n, size in spans(whole, self.spec.tile[1])]
        base = whole * self.lanes
        for offset, size in chunks(self.lanes, used) if used else []:
            found.append((base + offset, 1, 1, size) if size >= 4 else (base + offset, size, 1, 1))
        return found

    def _tile(self, n: Expr, h: Expr, col: Expr, channel: Expr, columns: int, vectors: int, size: int) -> None:
        spec, k = self.spec, self.k
        sn, sh, sw = spec.x_strides
        for i in range(columns * vectors):
            k.store(self.acc, i * size, const(0, "int32", size), size)
        base = k.let(n * sn + h * (spec.stride[0] * sh) + col * (spec.stride[1] * sw) + channel, "xb")
        reach = (columns - 1) * spec.stride[1] + (spec.kernel[1] - 1) * spec.dilation[1] + 1
        for group in range(self.groups):
            weights = [
                [self._weights(group, kw, channel + v * size, size) for v in range(vectors)]
                for kw in range(spec.kernel[1])
            ]
            for j in range(reach):
                users = [(c, kw) for c in range(columns) for kw in range(spec.kernel[1]) if self._column(c, kw) == j]
                for v in range(vectors) if users else ():
                    packed = self._packed(base, group, j, v * size, size)
                    for c, kw in users:
                        at = (c * vectors + v) * size
                        k.store(self.acc, at, self._dot(k.load(self.acc, at, size), packed, weights[kw][v], size), size)
        self._write(n, h, col, channel, columns, vectors, size)

    def _column(self, c: int, kw: int) -> int:
        return c * self.spec.stride[1] + kw * self.spec.dilation[1]

    def _row_count(self, group: int) -> int:
        return min(self.rows, self.spec.kernel[0] - group * self.rows)

    def _weights(self, group: int, kw: int, channel: Expr, size: int) -> Any:
        """A vector of weights as the dot product wants it; for single channels a list of numbers, one per row."""
        k = self.k
        w_dtype = self.spec.w_dtype
        column = kw // fields_of(w_dtype)
        at = ((group * self.stored + column) * self.padded + channel) * self.rows
        if size == 1:
            each = [column_weights(k.load(self.w, at + r), kw, w_dtype, 1) for r in range(self._row_count(group))]
            return [k.let(cast(e, "int32")) for e in each]
        raw = column_weights(k.load(self.w, at, self.rows * size), kw, w_dtype, self.rows * size)
        if self.halves:
            even, odd = split_bytes(k, raw, size)
            return (even, odd) if self._row_count(group) > 1 else (even,)
        wide = self.rows == 2 and self.spec.w_dtype == "int8"
        return k.let(cast(raw, "int16", 2 * size) if wide else raw, "w")

    def _packed(self, base: Expr, group: int, j: int, offset: int, size: int) -> Any:
        """The rows of a group at column j: a vector of words, or for single channels a list of numbers."""
        spec, k = self.spec, self.k
        _, sh, sw = spec.x_strides
        bits = 32 // self.rows
        values = []
        for r in range(self._row_count(group)):
            at = base + ((group * self.rows + r) * spec.dilation[0] * sh + j * sw + offset)
            values.append(k.let(cast(k.load(self.x, at, size), "int32", size), "a"))
        if size == 1:
            return values
        if self.halves:
            return tuple(self._word(values[r::2], 16, size) for r in range(min(len(values), 2)))
        return self._word(values, bits, size)

    def _word(self, values: list[Expr], bits: int, size: int) -> Expr:
        """Numbers of `bits` side by side in the words of a vector, the first one lowest."""
        word = values[0]
        for i, value in enumerate(values[1:], 1):
            word = word | value << const(i * bits, "int32", size)
        return self.k.let(reinterpret(word, f"int{bits}x{32 // bits * size}"), "p")

    def _dot(self, acc: Expr, x: Any, w: Any, size: int) -> Expr:
        if size == 1:
            for a, b in zip(x, w, strict=True):
                acc = acc + a * b
            return acc
        if self.halves:
            parts = [intrinsic(PMADDWD[size], f"int32x{size}", a, b) for a, b in zip(x, w, strict=True)]
            return acc + (parts[0] if len(parts) == 1 else parts[0] + parts[1])
        if self.rows == 4:
            return intrinsic(VPDPBUSD[size], f"int32x{size}", acc, x, w)
        return acc + intrinsic(PMADDWD[size], f"int32x{size}", x, w)

    def _write(self, n: Expr, h: Expr, col: Expr, channel: Expr, columns: int, vectors: int, size: int) -> None:
        spec, k = self.spec, self.k
        yn, yh, yw = spec.y_strides
        for c in range(columns):
            for v in range(vectors):
                place = k.let(channel + v * size, "ch")
                read = operand_reader(k, self.operands, spec.operands, [n, h, col + c], place)
                acc = k.load(self.acc, (c * vectors + v) * size, size)
                value = emit_expression(k, spec.expression, size, read, acc)
                k.store(self.y, n * yn + h * yh + (col + c) * yw + place, value, size)


def build(symbol: str, spec: DepthwiseSpec, target: Target) -> Any:
    """`symbol(x, w, operands..., y, part, parts)`."""
    return _Depthwise(symbol, spec, target).build()
