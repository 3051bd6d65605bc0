"""Requantization without floats: fixed-point numbers that say how to round, and when they cannot say it.

A requantization rounds a float32 number y (docs/integer-semantics.md). Without an FPU a kernel computes the same chain
with `fraction` bits after the point, v = 2**fraction * t, in a few integer instructions. t differs from y by less than
`Chain.error`, which is known when the kernel is made: float32's own roundings, and the bits that v dropped. Where v is
further than that from every half, it rounds as y does. Elsewhere (about one element in ten thousand) the kernel
computes y itself, in integers (`soft.py`).

Factors per channel are packed into 32 bits each: a float32 is m = M * 2**(E - 24) with M < 2**24, the word holds M
above and a shift S below. The upper half of the 64-bit product (sum << S) * word is sum * m * 2**fraction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.tvm.expression import Expression, Instr
from irc.ir.types import Array

SHIFT_BITS = 5
FRACTIONS = (16, 13, 10, 7)
"""What packed factors get, the first that fits: few, so that layers share kernels."""

_LARGEST_FRACTION = 21  # a zero point and a result of 8 bits, with that many bits after the point, still fit
_ULP = 2.0**-24  # largest relative error of one rounding
_SHIFTED = 2.0**31 - 1


def pack_factors(factors: Array, fraction: int, limits: Array, *, alone: bool = True) -> Array | None:
    """int32 words of float32 `factors`; None where some factor has none with this fraction.

    `limits` bound the sums that they multiply. `alone`: the products are all that is rounded, so that a factor whose
    products all are below a half is 0.
    """
    m = factors.astype(np.float64)
    if not np.all(np.isfinite(m)) or np.any(m < 0):
        return None
    mantissa, exponent = np.frexp(m)
    shift = fraction + 1 + exponent
    nothing = (m == 0) | (alone & (m * limits < 0.499))
    fits = (shift >= 0) & (shift < 1 << SHIFT_BITS) & (limits * 2.0**shift <= _SHIFTED)
    if not np.all(nothing | fits):
        return None
    words = (np.rint(mantissa * 2**24).astype(np.int64) << 7) | np.clip(shift, 0, 31)
    return np.asarray(np.where(nothing, 0, words).astype(np.int32))


def packed_scales(scales: Array, limits: Array, requantized: bool) -> tuple[Array, int] | None:
    """(words, fraction) of a layer's scales: few fractions if the product is `requantized` at once, otherwise the
    largest one that leaves room for what is added. None where there is none. `limits` bound the sums."""
    room = limits if requantized else 2 * limits
    for fraction in FRACTIONS if requantized else range(30, 0, -1):
        words = pack_factors(scales, fraction, room, alone=requantized)
        if words is not None:
            return words, fraction
    return None


def unpack_factors(words: Array, fraction: int) -> Array:
    """The float32 factors of packed words."""
    w = words.astype(np.int64)
    return np.asarray(np.ldexp((w >> 7).astype(np.float64), (w & 31) - fraction - 25).astype(np.float32))


@dataclass(frozen=True)
class Term:
    """What is summed: the integer `value` (index of an instruction; -1: the number 0) less `zero`, or the product of
    two of them (`other`), times `factor`, and times the packed factors `word` (index of an instruction), if any, that
    have `fraction` bits."""

    value: int
    zero: int
    limit: float  # of the integer
    factor: float = 1.0
    other: int = -1
    other_zero: int = 0
    word: int = -1
    fraction: int = 0

    @property
    def size(self) -> float:
        """A limit of the term."""
        scale = 2.0 ** (30 - self.fraction) if self.word >= 0 else self.limit
        return scale * abs(self.factor)


@dataclass(frozen=True)
class Chain:
    """What a requantization rounds, as a sum. `error` bounds |float32 result - exact sum| where the result matters,
    that is below `bound`; both, and factors, in steps of the result. The result lies in low..high."""

    terms: tuple[Term, ...]
    error: float
    bound: float
    low: int
    high: int


@dataclass(frozen=True)
class _Sum:
    """A partial result: terms, and a limit of what float32 makes of them less their exact sum."""

    terms: tuple[Term, ...]
    error: float

    @property
    def size(self) -> float:
        return sum(t.size for t in self.terms)

    def times(self, factor: float) -> _Sum:
        return _Sum(tuple(replace(t, factor=t.factor * factor) for t in self.terms), self.error * abs(factor))


def chain_of(expression: Expression, at: int, limits: Sequence[float]) -> Chain | None:
    """The sum that the requantization `expression[at]` rounds; None where it rounds something else.

    `limits`: of the magnitudes of all values (`magnitude.py`).
    """
    instr = expression[at]
    zero, scale = int(instr.params[2]), float(instr.params[3])
    if not 0 < scale < math.inf:
        return None
    source, low, high = clamped(expression, at)
    found = _sum(expression, source, limits)
    if found is None:
        return None
    bound = float(max(abs(low - zero), abs(high - zero)) + 1)
    # products with a constant on the way from the last sum see values below `bound` only
    error = found.error
    if len(found.terms) == 1:
        error = min(error, bound / scale * _roundings(expression, source, limits) * _ULP)
    else:
        error = min(error, found.error)
    error = error * scale + (bound * _ULP if scale != 1.0 else 0.0)
    return Chain(found.times(scale).terms, error * 1.01, bound, low, high)


def clamped(expression: Expression, at: int) -> tuple[int, int, int]:
    """(what the requantization `expression[at]` rounds before all clips, its bounds with theirs).

    Rounding keeps the order, so that a number that is clipped and rounded is one that is rounded and clipped. That
    takes a positive factor: with others the clips stay.
    """
    instr = expression[at]
    low, high, zero, scale = int(instr.params[0]), int(instr.params[1]), int(instr.params[2]), float(instr.params[3])
    source = instr.args[0]
    while expression[source].op in ("relu", "clip") and 0 < scale < math.inf:
        step = expression[source]
        bounds = step.params if step.op == "clip" else (0.0, math.inf)
        # both bounds of what follows apply after those of what precedes it
        below, above = (min(max(_level(float(b), scale) + zero, low), high) for b in bounds)
        low, high, source = below, above, step.args[0]
    return source, low, high


def _level(bound: float, scale: float) -> int:
    """A bound in steps of the result, as far as these matter."""
    level = np.rint(np.clip(np.float64(np.float32(bound) * np.float32(scale)), -(2**20), 2**20))
    return int(level)


def _roundings(expression: Expression, at: int, limits: Sequence[float]) -> int:
    """Roundings on the way to the single term `at`."""
    instr = expression[at]
    if instr.op == "cast":
        return int(limits[instr.args[0]] > 2**24)
    if instr.op == "dequantize":
        return 1
    return 1 + sum(_roundings(expression, a, limits) for a in instr.args if instr.dtype == "float32")


def _is_factor(instr: Instr) -> bool:
    return instr.op in ("constant", "unpack")


def _sum(expression: Expression, at: int, limits: Sequence[float]) -> _Sum | None:
    instr = expression[at]
    if instr.op == "constant" and instr.dtype == "float32":
        return _Sum((Term(-1, -1, 1.0, float(instr.params[0])),) if instr.params[0] else (), 0.0)
    if instr.op == "cast" and expression[instr.args[0]].dtype in ("int32", "int16", "int8", "uint8", "uint16"):
        limit = limits[instr.args[0]]
        return _Sum((Term(instr.args[0], 0, limit),), limit * _ULP if limit > 2**24 else 0.0)
    if instr.op == "dequantize":
        scale, zero = instr.params
        limit = limits[instr.args[0]] + abs(zero)
        if not (0 < scale < math.inf and math.isfinite(limit)):
            return None
        return _Sum((Term(instr.args[0], int(zero), limit, float(scale)),), limit * scale * _ULP)
    if instr.op in ("scale", "mul") and instr.dtype == "float32":
        return _product(expression, instr, limits)
    if instr.op in ("add", "sum", "sub") and instr.dtype == "float32":
        a, b = _sum(expression, instr.args[0], limits), _sum(expression, instr.args[1], limits)
        if a is None or b is None:
            return None
        b = b.times(-1.0) if instr.op == "sub" else b
        return _Sum(a.terms + b.terms, a.error + b.error + (a.size + b.size) * _ULP)
    return None


def _product(expression: Expression, instr: Instr, limits: Sequence[float]) -> _Sum | None:
    first, second = instr.args
    if _is_factor(expression[first]):
        first, second = second, first
    a, factor = _sum(expression, first, limits), expression[second]
    if a is None:
        return None
    if factor.op == "constant":
        scaled = a.times(float(factor.params[0]))
        return None if factor.params[0] == 0 else _Sum(scaled.terms, scaled.error + scaled.size * _ULP)
    if factor.op == "unpack":
        (term, *more) = a.terms
        if more or term.word >= 0 or term.factor != 1.0 or term.other >= 0 or term.zero:
            return None
        made = replace(term, word=factor.args[0], fraction=int(factor.params[0]))
        return _Sum((made,), made.size * _ULP * (2 if term.limit > 2**24 else 1))
    b = _sum(expression, second, limits)
    if b is None or len(a.terms) > 1 or len(b.terms) > 1:
        return None
    x, y = a.terms[0], b.terms[0]
    if x.word >= 0 or y.word >= 0 or x.other >= 0 or y.other >= 0 or x.limit * y.limit >= 2.0**31:
        return None
    joined = Term(x.value, x.zero, x.limit * y.limit, x.factor * y.factor, y.value, y.zero)
    error = a.error * b.size + b.error * a.size + a.error * b.error + joined.size * _ULP
    return _Sum((joined,), error)


def fraction_of(size: float) -> int:
    """Bits after the point for numbers up to `size`, so that they stay below 2**30."""
    return min(_LARGEST_FRACTION, math.floor(30 - math.log2(max(size, 2.0**-20))))
