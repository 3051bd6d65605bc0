"""Rounding for an entropy coder: fewer bits than rounding to nearest, at the same error."""

from __future__ import annotations

import numpy as np
import pytest

from irc.passes.quantize.rate import conditional, curve, entropy_bits, level_bits, round_for_rate, unclipped
from irc.passes.quantize.rounding import round_least_squares


def _layer(seed: int = 0, k: int = 48, outputs: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Rows [1, outputs, k], and the second moment of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4000, k)) @ (np.eye(k) + 0.3 * rng.normal(size=(k, k)))
    return rng.laplace(size=(1, outputs, k)), (x.T @ x / len(x))[None]


def _error(rows: np.ndarray, q: np.ndarray, units: np.ndarray, metric: np.ndarray) -> float:
    error = rows - q * units[:, :, None]
    return float(np.einsum("goi,gij,goj->", error, metric, error))


def test_bits_are_worth_their_error() -> None:
    rows, metric = _layer()
    units = np.full((1, 32), 1.5)
    ours, plain = round_for_rate(rows, units, metric), round_least_squares(rows, units, metric)
    saved = entropy_bits(plain) - entropy_bits(ours)
    # a smaller step would take half a bit a weight for each halving of the error
    worse = 0.5 * rows.size * np.log2(_error(rows, ours, units, metric) / _error(rows, plain, units, metric))
    assert saved > worse + 0.01 * entropy_bits(plain)


def test_levels_are_int8_and_clipped() -> None:
    rows, metric = _layer()
    q = round_for_rate(rows, np.full((1, 32), 0.01), metric)
    assert q.dtype == np.int8
    assert q.min() >= -127
    assert q.max() <= 127


def test_inputs_that_are_always_zero_lose_weights() -> None:
    rows, metric = _layer()
    metric[:, :8] = metric[:, :, :8] = 0
    q = round_for_rate(rows, np.full((1, 32), 0.3), metric)
    assert np.count_nonzero(q[:, :, :8]) < 0.7 * np.count_nonzero(q[:, :, 8:16])


def test_independent_inputs_cost_their_own_power() -> None:
    power = np.array([4.0, 1.0, 2.0])
    found = conditional(np.diag(power)[None], 1e-9)
    np.testing.assert_allclose(found[0], power, rtol=1e-6)  # of float64 factorizations


def test_the_curve_falls_in_bits_and_rises_in_change() -> None:
    rows, metric = _layer()
    signal = float(np.einsum("goi,gij,goj->", rows, metric, rows))
    units = [np.full((1, 32), step) for step in (0.1, 0.2, 0.4, 0.8)]
    found = curve(rows, units, conditional(metric, 0.01), signal)
    assert (np.diff(found.bits) < 0).all()
    assert (np.diff(found.change) > 0).all()
    assert found.change[-1] < 1


def test_steps_grow_where_large_weights_matter() -> None:
    rows = np.full((1, 3, 4), 0.6)
    rows[0, 1, 0] = rows[0, 2, 3] = 300.0  # of 127 steps
    found = unclipped(rows, np.ones((1, 3)), np.array([[1.0, 1.0, 1.0, 1e-12]]), lambda x: x.sum(axis=0))
    np.testing.assert_array_equal(found, [1, 4, 1])  # the last output hardly sees its large weight


@pytest.mark.parametrize(("levels", "bits"), [([0] * 64, 0.0), ([0, 1] * 32, 64.0), ([-1, 0, 1, 2] * 16, 128.0)])
def test_entropy(levels: list[int], bits: float) -> None:
    """Besides the table, which is some bits for each level."""
    table = 12.0 * len(set(levels))
    assert entropy_bits(np.array(levels)) == pytest.approx(bits + table)


def test_rare_levels_cost_more() -> None:
    bits = level_bits(np.array([0] * 90 + [1] * 8 + [2] * 2))
    assert bits[0] < bits[1] < bits[2] < bits[100]
