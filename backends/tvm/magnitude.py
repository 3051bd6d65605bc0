"""How large the values of an expression can get: what requantization need not clamp.

A bound is an upper limit of |value| and says that the value is no NaN; infinity says nothing. Limits of constant
operands come in few classes, so that layers which differ only in their numbers still share a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from irc.backends.tvm.expression import Expression, Instr
from irc.ir.types import Array

_TYPES = {"uint8": 255.0, "int8": 128.0, "uint16": 65535.0, "int16": 32768.0, "int32": 2.0**31, "uint32": 2.0**32}
_CLASSES = {"float32": (2.0**-5,), "int32": (2.0**24,)}
"""Requantization factors and biases of nearly all layers are below these."""


def limit_of(data: Array) -> float:
    """The class of a constant operand: a limit of the magnitude of all its elements."""
    largest = float(abs(data.astype("float64")).max(initial=0.0))
    return next((c for c in _CLASSES.get(data.dtype.name, ()) if largest <= c), math.inf)


def sum_limit(x_dtype: str, terms: int) -> float:
    """Of a sum of `terms` products with int8 weights."""
    return min(_TYPES[x_dtype] * 128 * terms, 2.0**31) if x_dtype in _TYPES else math.inf


def count_limit(x_dtype: str, count: int) -> float:
    """Of a sum of `count` integers."""
    return min(_TYPES[x_dtype] * count, 2.0**31) if x_dtype in _TYPES else math.inf


def magnitudes(expression: Expression, accumulator: float, operands: Sequence[float]) -> list[float]:
    """A limit for the value of each instruction; `operands`: limits by operand number (infinity: that of the type)."""
    found: list[float] = []
    for instr in expression:
        if instr.op == "accumulator":
            limit = accumulator
        elif instr.op == "operand":
            number = int(instr.params[0])
            limit = operands[number] if 0 <= number < len(operands) else math.inf
        else:
            limit = _limit(instr, [found[a] for a in instr.args])
        limit = min(limit, _TYPES.get(instr.dtype, math.inf))
        found.append(math.inf if math.isnan(limit) else limit)
    return found


def _limit(instr: Instr, args: list[float]) -> float:
    op, params = instr.op, instr.params
    if op == "constant":
        return abs(float(params[0]))
    if op == "dequantize":
        return (args[0] + abs(params[1])) * abs(params[0])
    if op in ("mul", "scale"):
        return args[0] * args[1]
    if op in ("add", "sub", "sum"):
        return args[0] + args[1]
    if op in ("min", "max"):
        return max(args)
    if op in ("cast", "relu", "neg", "abs"):
        return args[0]
    if op == "clip" and math.isfinite(args[0]):
        return max(args[0], *(abs(p) for p in params if math.isfinite(p)), 0.0)
    if op in ("sigmoid", "tanh", "erf") and math.isfinite(args[0]):
        return 1.0
    return math.inf
