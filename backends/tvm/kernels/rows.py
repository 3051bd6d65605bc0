"""Kernels over rows of contiguous elements (softmax, normalizations) and general reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import chunks, lanes_of, spans
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, broadcast, cast, const, intrinsic
from irc.backends.tvm.kernels.channels import channel_pieces, operand_reader
from irc.backends.tvm.kernels.emit import decay, emit_expression, needs_scalar
from irc.backends.tvm.magnitude import count_limit, magnitudes
from irc.backends.tvm.specs import ReduceSpec, RowsSpec
from irc.targets.target import Target


def _unravel(k: KernelBuilder, item: Expr, shape: tuple[int, ...]) -> list[Expr]:
    place: list[Expr] = []
    for d in reversed(shape):
        place.insert(0, k.let(item % d, "p"))
        item = k.let(item // d, "q")
    return place


def _offset(place: list[Expr], strides: tuple[int, ...]) -> Expr:
    at: Expr = tirx.const(0, "int32")
    for index, stride in zip(place, strides, strict=True):
        at = at + index * stride
    return at


_COMBINE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "sum": lambda a, b: a + b,
    "max": tirx.Max,
    "min": tirx.Min,
    "prod": lambda a, b: a * b,
}


def _start(kind: str, dtype: str) -> float:
    if kind in ("sum", "prod"):
        return 0 if kind == "sum" else 1
    if dtype.startswith("float"):
        return -math.inf if kind == "max" else math.inf
    bits = int("".join(c for c in dtype if c.isdigit()))
    low, high = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return low if kind == "max" else high


_CHAINS = 4  # accumulators side by side: as many as an addition takes cycles


def fold_lanes(k: KernelBuilder, value: Expr, kind: str, lanes: int) -> Expr:
    """One value from `lanes` partial results (a power of two): halves against each other (so the order is fixed)."""
    while lanes > 1:
        lanes //= 2
        low, high = (tirx.Shuffle([value], list(range(at, at + lanes))) for at in (0, lanes))
        value = k.let(_COMBINE[kind](low, high))
    return value


def reduce_row(
    k: KernelBuilder, kind: str, dtype: str, width: int, lanes: int, value: Callable[[Expr, int], Expr]
) -> Expr:
    """The reduction of value(i, lanes) over i in [0, width)."""
    if k.target is not None and k.target.small and lanes == 1:
        return _reduce_row_small(k, kind, dtype, width, value)
    whole = width // lanes
    chains = max(1, min(_CHAINS, whole))
    acc = k.local(chains * lanes, dtype)
    for c in range(chains):
        k.store(acc, c * lanes, const(_start(kind, dtype), dtype, lanes), lanes)
    for start, count, vectors in spans(whole, chains):
        with k.loop(count, "j") as t:
            for c in range(vectors):
                i = k.let((t * vectors + (start + c)) * lanes, "i")
                k.store(acc, c * lanes, _COMBINE[kind](k.load(acc, c * lanes, lanes), value(i, lanes)), lanes)
    for offset, size in chunks(lanes, width % lanes) if width % lanes else ():
        i = k.let(const(whole * lanes + offset, "int32"), "i")
        k.store(acc, 0, _COMBINE[kind](k.load(acc, 0, size), value(i, size)), size)
    total = k.load(acc, 0, lanes)
    for c in range(1, chains):
        total = k.let(_COMBINE[kind](total, k.load(acc, c * lanes, lanes)))
    return fold_lanes(k, k.let(total), kind, lanes)


def _reduce_row_small(k: KernelBuilder, kind: str, dtype: str, width: int, value: Callable[[Expr, int], Expr]) -> Expr:
    """The same in the same order, as one loop: the code of `value` stands there once."""
    chains = _CHAINS if dtype.startswith("float") and kind in ("sum", "prod") else 1  # any order does for the others
    acc = k.local(chains, dtype)
    for c in range(chains):
        k.store(acc, c, const(_start(kind, dtype), dtype))
    with k.loop(k.unknown(width), "j") as i:
        element = k.let(value(i, 1))
        at = i & (chains - 1) if chains > 1 else 0
        k.store(acc, at, _COMBINE[kind](k.load(acc, at), element))
    total = k.load(acc, 0)
    for c in range(1, chains):
        total = k.let(_COMBINE[kind](total, k.load(acc, c)))
    return k.let(total)


def build_rows(symbol: str, spec: RowsSpec, target: Target) -> Any:
    """`symbol(x, operands..., y, part, parts)`."""
    k = KernelBuilder(symbol, target)
    x = k.pointer("x", spec.x_dtype, spec.x_size)
    operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size)
    scratch = k.local(spec.width, "float32", "row")
    lanes = lanes_of(target)
    rows = math.prod(spec.shape)
    # a softmax of integers is a number; one element at a time, that saves instructions
    whole = spec.kind == "softmax" and lanes == 1 and any(i.op == "dequantize" for i in spec.prologue)
    limits = magnitudes(spec.expression, 2.0, [o.limit for o in spec.operands]) if whole else None
    with k.work(rows, "r") as item:
        place = _unravel(k, item, spec.shape)
        x_at = k.let(_offset(place, spec.x_strides), "xa")
        y_at = k.let(_offset(place, spec.y_strides), "ya")

        def raw(i: Expr, size: int, first: Expr = x_at) -> Expr:
            return k.load(x, first + i, size)

        def source(i: Expr, size: int) -> Expr:
            value = raw(i, size)
            if not spec.prologue:
                return value
            return emit_expression(k, spec.prologue, size, lambda n, lanes: value)

        scale_and_write = _softmax if spec.kind in ("softmax", "log_softmax") else _normalize
        result = scale_and_write(k, spec, lanes, source, raw, scratch)
        for start, tiles, _, size in channel_pieces(spec.width, lanes, 1):
            with k.loop(k.unknown(tiles) if lanes == 1 and target.small else tiles, "j") as t:
                i = k.let(t * size + start, "i")
                value = k.let(result(i, size))
                read = operand_reader(k, operands, spec.operands, place, i)
                k.store(y, y_at + i, emit_expression(k, spec.expression, size, read, value, limits=limits), size)
    return k.finish()


def _softmax(
    k: KernelBuilder,
    spec: RowsSpec,
    lanes: int,
    source: Callable[[Expr, int], Expr],
    raw: Callable[[Expr, int], Expr],
    scratch: Buffer,
) -> Callable[[Expr, int], Expr]:
    """exp(x - max) / sum: three passes over the row, the middle one stores the exponentials."""
    top = _largest(k, spec, lanes, source, raw)

    def exponential(i: Expr, size: int) -> Expr:
        shifted = k.let(source(i, size) - broadcast(top, size))
        value = k.let(decay(k, shifted, size))
        k.store(scratch, i, value if spec.kind == "softmax" else shifted, size)
        return value

    total = reduce_row(k, "sum", "float32", spec.width, lanes, exponential)
    if spec.kind == "softmax":
        factor = k.let(tirx.const(1.0, "float32") / total)
        return lambda i, size: k.load(scratch, i, size) * broadcast(factor, size)
    log_total = k.let(tirx.call_pure_extern("float32", "logf", total))
    return lambda i, size: k.load(scratch, i, size) - broadcast(log_total, size)


def _largest(
    k: KernelBuilder, spec: RowsSpec, lanes: int, source: Callable[[Expr, int], Expr], raw: Callable[[Expr, int], Expr]
) -> Expr:
    """The maximum of a row. Without vectors, that of integers before they become real."""
    if lanes > 1 or [i.op for i in spec.prologue] != ["operand", "dequantize"] or spec.prologue[1].params[0] <= 0:
        return reduce_row(k, "max", "float32", spec.width, lanes, source)
    top = reduce_row(k, "max", "int32", spec.width, 1, lambda i, size: cast(raw(i, size), "int32"))
    return k.let(emit_expression(k, spec.prologue, 1, lambda n, lanes: top))


def _normalize(
    k: KernelBuilder,
    spec: RowsSpec,
    lanes: int,
    source: Callable[[Expr, int], Expr],
    raw: Callable[[Expr, int], Expr],
    scratch: Buffer,
) -> Callable[[Expr, int], Expr]:
    """(x - mean) / sqrt(variance + epsilon), two-pass variance; without the mean for rms_norm."""
    inverse = tirx.const(1.0 / spec.width, "float32")
    centred = spec.kind == "layer_norm"
    mean = k.let(reduce_row(k, "sum", "float32", spec.width, lanes, source) * inverse) if centred else None

    def square(i: Expr, size: int) -> Expr:
        value = source(i, size)
        value = k.let(value - broadcast(mean, size) if mean is not None else value)
        k.store(scratch, i, value, size)
        return value * value

    variance = k.let(reduce_row(k, "sum", "float32", spec.width, lanes, square) * inverse)
    root = intrinsic("llvm.sqrt", "float32", variance + tirx.const(spec.epsilon, "float32"))
    factor = k.let(tirx.const(1.0, "float32") / root)
    return lambda i, size: k.load(scratch, i, size) * broadcast(factor, size)


def build_reduce(symbol: str, spec: ReduceSpec, target: Target) -> Any:
    """`symbol(x, operands..., y, part, parts)`; the accumulator has the prologue's type."""
    k = KernelBuilder(symbol, target)
    x = k.pointer("x", spec.x_dtype, spec.x_size)
    operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
    y = k.pointer("y", spec.y_dtype, spec.y_size)
    dtype = spec.prologue[-1].dtype if spec.prologue else spec.x_dtype
    lanes = lanes_of(target) if not dtype.endswith("64") else max(target.vector_bytes // 8, 1)
    if needs_scalar(spec.prologue) or needs_scalar(spec.expression):
        lanes = 1
    shape, reduced = spec.shape or (1,), spec.reduced or (1,)
    xs, rs, ys = (spec.x_strides or (0,)), (spec.r_strides or (0,)), (spec.y_strides or (0,))
    limits = _reduce_limits(spec, dtype) if lanes == 1 else None
    kept_vector = xs[-1] == 1 and ys[-1] == 1 and lanes > 1

    def source(at: Expr, size: int) -> Expr:
        value = k.load(x, at, size)
        return emit_expression(k, spec.prologue, size, lambda n, lanes: value) if spec.prologue else value

    def write(place: list[Expr], last: Expr, size: int, value: Expr) -> None:
        read = operand_reader(k, operands, spec.operands, place, last)
        result = emit_expression(k, spec.expression, size, read, value, limits=limits)
        k.store(y, _offset(place, ys[:-1]) + last * ys[-1], result, size)

    pieces = channel_pieces(shape[-1], lanes if kept_vector else 1, 1)
    with k.shares(math.prod(shape[:-1]), sum(p[1] for p in pieces), True, "r") as (item, low, high):
        place = _unravel(k, item, shape[:-1])
        base = k.let(_offset(place, xs[:-1]), "xb")
        acc = k.local(lanes, dtype)
        before = 0
        for start, tiles, _, size in pieces:
            with k.between(before, tiles, low, high, "c") as t:
                last = k.let(t * size + start, "i")
                origin = k.let(base + last * xs[-1], "xo")
                if kept_vector or rs[-1] != 1 or lanes == 1:
                    k.store(acc, 0, const(_start(spec.kind, dtype), dtype, size), size)
                    with k.loop(math.prod(reduced), "d") as d:
                        at = origin + _offset(_unravel(k, d, reduced), rs)
                        old = k.load(acc, 0, size)
                        k.store(acc, 0, _COMBINE[spec.kind](old, source(at, size)), size)
                    value = k.load(acc, 0, size)
                else:
                    value = _reduce_contiguous(k, spec, dtype, lanes, reduced, rs, origin, source)
                write(place, last, size, k.let(value))
            before += tiles
    return k.finish()


def _reduce_limits(spec: ReduceSpec, dtype: str) -> list[float] | None:
    """Of the values of the expression after a sum of integers; None for others."""
    if spec.kind != "sum" or dtype != "int32":
        return None
    return magnitudes(
        spec.expression, count_limit(spec.x_dtype, math.prod(spec.reduced)), [o.limit for o in spec.operands]
    )


def _reduce_contiguous(
    k: KernelBuilder,
    spec: ReduceSpec,
    dtype: str,
    lanes: int,
    reduced: tuple[int, ...],
    strides: tuple[int, ...],
    origin: Expr,
    source: Callable[[Expr, int], Expr],
) -> Expr:
    """The innermost reduced dimension is contiguous: partial results in lanes, folded at the end."""
    total = k.local(1, dtype)
    k.store(total, 0, const(_start(spec.kind, dtype), dtype))
    with k.loop(math.prod(reduced[:-1]), "d") as d:
        row = k.let(origin + _offset(_unravel(k, d, reduced[:-1]), strides[:-1]), "ro")
        value = reduce_row(k, spec.kind, dtype, reduced[-1], lanes, lambda i, size: source(row + i, size))
        k.store(total, 0, _COMBINE[spec.kind](k.load(total, 0), value))
    return k.load(total, 0)


__all__ = ["build_reduce", "build_rows", "cast"]
