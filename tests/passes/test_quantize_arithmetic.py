"""The arithmetic of quantization, apart from graphs."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import assert_same

from irc.calibrate.collect import collect
from irc.calibrate.dataset import Dataset
from irc.calibrate.observers import ChannelOctaves, Histogram
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.passes.quantize.affine import (
    BIAS_LIMIT,
    asymmetric,
    dequantize_weight,
    quantize_bias,
    quantize_weight,
    scales_for_bias,
    symmetric,
    weight_scales,
)
from irc.passes.quantize.correction import conv_correction
from irc.passes.quantize.equalize import channel_factors, equalize, find_links, observer
from irc.passes.quantize.ranges import choose, saturation, signal_to_noise
from irc.passes.quantize.regions import find_regions
from irc.passes.quantize.rounding import inverse_factor, mean_error, round_least_squares

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(("low", "high"), [(-1, 3), (0, 6), (2, 5), (-7, -1), (0, 0), (-1e-38, 0)])
def test_asymmetric_ranges_hold_zero_exactly(low: float, high: float, dtype) -> None:
    affine = asymmetric(low, high, dtype)
    assert affine.scale > 0
    assert np.isfinite(affine.scale)
    assert affine.dequantize(affine.quantize(np.zeros(1)))[0] == 0
    if np.isfinite(low) and high - low > 1e-30:
        ends = np.array([min(low, 0), max(high, 0)])
        error = np.abs(affine.dequantize(affine.quantize(ends)) - ends)
        assert error.max() <= affine.scale * 0.51  # zero's step moves the ends by up to half a step


def test_symmetric() -> None:
    affine = symmetric(-2, 1)
    assert (affine.zero_point, affine.dtype) == (0, "int8")
    assert affine.quantize(np.array([-2.0, 2.0])).tolist() == [-127, 127]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_weight_scales_are_no_worse_than_the_maximum(axis: int | None) -> None:
    w = RNG.normal(size=(128, 4096)).astype(np.float32)
    w[3] = 0
    errors = []
    for search in (False, True):
        scales = weight_scales(w, axis, search=search)
        q = quantize_weight(w, scales, axis)
        assert q.min() >= -127
        errors.append(np.square(dequantize_weight(q, scales, axis) - w).sum())
    assert errors[1] < errors[0]


def test_a_bias_always_fits() -> None:
    scales = np.array([1e-12, 1e-3, 1.0], np.float32)
    bias = np.array([5.0, 5.0, 5.0])
    raised = scales_for_bias(scales, bias, 0.1, np.array([False, False, True]))
    assert raised[1] == scales[1]
    q = quantize_bias(bias, 0.1, raised)
    assert np.abs(q.astype(np.int64)).max() <= BIAS_LIMIT + 1
    np.testing.assert_allclose(q * (np.float32(0.1) * raised), bias, rtol=1e-4)  # the middle one has 50,000 steps


def histogram(x: np.ndarray) -> Histogram:
    made = Histogram()
    made.update(x.astype(np.float32))
    return made


def test_calibrators() -> None:
    x = np.concatenate([RNG.normal(size=100_000), [60.0]])
    seen = histogram(x)
    whole, cut, best = (choose(seen, c, 99.9) for c in ("min-max", "percentile", "mse"))
    assert whole.high == 60
    assert 3 < cut.high < 3.6  # 99.95 % quantile of a normal distribution: 3.29
    assert -3.6 < cut.low < -3
    errors = {}
    for name, found in (("min-max", whole), ("percentile", cut), ("mse", best)):
        affine = asymmetric(found.low, found.high, "uint8")
        errors[name] = np.square(affine.dequantize(affine.quantize(x)) - x).mean()
        measured = 10 * np.log10(np.square(x).mean() / errors[name])
        assert abs(signal_to_noise(seen, affine) - measured) < 0.3  # the histogram's bins and uniform noise
    assert errors["mse"] == min(errors.values())
    affine = asymmetric(cut.low, cut.high, "uint8")
    assert 0.0005 < saturation(seen, affine) < 0.0015


def test_nothing_seen_gives_an_empty_range() -> None:
    found = choose(Histogram(), "mse", 99.9)
    assert (found.low, found.high) == (0, 0)


def output_error(w: np.ndarray, q: np.ndarray, scales: np.ndarray, metric: np.ndarray) -> float:
    e = w - q * scales[:, :, None]
    return float(np.einsum("goi,gij,goj->", e, metric, e))


@pytest.mark.parametrize(("groups", "outputs", "k"), [(1, 12, 200), (8, 1, 9)])
def test_least_squares_rounding_beats_nearest(groups: int, outputs: int, k: int) -> None:
    mix = RNG.normal(size=(groups, k, k)) / np.sqrt(k) + np.eye(k)
    x = RNG.normal(size=(groups, 2000, k)) @ mix + 1.0
    moment, mean = x.transpose(0, 2, 1) @ x / 2000, x.mean(axis=1)
    metric = moment - mean[:, :, None] * mean[:, None, :]
    w = RNG.normal(size=(groups, outputs, k)) * 0.1
    scales = np.abs(w).max(axis=2) / 15  # coarse steps, so that the difference is plain
    near = np.rint(w / scales[:, :, None])
    best = round_least_squares(w, scales, metric)
    assert output_error(w, best, scales, metric) < 0.8 * output_error(w, near, scales, metric)
    correction = mean_error(w, best * scales[:, :, None], mean)
    direct = np.einsum("gnk,gok->go", x, w - best * scales[:, :, None]) / 2000
    np.testing.assert_allclose(correction, direct, atol=1e-9)


def test_least_squares_rounding_without_any_signal_is_nearest() -> None:
    w = RNG.normal(size=(1, 4, 10))
    scales = np.full((1, 4), 0.05)
    np.testing.assert_array_equal(
        round_least_squares(w, scales, np.zeros((1, 10, 10))), np.clip(np.rint(w / 0.05), -127, 127)
    )


def test_bias_correction_of_grouped_convolutions() -> None:
    w, q = RNG.normal(size=(6, 2, 3, 3)), RNG.normal(size=(6, 2, 3, 3))
    mean = RNG.normal(size=4)
    found = conv_correction(w, q, mean)
    for o in range(6):
        group = o // 3
        expected = ((w - q)[o].sum(axis=(1, 2)) * mean[2 * group : 2 * group + 2]).sum()
        np.testing.assert_allclose(found[o], expected)


def chain(activation: str) -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 6, 6])
    spread = np.geomspace(1, 1e-3, 8).astype(np.float32)
    y = b.conv(x, weights(8, 4, 1, 1) * spread[:, None, None, None], weights(8) * spread, name="first")
    y = b.op(activation, y, *([0.0, 6.0] if activation == "Clip" else []))
    y = b.op("Relu", b.conv(y, weights(8, 1, 3, 3), group=8, name="depthwise"))
    b.output(b.conv(y, weights(5, 8, 1, 1), weights(5), name="last"))
    return b.build()


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_equalization_changes_ranges_and_nothing_else(activation: str) -> None:
    before = chain(activation)
    after = clone(before)
    links = find_links(find_regions(after.graph).kernels)
    assert [link.first.core.name for link in links] == ["first", "depthwise"]
    data = Dataset.of({"x": RNG.normal(size=(8, 4, 6, 6)).astype(np.float32)}, after)
    observers = {link.value.name: observer(link) for link in links}
    collect(after, data, {k: [o] for k, o in observers.items()})
    assert equalize(after.graph, links, observers) == 2
    assert_same(before, after, 1e-6)  # powers of two are exact; sums of scaled numbers round alike
    sizes = [np.abs(n.need(1).numpy()).max(axis=(1, 2, 3)) for n in (before.graph.nodes[0], after.graph.nodes[0])]
    assert sizes[0].max() / sizes[0].min() > 100
    assert sizes[1].max() / sizes[1].min() < 10


@pytest.mark.parametrize("activation", ["Sigmoid", "HardSwish", "Tanh"])
def test_no_equalization_through_other_functions(activation: str) -> None:
    links = find_links(find_regions(chain(activation).graph).kernels)
    assert [link.first.core.name for link in links] == ["depthwise"]


def test_channels_behind_a_clip_are_measured_against_it() -> None:
    link = find_links(find_regions(chain("Clip").graph).kernels)[0]
    assert link.bound == 6.0
    seen = ChannelOctaves(1, unit=6.0)
    seen.update(np.array([[6.0, 5.0], [0.7, 0.6], [0.0, 0.0]], np.float32)[None])
    factors = channel_factors(*seen.clipped(), 1.0, bounded=True)
    assert factors is not None
    assert factors.tolist() == [1, 0.125, 1]  # 0.7 / 6 lies just below 1/8; what is always 0 stays


@pytest.mark.parametrize(("groups", "k"), [(1, 1), (3, 9), (2, 129), (1, 300)])
def test_the_factor_is_that_of_the_inverse_metric(groups, k):
    x = np.random.default_rng(k).standard_normal((groups, 2 * k + 3, k))
    metric = np.swapaxes(x, 1, 2) @ x
    factor = inverse_factor(metric, 0.01)
    damped = metric / (np.trace(metric, axis1=1, axis2=2) / k)[:, None, None] + 0.01 * np.eye(k)
    assert not np.tril(factor, -1).any()
    # float64 with condition numbers below 1e4
    np.testing.assert_allclose(
        np.swapaxes(factor, 1, 2) @ factor @ damped, np.broadcast_to(np.eye(k), damped.shape), atol=1e-10
    )
