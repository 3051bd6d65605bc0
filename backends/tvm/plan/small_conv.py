"""Convolutions and matrix products of bytes -> kernels of microcontrollers (`specs.SmallConvSpec`).

What they do not cover (real numbers, 16 bits, weights with a zero point of their own, biases beyond an int32) goes the
way of other targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.plan.integer import (
    IntegerWeights,
    float_weights,
    fuse_quantize,
    integer_weights,
    start_sum,
)
from irc.backends.tvm.plan.kinds import kind_of
from irc.backends.tvm.plan.planner import Planner, Pointer, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.small_pack import pack_conv, pack_depthwise
from irc.backends.tvm.plan.source import source_conv, source_depthwise
from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View, row_major, strides_in_order
from irc.backends.tvm.plan.window import Window, window
from irc.backends.tvm.specs import Operand, SmallConvSpec, SmallDepthwiseSpec, Strides
from irc.ir.graph import Node, Value
from irc.ir.types import Array, DType
from irc.targets.target import Target


def small_weights(node: Node, target: Target) -> IntegerWeights | None:
    """The integer form of an operator that becomes a kernel of microcontrollers, otherwise None."""
    if not target.small or not node.is_op("Conv", "Gemm", "MatMul"):
        return None
    integer = integer_weights(node)
    if integer is None or integer.x.dtype is not DType.INT8:
        return None
    if node.op_type == "Conv":
        kind = kind_of(node)
        if kind == "depthwise":
            return integer
        return integer if kind == "linear" and integer.weight_zero is None else None
    if integer.weight_zero is not None or (node.op_type == "Gemm" and not _plain_gemm(node)):
        return None
    return integer


def _plain_gemm(node: Node) -> bool:
    """alpha * A B + beta * c with a constant c, one number a column."""
    c = node.input(2)
    if node.get_int("transA", 0) or node.get_float("alpha", 1.0) != 1.0:
        return False
    if c is None:
        return True
    columns = node.output.static_shape()[-1]
    producer = c.producer
    constant = c.is_constant or (producer is not None and all(v is None or v.is_constant for v in producer.inputs))
    return constant and math.prod(c.static_shape()) in (1, columns)


@dataclass(frozen=True)
class _Images:
    """The places of an operator: its data, its result, and what its expression reads, as images [n, h, w, c]."""

    x: View
    out: View
    operands: tuple[View, ...]
    constants: tuple[Array | None, ...] = ()  # of channels, where an operand is one

    def group(self, number: int, ic: int, oc: int) -> _Images:
        """The channels of one group."""
        return _Images(
            _channels(self.x, number * ic, ic),
            _channels(self.out, number * oc, oc),
            tuple(_channels(v, number * oc, oc) for v in self.operands),
            tuple(None if c is None else c[number * oc : (number + 1) * oc] for c in self.constants),
        )


def lower_small(p: Planner, region: Region, integer: IntegerWeights) -> None:
    """One call; of a convolution in groups one for each group."""
    node = region.root
    groups = node.get_int("group", 1) if node.op_type == "Conv" else 1
    depthwise = node.op_type == "Conv" and kind_of(node) == "depthwise"
    g = _geometry(node)
    full = w = conv_weights(node, integer, g)
    read, written = p.kept.get(id(integer.x)), p.kept.get(id(region.output))
    added = None
    if read is not None and not depthwise:
        missing = np.delete(np.arange(w.shape[3]), read.channels)
        added = (w[..., missing].astype(np.int64) * read.values[missing]).sum((1, 2, 3))
        w = w[..., read.channels]
    expression, values = small_expression(p, region, integer, full, p.target.fpu != "none", added)
    if written is not None:
        w = w[written.channels]
        values = [v[written.channels] if isinstance(v, np.ndarray) else v for v in values]
    images = replace(_images(p, region, integer, values), constants=_constants(values))
    if depthwise:
        _depthwise(p, region, images, g, w[..., 0], expression, integer.x_zero)
        return
    oc, ic = w.shape[0] // groups, w.shape[3]
    for i in range(groups):
        _conv(p, region, images.group(i, ic, oc), g, w[i * oc : (i + 1) * oc], expression, integer.x_zero)


def conv_weights(node: Node, integer: IntegerWeights, g: Window) -> Array:
    """Integer weights as [oc, kh, kw, ic]; those of a depthwise convolution less their zero points."""
    depthwise = node.op_type == "Conv" and kind_of(node) == "depthwise"
    w = integer.full_weights() if depthwise else integer.w
    return w.reshape(w.shape[0], -1, *g.kernel).transpose(0, 2, 3, 1)


def _geometry(node: Node) -> Window:
    if node.op_type != "Conv":
        return Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    return window(node, node.need(0).static_shape()[2:], node.need(1).static_shape()[2:])


def _bias(node: Node) -> Array | None:
    value = node.input(2) if node.op_type in ("Conv", "Gemm") else None
    if value is None:
        return None
    bias = float_weights(value).astype(np.float32)
    if node.op_type == "Conv":
        return bias
    columns = node.output.static_shape()[-1]
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (columns,)) * np.float32(node.get_float("beta", 1.0)))


def small_expression(
    p: Planner, region: Region, integer: IntegerWeights, w: Array, fpu: bool, added: Array | None = None
) -> tuple[Expression, list[Value | Array]]:
    """The region's expression on sums of x * w, and its operands in their order. `fpu`: whether the target has one;
    `added`: int64 [oc], what belongs to the sums besides."""
    b, operands = ExpressionBuilder(), RegionOperands()
    fused = fuse_quantize(region, _bias(region.root))
    compensation = -integer.x_zero * w.reshape(w.shape[0], -1).astype(np.int64).sum(1)
    if added is not None:
        compensation = compensation + added
    start = start_sum(b, operands, replace(integer, weight_zero=None), fused, compensation, fpu=fpu)
    return b.finish(p.translate(region, b, operands, start, fused.skip)), operands.values


def _constants(values: Sequence[Value | Array]) -> tuple[Array | None, ...]:
    return tuple(v if isinstance(v, np.ndarray) and v.ndim == 1 else None for v in values)


def _images(p: Planner, region: Region, integer: IntegerWeights, values: Sequence[Value | Array]) -> _Images:
    node = region.root
    shape = region.output.static_shape()
    if node.op_type != "Conv":
        return _matrices(p, region, integer, values)
    rank = len(shape)
    order = (0, 2, 1) if rank == 3 else (0, 2, 3, 1)
    x = p.view(integer.x)
    if x.strides[1] != 1 and x.shape[1] != 1:
        x = p.ordered(integer.x, order)
    kept = p.kept.get(id(region.output))
    if kept is None:
        out = p.output_view(region.output, order, innermost=1)
    else:
        shape = (shape[0], len(kept.channels), *shape[2:])
        dtype = storage_dtype(region.output.dtype)
        out = View(p.new_storage(dtype, math.prod(shape)), dtype, shape, strides_in_order(shape, order))
    p.views[id(region.output)] = out
    made = []
    for value in values:
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = value.reshape((1, -1) + (1,) * (rank - 2))
        view = p.operand_view(value, shape)
        if view.strides[1] not in (0, 1) and view.shape[1] != 1:
            view = _copied(p, view, order)
        made.append(_image(view))
    return _Images(_image(x), _image(out), tuple(made))


def _image(view: View) -> View:
    """[n, c, h, w] or [n, c, w] -> [n, h, w, c]."""
    if len(view.shape) == 3:
        n, c, w = view.shape
        sn, sc, sw = view.strides
        return replace(view, shape=(n, 1, w, c), strides=(sn, 0, sw, sc), halo=None)
    return replace(view.transposed((0, 2, 3, 1)), halo=None)


def _matrices(p: Planner, region: Region, integer: IntegerWeights, values: Sequence[Value | Array]) -> _Images:
    """Rows of matrices as the places of one row of an image."""
    shape = region.output.static_shape()
    columns = shape[-1]
    rows = math.prod(shape) // columns
    x = p.view(integer.x)
    flat = x.reshaped((rows, x.shape[-1]))
    if flat is None or (flat.strides[1] != 1 and flat.shape[1] != 1):
        made = _copied(p, x, range(len(x.shape)))
        flat = made.reshaped((rows, x.shape[-1]))
    out = p.output_view(region.output, range(len(shape)), innermost=len(shape) - 1)
    made_rows = out.reshaped((rows, columns))
    if made_rows is None or (made_rows.strides[1] != 1 and columns > 1):  # a reader wants rows in another order
        out = View(p.new_storage(out.dtype, math.prod(shape)), out.dtype, shape, row_major(shape))
        made_rows = out.reshaped((rows, columns))
    assert flat is not None, "gapless data can take any shape"
    assert made_rows is not None, "gapless data can take any shape"
    p.views[id(region.output)] = out
    found = []
    for value in values:
        view = p.operand_view(value, shape)
        operand = view.reshaped((rows, columns))
        if operand is None or (operand.strides[1] not in (0, 1) and columns > 1):
            operand = _copied(p, view, range(len(shape))).reshaped((rows, columns))
        assert operand is not None, "gapless data can take any shape"
        found.append(_row(operand))
    return _Images(_row(flat), _row(made_rows), tuple(found))


def _row(view: View) -> View:
    rows, columns = view.shape
    return replace(view, shape=(1, 1, rows, columns), strides=(0, 0, *view.strides), halo=None)


def _copied(p: Planner, view: View, order: Sequence[int]) -> View:
    strides = strides_in_order(view.shape, order)
    made = View(p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, strides)
    p.copy(view, made, "reorder")
    return made


def _channels(image: View, first: int, count: int) -> View:
    n, h, w, c = image.shape
    if c == 1 or c == count:
        return image
    return image.sliced((0, 0, 0, first), (n, h, w, count), (1, 1, 1, 1))


def _nhw(view: View) -> Strides:
    """Strides of the three outer dimensions; of dimensions of one place, those of a gapless image."""
    return view.strides[:3]


def _operands(p: Planner, views: Sequence[View]) -> tuple[Operand, ...]:
    return tuple(Operand(v.dtype, v.strides, v.extent, p.limit(v)) for v in views)


def _conv_spec(p: Planner, im: _Images, g: Window, oc: int, expression: Expression) -> SmallConvSpec:
    """Of the way "plain", with places outside of the image 0; the weights' size is to come."""
    batch, height, width, ic = im.x.shape
    return SmallConvSpec(
        im.out.dtype,
        batch,
        (height, width),
        (im.out.shape[1], im.out.shape[2]),
        g.kernel,
        ic,
        oc,
        _nhw(im.x),
        _nhw(im.out),
        g.stride,
        g.dilation,
        g.pads[:2],
        expression=expression,
        operands=_operands(p, im.operands),
        x_size=im.x.extent,
        y_size=im.out.extent,
    )


def _depthwise_spec(p: Planner, im: _Images, g: Window, expression: Expression) -> SmallDepthwiseSpec:
    """As `_conv_spec`."""
    batch, height, width, channels = im.x.shape
    return SmallDepthwiseSpec(
        im.out.dtype,
        batch,
        (height, width),
        (im.out.shape[1], im.out.shape[2]),
        g.kernel,
        channels,
        _nhw(im.x),
        _nhw(im.out),
        g.stride,
        g.dilation,
        g.pads[:2],
        expression=expression,
        operands=_operands(p, im.operands),
        x_size=im.x.extent,
        y_size=im.out.extent,
    )


def _conv(p: Planner, region: Region, im: _Images, g: Window, w: Array, expression: Expression, zero: int) -> None:
    spec = replace(_conv_spec(p, im, g, w.shape[0], expression), fill=zero, w_size=w.size)
    macs = spec.batch * math.prod(spec.out) * w.size
    if p.target.arch == "c":
        _call(p, region, im, *source_conv(spec, w), macs)
        return
    packed = pack_conv(spec, np.ascontiguousarray(w), im.constants, p.target)
    _call(p, region, im, packed.spec, packed.weights, macs, packed.elements)


def _depthwise(p: Planner, region: Region, im: _Images, g: Window, w: Array, expression: Expression, zero: int) -> None:
    spec = replace(_depthwise_spec(p, im, g, expression), fill=zero, w_dtype=w.dtype.name, w_size=w.size)
    macs = spec.batch * math.prod(spec.out) * w.size
    if p.target.arch == "c":
        _call(p, region, im, source_depthwise(spec, w), np.ascontiguousarray(w.transpose(1, 2, 0)), macs)
        return
    packed = pack_depthwise(spec, np.ascontiguousarray(w.transpose(1, 2, 0)), im.constants, p.target)
    _call(p, region, im, packed.spec, packed.weights, macs, packed.elements)


def _call(
    p: Planner,
    region: Region,
    im: _Images,
    spec: SmallConvSpec | SmallDepthwiseSpec,
    weights: Array,
    macs: int,
    elements: Sequence[int] | None = None,
) -> None:
    """`elements`: the operands that the kernel reads; None: the last ones, as constants of channels come first."""
    stored = p.constant(weights, region.root.need(1).name)
    first = len(im.operands) - (len(spec.operands) - spec.streamed)
    operands = im.operands[first:] if elements is None else [im.operands[i] for i in elements]
    _place(p, im, spec, stored, operands, region.label, macs)


def _place(
    p: Planner,
    im: _Images,
    spec: SmallConvSpec | SmallDepthwiseSpec,
    stored: View,
    operands: Sequence[View],
    label: str,
    macs: int,
) -> None:
    """The call with weights that are `stored`, and its scratch memory."""
    args = [p.pointer(v) for v in (im.x, stored, *operands, im.out)]
    writes: tuple[int, ...] = (im.out.storage,)
    if spec.scratch:
        scratch = p.new_storage("uint8", spec.scratch)
        args.append(Pointer(scratch, 0))
        writes = (*writes, scratch)
    p.call(spec, args, writes, label, macs=macs)


__all__ = ["conv_weights", "lower_small", "small_expression", "small_weights"]
