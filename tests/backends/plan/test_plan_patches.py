"""First layers in strips: the same results, bit for bit, from less memory."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from quantized_networks import Network

from irc.backends.tvm.plan.patches import apply, patched, stages
from irc.export import to_bytes
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.verify import verify


def residual() -> tuple[Model, dict[str, np.ndarray]]:
    """Bytes: convolutions, depthwise, an addition of an older image, a pool, then a product of matrices."""
    b = GraphBuilder("residual")
    n = Network(b, "r")
    x = n.bytes((1, 3, 19, 14), "int8", 0.05, 3)
    y = n.conv(x, 8, (3, 3), "int8", -3, pads=(1, 1, 1, 1), stride=2, activation="relu")
    z = n.conv(y, 8, (5, 3), "int8", 5, pads=(2, 1, 2, 1), group=8)
    z = n.add(n.conv(z, 8, (3, 3), "int8", -7, pads=(2, 2, 2, 2), dilation=2), y, "int8", 0.07, 1)
    z = n.max_pool(z, 2, 2, "int8")
    n.output(n.global_pool(z, "int8", 0.02, 4))
    return b.build(), n.feeds


def real() -> tuple[Model, dict[str, np.ndarray]]:
    """Float data: padding of one side, average pooling that does not count it."""
    b = GraphBuilder("real")
    x = b.input("x", "float32", [1, 2, 17, 9])
    y = b.op("Relu", b.conv(x, weights(6, 2, 3, 3), weights(6, seed=5), pads=[0, 1, 2, 1]))
    y = b.op("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    y = b.conv(y, weights(4, 6, 2, 2, seed=1))
    b.output(b.op("GlobalMaxPool", y))
    return b.build(), {"x": np.random.default_rng(0).standard_normal((1, 2, 17, 9)).astype(np.float32)}


def results(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("make", [residual, real])
@pytest.mark.parametrize("strips", [2, 3, 4])
def test_every_stage_gives_the_same(make, strips: int) -> None:
    model, feeds = make()
    expected = results(model, feeds)
    names = [s.exit.name for s in stages(model.graph)]
    assert len(names) >= 2
    for name in names:
        tried = clone(model)
        stage = next(s for s in stages(tried.graph) if s.exit.name == name)
        apply(tried.graph, stage, min(strips, stage.exit.static_shape()[2]))
        verify(tried)
        for ours, theirs in zip(results(tried, feeds), expected, strict=True):
            if make is residual:
                np.testing.assert_array_equal(ours, theirs)
            else:  # onnxruntime sums in another order for other heights
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_others_read_is_no_stage() -> None:
    b = GraphBuilder("fork")
    x = b.input("x", "float32", [1, 2, 12, 9])
    first = b.conv(x, weights(4, 2, 3, 3))
    second = b.conv(first, weights(4, 4, 3, 3, seed=1))
    b.output(b.op("GlobalMaxPool", second), b.op("GlobalAveragePool", first))
    assert stages(b.build().graph) == []


def test_a_model_that_fits_or_cannot_be_cut_stays() -> None:
    model = residual()[0]
    assert patched(model, 10, lambda tried: 1000, 1000) == (model, None)


def test_the_least_work_that_fits_is_taken() -> None:
    model = residual()[0]
    found, patching = patched(model, 5000, lambda tried: 4000, 9000)
    assert found is not model
    assert patching is not None
    assert patching.strips == 2
