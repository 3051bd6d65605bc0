"""Requantization of sums by one integer product, with the same results as float32 gives.

What a channel's sums become is a staircase: for each result the smallest sum that gives it. A product with an integer
factor, rounded by a shift, is another one. The two are equal where they are equal at every step, so a factor is looked
for that meets all of them, and every step is verified: no sum that can occur has another result.

    result = saturate((factor * sum >> 32) + ((2 * zero point + 1) << shift - 1) >> shift)

Most channels have such a factor. In others two steps ask for factors that exclude each other, as products in float32
round to ties; those stay real numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irc.backends.tvm.expression import Instr
from irc.backends.tvm.reference import requantize
from irc.ir.types import Array

_SHIFTS = range(12, 0, -2)  # even ones alone: layers that differ in nothing else share a kernel


@dataclass(frozen=True)
class FixedPoint:
    """`factor` is int64, -1 for channels without one."""

    shift: int
    factor: Array


def fixed_point(instr: Instr, scale: Array, low: Array, high: Array, unit: Array) -> FixedPoint | None:
    """Factors of sums times `scale`, requantized by `instr`; None where that is not what the formula computes.

    scale float32; low, high: int64 bounds of the sums; unit: 1 or 256 for each channel, what its sums come multiplied
    with (they shift by log2 of it more).
    """
    if instr.params[:2] != (-128, 127) or instr.params[3] != 1.0 or not (np.isfinite(scale) & (scale >= 0)).all():
        return None
    shift = next((k for k in _SHIFTS if float(scale.max()) * 2.0**k < 0.49), 0)
    if shift == 0:
        return None
    factors = [
        _factor(instr, s, int(a), int(b), shift, int(u)) for s, a, b, u in zip(scale, low, high, unit, strict=True)
    ]
    return FixedPoint(shift, np.array(factors, np.int64))


def _factor(instr: Instr, scale: np.float32, low: int, high: int, shift: int, unit: int) -> int:
    """The factor of one channel, or -1."""
    steps = _steps(instr, scale, low, high)
    if steps is None:
        return -1
    levels, first = steps
    slope = float(scale)
    if len(levels):
        least, most = _slopes(levels - 0.5, first)
        if most < least:
            return -1
        slope = (least + most) / 2
    factor = round(slope * 2.0 ** (32 + shift))
    zero = int(instr.params[2])
    addend = (2 * zero + 1) * unit << shift >> 1
    bounds = np.array([low, high], np.int64)
    if factor >= 1 << 31 or np.abs(bounds * unit).max() >= 1 << 31:
        return -1
    if (np.abs(bounds * unit * factor >> 32) + abs(addend)).max() >= 1 << 31:
        return -1
    total = shift + unit.bit_length() - 1

    def results(sums: Array) -> Array:
        return np.asarray(((sums * unit * factor >> 32) + addend) >> total)

    ends = requantize(bounds.astype(np.int32).astype(np.float32) * scale, instr)
    met = (results(first) >= levels + zero).all() and (results(first - 1) < levels + zero).all()
    return factor if met and np.array_equal(np.clip(results(bounds), -128, 127), ends) else -1


def _steps(instr: Instr, scale: np.float32, low: int, high: int) -> tuple[Array, Array] | None:
    """(rounded products, the smallest sum that gives each), of those between the bounds. None: they are not found."""
    bottom, top, zero = (int(v) for v in instr.params[:3])
    levels = np.arange(bottom - zero + 1, top - zero + 1)
    if scale == 0:
        return levels[:0], levels[:0]
    near = np.ceil((levels - 0.5) / np.float64(scale))
    levels, near = levels[(near >= low - 4) & (near <= high + 4)], near[(near >= low - 4) & (near <= high + 4)]
    sums = near.astype(np.int64)[:, None] + np.arange(-2, 3)
    reached = np.rint(sums.astype(np.float32) * scale) >= levels[:, None]
    if reached[:, 0].any() or not reached[:, -1].all():
        return None
    first = sums[np.arange(len(levels)), reached.argmax(1)]
    occurs = (first > low) & (first <= high)
    return levels[occurs], first[occurs]


def _slopes(target: Array, first: Array) -> tuple[float, float]:
    """Bounds of the factor as a real number: `first` reaches the target, one less does not."""
    least, most = 0.0, np.inf
    for sums, reaches in ((first, True), (first - 1, False)):
        for positive in (True, False):
            chosen = sums > 0 if positive else sums < 0
            if not chosen.any():
                continue
            slopes = target[chosen] / sums[chosen]
            if reaches == positive:
                least = max(least, float(slopes.max()))
            else:
                most = min(most, float(slopes.min()))
    return least, most
