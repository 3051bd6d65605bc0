"""Convolutions -> linear and depthwise kernels; float, and integer where data and weights are quantized."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from irc.backends.tvm.depthwise import packed_rows
from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.geometry import block_of, fields_of, lanes_of, padded_step, step_channels
from irc.backends.tvm.plan.integer import (
    FusedQuantize,
    IntegerWeights,
    float_weights,
    fuse_quantize,
    integer_weights,
    start_sum,
)
from irc.backends.tvm.plan.kinds import dequantized, kind_of
from irc.backends.tvm.plan.pack import pack_depthwise, pack_for, share_bytes, small_type
from irc.backends.tvm.plan.planner import Demand, Planner, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.small_conv import small_weights
from irc.backends.tvm.plan.source_real import is_real_source
from irc.backends.tvm.plan.tiles import (
    Product,
    choose_order,
    choose_tile,
    depthwise_tile,
    epilogue_cycles,
    in_pairs,
    uops_of,
)
from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View, strides_in_order
from irc.backends.tvm.plan.window import Window, two, window
from irc.backends.tvm.specs import DepthwiseSpec, LinearSpec, Operand
from irc.ir.graph import Node, Value
from irc.ir.types import Array


def _geometry(node: Node) -> Window:
    shape, w_shape = node.need(0).static_shape(), node.need(1).static_shape()
    return window(node, shape[2:], w_shape[2:])


def conv_demand(p: Planner, node: Node, index: int) -> Demand | None:
    """What a Conv wants of its data input: None for other operators, other inputs, or when nothing is special."""
    if index != 0 or not node.is_op("Conv") or kind_of(node) not in ("linear", "depthwise"):
        return None
    if small_weights(node, p.target) is not None or is_real_source(node, p.target):
        return None  # microcontrollers look after the edges of images themselves
    shape = node.need(0).static_shape()
    g = _geometry(node)
    integer = integer_weights(node)
    found = dequantized(node.need(0)) if integer is not None else None
    dtype = "float32" if found is None else storage_dtype(found[0].dtype)
    channels = shape[1] // node.get_int("group", 1)
    extra = 0
    top, left, bottom, right = (max(v, 0) for v in g.pads)  # negative pads crop
    if kind_of(node) == "linear" and node.get_int("group", 1) == 1:
        step = padded_step(dtype, p.target, channels)
        if by_rows(node, integer, g, step):
            right += -g.kernel[1] % step
        else:
            extra = -channels % step
    spatial = ((left, right),) if len(shape) == 3 else ((top, bottom), (left, right))
    order = (0, 2, 1) if len(shape) == 3 else (0, 2, 3, 1)
    return Demand(order, ((0, 0), (0, extra), *spatial), float(found[2]) if found is not None else 0.0)


def by_rows(node: Node, integer: IntegerWeights | None, g: Window, step: int) -> bool:
    """Whether a row of the window is summed as if its places were channels: they lie side by side in an image of one
    channel, so that a dot product takes `step` of them. What it reads beyond the row has weights of zero."""
    if integer is None or integer.weight_zero is not None or step == 1:
        return False
    return node.need(1).static_shape()[1] == 1 and g.kernel[1] > 1 and g.dilation[1] == 1


def _nhw(view: View) -> tuple[int, int, int]:
    """(n, h, w) strides of an image view [n, c, h, w] or [n, c, w]."""
    s = view.strides
    return (s[0], 0, s[2]) if len(s) == 3 else (s[0], s[2], s[3])


def _first_tap(view: View, g: Window) -> View:
    """The view moved to the first element of the padded window."""
    _, sh, sw = _nhw(view)
    return replace(view, offset=view.offset - g.pads[0] * sh - g.pads[1] * sw)


def lower_conv(p: Planner, region: Region) -> None:
    node = region.root
    integer = integer_weights(node)
    groups = node.get_int("group", 1)
    if kind_of(node) == "depthwise":
        _lower_depthwise(p, region, integer)
    else:
        _lower_linear(p, region, integer, groups)


def _source(p: Planner, node: Node, integer: IntegerWeights | None) -> View:
    demand = conv_demand(p, node, 0)
    assert demand is not None
    value = node.need(0)
    if integer is not None:
        value = integer.x
    elif demand.fill != 0.0 or any(c != (0, 0) for c in demand.halo[1:2]):
        demand = Demand(demand.order, (demand.halo[0], (0, 0), *demand.halo[2:]), 0.0)
    x = p.padded(value, demand)
    channels = value.static_shape()[1]
    step = padded_step(x.dtype, p.target, channels) if node.get_int("group", 1) == 1 else 1
    if by_rows(node, integer, _geometry(node), step) and _nhw(x)[2] != 1:  # its places lie apart: channels are added
        x = p.padded(value, replace(demand, halo=(demand.halo[0], (0, step - 1), *demand.halo[2:])))
    return x


def _expression(
    p: Planner,
    region: Region,
    integer: IntegerWeights | None,
    bias: Array | None,
    compensation: Array | None,
    summed: bool = False,
) -> tuple[ExpressionBuilder, RegionOperands, int]:
    b, operands = ExpressionBuilder(), RegionOperands()
    fused = fuse_quantize(region, bias) if integer is not None else FusedQuantize(1, bias)
    start = start_sum(b, operands, integer, fused, compensation, summed=summed, fpu=p.target.fpu != "none")
    result = p.translate(region, b, operands, start, fused.skip)
    return b, operands, result


def _channel_array(v: Array, rank: int) -> Array:
    """Per-channel data shaped to broadcast against [n, c, spatial...]."""
    return v.reshape((1, -1) + (1,) * (rank - 2))


def _bias(node: Node) -> Array | None:
    value = node.input(2)
    return None if value is None else float_weights(value).astype(np.float32)


def _lower_linear(p: Planner, region: Region, integer: IntegerWeights | None, groups: int) -> None:
    node = region.root
    g = _geometry(node)
    x = _first_tap(_source(p, node, integer), g)
    out_shape = region.output.static_shape()
    rank = len(out_shape)
    out = p.output_view(region.output, (0, 2, 1) if rank == 3 else (0, 2, 3, 1), innermost=1)
    w = integer.w if integer is not None else float_weights(node.need(1)).astype(np.float32)
    w = w.reshape(w.shape[0], w.shape[1], *g.kernel).transpose(0, 2, 3, 1)  # oc, kh, kw, ic
    kernel, dilation = g.kernel, g.dilation
    step = padded_step(x.dtype, p.target, w.shape[3])
    if groups > 1:  # they lie side by side: no padding
        step = step_channels(x.dtype, p.target, w.shape[3])
    if groups == 1 and by_rows(node, integer, g, step) and _nhw(x)[2] == 1:
        w, kernel, dilation = w.transpose(0, 1, 3, 2), (g.kernel[0], 1), (g.dilation[0], 1)
    ic = -(-w.shape[3] // step) * step
    w = np.pad(w, ((0, 0), (0, 0), (0, 0), (0, ic - w.shape[3])))
    per_group = w.shape[0] // groups
    lanes = lanes_of(p.target)
    out_hw = two(out_shape[2:])
    x_strides, y_strides = _nhw(x), _nhw(out)
    compensation = None if integer is None else integer.compensation(kernel[0] * kernel[1] * ic)
    sums = integer is not None and integer.weight_zero is not None
    b, operands, result = _expression(p, region, integer, _bias(node), compensation, sums)
    views = [p.operand_view(_broadcast(v, rank), out_shape) for v in operands.values]
    views = [_channel_ready(p, v) for v in views]
    collapse = _collapsible(g, out_hw, x_strides, y_strides, [_nhw(v) for v in views])
    if collapse:
        out_hw = (1, out_hw[0] * out_hw[1])
    vectors = -(-per_group // lanes)
    steps = kernel[0] * kernel[1] * ic // step
    w_dtype = "" if integer is None else small_type(w, step, integer.scale)
    w = share_bytes(w, step, w_dtype)
    uops = uops_of(x.dtype, p.target)
    apart = (x_strides[1] * g.stride[0] * x.itemsize, x_strides[2] * g.stride[1] * x.itemsize)
    expression = b.finish(result)
    ending = epilogue_cycles(expression)
    fields = fields_of(w_dtype)
    pairs, real = in_pairs(x.dtype, p.target, ic), out.dtype == "float32"
    product = Product(out_hw, vectors, steps, sums, uops, apart, epilogue=ending, fields=fields, pairs=pairs, real=real)
    tile = choose_tile(p.target, product)
    packed = [pack_for(p.target, w[i * per_group : (i + 1) * per_group], tile.vectors, step) for i in range(groups)]
    weights = p.constant(np.concatenate(packed), node.need(1).name)
    order = choose_order(p.target, weights.extent * weights.itemsize * fields, x.extent * x.itemsize, out_hw[0])
    spec = LinearSpec(
        x.dtype,
        out.dtype,
        (out_shape[0], groups),
        out_hw,
        kernel,
        ic,
        per_group,
        (x_strides[0], ic if groups > 1 else 0, x_strides[1], x_strides[2]),
        (y_strides[0], per_group if groups > 1 else 0, y_strides[1], y_strides[2]),
        (0, packed[0].size if groups > 1 else 0),
        g.stride,
        dilation,
        expression,
        tuple(_operand(p, v, per_group, groups) for v in views),
        0,
        sums,
        (tile.rows, tile.columns, tile.vectors),
        order,
        x.extent,
        out.extent,
        weights.extent,
        block_of(p.target),
        w_dtype,
    )
    macs = math.prod(out_shape) * g.kernel[0] * g.kernel[1] * (node.need(1).static_shape()[1])
    args = [p.pointer(v) for v in (x, weights, *views, out)]
    p.call(spec, args, (out.storage,), region.label, macs=macs)
    p.views[id(region.output)] = out


def _broadcast(value: Value | Array, rank: int) -> Value | Array:
    """Per-channel arrays made by the plan get the rank of the image."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return _channel_array(value, rank)
    return value


def _channel_ready(p: Planner, view: View) -> View:
    """Operands are read by channel vectors: stride 0 or 1 over channels, otherwise copied."""
    if view.strides[1] in (0, 1) or view.shape[1] == 1:
        return view
    order = (0, 2, 1) if len(view.shape) == 3 else (0, 2, 3, 1)
    made = View(
        p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, strides_in_order(view.shape, order)
    )
    p.copy(view, made, "reorder")
    return made


def _operand(p: Planner, view: View, per_group: int, groups: int) -> Operand:
    n, h, w = _nhw(view)
    c = view.strides[1]
    return Operand(view.dtype, (n, per_group * c if groups > 1 else 0, h, w, c), view.extent, p.limit(view))


def _collapsible(
    g: Window,
    out: tuple[int, int],
    x: tuple[int, int, int],
    y: tuple[int, int, int],
    operands: list[tuple[int, int, int]],
) -> bool:
    """A 1x1 convolution whose rows follow each other in memory everywhere: its places are one long row."""
    if g.kernel != (1, 1) or g.stride != (1, 1) or any(g.pads) or out[0] == 1 or out[1] >= 28:
        return False
    return all(sh == out[1] * sw for _, sh, sw in (x, y, *operands))


def _lower_depthwise(p: Planner, region: Region, integer: IntegerWeights | None) -> None:
    node = region.root
    g = _geometry(node)
    x = _first_tap(_source(p, node, integer), g)
    out_shape = region.output.static_shape()
    rank, channels = len(out_shape), out_shape[1]
    out = p.output_view(region.output, (0, 2, 1) if rank == 3 else (0, 2, 3, 1), innermost=1)
    if integer is not None:
        w = integer.full_weights()
        compensation = integer.full_compensation()
    else:
        w, compensation = float_weights(node.need(1)).astype(np.float32), None
    w_dtype = w.dtype.name
    if w_dtype == "int8" and g.kernel[1] > 1 and w.min(initial=0) >= -8 and w.max(initial=0) < 8:
        w_dtype = "int4"
    b, operands, result = _expression(p, region, integer, _bias(node), compensation)
    views = [_channel_ready(p, p.operand_view(_broadcast(v, rank), out_shape)) for v in operands.values]
    out_hw = two(out_shape[2:])
    limits = [p.limit(v) if p.target.arch == "aarch64" else math.inf for v in views]
    spec = DepthwiseSpec(
        x.dtype,
        w_dtype,
        out.dtype,
        out_shape[0],
        out_hw,
        g.kernel,
        channels,
        _nhw(x),
        _nhw(out),
        g.stride,
        g.dilation,
        b.finish(result),
        tuple(Operand(v.dtype, (*_nhw(v), v.strides[1]), v.extent, n) for v, n in zip(views, limits, strict=True)),
        depthwise_tile(p.target, x.dtype, w_dtype, channels, out_hw[1]),
        x.extent,
        out.extent,
    )
    packed = pack_depthwise(w.reshape(channels, *g.kernel), packed_rows(spec, p.target), w_dtype)
    weights = p.constant(packed, node.need(1).name)
    args = [p.pointer(v) for v in (x, weights, *views, out)]
    macs = math.prod(out_shape) * g.kernel[0] * g.kernel[1]
    p.call(spec, args, (out.storage,), region.label, macs=macs)
    p.views[id(region.output)] = out
