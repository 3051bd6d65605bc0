"""Resize of images -> a kernel that sums rows and columns by tables made now."""

from __future__ import annotations

import numpy as np

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.plan.kinds import dequantized
from irc.backends.tvm.plan.lower_conv import _channel_ready, _nhw
from irc.backends.tvm.plan.planner import Planner, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.views import View
from irc.backends.tvm.plan.window import two
from irc.backends.tvm.sampling import Axis, nearest, source_positions, taps
from irc.backends.tvm.specs import Operand, ResizeSpec
from irc.ir.graph import Node
from irc.ir.types import Array


def lower_resize(p: Planner, region: Region) -> None:
    node = region.root
    value = node.need(0)
    found = dequantized(value)
    x_value = value if found is None else found[0]
    shape, out_shape = x_value.static_shape(), node.output.static_shape()
    order = (0, 2, 1) if len(shape) == 3 else (0, 2, 3, 1)
    x = p.view(x_value)
    if x.strides[1] != 1:
        x = p.ordered(x_value, order)
    b, operands = ExpressionBuilder(), RegionOperands()
    axes = [_table(node, axis) for axis in range(2, len(shape))]
    axes = [(np.zeros((1, 1), np.int64), None), *axes] if len(axes) == 1 else axes
    start = b.add("accumulator", x.dtype if _moved(axes) else "float32")
    if found is not None and _moved(axes):
        start = b.dequantize(start, *found[1:])
    elif found is not None:  # the weights of all taps add to one: the zero point is taken from their sum
        if found[2]:
            start = b.add("sub", "float32", start, b.constant(float(found[2]), "float32"))
        start = b.add("scale", "float32", start, b.constant(found[1], "float32"))
    result = p.translate(region, b, operands, start)
    out = p.output_view(region.output, order, innermost=1)
    views = [_channel_ready(p, p.operand_view(v, out_shape)) for v in operands.values]
    tables: list[View] = []
    for (indices, weights), stride in zip(axes, _nhw(x)[1:], strict=True):
        tables.append(p.constant((indices * stride).astype(np.int32).reshape(-1), "places"))
        if weights is not None:
            tables.append(p.constant(weights.astype(np.float32).reshape(-1), "weights"))
    spec = ResizeSpec(
        x.dtype,
        out.dtype,
        shape[0],
        two(out_shape[2:]),
        (axes[0][0].shape[1], axes[1][0].shape[1]),
        shape[1],
        x.strides[0],
        _nhw(out),
        b.finish(result),
        tuple(Operand(v.dtype, (*_nhw(v), v.strides[1]), v.extent) for v in views),
        x.extent,
        out.extent,
    )
    p.call(spec, [p.pointer(v) for v in (x, *tables, *views, out)], (out.storage,), region.label)
    p.views[id(region.output)] = out


def _moved(axes: list[tuple[Array, Array | None]]) -> bool:
    return all(weights is None for _, weights in axes)


def _table(node: Node, axis: int) -> tuple[Array, Array | None]:
    """(source indices, weights) [output, taps] along `axis`; no weights where there is one tap."""
    extent, output = node.need(0).static_shape()[axis], node.output.static_shape()[axis]
    scales, ratio = node.input(2), output / extent
    if scales is not None and scales.numpy().size:
        ratio = float(scales.numpy().reshape(-1)[axis])
    a = Axis(axis, extent, output, ratio)
    if ratio == 1 and output == extent:
        return np.arange(extent).reshape(-1, 1), None
    coordinates = node.get_str("coordinate_transformation_mode", "half_pixel")
    mode = node.get_str("mode", "nearest")
    if mode == "nearest":
        where = nearest(source_positions(a, coordinates), node.get_str("nearest_mode", "round_prefer_floor"))
        return np.clip(where, 0, extent - 1).reshape(-1, 1), None
    return taps(
        a,
        coordinates,
        linear=mode == "linear",
        exclude_outside=bool(node.get_int("exclude_outside", 0)),
        cubic_a=node.get_float("cubic_coeff_a", -0.75),
    )
