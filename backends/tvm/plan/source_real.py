"""Float convolutions and matrix products with constant weights -> kernels of C source, without borders of images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.plan.integer import FusedQuantize, IntegerWeights, float_weights, integer_weights, start_sum
from irc.backends.tvm.plan.kinds import is_weight, kind_of
from irc.backends.tvm.plan.planner import Planner, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.small_conv import (
    _bias,
    _conv_spec,
    _depthwise_spec,
    _geometry,
    _Images,
    _images,
    _place,
    _plain_gemm,
)
from irc.backends.tvm.plan.source import real_weights
from irc.backends.tvm.plan.source_winograd import scratch_bytes, winograd_weights
from irc.backends.tvm.plan.window import Window
from irc.backends.tvm.small import REAL, WINOGRAD
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.ir.graph import Node
from irc.ir.types import Array, DType
from irc.targets.target import Target


def is_real_source(node: Node, target: Target) -> bool:
    """Whether an operator of real numbers becomes a kernel of C source."""
    if target.arch != "c" or not node.is_op("Conv", "Gemm", "MatMul"):
        return False
    x, w = node.need(0), node.need(1)
    if x.dtype is not DType.FLOAT or not is_weight(w) or integer_weights(node) is not None:
        return False
    if node.op_type == "Conv":
        return kind_of(node) in ("linear", "depthwise")
    return len(w.static_shape()) == 2 and len(x.static_shape()) >= 2 and (node.op_type == "MatMul" or _plain_gemm(node))


def lower_real(p: Planner, region: Region, tile: tuple[int, int] | None) -> None:
    """One call; of a convolution in groups one for each group. `tile`: through Winograd's transforms."""
    node = region.root
    groups = node.get_int("group", 1) if node.op_type == "Conv" else 1
    g = _geometry(node)
    w = _weights(node)
    w = w.reshape(w.shape[0], -1, *g.kernel).transpose(0, 2, 3, 1)  # oc, kh, kw, ic
    b, operands = ExpressionBuilder(), RegionOperands()
    start = start_sum(b, operands, None, FusedQuantize(1, _bias(node)), None)
    expression = b.finish(p.translate(region, b, operands, start))
    data = IntegerWeights(node.need(0), 0, w, np.ones(1), None)  # of which only the data is asked for
    images = _images(p, region, data, operands.values)
    oc, ic = w.shape[0] // groups, w.shape[3]
    if node.op_type == "Conv" and kind_of(node) == "depthwise":
        _depthwise(p, region, images, g, np.ascontiguousarray(w[..., 0].transpose(1, 2, 0)), expression)
        return
    for i in range(groups):
        _conv(p, region, images.group(i, ic, oc), g, w[i * oc : (i + 1) * oc], expression, tile)


def _weights(node: Node) -> Array:
    """[oc, ...]."""
    w = float_weights(node.need(1)).astype(np.float32)
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.get_int("transB", 0)):
        return w
    return np.ascontiguousarray(w.T)


def _conv(
    p: Planner,
    region: Region,
    im: _Images,
    g: Window,
    w: Array,
    expression: Expression,
    tile: tuple[int, int] | None,
) -> None:
    spec = replace(_conv_spec(p, im, g, w.shape[0], expression), way=REAL)
    macs = spec.batch * math.prod(spec.out) * w.size
    if tile is None:
        _call(p, region, im, spec, real_weights(w), macs, region.label)
        return
    spec = replace(spec, way=f"{WINOGRAD}{tile[0]}x{tile[1]}", scratch=scratch_bytes(spec, tile))
    label = f"{region.label} F({tile[0]}x{tile[1]},{g.kernel[0]}x{g.kernel[1]})"
    _call(p, region, im, spec, winograd_weights(w, tile), macs, label)


def _depthwise(p: Planner, region: Region, im: _Images, g: Window, w: Array, expression: Expression) -> None:
    spec = replace(_depthwise_spec(p, im, g, expression), way=REAL)
    _call(p, region, im, spec, w.reshape(-1), spec.batch * math.prod(spec.out) * w.size, region.label)


def _call(
    p: Planner,
    region: Region,
    im: _Images,
    spec: SmallConvSpec | SmallDepthwiseSpec,
    w: Array,
    macs: int,
    label: str,
) -> None:
    weights = p.constant(w, region.root.need(1).name)
    _place(p, im, replace(spec, w_size=weights.extent), weights, im.operands, label, macs)


__all__ = ["is_real_source", "lower_real"]
