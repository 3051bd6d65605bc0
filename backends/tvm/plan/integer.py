"""Quantized linear operators: recognise them, and give their sums integer meaning.

For data q with zero point z and weights w (int8, zero point zero for most models) of scale s_w[c]:
    sum (q - z) * w = sum q*w - z * sum w
The second term is known at compile time and joins the bias as `compensation`. Weights that have a zero point v add
- v * sum q, for which the kernel sums q too (linear kernels), or are stored as 16-bit w - v (depthwise kernels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.fixed import packed_scales
from irc.backends.tvm.plan.kinds import dequantized, is_weight
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.translate import quantization, storage_dtype
from irc.ir.graph import Node, Value
from irc.ir.types import Array, DType

if TYPE_CHECKING:
    from irc.backends.tvm.plan.planner import RegionOperands


_WEIGHTS = (DType.INT8, DType.UINT8, DType.INT4, DType.UINT4, DType.INT2, DType.UINT2)


@dataclass(frozen=True)
class IntegerWeights:
    """`w` int8 [oc, ...], output channels first; `scale` float64 [oc] = data scale * weight scale; `weight_zero` int32
    [oc] or None."""

    x: Value
    x_zero: int
    w: Array
    scale: Array
    weight_zero: Array | None

    def compensation(self, places: int) -> Array:
        """int64 [oc]: what the zero points add, for sums over `places` products."""
        total = -self.x_zero * self.w.reshape(self.w.shape[0], -1).astype(np.int64).sum(1)
        if self.weight_zero is not None:
            total = total + places * self.x_zero * self.weight_zero.astype(np.int64)
        return np.asarray(total)

    def full_weights(self) -> Array:
        """Weights less their zero point: int8, or int16 where that does not hold them."""
        if self.weight_zero is None:
            return self.w
        zero = self.weight_zero.reshape((-1,) + (1,) * (self.w.ndim - 1))
        full = (self.w.astype(np.int16) - zero).astype(np.int16)
        return full.astype(np.int8) if full.min(initial=0) >= -128 and full.max(initial=0) < 128 else full

    def full_compensation(self) -> Array:
        w = self.full_weights()
        return np.asarray(-self.x_zero * w.reshape(w.shape[0], -1).astype(np.int64).sum(1))


def float_weights(value: Value) -> Array:
    """The real values of a constant, one stored in 16 bits, or a dequantized one (per tensor, per axis or blocked)."""
    if value.is_constant:
        return value.numpy()
    node = value.producer
    assert node is not None
    if node.is_op("Cast"):
        return np.asarray(node.need(0).numpy().astype(np.float32))
    q = node.need(0).numpy().astype(np.float64)
    scale = node.need(1).numpy().astype(np.float64)
    zero_value = node.input(2)
    zero = np.zeros(scale.shape) if zero_value is None else zero_value.numpy().astype(np.float64)
    axis, block = node.get_int("axis", 1), node.get_int("block_size", 0)
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    elif block:
        size = q.shape[axis]
        scale, zero = (np.take(np.repeat(v, block, axis), range(size), axis) for v in (scale, zero))
    else:
        shape = [1] * q.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    # the product as DequantizeLinear takes it: in float32
    return np.asarray((q - zero).astype(np.float32) * scale.astype(np.float32))


def integer_weights(node: Node) -> IntegerWeights | None:
    """The integer form of a Conv, Gemm or MatMul, or None where data or weights are not 8-bit quantized that way."""
    data = dequantized(node.need(0))
    if data is None or is_weight(node.need(0)):
        return None
    weights = node.need(1).producer
    if weights is None or not weights.is_op("DequantizeLinear") or weights.get_int("block_size", 0):
        return None
    if any(v is not None and not v.is_constant for v in weights.inputs):
        return None
    q, scale = weights.need(0), weights.need(1).numpy().astype(np.float64).reshape(-1)
    if q.dtype not in _WEIGHTS:
        return None
    array = q.numpy() if q.dtype.bits == 8 else q.numpy().astype(np.int8)
    axis = 0
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.get_int("transB", 0)):
        if array.ndim != 2:
            return None
        array, axis = array.T, 1
    if node.op_type == "Gemm" and (node.get_float("alpha", 1.0) != 1.0 or node.get_int("transA", 0)):
        return None
    if scale.size > 1 and weights.get_int("axis", 1) % q.numpy().ndim != axis:
        return None
    channels = array.shape[0]
    zero_value = weights.input(2)
    zero = np.zeros(1, np.int64) if zero_value is None else zero_value.numpy().astype(np.int64).reshape(-1)
    zeros = np.broadcast_to(zero, (channels,)) if zero.size in (1, channels) else None
    if zeros is None:
        return None
    total = np.broadcast_to(scale, (channels,)) * float(np.float32(data[1]))
    signed = q.dtype in (DType.INT8, DType.INT4, DType.INT2)
    half = 1 << (q.dtype.bits - 1)
    if signed and not zeros.any():  # nearly always: nothing to do, and nothing to copy
        return IntegerWeights(data[0], data[2], array, np.ascontiguousarray(total), None)
    wide = array.astype(np.int16)
    shifted = wide - zeros.reshape((-1,) + (1,) * (wide.ndim - 1)).astype(np.int16)
    weight_zero: Array | None = None
    if shifted.min(initial=0) < -half or shifted.max(initial=0) >= half:  # keep the bits, remember the zero point
        shift = 0 if signed else half
        shifted = wide - shift
        weight_zero = (zeros - shift).astype(np.int32)
    return IntegerWeights(data[0], data[2], shifted.astype(np.int8), np.ascontiguousarray(total), weight_zero)


@dataclass(frozen=True)
class FusedQuantize:
    """How far into a region the plain chain [+ bias] [Relu | Clip]* Q reaches, and what it does."""

    skip: int  # nodes of the region that it covers
    bias: Array | None
    scale: float | None = None  # of the quantization; None: the chain ends in float
    zero: int = 0
    low: int = 0
    high: int = 0
    dtype: str = ""


def fuse_quantize(region: Region, bias: Array | None) -> FusedQuantize:
    """Absorb the bias addition, the activation clamps and the quantization that follow the root."""
    nodes = region.nodes
    at, current = 1, region.root.output
    if at < len(nodes) and nodes[at].is_op("Add") and len(current.users) == 1:
        other = next((v for v in nodes[at].inputs if v is not None and v is not current), None)
        channels = _channel_vector(other, region.root) if other is not None else None
        if channels is not None:
            bias = channels if bias is None else bias + channels
            current, at = nodes[at].output, at + 1
    with_bias = FusedQuantize(at, bias)
    low, high = -np.inf, np.inf
    while at < len(nodes) and nodes[at].is_op("Relu", "Clip") and len(current.users) == 1:
        node = nodes[at]
        if node.need(0) is not current:
            return with_bias
        if node.op_type == "Relu":
            low = max(low, 0.0)
        else:
            bounds = [node.input(1), node.input(2)]
            if bounds[0] is not None:
                low = max(low, float(bounds[0].numpy().reshape(-1)[0]))
            if bounds[1] is not None:
                high = min(high, float(bounds[1].numpy().reshape(-1)[0]))
        current, at = node.output, at + 1
    if at >= len(nodes) or not nodes[at].is_op("QuantizeLinear") or len(current.users) != 1:
        return with_bias
    parameters = quantization(nodes[at])
    assert parameters is not None
    scale, zero = parameters
    dtype = storage_dtype(nodes[at].output.dtype)
    info = np.iinfo(np.dtype(dtype))

    def level(bound: float, otherwise: int) -> int:
        if not np.isfinite(bound):
            return otherwise
        return int(np.clip(np.rint(np.float32(bound) / np.float32(scale)) + zero, info.min, info.max))

    return FusedQuantize(at + 1, bias, scale, zero, level(low, int(info.min)), level(high, int(info.max)), dtype)


def _channel_vector(value: Value, root: Node) -> Array | None:
    """A constant that only varies along the channels of `root`'s output (dimension 1 of images, the last of others)."""
    if not is_weight(value):
        return None
    data = float_weights(value).astype(np.float32)
    shape = root.output.static_shape()
    axis = 1 if root.is_op("Conv") else len(shape) - 1
    full = (1,) * (len(shape) - data.ndim) + data.shape
    if any(d != 1 for i, d in enumerate(full) if i != axis):
        return None
    return np.broadcast_to(data.reshape(-1), (shape[axis],)).copy()


_BIAS_LIMIT = 2.0**30


def start_sum(
    b: ExpressionBuilder,
    operands: RegionOperands,
    integer: IntegerWeights | None,
    fused: FusedQuantize,
    compensation: Array | None,
    *,
    summed: bool = False,
    fpu: bool = True,
) -> int:
    """Instructions from the kernel's sum to the value after the absorbed chain.

    Float: acc + bias. Integer: int32(acc) + (bias + compensation) in int32, then float32 of it times a float32 scale,
    and where a quantization follows: clamp, round half to even, add the zero point. Without an `fpu` scales are packed
    for integer arithmetic (`fixed.py`) where they can be.
    """
    if integer is None:
        acc = b.add("accumulator", "float32")
        if fused.bias is not None:
            acc = b.add("add", "float32", acc, _channel(b, operands, fused.bias.astype(np.float32)))
        return acc
    acc = b.add("accumulator", "int32")
    if summed and integer.weight_zero is not None:
        zero = _channel(b, operands, integer.weight_zero.astype(np.int32))
        acc = b.add("sub", "int32", acc, b.add("mul", "int32", zero, b.operand(-1, "int32")))
    extra = np.zeros(len(integer.scale), np.int64) if compensation is None else compensation
    float_bias: Array | None = None
    if fused.bias is not None:
        in_steps = fused.bias.astype(np.float64) / integer.scale
        if np.abs(in_steps).max(initial=0.0) < _BIAS_LIMIT:
            extra = extra + np.rint(in_steps).astype(np.int64)
        else:
            float_bias = fused.bias.astype(np.float32)
    if np.any(extra):
        acc = b.add("add", "int32", acc, _channel(b, operands, extra.astype(np.int32)))
    factor = integer.scale if fused.scale is None or float_bias is not None else integer.scale / fused.scale
    real = b.add("cast", "float32", acc)
    scales = factor.astype(np.float32)
    packed = None if fpu else packed_scales(scales, _sum_limits(integer, extra), fused.scale is not None)
    if packed is None:
        scale = _channel(b, operands, scales)
    else:
        scale = b.add("unpack", "float32", _channel(b, operands, packed[0]), params=(packed[1],))
    value = b.add("scale", "float32", real, scale)
    if float_bias is not None:
        value = b.add("add", "float32", value, _channel(b, operands, float_bias))
    if fused.scale is None:
        return value
    rest = 1.0 if float_bias is None else float(np.float32(1.0 / fused.scale))
    return b.requantize(value, fused.dtype, fused.low, fused.high, fused.zero, rest)


def _sum_limits(integer: IntegerWeights, extra: Array) -> Array:
    """A limit of the sum of each channel."""
    bits = integer.x.tensor.dtype.bits
    w = np.abs(integer.full_weights().reshape(len(integer.scale), -1).astype(np.int64)).sum(1)
    return np.asarray((w * ((1 << bits) - 1) + np.abs(extra)).astype(np.float64))


def _channel(b: ExpressionBuilder, operands: RegionOperands, data: Array) -> int:
    """A per-channel operand, or a constant when all channels agree."""
    if data.size and np.all(data == data[0]):
        item = data[0]
        return b.constant(float(item) if data.dtype.kind == "f" else int(item), data.dtype.name)
    return b.operand(operands.number(data), data.dtype.name)
