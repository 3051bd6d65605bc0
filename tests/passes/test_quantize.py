"""Quantization: where the pairs stand, how near the numbers are, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pass_checks import outputs

from irc.calibrate.dataset import Dataset
from irc.errors import DataError, OptionError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Model, Node, Value
from irc.ir.types import DType
from irc.ir.verify import verify
from irc.passes.quantize.quantize import Quantize
from irc.passes.quantize.regions import find_regions
from irc.pipeline.contract import PassContext, PassResult
from irc.targets.target import Target

RNG = np.random.default_rng(3)


def samples(model: Model, count: int = 48) -> dict[str, np.ndarray]:
    return {v.name: RNG.normal(size=(count, *v.static_shape()[1:])).astype(np.float32) for v in model.graph.inputs}


def quantized(model: Model, options: Quantize | None = None, **ctx: object) -> tuple[Model, PassResult]:
    after = clone(model)
    context = replace(PassContext(calibration=Dataset.of(samples(model), model)), **ctx)
    result = (options or Quantize()).run(after, context)
    verify(after)
    return after, result


def signal_to_noise(before: Model, after: Model) -> float:
    signal = noise = 0.0
    for _ in range(8):
        feeds = {k: v[:1] for k, v in samples(before, 1).items()}
        exact, got = outputs(before, feeds)[0], outputs(after, feeds)[0]
        signal, noise = signal + float(np.square(exact).sum()), noise + float(np.square(exact - got).sum())
    return 10 * np.log10(signal / noise)


def quantized_values(model: Model) -> list[str]:
    return [n.need(0).name for n in model.graph.nodes if n.is_op("QuantizeLinear")]


def node(model: Model, name: str) -> Node:
    return next(n for n in model.graph.nodes if n.name == name)


def maker(reader: Node) -> str:
    """The node (or input) whose result `reader` takes first."""
    value = reader.need(0)
    return value.producer.name if value.producer is not None else value.name


def parameters(value: Value) -> tuple[float, int]:
    """Scale and zero point of a dequantized value."""
    assert value.producer is not None
    assert value.producer.is_op("DequantizeLinear")
    return float(value.producer.need(1).numpy()), int(value.producer.need(2).numpy())


def plain() -> Model:
    """Conv, Relu, depthwise Conv, Clip, average, dense layer, Softmax."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 3, 12, 12])
    y = b.op("Relu", b.conv(x, weights(8, 3, 3, 3), weights(8), name="first"), name="relu")
    y = b.op("Clip", b.conv(y, weights(8, 1, 3, 3), weights(8), group=8, name="second"), 0.0, 6.0, name="clip")
    y = b.op("Flatten", b.op("GlobalAveragePool", y, name="mean"), name="flat")
    y = b.gemm(y, weights(8, 5), weights(5), name="dense")
    b.output(b.op("Softmax", y, name="softmax"), name="out")
    return b.build()


def residual() -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 8, 8])
    y = b.op("Relu", b.conv(x, weights(8, 4, 3, 3), weights(8), pads=[1] * 4, name="stem"), name="stem_relu")
    z = b.op("Relu", b.conv(y, weights(8, 8, 3, 3), weights(8), pads=[1] * 4, name="a"), name="a_relu")
    z = b.conv(z, weights(8, 8, 3, 3, seed=1), weights(8), pads=[1] * 4, name="b")
    y = b.op("Relu", b.op("Add", y, z, name="sum"), name="sum_relu")
    b.output(b.conv(y, weights(4, 8, 1, 1), name="last"), name="out")
    return b.build()


def gated() -> Model:
    """Squeeze and excite, and x * sigmoid(x)."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 6, 6])
    y = b.conv(x, weights(8, 4, 1, 1), name="stem")
    y = b.op("Mul", y, b.op("Sigmoid", y, name="sigmoid"), name="swish")
    g = b.op("HardSigmoid", b.conv(b.op("GlobalAveragePool", y, name="mean"), weights(8, 8, 1, 1), name="gate"))
    b.output(b.conv(b.op("Mul", y, g, name="scale"), weights(3, 8, 1, 1), name="last"), name="out")
    return b.build()


def branches() -> Model:
    """Concat of two convolutions and a pooled one, padding, slicing."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 8, 8])
    p = b.conv(x, weights(4, 4, 1, 1), weights(4) * 9, name="p")
    q = b.op("Relu", b.conv(x, weights(4, 4, 3, 3), pads=[1] * 4, name="q"), name="q_relu")
    m = b.op("MaxPool", q, kernel_shape=[3, 3], pads=[1] * 4, name="pool")
    c = b.op("Concat", p, q, m, axis=1, name="concat")
    c = b.op("Pad", c, np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), name="pad")
    b.output(b.conv(c, weights(2, 12, 3, 3), name="last"), name="out")
    return b.build()


def dense() -> Model:
    """A matrix chain with a normalization between: a region that stays in floating point."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 7, 16])
    y = b.op("Add", b.matmul(x, weights(16, 32)), weights(32), name="bias")
    y = b.op("LayerNormalization", b.op("Gelu", y, name="gelu"), np.ones(32, np.float32), name="norm")
    z = b.op("Add", weights(16, seed=1), b.matmul(y, weights(32, 16)), name="bias_left")
    b.output(b.op("LayerNormalization", b.op("Add", z, x, name="sum"), np.ones(16, np.float32)), name="out")
    return b.build()


MODELS: dict[str, Callable[[], Model]] = {
    "plain": plain, "residual": residual, "gated": gated, "branches": branches, "dense": dense,
}  # fmt: skip


def test_pairs_stand_between_kernels_and_nowhere_else() -> None:
    after, result = quantized(plain(), Quantize(equalize=False))
    assert [n.op_type for n in after.graph.nodes if not n.is_op("QuantizeLinear", "DequantizeLinear")] == [
        n.op_type for n in plain().graph.nodes
    ]
    assert [maker(n) for n in after.graph.nodes if n.is_op("QuantizeLinear")] == ["x", "relu", "clip", "mean", "flat"]
    assert node(after, "relu").need(0).producer is node(after, "first")  # no step between a layer and its activation
    assert node(after, "softmax").need(0).producer is node(after, "dense")  # the end stays in floating point
    assert after.graph.outputs[0].name == "out"
    assert len(result.statistics["layers"]) == 3
    assert len(result.statistics["tensors"]) == 5


def test_weights_and_biases_are_integers_in_range() -> None:
    after, _ = quantized(plain())
    for name, axis in (("first", 0), ("second", 0), ("dense", 1)):
        layer = node(after, name)
        w, b = layer.need(1).producer, layer.need(2).producer
        assert w is not None
        assert b is not None
        q = w.need(0).numpy()
        assert q.dtype == np.int8
        assert q.min() >= -127
        assert w.get_int("axis") == axis
        assert w.need(1).static_shape() == (q.shape[axis],)
        assert b.need(0).dtype is DType.INT32
        scale, _ = parameters(layer.need(0))
        np.testing.assert_array_equal(b.need(1).numpy(), np.float32(scale) * w.need(1).numpy())


def test_ranges_start_at_the_activation() -> None:
    after, _ = quantized(plain())
    for name in ("second", "dense"):
        assert parameters(node(after, name).need(0))[1] == 0  # after Relu and Clip nothing is below 0
    assert parameters(node(after, "first").need(0))[1] > 0


@pytest.mark.parametrize("name", list(MODELS))
def test_numbers_stay_near(name: str) -> None:
    """Every 8-bit tensor has noise 40 dB below it; a few of them in a row leave 30 dB. A wrong scale leaves about 0."""
    before = MODELS[name]()
    after, _ = quantized(before)
    assert signal_to_noise(before, after) > 30


@pytest.mark.parametrize("name", list(MODELS))
def test_running_twice_changes_nothing_more(name: str) -> None:
    after, _ = quantized(MODELS[name]())
    again, result = quantized(after)
    assert not result.changed
    assert difference(after, again) is None


def test_a_sum_moves_into_the_layer_before_it() -> None:
    after, _ = quantized(residual())
    total = node(after, "sum")
    assert total.need(1).producer is node(after, "b")  # never rounded to 8 bits
    assert total.need(0).producer is not None
    assert total.need(0).producer.is_op("DequantizeLinear")
    assert node(after, "sum_relu").need(0).producer is total


def test_of_two_layers_the_second_result_is_rounded() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 8, 8])
    total = b.op(
        "Add", b.conv(x, weights(4, 4, 1, 1), name="a"), b.conv(x, weights(4, 4, 3, 3), pads=[1] * 4, name="b")
    )
    b.output(b.conv(total, weights(4, 4, 1, 1), name="last"))
    after, _ = quantized(b.build())
    add = next(n for n in after.graph.nodes if n.is_op("Add"))
    assert add.need(0).producer is node(after, "a")
    assert add.need(1).producer is not None
    assert add.need(1).producer.is_op("DequantizeLinear")


def test_diamonds_stay_inside_one_kernel() -> None:
    after, _ = quantized(gated())
    stem = node(after, "stem").output
    assert {u.name for u in stem.users} == {"sigmoid", "swish"}
    scale = node(after, "scale")
    assert all(v is not None and v.producer is not None and v.producer.is_op("DequantizeLinear") for v in scale.inputs)


def test_what_hands_numbers_through_keeps_their_scale() -> None:
    after, _ = quantized(branches())
    shared = {parameters(v) for v in node(after, "concat").inputs if v is not None}
    assert shared == {parameters(node(after, "pad").need(0))} == {parameters(node(after, "last").need(0))}


def test_values_read_by_several_layers_have_one_pair() -> None:
    after, _ = quantized(branches())
    assert quantized_values(after).count("x") == 1
    assert node(after, "p").need(0) is node(after, "q").need(0)


def test_regions_in_floating_point_stay_so() -> None:
    after, _ = quantized(dense())
    assert len(quantized_values(after)) == 2  # the input of each matrix product
    assert [maker(n) for n in after.graph.nodes if n.is_op("LayerNormalization")] == ["gelu", "sum"]
    assert node(after, "sum").need(0).producer is node(after, "bias_left")
    assert node(after, "sum").need(1) is after.graph.inputs[0]


@pytest.mark.parametrize(
    "options",
    [
        Quantize(scheme="symmetric"),
        Quantize(per_channel=False),
        Quantize(rounding="nearest"),
        Quantize(rounding="nearest", correct_bias=False),
        Quantize(equalize=False),
        Quantize(calibrator="min-max"),
        Quantize(calibrator="percentile", percentile=99.9),
        Quantize(calibrator="entropy"),
        Quantize(rounding="adaptive"),
        Quantize(sequential=False),
    ],
    ids=str,
)
def test_options(options: Quantize) -> None:
    before = plain()
    after, _ = quantized(before, options)
    assert signal_to_noise(before, after) > 25  # coarser by choice; a wrong scale leaves about 0
    types = {n.need(2).dtype for n in after.graph.nodes if n.is_op("QuantizeLinear")}
    assert types == {DType.INT8 if options.scheme == "symmetric" else DType.UINT8}


def test_the_target_decides_the_type() -> None:
    target = Target("t", "", "aarch64", "aarch64-linux-gnu", "generic", activations="int8")
    after, _ = quantized(plain(), target=target)
    assert {n.need(2).dtype for n in after.graph.nodes if n.is_op("QuantizeLinear")} == {DType.INT8}
    assert parameters(node(after, "second").need(0))[1] == -128


def test_weights_only_needs_no_data() -> None:
    before = plain()
    after = clone(before)
    result = Quantize(activations="none").run(after, PassContext())
    verify(after)
    assert result.changed
    assert not quantized_values(after)
    assert signal_to_noise(before, after) > 30
    assert sum(n.is_op("DequantizeLinear") for n in after.graph.nodes) == 3


def test_skip_leaves_a_layer_alone() -> None:
    after, result = quantized(plain(), Quantize(skip=("second",), equalize=False))
    second = node(after, "second")
    assert second.need(1).is_constant
    assert any(r.node == second.label and "skip" in r.reason for r in result.refusals)
    with pytest.raises(OptionError, match="did you mean 'second'"):
        quantized(plain(), Quantize(skip=("secnd",)))


def test_needs_data() -> None:
    with pytest.raises(DataError, match="calibration"):
        Quantize().run(plain(), PassContext())


def test_refuses_what_has_no_integer_kernel() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 2, 4, 4, 4])
    b.output(b.conv(x, weights(3, 2, 1, 1, 1), name="volume"))
    before = b.build()
    after, result = quantized(before)
    assert not result.changed
    assert difference(before, after) is None
    assert "spatial dimensions" in result.refusals[0].reason


def test_refuses_sums_that_may_overflow() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 40000])
    b.output(b.matmul(x, weights(40000, 1)))
    assert "32 bits" in find_regions(b.build().graph).refusals[0].reason


def test_dead_layers_and_constant_tensors_are_safe_and_reported() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 5, 5])
    w = weights(4, 4, 1, 1)
    w[1] = 0  # a channel that only has a bias
    y = b.conv(x, w, np.array([0, 3, 1e-3, 100], np.float32), name="half")
    z = b.conv(b.op("Relu", y), np.zeros((4, 4, 1, 1), np.float32), np.array([1.5, -2, 0, 7], np.float32), name="dead")
    b.output(b.conv(z, weights(2, 4, 1, 1), name="last"), name="out")
    before = b.build()
    after, result = quantized(before)
    notes = " ".join(result.statistics["notes"])
    assert "'dead' (Conv) are all zero" in notes
    assert signal_to_noise(before, after) > 30


def test_no_signal_at_all() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4])
    b.output(b.matmul(b.op("Relu", b.matmul(b.op("Mul", x, 0.0), weights(4, 4))), weights(4, 4)), name="out")
    after, result = quantized(b.build())
    assert any("was 0 in every calibration sample" in n for n in result.statistics["notes"])
    assert not outputs(after, {"x": np.ones((1, 4), np.float32)})[0].any()


def test_tied_weights_stay_tied() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 16])
    w = b.constant(weights(16, 16), "tied")
    b.output(b.matmul(b.op("Tanh", b.matmul(x, w)), w), name="out")
    after, _ = quantized(b.build(), Quantize(rounding="nearest", equalize=False))
    assert sum(c.dtype is DType.INT8 for c in after.graph.constants.values()) == 1


def test_a_value_that_is_also_an_output_keeps_its_name() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 5, 5])
    y = b.op("Relu", b.conv(x, weights(4, 4, 1, 1)))
    b.output(y, name="middle")
    b.output(b.conv(y, weights(2, 4, 1, 1)), name="out")
    before = b.build()
    after, _ = quantized(before)
    assert [v.name for v in after.graph.outputs] == ["middle", "out"]
    assert signal_to_noise(before, after) > 30


@pytest.mark.parametrize("options", [{"percentile": 40.0}, {"percentile": 101.0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        Quantize(**options)


def test_layers_without_an_integer_kernel_are_named() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 5, 5])
    y = b.op("ConvTranspose", b.conv(x, weights(4, 4, 1, 1)), weights(4, 2, 2, 2), name="up")
    b.output(y, name="out")
    _, result = quantized(b.build())
    assert [r.reason for r in result.refusals if "up" in r.node] == ["ConvTranspose has no integer kernel"]
    assert result.statistics["notes"] == [
        "node 'up' (ConvTranspose) stays in floating point: ConvTranspose has no integer kernel"
    ]
