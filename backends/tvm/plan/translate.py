"""ONNX elementwise operators -> expression instructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from irc.backends.tvm.expression import ExpressionBuilder
from irc.ir.graph import Node, Value
from irc.ir.types import DType

Build = Callable[[ExpressionBuilder, Node, Sequence[int], str], int]
"""(builder, node, argument instructions, output storage type) -> instruction."""


def storage_dtype(dtype: DType | None) -> str:
    """How a type is stored by kernels: bool as int8 0 or 1."""
    if dtype is None:
        raise ValueError("value without a tensor type")
    return "int8" if dtype is DType.BOOL else dtype.value


def _simple(op: str) -> Build:
    return lambda b, node, args, dtype: b.add(op, dtype, *args)


def _nary(op: str) -> Build:
    def build(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
        result = args[0]
        for other in args[1:]:
            result = b.add(op, dtype, result, other)
        return result

    return build


def _mean(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    return b.add("mul", dtype, _nary("add")(b, node, args, dtype), b.constant(1.0 / len(args), dtype))


def _scalar(value: Value | None, default: float) -> float:
    return default if value is None else float(value.numpy().reshape(-1)[0])


def _clip(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    if dtype != "float32":
        whole = [None if v is None else int(v.numpy().reshape(-1)[0]) for v in (node.input(1), node.input(2))]
        info = np.iinfo(np.dtype(dtype))
        bounds = (info.min if whole[0] is None else whole[0], info.max if whole[1] is None else whole[1])
        return b.add("clip", dtype, args[0], params=(int(bounds[0]), int(bounds[1])))
    low, high = _scalar(node.input(1), -math.inf), _scalar(node.input(2), math.inf)
    return b.add("clip", dtype, args[0], params=(float(np.float32(low)), float(np.float32(high))))


def _hard_sigmoid(b: ExpressionBuilder, x: int, alpha: float, beta: float) -> int:
    line = b.add("mul", "float32", x, b.constant(alpha, "float32"))
    line = b.add("add", "float32", line, b.constant(beta, "float32"))
    return b.add("clip", "float32", line, params=(0.0, 1.0))


def _hard_sigmoid_node(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    return _hard_sigmoid(b, args[0], node.get_float("alpha", 0.2), node.get_float("beta", 0.5))


def _hard_swish(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    return b.add("mul", dtype, args[0], _hard_sigmoid(b, args[0], 1 / 6, 0.5))


def _swish(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    scaled = b.add("mul", dtype, args[0], b.constant(node.get_float("alpha", 1.0), dtype))
    return b.add("mul", dtype, args[0], b.add("sigmoid", dtype, scaled))


def _gelu(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    return b.add("gelu_tanh" if node.get_str("approximate", "none") == "tanh" else "gelu", dtype, args[0])


def _leaky(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    scaled = b.add("mul", dtype, args[0], b.constant(node.get_float("alpha", 0.01), dtype))
    negative = b.add("less", "int8", args[0], b.constant(0.0, dtype))
    return b.add("select", dtype, negative, scaled, args[0])


def _prelu(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    negative = b.add("less", "int8", args[0], b.constant(0.0, dtype))
    return b.add("select", dtype, negative, b.add("mul", dtype, args[0], args[1]), args[0])


def _elu_like(b: ExpressionBuilder, x: int, alpha: float, gamma: float, inner: float = 1.0) -> int:
    """gamma * (x if x > 0 else alpha * (exp(x / inner) - 1))"""
    f = "float32"
    scaled = b.add("mul", f, x, b.constant(1.0 / inner, f)) if inner != 1.0 else x
    power = b.add("sub", f, b.add("exp", f, b.add("min", f, scaled, b.constant(0.0, f))), b.constant(1.0, f))
    negative = b.add("less", "int8", x, b.constant(0.0, f))
    chosen = b.add("select", f, negative, b.add("mul", f, power, b.constant(alpha, f)), x)
    return chosen if gamma == 1.0 else b.add("mul", f, chosen, b.constant(gamma, f))


def _elu(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    return _elu_like(b, args[0], node.get_float("alpha", 1.0), 1.0)


def _selu(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    alpha = node.get_float("alpha", 1.67326319217681884765625)
    return _elu_like(b, args[0], alpha, node.get_float("gamma", 1.05070102214813232421875))


def _celu(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    alpha = node.get_float("alpha", 1.0)
    return _elu_like(b, args[0], alpha, 1.0, alpha)


def _thresholded(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    above = b.add("greater", "int8", args[0], b.constant(node.get_float("alpha", 1.0), dtype))
    return b.add("select", dtype, above, args[0], b.constant(0.0, dtype))


def _softsign(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    return b.add("div", dtype, args[0], b.add("add", dtype, b.add("abs", dtype, args[0]), b.constant(1.0, dtype)))


def _cast(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    source = b.dtype(args[0])
    if node.output.dtype is DType.BOOL:
        return b.add("cast_bool", "int8", args[0])
    return args[0] if source == dtype else b.add("cast", dtype, args[0])


def _where(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    return b.add("select", dtype, *args)


def _pow(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    exponent = node.need(1)
    if exponent.is_constant and exponent.numpy().size == 1:
        value = float(exponent.numpy().reshape(-1)[0])
        if value == 2.0:
            return b.add("mul", dtype, args[0], args[0])
        if value == 3.0:
            return b.add("mul", dtype, b.add("mul", dtype, args[0], args[0]), args[0])
        if value == 0.5 and dtype == "float32":
            return b.add("sqrt", dtype, args[0])
        if value == 1.0:
            return args[0]
    return b.add("pow", dtype, args[0], args[1])


def quantization(node: Node) -> tuple[float, int] | None:
    """(scale, zero point) of a per-tensor Q or DQ node with constant parameters, otherwise None."""
    scale, zero = node.input(1), node.input(2)
    if scale is None or not scale.is_constant or scale.numpy().size != 1 or scale.dtype is not DType.FLOAT:
        return None
    if zero is None:
        return float(scale.numpy().reshape(-1)[0]), 0
    if not zero.is_constant or zero.numpy().size != 1:
        return None
    return float(scale.numpy().reshape(-1)[0]), int(zero.numpy().reshape(-1)[0])


def _quantize(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    parameters = quantization(node)
    assert parameters is not None, "can_translate has looked"
    scale, zero = parameters
    info = np.iinfo(np.dtype(dtype))
    source = b.instrs[args[0]]
    if source.op == "dequantize" and source.params == parameters and b.dtype(source.args[0]) == dtype:
        return source.args[0]  # the same integers again
    x, factor = args[0], 1.0 / scale
    if source.op == "scale" and b.instrs[source.args[1]].op == "constant":
        # one product instead of two: the factors are multiplied now, in double precision
        x, factor = source.args[0], float(b.instrs[source.args[1]].params[0]) / scale
    return b.requantize(x, dtype, int(info.min), int(info.max), zero, float(np.float32(factor)))


def _dequantize(b: ExpressionBuilder, node: Node, args: Sequence[int], dtype: str) -> int:
    parameters = quantization(node)
    assert parameters is not None, "can_translate has looked"
    return b.dequantize(args[0], *parameters)


_FLOAT: dict[str, Build] = {
    "Sigmoid": _simple("sigmoid"),
    "Tanh": _simple("tanh"),
    "Exp": _simple("exp"),
    "Log": _simple("log"),
    "Sqrt": _simple("sqrt"),
    "Reciprocal": _simple("reciprocal"),
    "Erf": _simple("erf"),
    "Floor": _simple("floor"),
    "Ceil": _simple("ceil"),
    "Round": _simple("round"),
    "Div": _simple("div"),
    "Softplus": _simple("softplus"),
    "Softsign": _softsign,
    "HardSigmoid": _hard_sigmoid_node,
    "HardSwish": _hard_swish,
    "Swish": _swish,
    "Gelu": _gelu,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "ThresholdedRelu": _thresholded,
    "IsNaN": _simple("isnan"),
    "Pow": _pow,
    "Mean": _mean,
    "Sin": _simple("sin"),
    "Cos": _simple("cos"),
    "Tan": _simple("tan"),
    "Asin": _simple("asin"),
    "Acos": _simple("acos"),
    "Atan": _simple("atan"),
    "Sinh": _simple("sinh"),
    "Cosh": _simple("cosh"),
    "Asinh": _simple("asinh"),
    "Acosh": _simple("acosh"),
    "Atanh": _simple("atanh"),
}
_ARITHMETIC: dict[str, Build] = {
    "Add": _simple("add"),
    "Sub": _simple("sub"),
    "Mul": _simple("mul"),
    "Min": _nary("min"),
    "Max": _nary("max"),
    "Sum": _nary("add"),
    "Neg": _simple("neg"),
    "Abs": _simple("abs"),
    "Relu": _simple("relu"),
    "Sign": _simple("sign"),
    "Clip": _clip,
    "Identity": lambda b, node, args, dtype: args[0],
    "Equal": _simple("equal"),
    "Less": _simple("less"),
    "LessOrEqual": _simple("less_equal"),
    "Greater": _simple("greater"),
    "GreaterOrEqual": _simple("greater_equal"),
}
_LOGIC: dict[str, Build] = {
    "And": _simple("and"),
    "Or": _simple("or"),
    "Xor": _simple("xor"),
    "Not": _simple("not"),
}
_NUMBERS = (DType.FLOAT, DType.INT32, DType.INT64, DType.INT8, DType.UINT8)
_QUANTIZED = (DType.INT8, DType.UINT8, DType.INT16)


def builder_of(node: Node) -> Build | None:
    """The translation of `node`, or None where it is not elementwise or its types are not covered here."""
    if node.domain == "irc" and node.op_type == "Flip":
        return _simple("flip")
    if node.domain != "" or len(node.outputs) != 1 or node.output.shape is None:
        return None
    types = [v.dtype for v in node.inputs if v is not None]
    kind = types[0] if types else None
    op = node.op_type
    if op == "QuantizeLinear":
        ok = quantization(node) is not None and kind is DType.FLOAT and node.output.dtype in _QUANTIZED
        return _quantize if ok else None
    if op == "DequantizeLinear":
        ok = quantization(node) is not None and kind in (*_QUANTIZED, DType.INT32) and node.output.dtype is DType.FLOAT
        return _dequantize if ok else None
    if op == "Cast":
        allowed = (*_NUMBERS, DType.INT16, DType.BOOL)
        return _cast if kind in allowed and node.output.dtype in allowed else None
    if op == "Where":
        return _where if all(t in (*_NUMBERS, DType.BOOL) for t in types[1:]) else None
    if op in _LOGIC:
        return _LOGIC[op] if kind is DType.BOOL else None
    if op == "Clip" and any(v is not None and not v.is_constant for v in node.inputs[1:]):
        return None
    if op in _FLOAT:
        return _FLOAT[op] if all(t is DType.FLOAT for t in types) else None
    if op in _ARITHMETIC and kind in _NUMBERS and all(t is kind for t in types):
        return _ARITHMETIC[op]
    return None


def data_inputs(node: Node) -> tuple[Value, ...]:
    """The inputs that are read per element (bounds, scales and zero points are parameters)."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clip", "Cast"):
        return (node.need(0),)
    if node.op_type == "Pow" and node.need(1).is_constant:
        return (node.need(0), node.need(1))
    return tuple(v for v in node.inputs if v is not None)
