"""The calibration run: every sample is seen, batching changes nothing, statistics can be saved."""

from __future__ import annotations

import numpy as np
import pytest

from irc.calibrate.collect import collect
from irc.calibrate.dataset import Dataset
from irc.calibrate.layers import from_rows, moment_observer, sum_outputs, to_rows
from irc.calibrate.observers import ChannelMean, Histogram
from irc.errors import ModelError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model

RNG = np.random.default_rng(1)
X = RNG.normal(size=(40, 3, 8, 8)).astype(np.float32)


def network(batch: int | str = 1, *, keeps_batch: bool = True) -> Model:
    """`keeps_batch` False: a Reshape mixes samples, so that joined batches would give other numbers."""
    b = GraphBuilder()
    x = b.input("x", "float32", [batch, 3, 8, 8])
    y = b.op("Relu", b.conv(x, weights(4, 3, 3, 3), weights(4), pads=[1, 1, 1, 1]))
    y = b.op("Reshape", y, [-1, 256] if keeps_batch else [1, -1, 256])
    y = b.op("ReduceMean", y, [1], keepdims=1) if not keeps_batch else y
    b.output(b.op("Relu", y, name="last"), name="out")
    return b.build()


def seen(model: Model, samples: np.ndarray = X) -> Histogram:
    wanted = {"out": [Histogram()], "x": [Histogram()]}
    return collect(model, Dataset.of({"x": samples}, model), wanted).get("out", Histogram)


def test_batching_changes_nothing() -> None:
    single, symbolic = seen(network(1)), seen(network("n"))
    assert single.counts.sum() == 40 * 256
    np.testing.assert_array_equal(single.counts, symbolic.counts)


def test_a_model_that_mixes_samples_is_run_one_by_one() -> None:
    model = network(keeps_batch=False)
    histogram = seen(model)
    assert histogram.seen == 40 * 256  # a mean for each sample; joined samples would give one for each batch


def test_little_memory_means_several_runs_and_the_same_result() -> None:
    model = network()
    data = Dataset.of({"x": X}, model)
    runs: list[str] = []
    results = []
    for memory in (1 << 30, 1):
        wanted = {"out": [Histogram()], "x": [Histogram(), ChannelMean(1)]}
        results.append(collect(model, data, wanted, memory=memory, progress=lambda what, *_: runs.append(what)))
    assert "calibrate" in runs
    assert "calibrate (2 of 2)" in runs
    for name in ("out", "x"):
        np.testing.assert_array_equal(*(r.get(name, Histogram).counts for r in results))


def test_unknown_value() -> None:
    model = network()
    with pytest.raises(ModelError, match="no value 'nowhere'"):
        collect(model, Dataset.of({"x": X}, model), {"nowhere": [Histogram()]})


@pytest.mark.parametrize("groups", [1, 2])
def test_moments_of_a_convolution_predict_its_output_power(groups: int) -> None:
    """tr(W H WT) is the mean square of the convolution without bias: rows, groups and padding all have to agree."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 7, 6])
    w = weights(6, 4 // groups, 3, 2)
    b.output(b.conv(x, w, group=groups, pads=[1, 0, 2, 1], strides=[2, 1]), name="y")
    model = b.build()
    node = model.graph.nodes[0]
    samples = RNG.normal(size=(20, 4, 7, 6)).astype(np.float32)
    moment = moment_observer(node, len(samples))
    assert moment is not None
    squares = ChannelMean(1)
    collect(model, Dataset.of({"x": samples}, model), {"x": [moment], "y": [squares]})
    rows = to_rows(node, w, moment.groups)
    predicted = np.einsum("goi,gij,goj->go", rows, moment.moment, rows)
    assert squares.squares is not None
    np.testing.assert_allclose(sum_outputs(node, predicted), squares.squares / squares.count, rtol=1e-4)
    means = sum_outputs(node, np.einsum("gok,gk->go", rows, moment.mean))
    np.testing.assert_allclose(means, squares.mean, atol=1e-5)


@pytest.mark.parametrize(("op", "shape", "groups"), [("Conv", (8, 6, 3, 3), 2), ("MatMul", (12, 5), 3)])
def test_rows_round_trip(op: str, shape: tuple[int, ...], groups: int) -> None:
    b = GraphBuilder()
    w = weights(*shape)
    if op == "Conv":
        b.output(b.conv(b.input("x", "float32", [1, 6, 5, 5]), w))
    else:
        b.output(b.matmul(b.input("x", "float32", [1, 12]), w))
    node = b.build().graph.nodes[0]
    np.testing.assert_array_equal(from_rows(node, to_rows(node, w, groups), shape), w)
