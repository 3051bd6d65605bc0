"""QuantizeLinear and DequantizeLinear: per tensor, per axis and in blocks, 8 and 16 bits and int32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import tirx

from irc.backends.tvm.library import approximations
from irc.backends.tvm.library.elementwise import Definition
from irc.backends.tvm.library.op import Expr, Op, Refused, Tensor, axis_of, cast, compute, const, element, shape_of

_QUANTIZED = ("int8", "uint8", "int16", "uint16")


def saturate(value: Expr, dtype: str) -> Expr:
    """An int32 brought into the range of `dtype`."""
    bounds = np.iinfo(dtype)
    return cast(tirx.max(tirx.min(value, const(bounds.max, "int32")), const(bounds.min, "int32")), dtype)


def rounded(value: Expr) -> Expr:
    """Half to even, as int32; clamped first, far beyond 16 bits, so that the rounding and conversion are defined."""
    inside = tirx.max(tirx.min(value, const(1 << 20, "float32")), const(-(1 << 20), "float32"))
    return approximations.rounded(inside)


def requantize(accumulator: Expr, scale: Expr, zero: Expr, dtype: str) -> Expr:
    """saturate(round(accumulator * scale) + zero): the integer semantics that all kernels share."""
    return saturate(rounded(cast(accumulator, "float32") * scale) + cast(zero, "int32"), dtype)


def along(op: Op, tensor: Tensor, index: Sequence[Expr]) -> Expr:
    """A scale or zero point for the element at `index`."""
    shape = shape_of(tensor)
    block = op.attr("block_size", 0)
    if int(np.prod(shape, dtype=np.int64)) == 1 and not block:
        return element(tensor, [0] * len(shape))
    axis = axis_of(op.attr("axis", 1), len(index))
    if block:
        return element(tensor, [tirx.floordiv(i, block) if a == axis else i for a, i in enumerate(index)])
    return element(tensor, [index[axis]])


def quantize(op: Op) -> list[Tensor]:
    import onnx

    x, scale, zero = op.tensor(0), op.tensor(1), op.optional(2)
    named = op.attr("output_dtype", 0)
    dtype = op.value(2).dtype if zero is not None else "uint8"
    if zero is None and named:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(named))
    if dtype not in _QUANTIZED:
        raise Refused(f"quantized type {dtype}")

    def formula(*i: Expr) -> Expr:
        value = cast(element(x, i), "float32") / cast(along(op, scale, i), "float32")
        offset = cast(along(op, zero, i), "int32") if zero is not None else const(0, "int32")
        return saturate(rounded(value) + offset, dtype)

    return [compute(shape_of(x), formula, op.kind)]


def dequantize(op: Op) -> list[Tensor]:
    import onnx

    x, scale, zero = op.tensor(0), op.tensor(1), op.optional(2)
    named = op.attr("output_dtype", 0)
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(named)) if named else op.value(1).dtype
    if op.value(0).dtype not in (*_QUANTIZED, "int32"):
        raise Refused(f"quantized type {op.value(0).dtype}")

    def formula(*i: Expr) -> Expr:
        value = cast(element(x, i), "int32")
        value = value - cast(along(op, zero, i), "int32") if zero is not None else value
        return cast(cast(value, "float32") * cast(along(op, scale, i), "float32"), dtype)

    return [compute(shape_of(x), formula, op.kind)]


OPERATORS: dict[str, Definition] = {"DequantizeLinear": dequantize, "QuantizeLinear": quantize}
