"""Kernels of every family with awkward sizes, and random data for them.

Cases that take a target differ between targets only in how weights are packed and tiles are chosen: the same seeds give
the same logical data, so integer results must be the same bytes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import spec_reference
from kernel_harness import Case

from irc.backends.tvm.depthwise import packed_rows
from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.geometry import fields_of, lanes_of, step_channels
from irc.backends.tvm.magnitude import limit_of
from irc.backends.tvm.plan.pack import pack_depthwise, pack_linear, share_bytes
from irc.backends.tvm.plan.views import row_major
from irc.backends.tvm.specs import (
    DepthwiseSpec,
    ElementwiseSpec,
    FillSpec,
    LinearSpec,
    Operand,
    PoolSpec,
    ReduceSpec,
    RowsSpec,
)
from irc.targets.target import Target


def random(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Standard normal floats, or integers over the whole range (so that extremes meet)."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    info = np.iinfo(kind)
    low, high = (int(info.min), int(info.max)) if info.bits <= 16 else (-(2**20), 2**20)
    data = rng.integers(low, high, shape, endpoint=True)
    extremes = rng.random(shape) < 0.25
    return np.where(extremes, rng.choice([low, high], shape), data).astype(kind)


def half_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """uint16: float16 by rounding, bfloat16 by cutting off. int8: some whole numbers."""
    if kind == "int8":
        return np.clip(np.rint(values * 50), -128, 127).astype(np.int8)
    if kind == "float16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bits(bits: np.ndarray, kind: str) -> np.ndarray:
    """The float32 numbers that the bits stand for."""
    if kind == "int8":
        return bits.astype(np.float32)
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


# Expressions. Each gives (expression, data of its operands by role); operand 0, 1, ... in that order.
def plain(rng: np.random.Generator, channels: int, kind: str) -> tuple[Expression, list[tuple[str, np.ndarray]]]:
    return (), []


def bias_relu(rng: np.random.Generator, channels: int, kind: str) -> tuple[Expression, list[tuple[str, np.ndarray]]]:
    b = ExpressionBuilder()
    total = b.add("add", "float32", b.add("accumulator", "float32"), b.operand(0, "float32"))
    return b.finish(b.add("relu", "float32", total)), [("channel", random(rng, "float32", channels))]


def residual_scale(
    rng: np.random.Generator, channels: int, kind: str
) -> tuple[Expression, list[tuple[str, np.ndarray]]]:
    """acc + residual (one per element), times one value per place."""
    b = ExpressionBuilder()
    total = b.add("add", "float32", b.add("accumulator", "float32"), b.operand(0, "float32"))
    return b.finish(b.add("mul", "float32", total, b.operand(1, "float32"))), [
        ("element", random(rng, "float32", 1)),
        ("place", random(rng, "float32", 1)),
    ]


def silu(rng: np.random.Generator, channels: int, kind: str) -> tuple[Expression, list[tuple[str, np.ndarray]]]:
    b = ExpressionBuilder()
    acc = b.add("mul", "float32", b.add("accumulator", "float32"), b.constant(0.125, "float32"))
    return b.finish(b.add("mul", "float32", acc, b.add("sigmoid", "float32", acc))), []


def requantized(
    kind: str, *, terms: int, sum_x: bool = False, residual: bool = False, swish: bool = False, size: float = 1.0
):
    """The integer epilogue: + bias in int32, times a float32 scale per channel, clamp, round, zero point.

    `size`: of the products, where they are not of bytes."""

    def make(rng: np.random.Generator, channels: int, _: str) -> tuple[Expression, list[tuple[str, np.ndarray]]]:
        b = ExpressionBuilder()
        acc = b.add("accumulator", "int32")
        data: list[tuple[str, np.ndarray]] = [("channel", random(rng, "int32", channels))]
        if sum_x:
            zero = b.operand(len(data), "int32")
            data.append(("channel", rng.integers(-40, 40, channels).astype(np.int32)))
            acc = b.add("sub", "int32", acc, b.add("mul", "int32", zero, b.operand(-1, "int32")))
        acc = b.add("add", "int32", acc, b.operand(0, "int32"))
        spread = 60.0 / (math.sqrt(terms) * 128 * 74 * size)
        scale = (rng.uniform(0.5, 2.0, channels) * spread).astype(np.float32)
        data.append(("channel", scale))
        value = b.add("scale", "float32", b.add("cast", "float32", acc), b.operand(len(data) - 1, "float32"))
        if swish:
            small = b.add("mul", "float32", value, b.constant(0.1, "float32"))
            value = b.add("mul", "float32", value, b.add("sigmoid", "float32", small))
        if residual:
            data.append(("element", random(rng, "int8", 1)))
            value = b.add("add", "float32", value, b.dequantize(b.operand(len(data) - 1, "int8"), 0.37, -11))
        low, high, zero_point = {"uint8": (0, 255, 113), "int16": (-32768, 32767, 900)}.get(kind, (-128, 127, -7))
        result = b.requantize(value, kind, low, high, zero_point, 1.0 if not residual else 0.73)
        return b.finish(result), data

    return make


def _operand_data(
    rng: np.random.Generator, role: str, data: np.ndarray, outer: tuple[int, ...], channels: int, repeat: int
) -> tuple[Operand, np.ndarray]:
    """An operand over (outer..., channels). `repeat` > 1: the second outer dimension holds groups of channels."""
    if role == "channel":
        group = channels // repeat
        strides = [0] * len(outer)
        if repeat > 1:
            strides[1] = group
        return Operand(data.dtype.name, (*strides, 1), data.size, limit_of(data)), data
    if role == "place":
        flat = random(rng, data.dtype.name, math.prod(outer))
        return Operand(flat.dtype.name, (*row_major(outer), 0), flat.size), flat
    shape = (*outer, channels // repeat if repeat > 1 else channels)
    flat = random(rng, data.dtype.name, math.prod(shape))
    return Operand(flat.dtype.name, row_major(shape), flat.size), flat


def linear(
    name: str,
    target: Target,
    *,
    x_dtype: str = "float32",
    y_dtype: str = "float32",
    images: int = 1,
    groups: int = 1,
    out: tuple[int, int] = (3, 5),
    kernel: tuple[int, int] = (1, 1),
    ic: int = 8,
    oc: int = 10,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    tile: tuple[int, int, int] = (1, 4, 2),
    order: str = "rows",
    expression: Callable[..., tuple[Expression, list[tuple[str, np.ndarray]]]] = plain,
    sum_x: bool = False,
    gap: int = 0,
    seed: int = 0,
    block: int = 0,
    w_dtype: str = "",
    ahead: int = 0,
) -> Case:
    """A convolution over images [n, h, w, groups * ic (+ gap)]; `ic` and `oc` are per group."""
    rng = np.random.default_rng([seed, *name.encode()])
    step, lanes = step_channels(x_dtype, target, ic), lanes_of(target)
    height = (out[0] - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1
    width = (out[1] - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 1
    xc, yc = groups * ic + gap, groups * oc + gap
    x_strides = (height * width * xc, ic if groups > 1 else 0, width * xc, xc)
    y_strides = (out[0] * out[1] * yc, oc if groups > 1 else 0, out[1] * yc, yc)
    x = random(rng, x_dtype, images * height * width * xc - gap)
    w = random(rng, "float32" if x_dtype == "float32" else "int8", 1, groups, oc, *kernel, ic)  # oc, kh, kw, ic
    stored = w
    if fields_of(w_dtype) > 1:
        w = random(rng, "int8", *w.shape) >> (8 - 8 // fields_of(w_dtype))
        stored = np.stack([[share_bytes(group, step, w_dtype) for group in w[0]]])
        w = w.astype("float32" if x_dtype == "float32" else "int8")
    elif w_dtype:
        stored = half_bits(w, w_dtype)
        w = from_bits(stored, w_dtype)
    packed = [pack_linear(stored[0, g], block or lanes, 1 if block else tile[2], step) for g in range(groups)]
    weights = np.concatenate(packed)
    made, data = expression(rng, groups * oc, x_dtype)
    outer = (images, groups, *out)
    pairs = [_operand_data(rng, role, d, outer, groups * oc, groups) for role, d in data]
    spec = LinearSpec(
        x_dtype,
        y_dtype,
        (images, groups),
        out,
        kernel,
        ic,
        oc,
        x_strides,
        y_strides,
        (0, packed[0].size if groups > 1 else 0),
        stride,
        dilation,
        made,
        tuple(o for o, _ in pairs),
        0,
        sum_x,
        tile,
        order,  # type: ignore[arg-type]  # one of two words
        x.size,
        images * out[0] * out[1] * yc - gap,
        weights.size,
        block,
        w_dtype,
        ahead,
    )
    following = [np.zeros(100, np.int8)] if ahead else []  # what is asked for need not exist
    operands = [d for _, d in pairs]
    return Case(name, spec, (x, weights, *operands, *following), spec_reference.expected(spec, x, w, *operands))


def product(
    name: str,
    target: Target,
    *,
    batch: tuple[int, int] = (2, 3),
    rows: int = 5,
    inner: int = 7,
    columns: int = 10,
    tile: tuple[int, int, int] = (1, 4, 2),
    w_shared: bool = False,
) -> Case:
    """A batched matrix product whose second factor is computed: read unpacked, one vector beyond its last row."""
    rng = np.random.default_rng([*name.encode()])
    x = random(rng, "float32", *batch, rows, inner)
    w = random(rng, "float32", *((1, batch[1]) if w_shared else batch), inner, columns)
    slack = np.zeros(lanes_of(target), np.float32)
    flat = np.concatenate([w.reshape(-1), slack])
    y_strides = (batch[1] * rows * columns, rows * columns, 0, columns)
    spec = LinearSpec(
        "float32",
        "float32",
        batch,
        (1, rows),
        (1, 1),
        inner,
        columns,
        (batch[1] * rows * inner, rows * inner, 0, inner),
        y_strides,
        (0 if w_shared else batch[1] * inner * columns, inner * columns),
        w_rows=columns,
        tile=tile,
        x_size=x.size,
        y_size=math.prod(batch) * rows * columns,
        w_size=flat.size,
    )
    logical = np.broadcast_to(w, (*batch, inner, columns)).transpose(0, 1, 3, 2)[:, :, :, None, None, :]
    return Case(name, spec, (x.reshape(-1), flat), spec_reference.expected(spec, x.reshape(-1), logical))


def depthwise(
    name: str,
    target: Target,
    *,
    x_dtype: str = "float32",
    w_dtype: str = "float32",
    y_dtype: str = "float32",
    images: int = 2,
    out: tuple[int, int] = (3, 5),
    kernel: tuple[int, int] = (3, 3),
    channels: int = 10,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    tile: tuple[int, int] = (2, 2),
    expression: Callable[..., tuple[Expression, list[tuple[str, np.ndarray]]]] = plain,
    gap: int = 0,
) -> Case:
    rng = np.random.default_rng([*name.encode()])
    height = (out[0] - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1
    width = (out[1] - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 1
    xc, yc = channels + gap, channels + gap
    x = random(rng, x_dtype, images * height * width * xc - gap)
    w = random(rng, "int8" if w_dtype in ("int16", "int4") else w_dtype, *kernel, channels)
    w = w >> 4 if w_dtype == "int4" else w.astype(w_dtype)
    if w_dtype == "int16":  # weights less a zero point
        w = (w - rng.integers(-128, 128, channels)).astype(np.int16)
    made, data = expression(rng, channels, x_dtype)
    pairs = [_operand_data(rng, role, d, (images, *out), channels, 1) for role, d in data]
    spec = DepthwiseSpec(
        x_dtype,
        w_dtype,
        y_dtype,
        images,
        out,
        kernel,
        channels,
        (height * width * xc, width * xc, xc),
        (out[0] * out[1] * yc, out[1] * yc, yc),
        stride,
        dilation,
        made,
        tuple(o for o, _ in pairs),
        tile,
        x.size,
        images * out[0] * out[1] * yc - gap,
    )
    operands = [d for _, d in pairs]
    by_rows = packed_rows(spec, target)
    packed = pack_depthwise(w.transpose(2, 0, 1), by_rows, w_dtype).reshape(-1)
    return Case(name, spec, (x, packed, *operands), spec_reference.expected(spec, x, w, *operands))


def pool(
    name: str,
    *,
    kind: str = "max",
    x_dtype: str = "float32",
    y_dtype: str = "float32",
    images: int = 2,
    image: tuple[int, int] = (5, 6),
    kernel: tuple[int, int] = (3, 3),
    channels: int = 10,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    pads: tuple[int, int] = (1, 1),
    expression: Expression = (),
    gap: int = 0,
) -> Case:
    rng = np.random.default_rng([*name.encode()])
    out = tuple((image[i] + 2 * pads[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in (0, 1))
    xc, yc = channels + gap, channels + gap
    x = random(rng, x_dtype, images * image[0] * image[1] * xc - gap)
    spec = PoolSpec(
        kind,  # type: ignore[arg-type]  # one of two words
        x_dtype,
        y_dtype,
        images,
        image,
        (out[0], out[1]),
        kernel,
        channels,
        (image[0] * image[1] * xc, image[1] * xc, xc),
        (out[0] * out[1] * yc, out[1] * yc, yc),
        stride,
        dilation,
        pads,
        expression,
        (),
        x.size,
        images * out[0] * out[1] * yc - gap,
    )
    return Case(name, spec, (x,), spec_reference.expected(spec, x))


def mean(count: int | None) -> Expression:
    """Float average pooling; None: over the places inside the image."""
    b = ExpressionBuilder()
    acc = b.add("accumulator", "float32")
    n = b.operand(-1, "float32") if count is None else b.constant(float(count), "float32")
    return b.finish(b.add("div", "float32", acc, n))


def integer_mean(kind: str, count: int | None, zero: int) -> Expression:
    """Average of 8-bit data, requantized; None: over the places inside the image."""
    b = ExpressionBuilder()
    acc = b.add("cast", "float32", b.add("accumulator", "int32"))
    n = b.operand(-1, "float32") if count is None else b.constant(float(count), "float32")
    centred = b.add("sub", "float32", acc, b.add("scale", "float32", n, b.constant(float(zero), "float32")))
    value = b.add("div", "float32", centred, n)
    low, high, zero_point = (0, 255, 120) if kind == "uint8" else (-128, 127, -3)
    return b.finish(b.requantize(value, kind, low, high, zero_point, 0.83))


def elementwise(
    name: str,
    shape: tuple[int, ...],
    y_dtype: str,
    expression: Expression,
    operands: list[tuple[str, tuple[int, ...]]],
    y_strides: tuple[int, ...] | None = None,
    tables: tuple[int, ...] = (),
    gap: int = 0,
    fill: float = 0.0,
) -> Case:
    """Operands are (dtype, strides); those in `tables` have 256 entries."""
    rng = np.random.default_rng([*name.encode()])
    arrays, specs = [], []
    for i, (dtype, strides) in enumerate(operands):
        size = 256 if i in tables else 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
        arrays.append(random(rng, dtype, size))
        specs.append(Operand(dtype, (0,) * len(shape) if i in tables else strides, size))
    y_strides = row_major(shape) if y_strides is None else y_strides
    y_size = 1 + sum((d - 1) * s for d, s in zip(shape, y_strides, strict=True))
    spec = ElementwiseSpec(y_dtype, shape, y_strides, expression, tuple(specs), y_size + gap, gap, fill)
    return Case(name, spec, tuple(arrays), spec_reference.expected(spec, *arrays))


def rows(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    width: int,
    *,
    x_dtype: str = "float32",
    y_dtype: str = "float32",
    prologue: Expression = (),
    expression: Expression = (),
    operands: tuple[str, ...] = (),
    gap: int = 0,
) -> Case:
    """`operands` are float32, one value per column ("column") or per element ("element")."""
    rng = np.random.default_rng([*name.encode()])
    strides = tuple(s * (width + gap) for s in row_major(shape))
    size = math.prod(shape) * (width + gap) - gap
    x = random(rng, x_dtype, size)
    arrays, specs = [], []
    for role in operands:
        column = role == "column"
        arrays.append(random(rng, "float32", width if column else math.prod(shape) * width))
        outer = (0,) * len(shape) if column else tuple(s * width for s in row_major(shape))
        specs.append(Operand("float32", (*outer, 1), arrays[-1].size))
    spec = RowsSpec(
        kind,  # type: ignore[arg-type]  # one of four words
        x_dtype,
        y_dtype,
        shape,
        width,
        strides,
        strides,
        1e-5,
        prologue,
        expression,
        tuple(specs),
        size,
        size,
    )
    return Case(name, spec, (x, *arrays), spec_reference.expected(spec, x, *arrays))


def reduce(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    *,
    x_dtype: str = "float32",
    y_dtype: str | None = None,
    prologue: Expression = (),
    expression: Expression = (),
) -> Case:
    """A row-major array of `shape` reduced over `axes`."""
    rng = np.random.default_rng([*name.encode()])
    x = random(rng, x_dtype, math.prod(shape))
    if kind == "prod" and np.dtype(x_dtype).kind == "i":
        x = (x % 3 - 1).astype(x_dtype)
    strides = row_major(shape)
    kept = [i for i in range(len(shape)) if i not in axes]
    out = tuple(shape[i] for i in kept)
    spec = ReduceSpec(
        kind,  # type: ignore[arg-type]  # one of four words
        x_dtype,
        y_dtype or x_dtype,
        out,
        tuple(shape[i] for i in axes),
        tuple(strides[i] for i in kept),
        tuple(strides[i] for i in axes),
        row_major(out),
        prologue,
        expression,
        (),
        x.size,
        max(math.prod(out), 1),
    )
    return Case(name, spec, (x,), spec_reference.expected(spec, x))


def fill(name: str, dtype: str, shape: tuple[int, int, int, int], inner: tuple[int, ...], value: float) -> Case:
    n, h, w, c = shape
    spec = FillSpec(dtype, shape, (h * w * c, w * c, c), inner, value, n * h * w * c)  # type: ignore[arg-type]  # five numbers
    return Case(name, spec, (), spec_reference.expected(spec))
