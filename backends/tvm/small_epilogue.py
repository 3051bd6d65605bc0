"""Expressions that hand-written kernels of microcontrollers know: what they do to the sums of a channel.

    y = f32(sum + bias[c]) * scale[c], then any of these in any order, then requantized to bytes, or as it is

    y + addend[c]                        a bias beyond an int32, an addition of channels
    y * factor[c]
    y + dequantize(other), y + other     a residual connection
    clip(y), relu(y)
    dequantize(requantize(y))            a quantization between the layer and what follows it
    y < 0 ? slope * y : y                LeakyRelu
    y * clip(slope * y + shift)          HardSwish

A clip right before a requantization becomes its bounds, which is the same number: rounding keeps the order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder, Instr
from irc.backends.tvm.fixed import clamped
from irc.ir.types import Array

FREE_REGISTERS = 6
"""Float registers that a kernel has for the pointers and numbers of an epilogue (`Epilogue.registers`)."""


@dataclass(frozen=True)
class Channel:
    """The number of a channel is added ("add") or multiplied with ("mul"): instruction `source` of the expression."""

    op: str
    source: int


@dataclass(frozen=True)
class Elements:
    """Operand `operand` is added: int8, less `zero` and times `scale`, or float32 as it is."""

    operand: int
    dtype: str
    scale: float = 1.0
    zero: int = 0


@dataclass(frozen=True)
class Clamp:
    low: float
    high: float


@dataclass(frozen=True)
class Round:
    """To bytes by `requantize`, and back."""

    requantize: Instr
    scale: float
    zero: int


@dataclass(frozen=True)
class Leaky:
    slope: float


@dataclass(frozen=True)
class Gate:
    """y * clip(slope * y + shift, low, high)"""

    slope: float
    shift: float
    low: float
    high: float


Step = Channel | Elements | Clamp | Round | Leaky | Gate


@dataclass(frozen=True)
class Epilogue:
    """`bias` and `scale` are instructions of the expression: operands or constants (-1: there is none). `last` is the
    requantization at the end, None where the real number is the result. `unsigned`: the result is its int8 and 128."""

    bias: int
    scale: int
    steps: tuple[Step, ...]
    last: Instr | None
    unsigned: bool = False

    @property
    def requantize(self) -> Instr:
        assert self.last is not None, "who asks has looked"
        return self.last

    @property
    def simple(self) -> bool:
        """Whether bytes are requantized from products, to which numbers of channels may be added."""
        return self.last is not None and (not self.steps or self.addend >= 0)

    @property
    def bare(self) -> bool:
        """Whether signed bytes are requantized from the products, with no further factor."""
        return self.last is not None and not self.steps and self.last.params[3] == 1.0 and not self.unsigned

    @property
    def addend(self) -> int:
        """The instruction that is added to the products of a `simple` one; -1: there is none."""
        first = self.steps[0] if len(self.steps) == 1 else None
        return first.source if isinstance(first, Channel) and first.op == "add" else -1

    @property
    def registers(self) -> int:
        """Float registers for where elements lie, and for the numbers that all channels share."""
        return len(self.elements) + len(scalars(self))

    @property
    def channels(self) -> tuple[Channel, ...]:
        return tuple(s for s in self.steps if isinstance(s, Channel))

    @property
    def elements(self) -> tuple[Elements, ...]:
        return tuple(s for s in self.steps if isinstance(s, Elements))


def epilogue_of(expression: Expression, constants: Collection[int] | None = None) -> Epilogue | None:
    """`expression` as an epilogue, or None where it is something else.

    `constants`: the operands that are numbers of channels; None: all but bytes.
    """
    return _Reader(expression, constants).epilogue()


class _Reader:
    def __init__(self, expression: Expression, constants: Collection[int] | None) -> None:
        self.expression, self.constants = expression, constants
        self.sums: list[bool] = []  # whether a value depends on the sum
        for instr in expression:
            self.sums.append(instr.op == "accumulator" or any(self.sums[a] for a in instr.args))

    def epilogue(self) -> Epilogue | None:
        if not self.expression:
            return None
        last, at = self.expression[-1], len(self.expression) - 1
        if last.op != "requantize":
            return self._chain(at, None) if last.dtype == "float32" else None
        if last.dtype not in ("int8", "uint8"):
            return None
        last, at = self._requantize(at)
        found = self._chain(at, _moved(last, "int8", -128) if last.dtype == "uint8" else last)
        return None if found is None else replace(found, unsigned=last.dtype == "uint8")

    def _requantize(self, at: int) -> tuple[Instr, int]:
        """(a requantization with the bounds of the clips before it, what it rounds)."""
        instr = self.expression[at]
        source, low, high = clamped(self.expression, at)
        return Instr(instr.op, instr.dtype, (source,), (low, high, *instr.params[2:])), source

    def _chain(self, at: int, last: Instr | None) -> Epilogue | None:
        steps: list[Step] = []
        while (start := self._start(at)) is None:
            found = self._step(at)
            if found is None:
                return None
            step, at = found
            steps.append(step)
        return Epilogue(*start, tuple(reversed(steps)), last)

    def _start(self, at: int) -> tuple[int, int] | None:
        """(bias, scale) of a product of sums."""
        instr, scale = self.expression[at], -1
        if instr.op == "scale" and self._is_channel(instr.args[1]):
            scale, instr = instr.args[1], self.expression[instr.args[0]]
        if instr.op != "cast" or instr.dtype != "float32":
            return None
        total, bias = self.expression[instr.args[0]], -1
        if total.op == "add" and total.dtype == "int32" and self._is_channel(total.args[1]):
            bias, total = total.args[1], self.expression[total.args[0]]
        return (bias, scale) if total.op == "accumulator" and total.dtype == "int32" else None

    def _step(self, at: int) -> tuple[Step, int] | None:
        """(what instruction `at` does, to the value of which instruction)."""
        instr = self.expression[at]
        if instr.dtype != "float32":
            return None
        if instr.op == "relu":
            return Clamp(0.0, math.inf), instr.args[0]
        if instr.op == "clip":
            return Clamp(float(instr.params[0]), float(instr.params[1])), instr.args[0]
        if instr.op == "dequantize":
            inner = self.expression[instr.args[0]]
            if inner.op != "requantize" or inner.dtype != "int8":
                return None
            requantize, source = self._requantize(instr.args[0])
            return Round(requantize, float(instr.params[0]), int(instr.params[1])), source
        if instr.op == "select":
            return self._leaky(instr)
        if instr.op in ("add", "mul", "scale"):
            return self._of_two(instr)
        return None

    def _of_two(self, instr: Instr) -> tuple[Step, int] | None:
        value, other = instr.args
        if self.sums[value] and self.sums[other]:
            return self._gate(instr)
        if not self.sums[value]:
            value, other = other, value
        if not self.sums[value]:
            return None
        if self._is_channel(other):
            return Channel("add" if instr.op == "add" else "mul", other), value
        step = self._elements(other) if instr.op == "add" else None
        return None if step is None else (step, value)

    def _elements(self, at: int) -> Elements | None:
        instr = self.expression[at]
        if instr.op == "operand" and instr.dtype == "float32":
            return Elements(int(instr.params[0]), "float32")
        if instr.op != "dequantize":
            return None
        source = self.expression[instr.args[0]]
        if source.op != "operand" or source.dtype != "int8":
            return None
        return Elements(int(source.params[0]), "int8", float(instr.params[0]), int(instr.params[1]))

    def _leaky(self, instr: Instr) -> tuple[Step, int] | None:
        condition, scaled, value = instr.args
        less, product = self.expression[condition], self.expression[scaled]
        slope = self._factor(product, value)
        if less.op != "less" or less.args[0] != value or self._number(less.args[1]) != 0.0 or slope is None:
            return None
        return Leaky(slope), value

    def _gate(self, instr: Instr) -> tuple[Step, int] | None:
        if instr.op != "mul":
            return None
        value, gate = instr.args
        clip = self.expression[gate]
        if clip.op != "clip":
            return None
        line = self.expression[clip.args[0]]
        if line.op != "add":
            return None
        slope, shift = self._factor(self.expression[line.args[0]], value), self._number(line.args[1])
        if slope is None or shift is None:
            return None
        return Gate(slope, shift, float(clip.params[0]), float(clip.params[1])), value

    def _factor(self, instr: Instr, value: int) -> float | None:
        """The constant that `value` is multiplied with."""
        return self._number(instr.args[1]) if instr.op == "mul" and instr.args[0] == value else None

    def _number(self, at: int) -> float | None:
        instr = self.expression[at]
        return float(instr.params[0]) if instr.op == "constant" and instr.dtype == "float32" else None

    def _is_channel(self, at: int) -> bool:
        """Whether a value is a number of channels."""
        instr = self.expression[at]
        if instr.op == "constant":
            return True
        return (
            instr.op == "operand"
            and instr.dtype in ("int32", "float32")
            and (self.constants is None or int(instr.params[0]) in self.constants)
        )


def _moved(instr: Instr, dtype: str, by: int) -> Instr:
    """A requantization to the other type of bytes."""
    low, high, zero, factor = instr.params
    return Instr(instr.op, dtype, instr.args, (low + by, high + by, zero + by, factor))


def scalars(epilogue: Epilogue) -> list[float]:
    """The numbers that all channels share and that a kernel keeps in float registers, each once."""
    factors: list[float] = []
    bounds: list[float] = []
    for step in epilogue.steps:
        if isinstance(step, Elements):
            factors.append(step.scale)
        elif isinstance(step, Clamp):
            bounds += [v for v in (step.low, step.high) if math.isfinite(v)]
        elif isinstance(step, Round):
            factors += [float(step.requantize.params[3]), step.scale]
        elif isinstance(step, Leaky):
            factors.append(step.slope)
        elif isinstance(step, Gate):
            factors.append(step.slope)
            bounds += [step.shift, *(v for v in (step.low, step.high) if math.isfinite(v))]
    if epilogue.last is not None:
        factors.append(float(epilogue.last.params[3]))
    return list(dict.fromkeys([*bounds, *(f for f in factors if f != 1.0)]))


def rounded_magnitudes(epilogue: Epilogue, sums: Array, scale: Array, channels: Sequence[Array]) -> tuple[float, float]:
    """Bounds of what the requantizations round: (of all, of the last one, 0 where there is none).

    sums: limits of each channel's; `channels`: the numbers of each `Channel`.
    """
    largest, numbers = 0.0, iter(channels)
    size = np.asarray(sums, np.float64) * np.abs(scale.astype(np.float64))
    for step in epilogue.steps:
        if isinstance(step, Channel):
            other = np.abs(next(numbers).astype(np.float64))
            size = size + other if step.op == "add" else size * other
        elif isinstance(step, Elements):
            size = size + (abs(step.scale) * (128 + abs(step.zero)) if step.dtype == "int8" else math.inf)
        elif isinstance(step, Clamp):
            size = np.minimum(size, max(abs(step.low), abs(step.high)))
        elif isinstance(step, Leaky):
            size = size * max(1.0, abs(step.slope))
        elif isinstance(step, Gate):
            size = size * max(abs(step.low), abs(step.high))
        else:
            largest = max(largest, _rounded(size, step.requantize))
            size = np.full_like(size, abs(step.scale) * (128 + abs(step.zero)))
    last = 0.0 if epilogue.last is None else _rounded(size, epilogue.last)
    return max(largest, last), last


def _rounded(size: Array, instr: Instr) -> float:
    found = float(size.max(initial=0.0) * abs(instr.params[3]) * (1 + 2.0**-18))
    return math.inf if math.isnan(found) else found


def streamed_operands(expression: Expression, epilogue: Epilogue) -> set[int]:
    """Numbers of the operands that are constants of channels."""
    used = (epilogue.bias, epilogue.scale, *(c.source for c in epilogue.channels))
    return {int(expression[i].params[0]) for i in used if i >= 0 and expression[i].op == "operand"}


def channel_values(
    expression: Expression, epilogue: Epilogue, operands: Sequence[Array], channels: int
) -> tuple[Array, Array, tuple[Array, ...]]:
    """(bias int64, scale float32, the float32 numbers of each `Channel`). `operands` by their numbers."""

    def values(at: int, otherwise: float, dtype: type) -> Array:
        if at < 0:
            return np.full(channels, otherwise, dtype)
        instr = expression[at]
        data = operands[int(instr.params[0])] if instr.op == "operand" else np.asarray(instr.params[0], instr.dtype)
        return np.broadcast_to(np.asarray(data).reshape(-1), (channels,)).astype(dtype)

    others = tuple(values(c.source, 0.0, np.float32) for c in epilogue.channels)
    return values(epilogue.bias, 0, np.int64), values(epilogue.scale, 1.0, np.float32), others


def canonical(epilogue: Epilogue) -> tuple[Expression, int]:
    """The same with an operand for every constant of channels, whatever the layer has (layers that differ in nothing
    else share a kernel), and how many of these there are: they come first, then the elements, each in order of use."""
    b = ExpressionBuilder()
    f = "float32"
    total = b.add("add", "int32", b.add("accumulator", "int32"), b.operand(0, "int32"))
    value = b.add("scale", f, b.add("cast", f, total), b.operand(1, f))
    count = 2 + len(epilogue.channels)
    channel, element = iter(range(2, count)), iter(range(count, count + len(epilogue.elements)))
    for step in epilogue.steps:
        if isinstance(step, Channel):
            value = b.add(step.op, f, value, b.operand(next(channel), f))
        elif isinstance(step, Elements):
            other = b.operand(next(element), step.dtype)
            value = b.add(
                "add", f, value, b.dequantize(other, step.scale, step.zero) if step.dtype == "int8" else other
            )
        elif isinstance(step, Clamp):
            value = b.add("clip", f, value, params=(step.low, step.high))
        elif isinstance(step, Round):
            first = step.requantize
            value = b.dequantize(b.add(first.op, first.dtype, value, params=first.params), step.scale, step.zero)
        elif isinstance(step, Leaky):
            negative = b.add("less", "int8", value, b.constant(0.0, f))
            value = b.add("select", f, negative, b.add("mul", f, value, b.constant(step.slope, f)), value)
        else:
            line = b.add("add", f, b.add("mul", f, value, b.constant(step.slope, f)), b.constant(step.shift, f))
            value = b.add("mul", f, value, b.add("clip", f, line, params=(step.low, step.high)))
    if epilogue.last is not None:
        last = _moved(epilogue.last, "uint8", 128) if epilogue.unsigned else epilogue.last
        value = b.add(last.op, last.dtype, value, params=last.params)
    return b.finish(value), count
