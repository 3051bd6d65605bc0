"""ConvTranspose -> linear kernels, one for each phase of the stride.

Output o takes x[i] * w[k] for all i * s - pad + k = o. Outputs with the same (o + pad) mod s = f use the same taps,
k = f + s * t, and the inputs q - t with q = (o + pad - f) / s: an ordinary convolution with stride 1, the taps in
reverse order, whose results lie s apart. No product with an inserted zero is computed and nothing is summed twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.geometry import block_of, lanes_of
from irc.backends.tvm.plan.integer import FusedQuantize, float_weights, start_sum
from irc.backends.tvm.plan.kinds import kind_of
from irc.backends.tvm.plan.lower_conv import _bias, _broadcast, _channel_ready, _nhw, _operand
from irc.backends.tvm.plan.pack import pack_for
from irc.backends.tvm.plan.planner import Demand, Planner, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.tiles import Product, choose_order, choose_tile
from irc.backends.tvm.plan.views import View
from irc.backends.tvm.plan.window import two, window
from irc.backends.tvm.specs import LinearSpec
from irc.ir.graph import Node
from irc.ir.types import Array


@dataclass(frozen=True)
class Phase:
    """Along one axis: kernel positions in the order of the inputs that they meet, the first of these inputs (may be
    outside), the first output, the number of outputs."""

    taps: tuple[int, ...]
    start: int
    first: int
    count: int


def phases(size: int, out: int, kernel: int, stride: int, pad: int) -> list[Phase]:
    """The phases of an axis with `size` inputs and `out` outputs; those without any output are left out."""
    found = []
    for f in range(stride):
        taps = tuple(range(f, kernel, stride))[::-1]
        low = max(-(-(pad - f) // stride), 0)
        first = stride * low + f - pad
        count = -(-(out - first) // stride)
        if count > 0:
            found.append(Phase(taps, low - len(taps) + 1, first, count))
    return found


def _axes(node: Node) -> list[list[Phase]]:
    """Height and width."""
    shape, w_shape, out = (v.static_shape() for v in (node.need(0), node.need(1), node.output))
    g = window(node, shape[2:], w_shape[2:])
    sizes, outs = two(shape[2:]), two(out[2:])
    return [phases(sizes[i], outs[i], g.kernel[i], g.stride[i], g.pads[i]) for i in range(2)]


def transposed_demand(p: Planner, node: Node, index: int) -> Demand | None:
    """The border of zeros that the phases of a ConvTranspose read around its data input; None for other inputs."""
    if index != 0 or kind_of(node) != "transposed":
        return None
    shape = node.need(0).static_shape()
    borders = [
        (max(0, *(-f.start for f in axis)), max(0, *(f.start + len(f.taps) - 1 + f.count - size for f in axis)))
        for axis, size in zip(_axes(node), two(shape[2:]), strict=True)
    ]
    order, spatial = ((0, 2, 1), borders[1:]) if len(shape) == 3 else ((0, 2, 3, 1), borders)
    return Demand(order, ((0, 0), (0, 0), *spatial), 0.0)


def lower_transposed(p: Planner, region: Region) -> None:
    node = region.root
    demand = transposed_demand(p, node, 0)
    assert demand is not None
    x = p.padded(node.need(0), demand)
    out_shape = region.output.static_shape()
    rank, groups = len(out_shape), node.get_int("group", 1)
    out = p.output_view(region.output, (0, 2, 1) if rank == 3 else (0, 2, 3, 1), innermost=1)
    w = float_weights(node.need(1)).astype(np.float32)
    ic, per_group = w.shape[0] // groups, w.shape[1]
    w = w.reshape(groups, ic, per_group, *two(w.shape[2:])).transpose(0, 2, 3, 4, 1)  # group, oc, kh, kw, ic
    b, operands = ExpressionBuilder(), RegionOperands()
    start = start_sum(b, operands, None, FusedQuantize(1, _bias(node)), None)
    result = p.translate(region, b, operands, start)
    views = [_channel_ready(p, p.operand_view(_broadcast(v, rank), out_shape)) for v in operands.values]
    tall, wide = _axes(node)
    stride = two(node.get_ints("strides", (1,) * (rank - 2)))
    for h in tall:
        for v in wide:
            part = w[:, :, list(h.taps)][:, :, :, list(v.taps)]
            source = replace(x, offset=x.offset + h.start * _nhw(x)[1] + v.start * _nhw(x)[2])
            pieces = [_piece(view, h, v, stride) for view in (out, *views)]
            _call(p, region, source, part, pieces[0], pieces[1:], b.finish(result))
    p.views[id(region.output)] = out


def _piece(view: View, h: Phase, w: Phase, stride: tuple[int, int]) -> View:
    """The places of one phase."""
    spatial = [(h.first, h.count, stride[0]), (w.first, w.count, stride[1])][4 - len(view.shape) :]
    starts, sizes, steps = zip(*spatial, strict=True)
    return view.sliced((0, 0, *starts), (*view.shape[:2], *sizes), (1, 1, *steps))


def _call(p: Planner, region: Region, x: View, w: Array, y: View, views: list[View], expression: Expression) -> None:
    groups, per_group, height, width, ic = w.shape
    out = two(y.shape[2:])
    x_strides, y_strides = _nhw(x), _nhw(y)
    apart = (x_strides[1] * x.itemsize, x_strides[2] * x.itemsize)
    product = Product(out, -(-per_group // lanes_of(p.target)), height * width * ic, apart=apart)
    tile = choose_tile(p.target, product)
    packed = [pack_for(p.target, w[i], tile.vectors, 1) for i in range(groups)]
    weights = p.constant(np.concatenate(packed), region.root.need(1).name)
    x_size = 1 + (y.shape[0] - 1) * x_strides[0] + groups * ic - 1
    x_size += (out[0] + height - 2) * x_strides[1] + (out[1] + width - 2) * x_strides[2]
    spec = LinearSpec(
        x.dtype,
        y.dtype,
        (y.shape[0], groups),
        out,
        (height, width),
        ic,
        per_group,
        (x_strides[0], ic if groups > 1 else 0, x_strides[1], x_strides[2]),
        (y_strides[0], per_group if groups > 1 else 0, y_strides[1], y_strides[2]),
        (0, packed[0].size if groups > 1 else 0),
        expression=expression,
        operands=tuple(_operand(p, v, per_group, groups) for v in views),
        tile=(tile.rows, tile.columns, tile.vectors),
        order=choose_order(p.target, weights.extent * weights.itemsize, x.extent * x.itemsize, out[0]),
        x_size=x_size,
        y_size=y.extent,
        w_size=weights.extent,
        block=block_of(p.target),
    )
    macs = math.prod(y.shape) * height * width * ic
    p.call(spec, [p.pointer(v) for v in (x, weights, *views, y)], (y.storage,), region.label, macs=macs)
