"""Resize, Upsample and GridSample.

All places and weights of Resize are known when compiling: each axis gets a table of source indices and one of
weights, made with numpy, and the generated code is a short weighted sum per axis. So all modes are one piece of code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from irc.backends.tvm.library.elementwise import Definition, is_float, like
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    axes_of,
    cast,
    compute,
    const,
    dtype_of,
    element,
    elementwise,
    shape_of,
)
from irc.backends.tvm.library.reduce import wide
from irc.backends.tvm.sampling import COORDINATES, Axis, nearest, scaled, source_positions, taps
from irc.ir.types import Array


def _taps(a: Axis, op: Op) -> tuple[Array, Array]:
    return taps(
        a,
        op.attr("coordinate_transformation_mode", "half_pixel"),
        linear=op.attr("mode", "nearest") == "linear",
        antialias=bool(op.attr("antialias", 0)),
        exclude_outside=bool(op.attr("exclude_outside", 0)),
        cubic_a=op.attr("cubic_coeff_a", -0.75),
    )


def resized_axes(op: Op) -> list[Axis]:
    """The axes with their extents, from `scales` or from `sizes` and the policy for the aspect ratio."""
    shape = op.value(0).shape
    axes = axes_of(op.attr("axes") or list(range(len(shape))), len(shape))
    roi = op.array(1).reshape(-1) if op.has(1) and op.value(1).shape != (0,) else None
    regions = {a: (float(roi[i]), float(roi[i + len(axes)])) for i, a in enumerate(axes)} if roi is not None else {}
    if op.has(3) and op.value(3).shape != (0,):
        sizes = op.integers(3, "sizes")
        ratios = [s / shape[a] for s, a in zip(sizes, axes, strict=True)]
        policy = op.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            sizes = [math.floor(ratio * shape[a] + 0.5) for a in axes]
        made = [
            Axis(a, shape[a], s, r, regions.get(a, (0.0, 1.0))) for a, s, r in zip(axes, sizes, ratios, strict=True)
        ]
    else:
        scales = [float(s) for s in op.array(2, "scales").reshape(-1)]
        made = [
            Axis(a, shape[a], scaled(shape[a], s), s, regions.get(a, (0.0, 1.0)))
            for a, s in zip(axes, scales, strict=True)
        ]
    return made


def resize(op: Op) -> list[Tensor]:
    if op.since < 11:
        raise Refused("Resize before opset 11")
    mode, coordinates = op.attr("mode", "nearest"), op.attr("coordinate_transformation_mode", "half_pixel")
    if coordinates not in COORDINATES:
        raise Refused(f"coordinate_transformation_mode {coordinates}")
    axes = resized_axes(op)
    x, dtype = op.tensor(0), op.value(0).dtype
    moving = [a for a in axes if a.scale != 1 or a.output != a.extent or coordinates == "tf_crop_and_resize"]
    if mode == "nearest":
        result = x
        for a in moving:
            where = nearest(source_positions(a, coordinates), op.attr("nearest_mode", "round_prefer_floor"))
            result = _pick(op, result, a, np.clip(where, 0, a.extent - 1))
    else:
        exact = wide(dtype) if is_float(dtype) else "float32"
        result = x if dtype == exact else elementwise(lambda v: cast(v, exact), x)
        for a in sorted(moving, key=lambda m: m.output / m.extent):  # shrinking first costs least
            result = _weigh(op, result, a, *_taps(a, op))
        if not is_float(dtype):
            result = elementwise(lambda v: _to_integer(v, dtype), result)
        elif dtype != exact:
            result = elementwise(lambda v: cast(v, dtype), result)
    if coordinates == "tf_crop_and_resize":
        result = _extrapolate(op, result, moving)
    return [elementwise(lambda v: v, result) if result is x else result]


def _to_integer(value: Expr, dtype: str) -> Expr:
    bounds = np.iinfo(dtype)
    return cast(tirx.max(tirx.min(value, like(bounds.max, value)), like(bounds.min, value)), dtype)


def _arithmetic(where: Array) -> tuple[int, int, int] | None:
    """(a, b, c) with where[o] == (o * a + b) // c, for the common regular cases: no table is needed then."""
    n = len(where)
    for c in (1, 2, 3, 4, 5, 6, 7, 8):
        for a in range(1, 9):
            for b in range(c):
                if (where == (np.arange(n) * a + b) // c).all():
                    return a, b, c
    return None


def _pick(op: Op, x: Tensor, a: Axis, where: Array) -> Tensor:
    shape = [a.output if i == a.axis else d for i, d in enumerate(shape_of(x))]
    regular = _arithmetic(where)
    table = None if regular else op.materialize(where.astype(np.int32))

    def formula(*i: Expr) -> Expr:
        if regular:
            source = tirx.floordiv(i[a.axis] * regular[0] + regular[1], regular[2])
        else:
            source = element(table, [i[a.axis] if a.output > 1 else 0])
        return element(x, [*i[: a.axis], source, *i[a.axis + 1 :]])

    return compute(shape, formula, "nearest")


def _weigh(op: Op, x: Tensor, a: Axis, indices: Array, weights: Array) -> Tensor:
    shape = [a.output if i == a.axis else d for i, d in enumerate(shape_of(x))]
    count = indices.shape[1]
    where = op.materialize(indices.astype(np.int32))
    factor = op.materialize(weights.astype(dtype_of(x)))
    k = te.reduce_axis((0, count), name="k")

    def formula(*i: Expr) -> Expr:
        def term(t: Expr) -> Expr:
            at = [i[a.axis] if a.output > 1 else 0, t if count > 1 else 0]
            return element(factor, at) * element(x, [*i[: a.axis], element(where, at), *i[a.axis + 1 :]])

        if count <= 4:
            total = term(0)
            for t in range(1, count):
                total = total + term(t)
            return total
        return te.sum(term(k.var), axis=k)

    return compute(shape, formula, "keep_resized")


def _extrapolate(op: Op, result: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Elements that lie outside of the input in any axis get `extrapolation_value`."""
    tables = []
    for a in axes:
        where = source_positions(a, "tf_crop_and_resize")
        inside = (where >= 0) & (where <= a.extent - 1)
        if not inside.all():
            tables.append((a, op.materialize(inside)))
    if not tables:
        return result
    value = const(op.attr("extrapolation_value", 0.0), dtype_of(result))

    def formula(*i: Expr) -> Expr:
        kept = tirx.all(*[element(t, [i[a.axis] if a.output > 1 else 0]) for a, t in tables])
        return tirx.Select(kept, element(result, i), value)

    return compute(shape_of(result), formula, "extrapolated")


def upsample(op: Op) -> list[Tensor]:
    """The operator that Resize replaced: asymmetric coordinates, rounded down."""
    scales = [float(s) for s in (op.array(1, "scales").reshape(-1) if op.has(1) else op.attr("scales"))]
    shape = op.value(0).shape
    mode = op.attr("mode", "nearest")
    given = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    x = op.tensor(0)
    as_resize = Op(op.node, given, op.values, op.materialize, 11)
    for i, s in enumerate(scales):
        a = Axis(i, shape[i], scaled(shape[i], s), s)
        if a.output == a.extent:
            continue
        if mode == "nearest":
            x = _pick(as_resize, x, a, np.clip(nearest(source_positions(a, "asymmetric"), "floor"), 0, a.extent - 1))
        else:
            x = _weigh(as_resize, x, a, *_taps(a, as_resize))
    return [elementwise(lambda v: v, x)]


def grid_sample(op: Op) -> list[Tensor]:
    """Sampling at the positions of a grid of normalized coordinates, for any number of spatial axes."""
    x, grid = op.tensor(0), op.tensor(1)
    n, c, *spatial = shape_of(x)
    output = shape_of(grid)[1:-1]
    rank = len(spatial)
    corners = bool(op.attr("align_corners", 0))
    padding = op.attr("padding_mode", "zeros")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(op.attr("mode", "linear"), op.attr("mode", "linear"))
    if not is_float(dtype_of(x)) or not is_float(dtype_of(grid)):
        raise Refused(f"element type {dtype_of(x)}")
    dtype = dtype_of(x)

    def place(i: Sequence[Expr], a: int) -> Expr:
        """The real position on spatial axis `a` (grids list the last axis first)."""
        v = element(grid, [i[0], *i[2:], rank - 1 - a])
        if corners:
            return (v + like(1, v)) * like((spatial[a] - 1) / 2, v)
        return ((v + like(1, v)) * like(spatial[a], v) - like(1, v)) * like(0.5, v)

    positions = [
        compute(
            (n, 1, *output), lambda *i, a=a: _prepared(place(i, a), spatial[a], corners, padding, mode), "keep_place"
        )
        for a in range(rank)
    ]
    offsets = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}[mode]

    def formula(*i: Expr) -> Expr:
        at = [element(p, [i[0], 0, *i[2:]]) for p in positions]

        def along(a: int, chosen: list[Expr]) -> Expr:
            if a == rank:
                return _pixel(x, i, chosen, spatial, padding)
            floor = tirx.floor(at[a])
            total = None
            for o in offsets:
                index, inside = _bounded(cast(floor, "int32") + o, spatial[a], corners, padding)
                weight = _weight(mode, o, at[a] - floor)
                term = along(a + 1, [*chosen, (index, inside)])
                term = cast(weight, dtype) * term if weight is not None else term
                total = term if total is None else total + term
            return total

        return along(0, [])

    return [compute((n, c, *output), formula, op.kind)]


def _weight(mode: str, offset: int, part: Expr) -> Expr:
    if mode == "nearest":
        return None
    if mode == "linear":
        return part if offset else like(1, part) - part
    a = -0.75
    x = {-1: part + like(1, part), 0: part, 1: like(1, part) - part, 2: like(2, part) - part}[offset]
    if offset in (0, 1):
        return (like(a + 2, x) * x - like(a + 3, x)) * x * x + like(1, x)
    return ((like(a, x) * x - like(5 * a, x)) * x + like(8 * a, x)) * x - like(4 * a, x)


def _prepared(v: Expr, extent: int, corners: bool, padding: str, mode: str) -> Expr:
    """The position with border or reflection applied, rounded for `nearest`, limited so that integers hold it."""
    if mode == "nearest":
        v = tirx.nearbyint(v)
    low, high = (0.0, extent - 1.0) if corners else (-0.5, extent - 0.5)
    if padding == "border" and mode != "cubic":
        return tirx.max(tirx.min(v, like(extent - 1, v)), like(0, v))
    if padding == "reflection" and mode != "cubic":
        return _reflected(v, low, high, mode == "nearest")
    return tirx.max(tirx.min(v, like(1 << 24, v)), like(-(1 << 24), v))


def _reflected(v: Expr, low: float, high: float, rounded: bool) -> Expr:
    """Mirrored at the borders until inside."""
    width = high - low
    if width == 0:
        return like(0, v)
    far = tirx.abs(v - like(low, v))
    turns = tirx.floor(far / like(width, v))
    rest = far - turns * like(width, v)
    odd = turns - tirx.floor(turns * like(0.5, v)) * like(2, v)
    made = tirx.Select(odd > like(0.5, v), like(high, v) - rest, like(low, v) + rest)
    made = tirx.floor(made) if rounded else made
    return tirx.max(tirx.min(made, like(math.ceil(high), v)), like(math.floor(low), v))


def _bounded(index: Expr, extent: int, corners: bool, padding: str) -> tuple[Expr, Expr]:
    """An index inside the axis, and whether it was inside before."""
    inside = tirx.all(index >= 0, index < extent)
    if padding != "reflection":
        return tirx.max(tirx.min(index, extent - 1), 0), inside
    if extent == 1:
        return index * 0, inside
    period = 2 * (extent - 1) if corners else 2 * extent
    m = tirx.floormod(index, period)
    far = 2 * (extent - 1) - m if corners else 2 * extent - 1 - m
    return tirx.Select(m >= extent, far, m), inside


def _pixel(x: Tensor, i: Sequence[Expr], chosen: list[Expr], spatial: Sequence[int], padding: str) -> Expr:
    value = element(x, [*i[:2], *(index for index, _ in chosen)])
    if padding != "zeros":
        return value
    return tirx.Select(tirx.all(*[inside for _, inside in chosen]), value, const(0, dtype_of(x)))


OPERATORS: dict[str, Definition] = {"GridSample": grid_sample, "Resize": resize, "Upsample": upsample}
