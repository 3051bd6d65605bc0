"""Kernels whose channels do not mix: depthwise convolution, pooling. Vectors run over channels."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import (
    chunks,
    depthwise_channels,
    depthwise_columns,
    fields_of,
    lanes_of,
    spans,
)
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, cast, const
from irc.backends.tvm.kernels.emit import emit_expression, emit_levels
from irc.backends.tvm.kernels.linear import split_start
from irc.backends.tvm.kernels.rounding import pack, packs
from irc.backends.tvm.kernels.steps import column_weights
from irc.backends.tvm.magnitude import count_limit, magnitudes, sum_limit
from irc.backends.tvm.specs import DepthwiseSpec, Operand, PoolSpec
from irc.targets.target import Target

_BYTES = 16  # of a vector of 64-bit Arm


def channel_pieces(channels: int, lanes: int, vectors: int) -> list[tuple[int, int, int, int]]:
    """(first channel, tiles, vectors in a tile, lanes of a vector): whole tiles, the rest, then parts of a vector."""
    found = [(start * lanes, count, size, lanes) for start, count, size in spans(channels // lanes, vectors)]
    used = channels % lanes
    if used:
        base = channels - used
        found += [(base + offset, 1, 1, size) for offset, size in chunks(lanes, used)]
    return found


def operand_reader(
    k: KernelBuilder, operands: list[Any], specs: tuple[Operand, ...], place: list[Expr], channel: Expr
) -> Any:
    """A reader for `emit_expression`: operand n at `place` (index per dimension), `lanes` channels from `channel`."""

    def read(n: int, lanes: int) -> Expr:
        o = specs[n]
        at: Expr = channel * o.strides[-1]
        for index, stride in zip(place, o.strides, strict=False):
            at = at + index * stride
        if o.strides[-1] == 0:
            return broadcast(k.load(operands[n], at), lanes)
        return k.load(operands[n], at, lanes)

    return read


def build_depthwise(symbol: str, spec: DepthwiseSpec, target: Target) -> Any:
    """`symbol(x, w, operands..., y, part, parts)`; w is [kh, kw, padded channels]."""
    lanes = lanes_of(target)
    k = KernelBuilder(symbol, target)
    padded = depthwise_channels(spec.channels)
    x = k.pointer("x", spec.x_dtype, spec.x_size)
    stored = depthwise_columns(spec.kernel[1], spec.w_dtype)
    w = k.pointer("w", "int8" if spec.w_dtype == "int4" else spec.w_dtype, spec.kernel[0] * stored * padded)
    operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size)
    real = spec.x_dtype == "float32"
    acc_dtype = "float32" if real else "int32"
    columns, vectors = spec.tile
    arm = target.arch == "aarch64"
    start, expression = split_start(spec) if arm else (None, spec.expression)
    limits = None
    if arm:
        limit = sum_limit(spec.x_dtype, spec.kernel[0] * spec.kernel[1]) if spec.w_dtype != "int16" else math.inf
        limit += spec.operands[start].limit if start is not None else 0.0
        limits = magnitudes(expression, limit, [o.limit for o in spec.operands])
    narrow = lanes  # of the results' arithmetic
    if arm and spec.x_dtype in ("int8", "uint8") and spec.w_dtype in ("int8", "int4"):  # 16 bytes a load
        lanes, vectors = _BYTES, max(vectors * lanes // _BYTES, 1)
    acc = k.local(columns * vectors * lanes, acc_dtype)
    sn, sh, sw = spec.x_strides

    def tile(n: Expr, h: Expr, col: Expr, channel: Expr, count: int, vecs: int, size: int) -> None:
        for v in range(vecs):
            first = const(0, acc_dtype, size)
            if start is not None:
                first = k.let(k.load(operands[start], channel + v * size, size), "f")
            for c in range(count):
                k.store(acc, (c * vecs + v) * size, first, size)
        base = k.let(n * sn + h * (spec.stride[0] * sh) + col * (spec.stride[1] * sw) + channel, "xb")
        with k.loop(spec.kernel[0], "kh") as kh:
            for kw in range(spec.kernel[1]):
                w_at = (kh * stored + kw // fields_of(spec.w_dtype)) * padded + channel
                x_at = base + kh * (spec.dilation[0] * sh) + kw * spec.dilation[1] * sw
                for v in range(vecs):
                    weight = column_weights(k.load(w, w_at + v * size, size), kw, spec.w_dtype, size)
                    weight = k.let(weight if real else cast(weight, "int16", size))
                    for c in range(count):
                        at = (c * vecs + v) * size
                        value = k.load(x, x_at + c * spec.stride[1] * sw + v * size, size)
                        k.store(acc, at, k.load(acc, at, size) + _product(value, weight, spec, size), size)
        yn, yh, yw = spec.y_strides
        for c in range(count):
            for v in range(vecs):
                at = k.let(n * yn + h * yh + (col + c) * yw + channel + v * size, "yb")
                pieces = range(0, size, min(size, narrow))
                readers = [
                    operand_reader(k, operands, spec.operands, [n, h, col + c], k.let(channel + (v * size + i), "ch"))
                    for i in pieces
                ]
                first, each = (c * vecs + v) * size, min(size, narrow)
                totals = [k.load(acc, first + i, each) for i in pieces]
                if size == 4 * narrow and packs(k, narrow, expression) and limits is not None:
                    found = [
                        emit_levels(k, expression, narrow, r, s, limits) for r, s in zip(readers, totals, strict=True)
                    ]
                    k.store(y, at, pack(k, found, expression[-1], narrow), size)
                    continue
                for i, read, total in zip(pieces, readers, totals, strict=True):
                    k.store(y, at + i, emit_expression(k, expression, each, read, total, limits=limits), each)

    pieces = channel_pieces(spec.channels, lanes, vectors)
    with k.shares(spec.batch * spec.out[0], sum(p[1] for p in pieces), True, "r") as (item, low, high):
        n = k.let(item // spec.out[0], "n")
        h = k.let(item % spec.out[0], "h")
        before = 0
        for begin, count, vecs, size in pieces:
            with k.between(before, count, low, high, "c") as t:
                channel = k.let(t * (vecs * size) + begin, "ch")
                for first, tiles, wide in spans(spec.out[1], columns):
                    with k.loop(tiles, "x") as column:
                        tile(n, h, k.let(column * wide + first, "col"), channel, wide, vecs, size)
            before += count
    return k.finish()


def _product(value: Expr, weight: Expr, spec: DepthwiseSpec, size: int) -> Expr:
    if spec.x_dtype == "float32":
        return value * weight
    if "int16" in (spec.w_dtype, spec.x_dtype):  # weights with a zero point: the product may need more than 16 bits
        return cast(value, "int32", size) * cast(weight, "int32", size)
    return cast(cast(value, "int16", size) * weight, "int32", size)  # 255 * 128 fits into 16 bits


_LOWEST = {
    "float32": -math.inf,
    "uint8": 0,
    "int8": -128,
    "int16": -32768,
    "int32": -(2**31),
    "float64": -math.inf,
    "int64": -(2**63),
}


def _pool_limit(spec: PoolSpec) -> float:
    """Of what a window's reduction gives."""
    return count_limit(spec.x_dtype, spec.kernel[0] * spec.kernel[1] if spec.kind == "sum" else 1)


def build_pool(symbol: str, spec: PoolSpec, target: Target) -> Any:
    """`symbol(x, operands..., y, part, parts)`. Windows are clipped to the image, so no padding is ever read."""
    lanes = lanes_of(target)
    if spec.kind == "max" and spec.x_dtype in ("uint8", "int8") and lanes > 1:
        lanes *= 4
    k = KernelBuilder(symbol, target)
    x = k.pointer("x", spec.x_dtype, spec.x_size)
    operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size)
    small = spec.x_dtype in ("uint8", "int8", "int16")
    acc_dtype = "int32" if spec.kind == "sum" and small else spec.x_dtype
    start_value = 0 if spec.kind == "sum" else _LOWEST[spec.x_dtype]
    # one element at a time is what small machines do, and there the limits save instructions
    limits = magnitudes(spec.expression, _pool_limit(spec), [o.limit for o in spec.operands]) if lanes == 1 else None
    vectors = 1 if target.small else 4
    acc = k.local(vectors * lanes, acc_dtype)
    sn, sh, sw = spec.x_strides

    def bounds(place: Expr, axis: int) -> tuple[Expr, Expr]:
        """First and one-past-last kernel position inside the image."""
        origin = k.let(place * spec.stride[axis] - spec.pads[axis], "at")
        d, size = spec.dilation[axis], spec.image[axis]
        low = k.let(tirx.Max(tirx.const(0, "int32"), tirx.truncdiv(d - 1 - origin, tirx.const(d, "int32"))), "lo")
        high = k.let(
            tirx.Min(
                tirx.const(spec.kernel[axis], "int32"),
                tirx.truncdiv(size - origin + d - 1, tirx.const(d, "int32")),
            ),
            "hi",
        )
        return low, high

    pieces = channel_pieces(spec.channels, lanes, vectors)
    with k.shares(spec.batch * spec.out[0], sum(p[1] for p in pieces), True, "r", many=4) as (item, first, end):
        n = k.let(item // spec.out[0], "n")
        h = k.let(item % spec.out[0], "h")
        h_low, h_high = bounds(h, 0)
        with k.loop(spec.out[1], "col") as col:
            w_low, w_high = bounds(col, 1)
            count = k.let(cast((h_high - h_low) * (w_high - w_low), "float32"), "n")
            before = 0
            for start, tiles, vecs, size in pieces:
                with k.between(before, tiles, first, end, "c") as t:
                    channel = k.let(t * (vecs * size) + start, "ch")
                    for v in range(vecs):
                        k.store(acc, v * size, const(start_value, acc_dtype, size), size)
                    row = k.let(h * spec.stride[0] - spec.pads[0], "row")
                    column = k.let(col * spec.stride[1] - spec.pads[1], "cl")
                    with (
                        k.loop(h_high - h_low, "kh", start=h_low) as kh,
                        k.loop(w_high - w_low, "kw", start=w_low) as kw,
                    ):
                        at = n * sn + (row + kh * spec.dilation[0]) * sh + (column + kw * spec.dilation[1]) * sw
                        at = k.let(at + channel, "xa")
                        for v in range(vecs):
                            value = k.load(x, at + v * size, size)
                            old = k.load(acc, v * size, size)
                            if spec.kind == "max":
                                k.store(acc, v * size, tirx.Max(old, value), size)
                            else:
                                wide = cast(value, acc_dtype, size) if acc_dtype != spec.x_dtype else value
                                k.store(acc, v * size, old + wide, size)
                    yn, yh, yw = spec.y_strides
                    for v in range(vecs):
                        place = k.let(channel + v * size, "ch")
                        read = operand_reader(k, operands, spec.operands, [n, h, col], place)

                        def operand(i: int, lanes: int, read: Any = read) -> Expr:
                            return broadcast(count, lanes) if i == -1 else read(i, lanes)

                        total = k.load(acc, v * size, size)
                        value = emit_expression(k, spec.expression, size, operand, total, limits=limits)
                        k.store(y, n * yn + h * yh + col * yw + place, value, size)
                before += tiles
    return k.finish()
