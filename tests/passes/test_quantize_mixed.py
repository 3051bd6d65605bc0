"""Mixed precision: bits go where they matter, the estimate is that of samples not used, and odd graphs come through."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import outputs

from irc.calibrate.dataset import Dataset
from irc.errors import DataError, OptionError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.types import DType
from irc.ir.verify import verify
from irc.passes.quantize.damage import Damage, damage, noise_for
from irc.passes.quantize.quantize import Quantize
from irc.passes.quantize.rate import entropy_bits
from irc.pipeline.contract import PassContext, PassResult


def samples(model: Model, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.normal(size=(count, *v.static_shape()[1:])).astype(np.float32) for v in model.graph.inputs}


def quantized(model: Model, options: Quantize, count: int = 48) -> tuple[Model, PassResult]:
    after = clone(model)
    result = options.run(after, PassContext(calibration=Dataset.of(samples(model, count), model)))
    verify(after)
    return after, result


def network() -> Model:
    """Conv, Relu, depthwise Conv, dense layers with and without bias."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 10, 10])
    y = b.op("Relu", b.conv(x, weights(32, 4, 3, 3), weights(32), name="first"))
    y = b.op("Relu", b.conv(y, weights(32, 1, 3, 3, seed=1), weights(32, seed=1), group=32, name="depthwise"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    y = b.op("Relu", b.op("MatMul", y, weights(32, 64, seed=2), name="matmul"))
    b.output(b.op("Softmax", b.gemm(y, weights(64, 10, seed=3), weights(10, seed=3), name="dense")), name="out")
    return b.build()


def stored(model: Model, name: str) -> tuple[np.ndarray, np.ndarray, DType]:
    """Integers, scales and type of the weights of a node."""
    node = next(n for n in model.graph.nodes if n.name == name)
    made = node.need(1).producer
    assert made is not None
    assert made.is_op("DequantizeLinear")
    return made.need(0).numpy(), made.need(1).numpy(), made.need(0).tensor.dtype


def unseen_snr(before: Model, after: Model) -> float:
    """dB of the logits on samples that were not calibrated on."""
    signal = noise = 0.0
    for sample in samples(before, 32, seed=9)["x"]:
        exact, got = (np.log(outputs(m, {"x": sample[None]})[0].astype(np.float64)) for m in (before, after))
        exact, got = exact - exact.mean(), got - got.mean()
        signal, noise = signal + float(np.square(exact).sum()), noise + float(np.square(exact - got).sum())
    return float(10 * np.log10(signal / noise))


def test_free_steps_give_few_levels_and_few_scales() -> None:
    model = network()
    after, result = quantized(model, Quantize(bits="free", drop=2.0))
    for name in ("first", "depthwise", "matmul", "dense"):
        q, scales, dtype = stored(after, name)
        assert dtype is DType.INT8
        ratios = np.log2(scales.astype(np.float64) / scales.min())
        np.testing.assert_allclose(ratios, np.rint(ratios), atol=1e-5)  # float32 products of powers of two
        assert entropy_bits(q) < 8.5 * q.size, "with the table"
    assert [line["node"] for line in result.statistics["precision"]] == ["first", "depthwise", "matmul", "dense"]
    assert sum(line["share_of_damage"] for line in result.statistics["precision"]) == pytest.approx(1, abs=1e-3)


def test_a_larger_budget_has_fewer_bits() -> None:
    model = network()
    sizes = []
    for drop in (1.0, 5.0):
        after, result = quantized(model, Quantize(bits="free", drop=drop))
        sizes.append(sum(entropy_bits(stored(after, n)[0]) for n in ("first", "matmul", "dense")))
        assert result.statistics["estimate"]["drop"] <= drop
    assert sizes[1] < 0.8 * sizes[0]


def test_the_estimate_holds_on_other_samples() -> None:
    """Within 3 dB, that is a factor of two in energy: a dozen samples were measured, and activations are 8 bits too."""
    model = network()
    after, result = quantized(model, Quantize(bits="free", drop=2.0))
    assert unseen_snr(model, after) > result.statistics["estimate"]["output_snr_db"] - 3.5


def test_biases_end_in_zero_bits() -> None:
    model = network()
    found = {}
    for bits in ("fixed", "free"):
        after, _ = quantized(model, Quantize(bits=bits, drop=2.0))
        node = next(n for n in after.graph.nodes if n.name == "first")
        producer = node.need(2).producer
        assert producer is not None
        found[bits] = producer.need(0).numpy()
    assert not (found["free"] % 4).any()
    assert (found["fixed"] % 4).any()


@pytest.mark.parametrize(("drop", "expected"), [(0.001, DType.INT8), (90.0, DType.INT4)])
def test_auto_chooses_by_the_budget(drop: float, expected: DType) -> None:
    after, result = quantized(network(), Quantize(bits="auto", drop=drop))
    assert stored(after, "first")[2] is expected
    assert stored(after, "matmul")[2] is expected
    assert stored(after, "depthwise")[2] is DType.INT8, "depthwise layers stay at 8 bits"
    assert stored(after, "dense")[2] is DType.INT8, "and tiny ones"
    assert {line["bits"] for line in result.statistics["precision"]} <= {4, 8}


def test_layers_that_share_weights_share_integers() -> None:
    b = GraphBuilder()
    shared = weights(48, 48)
    x = b.input("x", "float32", [1, 48])
    y = b.op("Relu", b.op("MatMul", x, shared, name="one"))
    model_weight = y.producer.need(0).producer.need(1)  # type: ignore[union-attr]  # Relu of a MatMul
    b.output(b.op("MatMul", y, model_weight, name="two"), name="out")
    after, _ = quantized(b.build(), Quantize(bits="free", equalize=False))
    readers = {n.name: n.need(1) for n in after.graph.nodes if n.is_op("MatMul")}
    assert readers["one"] is readers["two"]


def _conv1d(b: GraphBuilder) -> None:
    x = b.input("x", "float32", [1, 8, 40])
    b.output(b.op("Relu", b.conv(x, weights(16, 8, 5), name="conv")), name="out")


def _no_layers(b: GraphBuilder) -> None:
    b.output(b.op("Relu", b.input("x", "float32", [1, 8])), name="out")


def _zero_layer(b: GraphBuilder) -> None:
    x = b.input("x", "float32", [1, 8])
    y = b.op("Relu", b.gemm(x, np.zeros((8, 16), np.float32), name="zeros"))
    b.output(b.gemm(y, weights(16, 4), weights(4), name="last"), name="out")


@pytest.mark.parametrize("bits", ["auto", "free"])
@pytest.mark.parametrize("make", [_conv1d, _no_layers, _zero_layer])
def test_odd_graphs_come_through(make: object, bits: str) -> None:
    b = GraphBuilder()
    make(b)  # type: ignore[operator]  # a function of a builder
    model = b.build()
    after, _ = quantized(model, Quantize(bits=bits))  # type: ignore[arg-type]  # one of its values
    feeds = samples(model, 1, seed=5)
    exact, got = outputs(model, feeds)[0], outputs(after, feeds)[0]
    assert np.abs(exact - got).max() <= 0.3 * max(1e-3, float(np.abs(exact).max()))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(OptionError, match="bits=free"):
        Quantize(bits="free", weights="int4")
    with pytest.raises(OptionError, match="drop"):
        Quantize(bits="auto", drop=0)
    with pytest.raises(DataError, match="calibration"):
        Quantize(bits="auto").run(network(), PassContext())


def test_damage_of_outputs() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 10)).astype(np.float32)
    assert damage([logits], [logits]) == Damage(0.0, 0.0)
    assert damage([logits], [logits + 5]).noise < 1e-12, "what all logits share decides nothing"
    noisy = logits + 0.1 * rng.normal(size=logits.shape).astype(np.float32)
    found = damage([logits], [noisy])
    assert found.noise == pytest.approx(0.01, rel=0.1)  # the spread of a hundred normal numbers
    changed = 100 * float((logits.argmax(1) != noisy.argmax(1)).mean())
    assert changed / 3 < found.disagreement < 3 * changed
    assert damage([logits], [np.full_like(logits, np.nan)]).disagreement == 100
    assert noise_for(1.0) < noise_for(2.0)
