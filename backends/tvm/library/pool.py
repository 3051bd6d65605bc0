"""Pooling with a sliding window, and normalizations over windows and axes."""

from __future__ import annotations

import numpy as np
from tvm import te, tirx

from irc.backends.tvm.library.conv import Window, window
from irc.backends.tvm.library.elementwise import Definition, like
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    axis_of,
    cast,
    compute,
    const,
    dtype_of,
    element,
    elementwise,
    lowest,
    shape_of,
)
from irc.backends.tvm.library.reduce import compute_pair, fold, root, to_power, wide

_SUM = (lambda a, b: a + b, lambda dtype: 0)


def _places(w: Window, index: list[Expr], inner: list[Expr]) -> list[Expr]:
    return [i * s + k.var * d - b for i, s, k, d, b in zip(index, w.strides, inner, w.dilations, w.before, strict=True)]


def _inside(places: list[Expr], spatial: list[int]) -> Expr:
    return tirx.all(*[tirx.all(p >= 0, p < d) for p, d in zip(places, spatial, strict=True)])


def max_pool(op: Op) -> list[Tensor]:
    """The maximum and, if asked for, its flat position in the input (row-major, or column-major: storage_order)."""
    x = op.tensor(0)
    n, c, *spatial = shape_of(x)
    dtype = dtype_of(x)
    w = window(op, spatial, op.attr("kernel_shape"))
    inner = [te.reduce_axis((0, k), name="k") for k in w.kernel]
    least = const(lowest(dtype), dtype)

    def value_at(i: list[Expr]) -> tuple[Expr, list[Expr]]:
        places = _places(w, i[2:], inner)
        return tirx.if_then_else(_inside(places, spatial), element(x, [*i[:2], *places]), least), places

    if not op.wants(1):
        reducer = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda t: least, name="max")
        return [compute((n, c, *w.output), lambda *i: reducer(value_at(list(i))[0], axis=inner), op.kind)]

    def combine(a: tuple[Expr, Expr], b: tuple[Expr, Expr]) -> tuple[Expr, Expr]:
        better = tirx.any(a[0] < 0, tirx.all(b[0] >= 0, b[1] > a[1]))
        return tirx.Select(better, b[0], a[0]), tirx.Select(better, b[1], a[1])

    reducer = te.comm_reducer(combine, lambda t0, t1: (tirx.const(-1, "int32"), least), name="argmax")
    order = list(range(len(spatial)))[:: -1 if op.attr("storage_order", 0) else 1]

    def formula(*i: Expr) -> Expr:
        value, places = value_at(list(i))
        flat: Expr = const(0, "int32")
        for a in order:
            flat = flat * spatial[a] + places[a]
        return reducer((tirx.Select(_inside(places, spatial), flat, const(-1, "int32")), value), axis=inner)

    found = compute_pair((n, c, *w.output), formula)
    values = found.op.output(1)
    plane = int(np.prod(spatial, dtype=np.int64))
    indices = compute(
        (n, c, *w.output), lambda *i: cast(element(found, i) + (i[0] * c + i[1]) * plane, "int64"), "Indices"
    )
    return [elementwise(lambda v: v, values, name=op.kind), indices]


def window_sum(x: Tensor, w: Window, p: int = 0) -> Tensor:
    """Sum over each window, of |x| ** p if p is given; what lies outside counts as zero."""
    n, c, *spatial = shape_of(x)
    dtype = wide(dtype_of(x))
    inner = [te.reduce_axis((0, k), name="k") for k in w.kernel]

    def formula(*i: Expr) -> Expr:
        places = _places(w, list(i[2:]), inner)
        value = cast(element(x, [*i[:2], *places]), dtype)
        value = to_power(value, p) if p else value
        return te.sum(tirx.if_then_else(_inside(places, spatial), value, const(0, dtype)), axis=inner)

    return compute((n, c, *w.output), formula, "window")


def average_pool(op: Op) -> list[Tensor]:
    x = op.tensor(0)
    spatial = shape_of(x)[2:]
    w = window(op, spatial, op.attr("kernel_shape"))
    total = window_sum(x, w)
    tables = []
    for a, d in enumerate(spatial):
        low, high = (-w.before[a], d + w.after[a]) if op.attr("count_include_pad", 0) else (0, d)
        starts = np.arange(w.output[a])[:, None] * w.strides[a] - w.before[a]
        places = starts + np.arange(w.kernel[a])[None, :] * w.dilations[a]
        tables.append(((places >= low) & (places < high)).sum(1).astype(np.float32))
    if all((t == t[0]).all() for t in tables):
        count = float(np.prod([t[0] for t in tables]))
        return [elementwise(lambda v: cast(v / like(count, v), dtype_of(x)), total, name=op.kind)]
    counts = [op.materialize(t) for t in tables]

    def formula(*i: Expr) -> Expr:
        count: Expr = const(1, "float32")
        for a, table in enumerate(counts):
            count = count * element(table, [i[2 + a] if shape_of(table)[0] > 1 else 0])
        return cast(element(total, i) / cast(count, dtype_of(total)), dtype_of(x))

    return [compute(shape_of(total), formula, op.kind)]


def lp_pool(op: Op) -> list[Tensor]:
    x, p = op.tensor(0), op.attr("p", 2)
    w = window(op, shape_of(x)[2:], op.attr("kernel_shape"))
    return [elementwise(lambda v: cast(root(v, p), dtype_of(x)), window_sum(x, w, p), name=op.kind)]


def local_response(op: Op) -> list[Tensor]:
    """x / (bias + alpha / size * sum of squares over neighbouring channels) ** beta."""
    x = op.tensor(0)
    shape, dtype = shape_of(x), wide(dtype_of(x))
    size, channels = op.attr("size"), shape[1]
    low = (size - 1) // 2
    k = te.reduce_axis((0, size), name="k")

    def squares(*i: Expr) -> Expr:
        c = i[1] + k.var - low
        value = cast(element(x, [i[0], c, *i[2:]]), dtype)
        return te.sum(tirx.if_then_else(tirx.all(c >= 0, c < channels), value * value, const(0, dtype)), axis=k)

    total = compute(shape, squares, "squares")
    alpha, beta, bias = (const(op.attr(name, d), dtype) for name, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    factor = const(size, dtype)
    return [
        elementwise(
            lambda v, s: cast(cast(v, dtype) / tirx.power(bias + alpha / factor * s, beta), dtype_of(x)), x, total
        )
    ]


def instance_norm(op: Op) -> list[Tensor]:
    x, scale, bias = op.tensor(0), op.tensor(1), op.tensor(2)
    shape, dtype = shape_of(x), wide(dtype_of(x))
    axes = list(range(2, len(shape)))
    count = float(np.prod(shape[2:], dtype=np.int64))
    average = elementwise(lambda s: s / like(count, s), fold(x, axes, *_SUM, dtype=dtype), name="keep_mean")
    centred = elementwise(lambda v, m: cast(v, dtype) - m, x, average)
    spread = fold(elementwise(lambda v: v * v, centred), axes, *_SUM)
    inverse = elementwise(
        lambda s: like(1, s) / tirx.sqrt(s / like(count, s) + like(op.attr("epsilon"), s)),
        spread,
        name="keep_deviation",
    )

    def formula(*i: Expr) -> Expr:
        own = [*i[:2], *[0] * len(axes)]
        factor = element(inverse, own) * cast(element(scale, [i[1]]), dtype)
        return cast(element(centred, i) * factor + cast(element(bias, [i[1]]), dtype), dtype_of(x))

    return [compute(shape, formula, op.kind)]


def batch_norm(op: Op) -> list[Tensor]:
    """With the given mean and variance (not in training mode)."""
    if op.attr("training_mode", 0):
        raise Refused("training mode")
    x, *rest = (op.tensor(i) for i in range(5))
    dtype = wide(dtype_of(x))
    channel = 1 if len(shape_of(x)) > 1 else 0

    def formula(*i: Expr) -> Expr:
        c = i[1] if channel else const(0, "int32")
        scale, bias, mean, variance = (cast(element(t, [c]), dtype) for t in rest)
        deviation = tirx.sqrt(variance + const(op.attr("epsilon", 1e-5), dtype))
        return cast((cast(element(x, i), dtype) - mean) / deviation * scale + bias, dtype_of(x))

    return [compute(shape_of(x), formula, op.kind)]


def lp_normalization(op: Op) -> list[Tensor]:
    """x / its norm along the axis; a norm of zero gives zero."""
    x, p = op.tensor(0), op.attr("p", 2)
    axis = axis_of(op.attr("axis", -1), len(shape_of(x)))
    norm = fold(x, [axis], *_SUM, each=lambda v: to_power(v, p), dtype=wide(dtype_of(x)))
    norm = elementwise(lambda s: root(s, p), norm, name="keep_norm")

    def formula(v: Expr, s: Expr) -> Expr:
        zero = like(0, s)
        quotient = cast(v, dtype_of(norm)) / tirx.Select(s == zero, like(1, s), s)
        return cast(tirx.Select(s == zero, zero, quotient), dtype_of(x))

    return [elementwise(formula, x, norm, name=op.kind)]


OPERATORS: dict[str, Definition] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response,
    "LpNormalization": lp_normalization,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
