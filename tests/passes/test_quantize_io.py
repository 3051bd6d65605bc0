"""Integers as inputs and outputs: the structure, the same numbers as with real ones, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_checks import ops, outputs

from irc.calibrate.dataset import Dataset
from irc.errors import DataError, OptionError
from irc.export import to_proto
from irc.frontend import from_proto
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.ir.quantization import Ports, Quantization
from irc.ir.types import Array, DType
from irc.ir.verify import verify
from irc.passes.quantize.quantize_io import QuantizeIO
from irc.pipeline import PassContext, PassResult, Pipeline

RNG = np.random.default_rng(3)
X = RNG.normal(0, 1, (1, 2, 4, 4)).astype(np.float32)
IN, OUT = (np.float32(0.02), np.uint8(120)), (np.float32(0.05), np.uint8(131))


def quantized(b: GraphBuilder, value: Value, parameters: tuple[Any, Any] = IN) -> Value:
    """A pair behind `value`."""
    return b.op("DequantizeLinear", b.op("QuantizeLinear", value, *parameters), *parameters)


def network(before: str = "", behind: str = "") -> Model:
    """A quantized convolution with operators that move numbers on either side of it."""
    b = GraphBuilder()
    x: Value = b.input("x", "float32", [1, 2, 4, 4])
    if before == "Transpose":
        x = b.op(before, x, perm=[0, 1, 3, 2])
    w = RNG.integers(-100, 100, (3, 2, 1, 1)).astype(np.int8)
    y = b.conv(quantized(b, x), b.op("DequantizeLinear", w, np.float32(0.01)))
    y = quantized(b, y, OUT)
    if behind == "Reshape":
        y = b.op("Reshape", y, [1, 48])
    elif behind:
        y = b.op(behind, y)
    b.output(y, name="y")
    return b.build()


def changed(model: Model, samples: Array | None = None, **options: Any) -> tuple[Model, PassResult]:
    after = clone(model)
    data = None if samples is None else Dataset.of({"x": samples}, model)
    result = QuantizeIO(**options).run(after, PassContext(calibration=data))
    verify(after)
    return after, result


def assert_same_numbers(before: Model, after: Model, feed: dict[str, Array] | None = None) -> None:
    """With real numbers quantized before and integers dequantized behind it, `after` gives what `before` gives."""
    feed = {"x": X} if feed is None else feed
    ports = Ports.between(before.graph, after.graph)
    assert [v.name for v in before.graph.outputs] == [v.name for v in after.graph.outputs]
    names = [v.name for v in after.graph.outputs]
    found = ports.real(dict(zip(names, outputs(after, ports.feed(feed)), strict=True)))
    for name, expected in zip(names, outputs(before, feed), strict=True):
        np.testing.assert_array_equal(found[name], expected)


def types(model: Model) -> list[str]:
    return [str(v.type).partition("[")[0] for v in (*model.graph.inputs, *model.graph.outputs)]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_the_pairs_at_both_ends_go(kind: str) -> None:
    before = network()
    assert ops(before)[:2] == ["QuantizeLinear", "DequantizeLinear"]
    after, result = changed(before, type=kind)
    assert result.changed
    assert ops(after) == ["DequantizeLinear", "DequantizeLinear", "Conv", "QuantizeLinear"]
    assert types(after) == [kind, kind]
    assert "notes" not in result.statistics
    shift = 128 if kind == "int8" else 0
    assert Ports.of(after.graph) == Ports(
        {"x": Quantization(DType(kind), float(IN[0]), 120 - shift)},
        {"y": Quantization(DType(kind), float(OUT[0]), 131 - shift)},
    )
    assert_same_numbers(before, after)


def test_statistics_name_the_ports() -> None:
    _, result = changed(network(), type="int8")
    lines = [
        (line["name"], line["type"], line["zero_point"], line["parameters"]) for line in result.statistics["ports"]
    ]
    assert lines == [("x", "int8", -8, "quantized"), ("y", "int8", 3, "quantized")]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize(("before", "behind"), [("Transpose", "Reshape"), ("Transpose", "GlobalMaxPool")])
def test_numbers_that_are_moved_first(kind: str, before: str, behind: str) -> None:
    model = network(before, behind)
    after, result = changed(model, type=kind)
    assert types(after) == [kind, kind]
    assert "notes" not in result.statistics
    assert_same_numbers(model, after)


def test_a_second_run_changes_nothing() -> None:
    after, _ = changed(network("Transpose", "Reshape"))
    again, result = changed(after)
    assert not result.changed
    assert ops(again) == ops(after)


def test_it_stays_with_the_model_in_onnx() -> None:
    after, _ = changed(network("Transpose", "Reshape"))
    read = from_proto(to_proto(after))
    assert Ports.of(read.graph) == Ports.of(after.graph)
    assert len(Ports.of(read.graph).outputs) == 1


def test_readers_that_are_not_quantized_get_the_integers_dequantized() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 2, 4, 4])
    b.output(b.op("Add", quantized(b, x), b.op("Neg", x)), name="y")
    model = b.build()
    after, _ = changed(model, type="float32", int8=("x",))
    assert ops(after) == ["DequantizeLinear", "Neg", "Add"]
    rounded = Quantization(DType.UINT8, float(IN[0]), 120)
    assert_same_numbers(model, after, {"x": rounded.dequantize(rounded.quantize(X))})


def test_of_two_quantizations_the_wider_one() -> None:
    wide = (np.float32(0.03), np.uint8(128))
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 2, 4, 4])
    b.output(b.op("Sub", quantized(b, x), quantized(b, x, wide)), name="y")
    after, result = changed(b.build(), type="float32", uint8=("inputs",))
    assert Ports.of(after.graph).inputs["x"] == Quantization(DType.UINT8, float(wide[0]), 128)
    assert ops(after) == ["DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "Sub"]
    assert "quantized in 2 ways" in result.statistics["notes"][0]


def test_an_output_whose_integers_others_read() -> None:
    b = GraphBuilder()
    y = quantized(b, b.op("Relu", quantized(b, b.input("x", "float32", [1, 2, 4, 4]))), OUT)
    b.output(y, name="y")
    b.output(b.op("Neg", y), name="z")
    model = b.build()
    after, _ = changed(model, type="float32", int8=("y",))
    assert types(after) == ["float32", "int8", "float32"]
    assert ops(after).count("QuantizeLinear") == 2
    assert_same_numbers(model, after)


@pytest.mark.parametrize(
    ("op", "scale", "zero"), [("Softmax", 1 / 256, -128), ("Sigmoid", 1 / 256, -128), ("Tanh", 1 / 128, 0)]
)
def test_bounded_results_have_known_parameters(op: str, scale: float, zero: int) -> None:
    model = network(behind=op)
    after, result = changed(model)
    numbers = Ports.of(after.graph).outputs["y"]
    assert numbers == Quantization(DType.INT8, scale, zero)
    assert op in result.statistics["notes"][0]
    ports = Ports.of(after.graph)
    found = numbers.dequantize(outputs(after, ports.feed({"x": X}))[0])
    # Half a step, and at 1 the whole step that the range ends before it.
    np.testing.assert_allclose(found, outputs(model, {"x": X})[0], rtol=0, atol=scale * 1.001)


def test_others_take_the_range_of_the_samples() -> None:
    model = network(behind="Neg")
    samples = RNG.normal(0, 1, (20, 2, 4, 4)).astype(np.float32)
    after, result = changed(model, samples, type="uint8")
    seen = np.stack([outputs(model, {"x": x[None]})[0] for x in samples])
    numbers = Ports.of(after.graph).outputs["y"]
    # Zero is a step of its own, which moves the ends by half a step at most.
    np.testing.assert_allclose(numbers.range, (seen.min(), seen.max()), rtol=0, atol=numbers.scale * 0.51)
    assert "calibration samples" in result.statistics["notes"][0]


def test_without_samples_there_is_no_range() -> None:
    with pytest.raises(DataError, match="output 'y' is not quantized") as found:
        changed(network(behind="Neg"))
    assert "--io y=float32" in str(found.value)


def test_networks_of_reals_are_refused() -> None:
    b = GraphBuilder()
    b.output(b.op("Softmax", b.input("x", "float32", [1, 4])), name="y")
    with pytest.raises(OptionError, match="this one computes in float32"):
        changed(b.build())
    assert not changed(b.build(), type="float32")[1].changed


def test_ports_are_chosen_by_name() -> None:
    model = network(behind="Neg")
    after, _ = changed(model, float32=("y",))
    assert types(after) == ["int8", "float32"]
    assert types(changed(network(), type="uint8", int8=("outputs",))[0]) == ["uint8", "int8"]
    assert types(changed(network(), uint8=("inputs",), float32=("x",))[0]) == ["float32", "int8"]
    assert not changed(network(), type="float32")[1].changed


def test_types_that_are_no_numbers_stay() -> None:
    b = GraphBuilder()
    b.output(b.op("Gather", np.ones((4, 2), np.float32), b.input("x", "int64", [3])), name="y")
    model = b.build()
    assert not changed(model, float32=("y",))[1].changed
    with pytest.raises(OptionError, match="port 'x' cannot be int8") as found:
        changed(model, int8=("x",), float32=("y",))
    assert "int64" in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": ("z",)}, "the model has no input or output 'z'"),
        ({"int8": ("x",), "uint8": ("x",)}, "two types are given for 'x'"),
        ({"int8": ("inputs",), "uint8": ("inputs",)}, "two types are given for 'inputs'"),
    ],
)
def test_wrong_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        changed(network(), **options)


def test_sixteen_bits_do_not_fit() -> None:
    b = GraphBuilder()
    b.output(quantized(b, b.input("x", "float32", [3]), (np.float32(0.01), np.int16(0))), name="y")
    with pytest.raises(OptionError, match="input 'x' is held in int16, which int8 cannot hold"):
        changed(b.build())


def test_the_text_form_comes_back() -> None:
    text = 'quantize-io{type=float32 int8=x,"a b" uint8=outputs}'
    assert str(Pipeline.parse(text)) == text
    assert Pipeline.parse(text).passes == (QuantizeIO("float32", ("x", "a b"), ("outputs",)),)
