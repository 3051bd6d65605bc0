"""Expressions that hand-written kernels of microcontrollers know: sums of a channel to bytes.

y = requantize(f32(sum + bias[c]) * scale[c] [+ addend[c]])
y = requantize([relu](dequantize(requantize(as above)) + dequantize(other)))       (a residual connection)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder, Instr
from irc.ir.types import Array

Source = int | float | None
"""Number of an operand (int), one number for all channels (float), or nothing."""


@dataclass(frozen=True)
class Residual:
    """A second requantization: of what the first one gave, `scale` and `zero`, plus operand `operand`."""

    scale: float
    zero: int
    operand: int
    operand_scale: float
    operand_zero: int
    requantize: Instr


@dataclass(frozen=True)
class Epilogue:
    """`bias`, `scale` and `addend` are instructions of the expression: operands or constants (-1: there is none)."""

    bias: int
    scale: int
    addend: int
    requantize: Instr
    residual: Residual | None = None

    @property
    def last(self) -> Instr:
        return self.requantize if self.residual is None else self.residual.requantize


def epilogue_of(expression: Expression) -> Epilogue | None:
    """`expression` as an epilogue, or None where it is something else."""
    if not expression or expression[-1].op != "requantize" or expression[-1].dtype != "int8":
        return None
    simple = _simple(expression, len(expression) - 1)
    return simple if simple is not None else _residual(expression)


def _simple(expression: Expression, at: int) -> Epilogue | None:
    last = expression[at]
    source = expression[last.args[0]]
    addend = -1
    if source.op == "add" and source.dtype == "float32":
        products = [a for a in source.args if expression[a].op == "scale"]
        others = [a for a in source.args if expression[a].op in ("operand", "constant")]
        if len(products) != 1 or len(others) != 1:
            return None
        addend, source = others[0], expression[products[0]]
    if source.op != "scale" or expression[source.args[1]].op not in ("operand", "constant"):
        return None
    scale, real = source.args[1], expression[source.args[0]]
    if real.op != "cast" or expression[real.args[0]].dtype != "int32":
        return None
    total, bias = expression[real.args[0]], -1
    if total.op == "add":
        left, right = total.args
        if expression[left].op != "accumulator" or expression[right].op not in ("operand", "constant"):
            return None
        bias = right
    elif total.op != "accumulator":
        return None
    return Epilogue(bias, scale, addend, last)


def _residual(expression: Expression) -> Epilogue | None:
    last = expression[-1]
    source = expression[last.args[0]]
    if source.op == "relu":
        if last.params[0] != last.params[2]:  # the clamp does not do it
            if last.params[3] <= 0:
                return None
            last = Instr(last.op, last.dtype, last.args, (max(last.params[0], last.params[2]), *last.params[1:]))
        source = expression[source.args[0]]
    if source.op != "add":
        return None
    parts = [expression[a] for a in source.args]
    if any(p.op != "dequantize" for p in parts):
        return None
    inner = [p for p in parts if expression[p.args[0]].op == "requantize"]
    outer = [p for p in parts if expression[p.args[0]].op == "operand" and expression[p.args[0]].dtype == "int8"]
    if len(inner) != 1 or len(outer) != 1:
        return None
    first = _simple(expression, inner[0].args[0])
    if first is None or first.requantize.dtype != "int8":
        return None
    operand = int(expression[outer[0].args[0]].params[0])
    (scale, zero), (other_scale, other_zero) = inner[0].params, outer[0].params
    residual = Residual(float(scale), int(zero), operand, float(other_scale), int(other_zero), last)
    return Epilogue(first.bias, first.scale, first.addend, first.requantize, residual)


def streamed_operands(expression: Expression, epilogue: Epilogue) -> set[int]:
    """Numbers of the operands that are constants of channels."""
    used = (epilogue.bias, epilogue.scale, epilogue.addend)
    return {int(expression[i].params[0]) for i in used if i >= 0 and expression[i].op == "operand"}


def channel_values(
    expression: Expression, epilogue: Epilogue, operands: Sequence[Array], channels: int
) -> tuple[Array, Array, Array]:
    """(bias int64, scale float32, addend float32) of every channel. `operands` by their numbers."""

    def values(at: int, otherwise: float, dtype: type) -> Array:
        if at < 0:
            return np.full(channels, otherwise, dtype)
        instr = expression[at]
        data = operands[int(instr.params[0])] if instr.op == "operand" else np.asarray(instr.params[0], instr.dtype)
        return np.broadcast_to(np.asarray(data).reshape(-1), (channels,)).astype(dtype)

    return (
        values(epilogue.bias, 0, np.int64),
        values(epilogue.scale, 1.0, np.float32),
        values(epilogue.addend, 0.0, np.float32),
    )


def canonical(epilogue: Epilogue) -> tuple[Expression, int]:
    """The same with an operand for every constant of channels, whatever the layer has (layers that differ in nothing
    else share a kernel), and how many of these there are: they come first."""
    b = ExpressionBuilder()
    total = b.add("add", "int32", b.add("accumulator", "int32"), b.operand(0, "int32"))
    value = b.add("scale", "float32", b.add("cast", "float32", total), b.operand(1, "float32"))
    count = 2
    if epilogue.addend >= 0:
        value = b.add("add", "float32", value, b.operand(2, "float32"))
        count = 3
    first = epilogue.requantize
    value = b.add(first.op, first.dtype, value, params=first.params)
    residual = epilogue.residual
    if residual is not None:
        other = b.dequantize(b.operand(count, "int8"), residual.operand_scale, residual.operand_zero)
        value = b.add("add", "float32", b.dequantize(value, residual.scale, residual.zero), other)
        value = b.add(residual.requantize.op, "int8", value, params=residual.requantize.params)
    return b.finish(value), count
