"""Convolutions of any rank: Conv, ConvInteger, QLinearConv, ConvTranspose, DeformConv, and Col2Im."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import te, tirx

from irc.backends.tvm.library.elementwise import Definition, like
from irc.backends.tvm.library.linear import centered, parameter
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    cast,
    compute,
    const,
    dtype_of,
    element,
    elementwise,
    shape_of,
    unflatten_index,
)
from irc.backends.tvm.library.quantize import requantize
from irc.backends.tvm.library.reduce import wide


@dataclass(frozen=True)
class Window:
    """The sliding window over the spatial axes: `before` and `after` are the padding."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    output: tuple[int, ...]


def window(op: Op, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a node, with auto_pad and ceil_mode worked out."""
    rank = len(spatial)
    strides = op.attr("strides") or [1] * rank
    dilations = op.attr("dilations") or [1] * rank
    pads = op.attr("pads") or [0] * (2 * rank)
    before, after = list(pads[:rank]), list(pads[rank:])
    auto = op.attr("auto_pad", "NOTSET")
    ceil = bool(op.attr("ceil_mode", 0))
    output = []
    for a, d in enumerate(spatial):
        reach = dilations[a] * (kernel[a] - 1) + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = (-(-d // strides[a]) - 1) * strides[a] + reach - d
            # negative where windows leave gaps: pooling then starts inside of the input, convolutions at its edge
            total = max(total, 0) if "Conv" in op.kind else total
            before[a] = int(total / 2) if auto == "SAME_UPPER" else int((total + 1) / 2)
            after[a] = total - before[a]
        elif auto == "VALID":
            before[a] = after[a] = 0
        room = d + before[a] + after[a] - reach
        steps = -(-room // strides[a]) if ceil and auto == "NOTSET" else room // strides[a]
        if ceil and auto == "NOTSET" and steps * strides[a] >= d + before[a]:
            steps -= 1  # a window that would start in the padding after the input is left out
        output.append(steps + 1)
    return Window(*(tuple(int(v) for v in t) for t in (kernel, strides, dilations, before, after, output)))


def padded(x: Tensor, w: Window, value: Expr) -> Tensor:
    """`x` with the window's padding around its spatial axes."""
    if not any(w.before) and not any(w.after):
        return x
    shape = shape_of(x)
    new = [*shape[:2], *(b + d + e for b, d, e in zip(w.before, shape[2:], w.after, strict=True))]

    def formula(*i: Expr) -> Expr:
        source = [v - b for v, b in zip(i[2:], w.before, strict=True)]
        inside = [tirx.all(s >= 0, s < d) for s, d in zip(source, shape[2:], strict=True)]
        return tirx.if_then_else(tirx.all(*inside), element(x, [*i[:2], *source]), value)

    return compute(new, formula, "keep_pad")


def convolve(x: Tensor, weight: Tensor, w: Window, group: int, dtype: str) -> Tensor:
    """The sum over channels and window positions, accumulated in `dtype`."""
    n, channels = shape_of(x)[:2]
    outputs, depth, *kernel = shape_of(weight)
    if channels != depth * group:
        raise Refused(f"{channels} channels in {group} groups do not fit a weight of depth {depth}")
    exact, w = w, _in_whole_vectors(w)
    source = padded(x, w, const(0, dtype_of(x)))
    inner = [te.reduce_axis((0, d), name="k") for d in (depth, *kernel)]

    def formula(*i: Expr) -> Expr:
        c = inner[0].var if group == 1 else tirx.floordiv(i[1], outputs // group) * depth + inner[0].var
        place = [o * s + k.var * d for o, s, k, d in zip(i[2:], w.strides, inner[1:], w.dilations, strict=True)]
        a = element(source, [i[0], c, *place])
        b = element(weight, [i[1], *(k.var for k in inner)])
        return te.sum(cast(a, dtype) * cast(b, dtype), axis=inner)

    total = compute((n, outputs, *w.output), formula, "spread_conv")
    if w is exact:
        return total
    return compute((n, outputs, *exact.output), lambda *i: element(total, i), "crop")


def _in_whole_vectors(w: Window) -> Window:
    """The window with some more columns of output, and the padding that they read, up to a multiple of 8."""
    extra = -w.output[-1] % 8
    if not extra or w.output[-1] < 6:
        return w
    after = (*w.after[:-1], w.after[-1] + extra * w.strides[-1])
    return replace(w, after=after, output=(*w.output[:-1], w.output[-1] + extra))


def conv(op: Op) -> list[Tensor]:
    x, weight = op.tensor(0), op.tensor(1)
    dtype = op.value(0).dtype
    w = window(op, shape_of(x)[2:], op.attr("kernel_shape") or shape_of(weight)[2:])
    total = convolve(x, weight, w, op.attr("group", 1), wide(dtype))
    return [biased(total, op.optional(2), dtype, op.kind)]


def biased(total: Tensor, bias: Tensor | None, dtype: str, name: str) -> Tensor:
    if bias is None:
        return elementwise(lambda v: cast(v, dtype), total, name=name)
    return compute(
        shape_of(total),
        lambda *i: cast(element(total, i) + cast(element(bias, [i[1]]), dtype_of(total)), dtype),
        name,
    )


def conv_integer(op: Op) -> list[Tensor]:
    x = centered(op.tensor(0), op.optional(2), 1)
    weight = centered(op.tensor(1), op.optional(3), 0)
    w = window(op, shape_of(x)[2:], shape_of(weight)[2:])
    return [convolve(x, weight, w, op.attr("group", 1), "int32")]


def qlinear_conv(op: Op) -> list[Tensor]:
    x = centered(op.tensor(0), op.tensor(2), 1)
    weight = centered(op.tensor(3), op.tensor(5), 0)
    w = window(op, shape_of(x)[2:], shape_of(weight)[2:])
    total = convolve(x, weight, w, op.attr("group", 1), "int32")
    x_scale, w_scale, y_scale, y_zero, bias = op.tensor(1), op.tensor(4), op.tensor(6), op.tensor(7), op.optional(8)

    def formula(*i: Expr) -> Expr:
        scale = parameter(x_scale, i, 1) * parameter(w_scale, i, 1) / parameter(y_scale, i, 1)
        value = element(total, i) + element(bias, [i[1]]) if bias is not None else element(total, i)
        return requantize(value, scale, parameter(y_zero, i, 1), dtype_of(y_zero))

    return [compute(shape_of(total), formula, op.kind)]


def conv_transpose(op: Op) -> list[Tensor]:
    """Each output gathers the inputs whose window covers it. Padding follows output_shape or auto_pad if given."""
    x, weight = op.tensor(0), op.tensor(1)
    spatial, kernel = shape_of(x)[2:], shape_of(weight)[2:]
    rank, group = len(spatial), op.attr("group", 1)
    strides = op.attr("strides") or [1] * rank
    dilations = op.attr("dilations") or [1] * rank
    extra = op.attr("output_padding") or [0] * rank
    pads = op.attr("pads") or [0] * (2 * rank)
    before = list(pads[:rank])
    auto, wanted = op.attr("auto_pad", "NOTSET"), op.attr("output_shape")
    output = []
    for a in range(rank):
        full = strides[a] * (spatial[a] - 1) + extra[a] + (kernel[a] - 1) * dilations[a] + 1
        if wanted or auto.startswith("SAME"):
            size = wanted[-rank:][a] if wanted else spatial[a] * strides[a]
            if full < size and not wanted:
                raise Refused("auto_pad SAME where the kernel is smaller than the stride: tools disagree on it")
            total = max(full - size, 0)
            before[a] = total // 2 if auto == "SAME_UPPER" else total - total // 2
            output.append(size)
        else:
            output.append(full - before[a] - pads[a + rank])
    total = transposed_convolution(
        x, weight, tuple(output), tuple(before), tuple(strides), tuple(dilations), group, wide(op.value(0).dtype)
    )
    return [biased(total, op.optional(2), op.value(0).dtype, op.kind)]


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    output: tuple[int, ...],
    before: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
    dtype: str,
) -> Tensor:
    """y[o] = sum of x[q] * w[k] over q * stride + k * dilation = o + before.

    The outputs o + before = q * stride + p of one phase p meet the same window positions: each phase is an ordinary
    convolution, computed densely along q, and the phases are interleaved when they are read.
    """
    n, channels, *spatial = shape_of(x)
    _, per_group, *kernel = shape_of(weight)
    rank, depth = len(spatial), channels // group
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    steps = [r // s + 1 for r, s in zip(reach, strides, strict=True)]  # taps of a phase along each axis
    low = [b // s for b, s in zip(before, strides, strict=True)]  # the first q of any output
    rows = [(o - 1 + b) // s - lo + 1 for o, b, s, lo in zip(output, before, strides, low, strict=True)]
    rows[-1] += -rows[-1] % 8 if rows[-1] >= 6 else 0  # whole vectors
    source = _surrounded(x, [t - 1 - lo for t, lo in zip(steps, low, strict=True)], rows, low)
    taps = _spread_kernel(weight, [t * s for t, s in zip(steps, strides, strict=True)], dilations)
    inner = [te.reduce_axis((0, d), name="k") for d in (depth, *steps)]

    def formula(*i: Expr) -> Expr:
        """Index: batch, channel, phases, rows."""
        phases, q = i[2 : 2 + rank], i[2 + rank :]
        c = tirx.floordiv(i[1], per_group) * depth + inner[0].var
        # source has a border of steps - 1 before its first row
        place = [r + t - 1 - j.var for r, t, j in zip(q, steps, inner[1:], strict=True)]
        tap = [j.var * s + p for j, s, p in zip(inner[1:], strides, phases, strict=True)]
        a = element(source, [i[0], c, *place])
        b = element(taps, [c, tirx.floormod(i[1], per_group), *tap])
        return te.sum(cast(a, dtype) * cast(b, dtype), axis=inner)

    dense = compute((n, per_group * group, *strides, *rows), formula, "spread_conv")

    def interleaved(*i: Expr) -> Expr:
        far = [o + b for o, b in zip(i[2:], before, strict=True)]
        phases = [tirx.floormod(f, s) if s > 1 else 0 for f, s in zip(far, strides, strict=True)]
        q = [tirx.floordiv(f, s) - lo for f, s, lo in zip(far, strides, low, strict=True)]
        return element(dense, [*i[:2], *phases, *q])

    return compute((n, per_group * group, *output), interleaved, "interleaved")


def _surrounded(x: Tensor, border: list[int], rows: list[int], low: list[int]) -> Tensor:
    """`x` from `-border` on, with zeros outside of it, as far as the last of `rows` reads."""
    n, channels, *spatial = shape_of(x)
    extents = [b + lo + r for b, lo, r in zip(border, low, rows, strict=True)]
    if not any(border) and extents == spatial:
        return x

    def formula(*i: Expr) -> Expr:
        q = [v - b for v, b in zip(i[2:], border, strict=True)]
        inside = [tirx.all(v >= 0, v < d) for v, d in zip(q, spatial, strict=True)]
        return tirx.if_then_else(tirx.all(*inside), element(x, [*i[:2], *q]), const(0, dtype_of(x)))

    return compute((n, channels, *extents), formula, "keep_border")


def _spread_kernel(weight: Tensor, extents: list[int], dilations: tuple[int, ...]) -> Tensor:
    """The kernel with zeros between its dilated taps and behind them."""
    kernel = shape_of(weight)[2:]
    if list(kernel) == extents and all(d == 1 for d in dilations):
        return weight

    def formula(*i: Expr) -> Expr:
        inside = [v < (k - 1) * d + 1 for v, k, d in zip(i[2:], kernel, dilations, strict=True)]
        inside += [tirx.floormod(v, d) == 0 for v, d in zip(i[2:], dilations, strict=True) if d > 1]
        tap = [tirx.floordiv(v, d) for v, d in zip(i[2:], dilations, strict=True)]
        return tirx.if_then_else(tirx.all(*inside), element(weight, [*i[:2], *tap]), const(0, dtype_of(weight)))

    return compute((*shape_of(weight)[:2], *extents), formula, "keep_kernel")


def deform_conv(op: Op) -> list[Tensor]:
    """Conv whose window positions are moved by `offset` and weighted by `mask` (Zhu et al., arXiv:1811.11168)."""
    x, weight, offset, bias, mask = op.tensor(0), op.tensor(1), op.tensor(2), op.optional(3), op.optional(4)
    n, channels, *spatial = shape_of(x)
    outputs, depth, *kernel = shape_of(weight)
    if len(spatial) != 2:
        raise Refused("only two spatial axes")
    groups, parts = op.attr("group", 1), op.attr("offset_group", 1)
    w = window(op, spatial, kernel)
    dtype = dtype_of(x)
    points = kernel[0] * kernel[1]

    def sample(b: Expr, c: Expr, p: Expr, oh: Expr, ow: Expr) -> Expr:
        part = tirx.floordiv(c, channels // parts)
        kh, kw = tirx.floordiv(p, kernel[1]), tirx.floormod(p, kernel[1])
        row = 2 * (part * points + p)
        y = cast(oh * w.strides[0] - w.before[0] + kh * w.dilations[0], dtype) + element(offset, [b, row, oh, ow])
        z = cast(ow * w.strides[1] - w.before[1] + kw * w.dilations[1], dtype) + element(offset, [b, row + 1, oh, ow])
        value = bilinear(x, b, c, y, z)
        return value * element(mask, [b, part * points + p, oh, ow]) if mask is not None else value

    columns = compute((n, channels, points, *w.output), lambda b, c, p, oh, ow: sample(b, c, p, oh, ow), "keep_columns")
    inner = [te.reduce_axis((0, d), name="k") for d in (depth, points)]

    def formula(*i: Expr) -> Expr:
        c = tirx.floordiv(i[1], outputs // groups) * depth + inner[0].var
        kh, kw = unflatten_index(inner[1].var, kernel)
        return te.sum(
            element(columns, [i[0], c, inner[1].var, *i[2:]]) * element(weight, [i[1], inner[0].var, kh, kw]),
            axis=inner,
        )

    total = compute((n, outputs, *w.output), formula, "spread_conv")
    return [biased(total, bias, dtype, op.kind)]


def bilinear(x: Tensor, b: Expr, c: Expr, y: Expr, z: Expr) -> Expr:
    """The image at a real position; zero outside."""
    height, width = shape_of(x)[2:]
    dtype = dtype_of(x)
    y0, z0 = tirx.floor(y), tirx.floor(z)
    total: Expr = const(0, dtype)
    for dy in (0, 1):
        for dz in (0, 1):
            row, column = cast(y0, "int32") + dy, cast(z0, "int32") + dz
            inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
            value = tirx.if_then_else(inside, element(x, [b, c, row, column]), const(0, dtype))
            wy = y - y0 if dy else like(1, y) - (y - y0)
            wz = z - z0 if dz else like(1, z) - (z - z0)
            total = total + value * wy * wz
    return total


def col2im(op: Op) -> list[Tensor]:
    """The sum of all blocks over the image that they were cut from."""
    x = op.tensor(0)
    image, block = op.integers(1, "image_shape"), op.integers(2, "block_shape")
    n, rows, _ = shape_of(x)
    rank = len(image)
    points = int(np.prod(block, dtype=np.int64))
    channels = rows // points
    strides = op.attr("strides") or [1] * rank
    dilations = op.attr("dilations") or [1] * rank
    pads = op.attr("pads") or [0] * (2 * rank)
    counts = [
        (image[a] + pads[a] + pads[a + rank] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1 for a in range(rank)
    ]
    inner = [te.reduce_axis((0, d), name="k") for d in block]

    def formula(*i: Expr) -> Expr:
        bounds, position, row = [], const(0, "int32"), i[1]
        for a in range(rank):
            far = i[2 + a] + pads[a] - inner[a].var * dilations[a]
            bounds.append(tirx.all(far >= 0, far < counts[a] * strides[a], tirx.floormod(far, strides[a]) == 0))
            position = position * counts[a] + tirx.floordiv(far, strides[a])
            row = row * block[a] + inner[a].var
        value = tirx.if_then_else(tirx.all(*bounds), element(x, [i[0], row, position]), const(0, dtype_of(x)))
        return te.sum(value, axis=inner)

    return [compute((n, channels, *image), formula, op.kind)]


OPERATORS: dict[str, Definition] = {
    "Col2Im": col2im,
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "QLinearConv": qlinear_conv,
}
