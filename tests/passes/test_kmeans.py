"""K-means on a line and rounding to a codebook, against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest

from irc.ir.types import Array
from irc.passes.cluster.kmeans import assign, fit, kmeans, nearest
from irc.passes.quantize.rounding import inverse_factor


def damage(values: Array, weights: Array, centres: Array) -> float:
    distance = np.abs(values[:, None] - centres[None, :]).min(axis=1)
    return float((weights * np.square(distance)).sum())


@pytest.mark.parametrize("k", [2, 4, 16, 256])
def test_centres_are_means_of_their_clusters_and_beat_equal_steps(k: int) -> None:
    rng = np.random.default_rng(k)
    values, weights = rng.standard_normal(3000), rng.random(3000) + 0.1
    centres = kmeans(values, weights, k)
    assert len(centres) == k
    assert (np.diff(centres) > 0).all()
    members = nearest(values, centres)
    means = [np.average(values[members == i], weights=weights[members == i]) for i in range(k)]
    np.testing.assert_allclose(centres, means, atol=2e-3 * float(np.ptp(values)))  # Lloyd's rounds may end before
    assert damage(values, weights, centres) < damage(values, weights, np.linspace(values.min(), values.max(), k))


def test_important_numbers_draw_centres() -> None:
    values = np.linspace(-1, 1, 2001)
    weights = np.where(values > 0.5, 1.0, 1e-3)
    assert (kmeans(values, weights, 8) > 0.5).sum() >= 5


def test_few_values_are_their_own_centres() -> None:
    values = np.array([3.0, -1.0, 3.0, 0.5])
    np.testing.assert_array_equal(kmeans(values, np.ones(4), 4), [-1.0, 0.5, 3.0])
    assert 0.0 in kmeans(values, np.ones(4), 4, zero=True)
    assert 0.0 in kmeans(values, np.ones(4), 2, zero=True)


def test_zero_is_a_centre_when_it_must_be() -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(1000) < 0.5, 0.0, rng.standard_normal(1000))
    assert 0.0 in kmeans(values, np.ones(1000), 5, zero=True)


def test_weights_of_no_importance_at_all() -> None:
    assert np.isfinite(kmeans(np.arange(100.0), np.zeros(100), 4)).all()


def problem(outputs: int = 12, k: int = 40) -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((500, k)) @ rng.standard_normal((k, k))
    rows = rng.standard_normal((1, outputs, k))
    scales = np.asarray(rng.random((1, outputs)) + 0.5)
    metric = (inputs.T @ inputs / len(inputs))[None]
    return rows, scales, metric, kmeans(rows / scales[:, :, None], np.ones_like(rows), 8)


def output_error(rows: Array, made: Array, metric: Array) -> float:
    e = rows - made
    return float(np.einsum("goi,gij,goj->", e, metric, e))


def test_assignment_by_least_squares_beats_the_nearest_value_and_fitting_beats_that() -> None:
    rows, scales, metric, centres = problem()
    order = np.argsort(-np.diagonal(metric, axis1=1, axis2=2), axis=1)
    sorted_ = np.take_along_axis(np.take_along_axis(metric, order[:, :, None], 1), order[:, None, :], 2)
    found = assign(rows, scales, centres, inverse_factor(sorted_, 0.01), order)
    plain = nearest(rows / scales[:, :, None], centres)

    def error(indices: Array, values: Array) -> float:
        return output_error(rows, values[indices] * scales[:, :, None], metric)

    assert error(found, centres) < 0.7 * error(plain, centres)
    fitted = fit(rows, scales, found, centres, metric)
    assert error(found, fitted) < error(found, centres)


def test_kept_zeros_and_pinned_entries_stay() -> None:
    rows, scales, metric, centres = problem()
    rows = np.where(np.random.default_rng(2).random(rows.shape) < 0.4, 0.0, rows)
    centres = kmeans(rows / scales[:, :, None], np.ones_like(rows), 8, zero=True)
    order = np.arange(rows.shape[2])[None]
    found = assign(rows, scales, centres, inverse_factor(metric, 0.01), order, rows == 0)
    zero = int(np.flatnonzero(centres == 0)[0])
    assert (found[rows == 0] == zero).all()
    assert fit(rows, scales, found, centres, metric, zero)[zero] == 0.0
