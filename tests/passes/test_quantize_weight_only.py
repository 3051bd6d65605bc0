"""Weights alone in few bits, per channel and in groups; activations quantized at run time."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import outputs

from irc.calibrate.dataset import Dataset
from irc.errors import OptionError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Node
from irc.ir.types import DType
from irc.ir.verify import verify
from irc.passes.quantize.quantize import Quantize
from irc.pipeline.contract import PassContext, PassResult


def network() -> Model:
    """Dense layers in all forms, convolutions, one depthwise."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 8, 6, 6])
    y = b.op("Relu", b.conv(x, weights(64, 8, 3, 3), weights(64), pads=[1, 1, 1, 1], name="conv"))
    y = b.op("Relu", b.conv(y, weights(64, 1, 3, 3, seed=1), group=64, strides=[2, 2], name="depthwise"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    y = b.op("Relu", b.op("MatMul", y, weights(64, 96, seed=2), name="matmul"))
    y = b.op("Relu", b.gemm(y, weights(96, 40, seed=3), weights(40, seed=3), name="dense"))
    b.output(b.op("Gemm", y, weights(12, 40, seed=4), weights(12, seed=4), transB=1, name="turned"), name="out")
    return b.build()


def samples(model: Model, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Channels that follow a few common causes, as real ones do."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(3, 8))
    x = np.einsum("nchw,cd->ndhw", rng.normal(size=(count, 3, 6, 6)), mix) + 0.1 * rng.normal(size=(count, 8, 6, 6))
    return {"x": x.astype(np.float32)}


def quantized(model: Model, options: Quantize, calibrated: bool = True) -> tuple[Model, PassResult]:
    after = clone(model)
    data = Dataset.of(samples(model, 64), model) if calibrated else None
    result = options.run(after, PassContext(calibration=data))
    verify(after)
    return after, result


def error(before: Model, after: Model) -> float:
    """Energy of the error over that of the output, on samples that were not calibrated on."""
    total = signal = 0.0
    for sample in samples(before, 24, seed=5)["x"]:
        exact, got = (outputs(m, {"x": sample[None]})[0].astype(np.float64) for m in (before, after))
        total, signal = total + float(np.square(exact - got).sum()), signal + float(np.square(exact).sum())
    return total / signal


def node(model: Model, name: str) -> Node:
    return next(n for n in model.graph.nodes if n.name == name)


def stored(model: Model, name: str) -> Node:
    made = node(model, name).need(1).producer
    assert made is not None
    assert made.is_op("DequantizeLinear")
    return made


# Steps of 8 bits are about 1/127 of the largest weight, those of 4 bits 1/7: squared and over 12, for normal weights
# whose largest is three deviations, 5e-5 and 1.5e-2 a layer; there are five.
@pytest.mark.parametrize(("options", "bound"), [(Quantize(activations="none"), 3e-4)])
def test_eight_bits(options: Quantize, bound: float) -> None:
    model = network()
    after, _ = quantized(model, options, calibrated=False)
    assert error(model, after) < bound


@pytest.mark.parametrize("calibrated", [False, True])
def test_groups_are_finer_than_channels(calibrated: bool) -> None:
    model = network()
    by_channel, _ = quantized(model, Quantize(weights="int4", activations="none"), calibrated)
    by_group, result = quantized(model, Quantize(weights="int4", activations="none", group=8), calibrated)
    found = stored(by_group, "matmul")
    assert found.get_int("block_size") == 8
    assert found.need(0).tensor.dtype is DType.INT4
    assert found.need(1).static_shape() == (8, 96)
    assert stored(by_group, "conv").need(1).static_shape() == (64, 1, 3, 3)
    assert stored(by_group, "turned").need(1).static_shape() == (12, 5)
    assert error(model, by_group) < error(model, by_channel) < 0.1
    assert any("depthwise" in r.node and "groups of 8" in r.reason for r in result.refusals)
    assert stored(by_group, "depthwise").get_int("block_size", 0) == 0


def test_samples_help() -> None:
    model = network()
    options = Quantize(weights="int4", activations="none")
    plain, fitted = (quantized(model, options, calibrated)[0] for calibrated in (False, True))
    assert error(model, fitted) < 0.7 * error(model, plain)


def test_dynamic_activations() -> None:
    """Two roundings to 8 bits for each layer."""
    model = network()
    for calibrated in (False, True):
        after, result = quantized(model, Quantize(activations="dynamic"), calibrated)
        kinds = [n.op_type for n in after.graph.nodes]
        assert kinds.count("MatMulInteger") == 3
        assert kinds.count("ConvInteger") == 2
        assert not {"Conv", "Gemm", "MatMul"} & set(kinds)
        assert node(after, "conv_integer").need(1).tensor.dtype is DType.INT8
        assert len(result.statistics["layers"]) == 5
        assert error(model, after) < 1e-3


def test_a_tensor_is_quantized_once() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 5, 32])
    parts = [b.op("MatMul", x, weights(32, 16, seed=i), name=f"m{i}") for i in range(3)]
    b.output(b.op("Concat", *parts, axis=-1), name="out")
    after, _ = quantized(b.build(), Quantize(activations="dynamic"), calibrated=False)
    assert [n.op_type for n in after.graph.nodes].count("DynamicQuantizeLinear") == 1


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(OptionError, match="symmetric int8"):
        Quantize(activations="dynamic", weights="int4")
    with pytest.raises(OptionError, match="groups"):
        Quantize(group=32)
