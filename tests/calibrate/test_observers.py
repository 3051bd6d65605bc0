"""Streaming statistics against the same over all data at once."""

from __future__ import annotations

import numpy as np
import pytest

from irc.calibrate.observers import ChannelMean, ChannelOctaves, Histogram, Observer, SecondMoment, Window
from irc.calibrate.store import KINDS

RNG = np.random.default_rng(0)


def test_histogram_grows_and_loses_nothing() -> None:
    parts = [RNG.normal(0, s, 1000).astype(np.float32) for s in (0.1, 5, 0.01, 40)]
    histogram = Histogram(bins=256)
    for part in parts:
        histogram.update(part)
    whole = np.concatenate(parts)
    assert (histogram.low, histogram.high) == (whole.min(), whole.max())
    edges = (np.arange(257) + histogram.first) * histogram.width
    expected, _ = np.histogram(whole, edges)
    np.testing.assert_array_equal(histogram.counts, expected)


def test_histogram_does_not_depend_on_the_order() -> None:
    parts = [RNG.normal(m, s, 500).astype(np.float32) for m, s in ((0, 1), (50, 3), (-2, 0.1))]
    first, second = Histogram(bins=128), Histogram(bins=128)
    for part in parts:
        first.update(part)
    for part in reversed(parts):
        second.update(part)
    assert (first.exponent, first.first) == (second.exponent, second.first)
    np.testing.assert_array_equal(first.counts, second.counts)


def test_histogram_counts_bad_numbers_and_zeros() -> None:
    histogram = Histogram()
    histogram.update(np.array([np.nan, 1, 0, np.inf, 0, -2], np.float32))
    assert (histogram.bad, histogram.zeros, histogram.low, histogram.high) == (2, 2, -2, 1)
    only_bad = Histogram()
    only_bad.update(np.full(3, np.nan, np.float32))
    assert only_bad.exponent is None


@pytest.mark.parametrize("value", [0.0, 7.0, -1e-30, 3e30])
def test_histogram_of_a_constant(value: float) -> None:
    histogram = Histogram()
    histogram.update(np.full(10, value, np.float32))
    histogram.update(np.full(10, value, np.float32))
    assert histogram.counts.sum() == 20
    assert np.count_nonzero(histogram.counts) == 1


def test_histogram_samples_large_tensors_evenly() -> None:
    histogram = Histogram(most=10_000)
    histogram.update(np.tile(np.array([0, 1, 2, 3], np.float32), 100_000))
    shares = histogram.counts[histogram.counts > 0] / histogram.counts.sum()
    np.testing.assert_allclose(shares, 0.25, atol=0.02)  # four standard deviations of 10,000 draws


def test_channel_mean() -> None:
    batches = [RNG.normal(size=(n, 3, 4, 4)).astype(np.float32) for n in (2, 5)]
    mean = ChannelMean(1)
    for batch in batches:
        mean.update(batch)
    np.testing.assert_allclose(mean.mean, np.concatenate(batches).mean(axis=(0, 2, 3)), atol=1e-6)


def test_second_moment_of_a_matrix_input() -> None:
    batches = [RNG.normal(size=(4, 7, 5)).astype(np.float32) for _ in range(3)]
    moment = SecondMoment(5)
    for batch in batches:
        moment.update(batch)
    rows = np.concatenate(batches).reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(moment.moment[0], rows.T @ rows / len(rows), atol=1e-6)
    np.testing.assert_allclose(moment.mean[0], rows.mean(axis=0), atol=1e-6)


def test_second_moment_keeps_blocks_on_the_diagonal() -> None:
    batch = RNG.normal(size=(9, 6)).astype(np.float32)
    whole, blocks = SecondMoment(6), SecondMoment(6, groups=2)
    whole.update(batch)
    blocks.update(batch)
    np.testing.assert_allclose(blocks.moment[0], whole.moment[0, :3, :3], atol=1e-6)
    np.testing.assert_allclose(blocks.moment[1], whole.moment[0, 3:, 3:], atol=1e-6)


def test_octaves_know_the_cost_of_clipping() -> None:
    batch = (RNG.normal(size=(4, 3, 500)) * np.array([1, 10, 0])[:, None]).astype(np.float32)
    octaves = ChannelOctaves(1, unit=3.0)
    octaves.update(batch[:1])
    octaves.update(batch[1:])
    clipped, used = octaves.clipped()
    np.testing.assert_array_equal(used, [1, 1, 0])
    for k in (-2, 0, 1):
        over = np.maximum(np.abs(batch.astype(np.float64)) / 3 - 2.0**k, 0)
        expected = np.square(over).mean(axis=(0, 2))
        np.testing.assert_allclose(clipped[:, k - octaves.first], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "window",
    [
        Window((3, 3), pads=(1, 1, 1, 1)),
        Window((3, 2), (2, 1), (0, 1, 1, 0), (1, 2)),
        Window((1, 1), (2, 2)),
    ],
)
def test_convolution_rows_are_those_that_the_weights_meet(window: Window) -> None:
    """rows @ weights must equal the convolution itself, here done position by position."""
    x = RNG.normal(size=(2, 3, 6, 7)).astype(np.float32)
    w = RNG.normal(size=(4, 3, *window.kernel)).astype(np.float32)
    got = window.rows(x, most=10_000) @ w.reshape(4, -1).T
    top, left, bottom, right = window.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kh, kw), (dh, dw), (sh, sw) = window.kernel, window.dilations, window.strides
    expected = [
        np.einsum("cij,ocij->o", padded[n, :, i : i + (kh - 1) * dh + 1 : dh, j : j + (kw - 1) * dw + 1 : dw], w)
        for n in range(2)
        for i in range(0, padded.shape[2] - (kh - 1) * dh, sh)
        for j in range(0, padded.shape[3] - (kw - 1) * dw, sw)
    ]
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-4, atol=1e-5)


def test_convolution_rows_come_from_all_over_the_image() -> None:
    """A stride over the positions could keep to one column of the image and call its mean that of all."""
    x = np.broadcast_to(np.arange(5, dtype=np.float32), (1, 1, 25, 5))
    moment = SecondMoment(1, Window((1, 1)), most=25)
    for _ in range(40):
        moment.update(x)
    assert abs(moment.mean[0, 0] - 2) < 0.2  # 1000 draws of standard deviation 1.41: four of the mean's are 0.18


def test_convolution_rows_are_capped() -> None:
    assert len(Window((3, 3)).rows(np.zeros((2, 1, 34, 34), np.float32), most=100)) <= 2 * 100


@pytest.mark.parametrize(
    "observer",
    [
        Histogram(bins=64),
        ChannelMean(1),
        ChannelOctaves(1),
        SecondMoment(4),
        SecondMoment(4, Window((1, 1), (2, 2)), 2),
    ],
)
@pytest.mark.parametrize("seen", [True, False])
def test_state_round_trip(observer: Observer, seen: bool) -> None:
    fresh = type(observer).from_state(observer.state())
    if seen:
        fresh.update(RNG.normal(size=(2, 4, 4, 4)).astype(np.float32))
    again = KINDS[fresh.kind].from_state(fresh.state())
    assert again.key == fresh.key
    for name, array in fresh.state().items():
        np.testing.assert_array_equal(again.state()[name], array)
