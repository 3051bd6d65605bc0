"""Calibration data and models that there is little to learn from: a reason, or a result that still computes."""

from __future__ import annotations

import numpy as np
import pytest

from irc.calibrate.dataset import Dataset
from irc.calibrate.gather import gather
from irc.calibrate.observers import SecondMoment
from irc.calibrate.sequential import walk
from irc.errors import DataError
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.pipeline import PassContext, Pipeline

RNG = np.random.default_rng(21)
X = RNG.normal(size=(40, 3, 8, 8)).astype(np.float32)
PIPELINES = [
    "quantize",
    "quantize{weights=int4}",
    "quantize{rounding=nearest}",
    "prune{sparsity=0.5}",
    "prune{sparsity=0.5 criterion=wanda}",
    "factorize{energy=0.9}",
    "cluster{bits=4}",
]


def scaled(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network(case: str = "") -> Model:
    """Three convolutions and a matrix; `case` says what is wrong with the second convolution."""
    weight, bias = scaled(16, 16, 3, 3), scaled(16)
    if case == "always zero":
        bias[:] = -1000  # behind the Relu
    elif case == "one channel dead":
        bias[5] = -1000
    elif case == "constant":
        weight[:] = 0
        bias[:] = 1.5
    elif case == "all zero":
        weight[:] = bias[:] = 0
    elif case == "NaN":
        weight[3, 2] = np.nan
    elif case == "infinity":
        weight[3, 2] = np.inf
    b = GraphBuilder()
    y = b.op("Relu", b.conv(b.input("x", "float32", [1, 3, 8, 8]), scaled(16, 3, 3, 3), scaled(16)))
    y = b.op("Relu", b.conv(y, weight, bias, pads=[1, 1, 1, 1]))
    y = b.op("Relu", b.conv(y, scaled(16, 16, 3, 3), scaled(16)))
    b.output(b.gemm(b.op("Flatten", y), scaled(256, 10), scaled(10)), name="out")
    return b.build()


def output(model: Model, x: Array = X[:8]) -> Array:
    run = Oracle(model)
    return np.concatenate([run.run({"x": one[None]})["out"] for one in x])


@pytest.mark.parametrize("text", PIPELINES)
@pytest.mark.parametrize("case", ["always zero", "one channel dead", "constant", "all zero"])
def test_layers_that_give_nothing_to_learn_from(case: str, text: str) -> None:
    model = network(case)
    made = clone(model)
    Pipeline.parse(f"none,{text}").run(made, PassContext(calibration=Dataset.of({"x": X}, model)))
    found, wanted = output(made), output(model)
    assert np.isfinite(found).all()
    # what the layers behind a constant one get is the same for every sample, so that their biases can take it back
    if case != "one channel dead" and "wanda" not in text:
        assert np.abs(found - wanted).max() <= 0.05 * np.abs(wanted).max() + 0.02


def test_values_of_zero_range_are_noted() -> None:
    model = network("always zero")
    report = Pipeline.parse("quantize").run(clone(model), PassContext(calibration=Dataset.of({"x": X}, model)))
    assert any("was 0 in every calibration sample" in note for note in report.passes[0].statistics["notes"])


@pytest.mark.parametrize("text", PIPELINES)
def test_one_sample_is_little_but_no_disaster(text: str) -> None:
    model = network()
    data = Dataset.of({"x": X[:1]}, model)
    made, ctx = clone(model), PassContext(calibration=data)
    if "prune" in text:
        with pytest.raises(DataError, match="too few calibration samples"):
            Pipeline.parse(text).run(made, ctx)
        return
    Pipeline.parse(f"none,{text}").run(made, ctx)
    found, wanted = output(made), output(model)
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= 2 * np.abs(wanted).max()
    assert any("1 calibration sample:" in note for note in ctx.notes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers(bad: float) -> None:
    samples = X.copy()
    samples[7, 0, 0, 0] = bad
    with pytest.raises(DataError, match=r"NaN or infinity.*sample 7"):
        Dataset.of({"x": samples}, network())


@pytest.mark.parametrize("case", ["NaN", "infinity"])
@pytest.mark.parametrize("text", ["quantize", "quantize{weights=int4}", "prune{sparsity=0.5}"])
def test_weights_that_are_no_numbers(case: str, text: str) -> None:
    model = network(case)
    with pytest.raises(DataError, match=r"weights of node.*NaN or infinity"):
        Pipeline.parse(f"none,{text}").run(model, PassContext(calibration=Dataset.of({"x": X}, model)))


def test_a_network_that_computes_infinities() -> None:
    b = GraphBuilder()
    y = b.op("Exp", b.op("Mul", b.input("x", "float32", [1, 4]), 1000.0))
    b.output(b.gemm(y, scaled(4, 2)), name="out")
    model = b.build()
    ctx = PassContext(calibration=Dataset.of({"x": np.ones((9, 4), np.float32)}, model))
    node = model.graph.nodes[-1]
    with pytest.raises(DataError, match=r"NaN or infinity at value .*calibration sample"):
        gather(ctx, model, {node.need(0).name: [SecondMoment(4)]})
    with pytest.raises(DataError, match="NaN or infinity at value"):
        list(walk(model, clone(model), [node], ctx))
