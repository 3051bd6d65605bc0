"""What expressions mean, in numpy: the integer reference, and the maker of 256-entry tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from irc.backends.tvm.expression import Expression, Instr
from irc.backends.tvm.fixed import unpack_factors
from irc.ir.types import Array

_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    "tanh": math.tanh,
    "erf": math.erf,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "atan": math.atan,
    "sinh": math.sinh,
    "cosh": math.cosh,
    "asinh": math.asinh,
}


def evaluate(expression: Expression, operands: Sequence[Array], accumulator: Array | None = None) -> Array:
    """The expression over whole arrays. Real functions are taken in double precision and rounded once."""
    values: list[Array] = []
    for instr in expression:
        if instr.op == "operand":
            value = np.asarray(operands[int(instr.params[0])])
        elif instr.op == "accumulator":
            assert accumulator is not None
            value = accumulator
        else:
            with np.errstate(all="ignore"):
                value = _apply(instr, [values[a] for a in instr.args])
        values.append(np.asarray(value).astype(instr.dtype, copy=False))
    return values[-1]


def requantize(x: Array, instr: Instr) -> Array:
    """See docs/integer-semantics.md: scale, clamp, round half to even, add the zero point as an integer."""
    low, high, zero, scale = instr.params
    scaled = x.astype(np.float32)
    if scale != 1.0:
        scaled = scaled * np.float32(scale)
    clamped = np.clip(scaled, np.float32(low - zero), np.float32(high - zero))
    return (np.rint(clamped).astype(np.int32) + np.int32(zero)).astype(instr.dtype)


def _apply(instr: Instr, a: list[Array]) -> Array:
    op = instr.op
    if op == "constant":
        return np.asarray(instr.params[0], instr.dtype)
    if op == "cast":
        return np.asarray(a[0].astype(instr.dtype))
    if op == "cast_bool":
        return np.asarray((a[0] != 0).astype(np.int8))
    if op == "dequantize":
        scale, zero = instr.params
        return (a[0].astype(np.int32) - np.int32(zero)).astype(np.float32) * np.float32(scale)
    if op == "requantize":
        return requantize(a[0], instr)
    if op == "unpack":
        return unpack_factors(a[0], int(instr.params[0]))
    if op == "scale":
        return a[0] * a[1]
    if op == "flip":
        return (a[0].view(np.uint8) ^ np.uint8(0x80)).view(instr.dtype)
    if op == "as_uint8":
        return a[0].view(np.uint8)
    if op == "select":
        return np.where(a[0] != 0, a[1], a[2])
    if op == "clip":
        return np.clip(a[0], instr.params[0], instr.params[1])
    if op in _BINARY:
        return np.asarray(_BINARY[op](a[0], a[1]))
    return _unary(op, a[0])


_BINARY = {
    "add": np.add,
    "sum": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "pow": np.power,
    "equal": np.equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _each(function: Callable[[float], float], x: Array) -> Array:
    return np.asarray(np.vectorize(function, otypes=[np.float64])(x.astype(np.float64)))


def _unary(op: str, x: Array) -> Array:
    if op in _FUNCTIONS:
        return _each(_FUNCTIONS[op], x)
    if op == "sigmoid":
        return 1 / (1 + _each(lambda v: math.exp(min(-v, 700.0)), x))
    if op == "gelu":
        return np.asarray(0.5 * x.astype(np.float64) * (1 + _each(lambda v: math.erf(v / math.sqrt(2)), x)))
    if op == "gelu_tanh":
        d = x.astype(np.float64)
        return np.asarray(0.5 * d * (1 + _each(math.tanh, math.sqrt(2 / math.pi) * (d + 0.044715 * d**3))))
    if op == "softplus":
        d = x.astype(np.float64)
        return np.asarray(np.maximum(d, 0) + np.log1p(np.exp(-np.abs(d))))
    simple = {
        "neg": np.negative,
        "abs": np.abs,
        "sqrt": np.sqrt,
        "log": np.log,
        "reciprocal": np.reciprocal,
        "floor": np.floor,
        "ceil": np.ceil,
        "round": np.rint,
        "sign": np.sign,
        "isnan": np.isnan,
        "acos": np.arccos,
        "asin": np.arcsin,
        "acosh": np.arccosh,
        "atanh": np.arctanh,
    }
    if op == "relu":
        return np.maximum(x, 0)
    if op == "not":
        return x ^ 1
    return np.asarray(simple[op](x))
