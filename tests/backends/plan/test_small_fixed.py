"""Integer factors in the place of float32 scales: every sum has the same result."""

from __future__ import annotations

import numpy as np
import pytest

from irc.backends.tvm.expression import Instr
from irc.backends.tvm.plan.small_fixed import fixed_point
from irc.backends.tvm.reference import requantize

CHANNELS = 64
BOUND = 120_000


def requantization(zero: int, low: int = -128, factor: float = 1.0) -> Instr:
    return Instr("requantize", "int8", (0,), (low, 127, zero, factor))


@pytest.mark.parametrize("zero", [-128, 4, 37])
@pytest.mark.parametrize("unit", [1, 256])
def test_no_sum_has_another_result(zero: int, unit: int) -> None:
    rng = np.random.default_rng(7)
    scale = rng.uniform(0.002, 0.02, CHANNELS).astype(np.float32)
    bound = np.full(CHANNELS, BOUND if unit == 1 else BOUND // 8)
    made = fixed_point(requantization(zero), scale, -bound, bound, np.full(CHANNELS, unit))
    assert made is not None
    assert (made.factor >= 0).mean() > 0.5
    total = made.shift + unit.bit_length() - 1
    for channel in np.flatnonzero(made.factor >= 0):
        sums = np.arange(-bound[channel], bound[channel] + 1)
        high = sums * unit * made.factor[channel] >> 32
        found = np.clip((high + ((2 * zero + 1) << total >> 1)) >> total, -128, 127)
        want = requantize(sums.astype(np.float32) * scale[channel], requantization(zero))
        np.testing.assert_array_equal(found, want)


def test_scales_that_contradict_themselves_stay_real() -> None:
    """Sums lie on ties exactly: those go to even numbers, which no line does."""
    made = fixed_point(requantization(0), np.float32([0.0625]), np.array([-900]), np.array([900]), np.array([1]))
    assert made is not None
    assert made.factor.tolist() == [-1]


def test_other_clamps_and_factors_are_not_computed() -> None:
    scale, one, bound = np.float32([0.01]), np.array([1]), np.array([1000])
    for instr in (requantization(0, low=-100), requantization(0, factor=2.0)):
        assert fixed_point(instr, scale, -bound, bound, one) is None
    assert fixed_point(requantization(0), np.float32([0.9]), -bound, bound, one) is None
    assert fixed_point(requantization(0), -scale, -bound, bound, one) is None
