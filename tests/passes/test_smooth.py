"""SmoothQuant: real numbers stay, outlier channels come down, and normalizations that others read are left."""

from __future__ import annotations

import numpy as np
from pass_checks import outputs

from irc.calibrate.dataset import Dataset
from irc.calibrate.observers import ChannelOctaves
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.verify import verify
from irc.passes.quantize.quantize import Quantize
from irc.passes.quantize.regions import find_regions
from irc.passes.quantize.smooth import find_smoothings, observer, smooth, smoothing_factors
from irc.pipeline.contract import PassContext

RNG = np.random.default_rng(5)
X = RNG.normal(size=(24, 6, 16)).astype(np.float32)


def network(*, shared: bool = False) -> Model:
    """Two layers behind a normalization, three channels of which are outliers."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 6, 16])
    gamma = np.ones(16, np.float32)
    gamma[:3] = 60
    y = b.op("LayerNormalization", x, gamma, weights(16), name="norm")
    z = b.op("Add", b.matmul(y, weights(16, 24)), b.matmul(y, weights(16, 24, seed=2)))
    if shared:
        z = b.matmul(b.op("Add", b.matmul(z, weights(24, 16)), y), weights(16, 8))
    b.output(z, name="out")
    return b.build()


def error(before: Model, after: Model) -> float:
    return float(
        np.mean(
            [np.square(outputs(before, {"x": x[None]})[0] - outputs(after, {"x": x[None]})[0]).mean() for x in X[:6]]
        )
    )


def test_real_numbers_stay() -> None:
    before = network()
    after = clone(before)
    found, refusals = find_smoothings(after.graph, find_regions(after.graph).kernels)
    assert not refusals
    seen = observer(found[0])
    for x in X:
        seen.update(x[None] * np.where(np.arange(16) < 3, 60, 1))
    assert smooth(after.graph, found, {found[0].value.name: seen}, 0.5) == 1
    verify(after)
    exact = outputs(before, {"x": X[:1]})[0]
    # powers of two scale exactly: what is left is the order of float additions
    np.testing.assert_allclose(outputs(after, {"x": X[:1]})[0], exact, rtol=1e-5, atol=1e-4)
    gamma = found[0].node.need(1).numpy()
    assert gamma.max() / gamma.min() < 30  # 60 before


def test_outliers_cost_less() -> None:
    before = network()
    errors = []
    for strength in (0.0, 0.5):
        after = clone(before)
        Quantize(smooth=strength).run(after, PassContext(calibration=Dataset.of({"x": X}, before)))
        verify(after)
        errors.append(error(before, after))
    assert errors[1] < 0.7 * errors[0]


def test_a_result_that_others_read_keeps_its_scale() -> None:
    model = network(shared=True)
    found, refusals = find_smoothings(model.graph, find_regions(model.graph).kernels)
    assert not found
    assert "others than linear layers" in refusals[0].reason


def test_factors() -> None:
    seen = ChannelOctaves(-1)
    seen.update(np.array([[1.0, 1.0, 64.0, 0.0]] * 8, np.float32))
    clipped = seen.clipped()
    factors = smoothing_factors(*clipped, np.ones(4), 1.0)
    assert factors is not None
    assert factors[0] == factors[1]
    assert factors[2] / factors[0] == 64 or factors[2] == 32  # at most five octaves
    assert factors[3] == 1  # always 0
    np.testing.assert_array_equal(np.log2(factors), np.rint(np.log2(factors)))
    assert smoothing_factors(*clipped, np.zeros(4), 0.5) is None
