"""Integers and what they stand for: the numbers of onnxruntime, and what a graph says of its ports."""

from __future__ import annotations

import numpy as np
import pytest

from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model
from irc.ir.quantization import Ports, Quantization, of_input, of_output, quantization_of
from irc.ir.types import Array, DType

SCALE = float(np.float32(0.0237))


def pair(dtype: str, zero_point: int) -> Model:
    """x -> QuantizeLinear -> q, and DequantizeLinear behind it -> y."""
    b = GraphBuilder()
    parameters = np.asarray(SCALE, np.float32), np.asarray(zero_point, dtype)
    q = b.op("QuantizeLinear", b.input("x", "float32", [None]), *parameters)
    b.output(q, name="q")
    b.output(b.op("DequantizeLinear", q, *parameters), name="y")
    return b.build()


def awkward(numbers: Quantization) -> Array:
    """Real numbers on ties, next to them, at the ends of the range and beyond."""
    low, high = numbers.limits
    q = np.arange(low - 3, high + 4, dtype=np.float64) - numbers.zero_point
    ties = ((q + 0.5) * numbers.scale).astype(np.float32)
    near = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    wide = np.random.default_rng(0).normal(0, 40 * numbers.scale, 20000).astype(np.float32)
    return np.concatenate([(q * numbers.scale).astype(np.float32), ties, *near, wide, np.float32([-1e30, 1e30, 0])])


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -128), ("int8", 7), ("uint8", 0), ("uint8", 200)])
def test_numbers_are_those_of_onnxruntime(dtype: str, zero_point: int) -> None:
    numbers = Quantization(DType(dtype), SCALE, zero_point)
    x = awkward(numbers)
    found = Oracle(pair(dtype, zero_point)).run({"x": x})
    np.testing.assert_array_equal(numbers.quantize(x), found["q"])
    np.testing.assert_array_equal(numbers.dequantize(found["q"]), found["y"])
    np.testing.assert_array_equal(numbers.quantize(numbers.dequantize(found["q"])), found["q"])


def test_what_is_no_number_is_the_lowest() -> None:
    assert Quantization(DType.INT8, 1.0, 3).quantize(np.float32([np.nan])).tolist() == [-128]


def test_the_other_type_stands_for_the_same_numbers() -> None:
    unsigned = Quantization(DType.UINT8, SCALE, 3)
    signed = unsigned.as_type(DType.INT8)
    assert signed == Quantization(DType.INT8, SCALE, -125)
    assert signed.range == unsigned.range
    assert signed.same_numbers(unsigned)
    assert not Quantization(DType.INT8, SCALE, 3).same_numbers(unsigned)
    assert unsigned.as_type(DType.INT16) is None


def moving() -> Model:
    """int8 input -> Transpose -> DequantizeLinear -> Relu -> QuantizeLinear -> Reshape -> uint8 output."""
    b = GraphBuilder()
    x = b.op("Transpose", b.input("x", "int8", [2, 3]), perm=[1, 0])
    x = b.op("DequantizeLinear", x, np.float32(0.5), np.int8(-4))
    y = b.op("QuantizeLinear", b.op("Relu", x), np.float32(0.25), np.uint8(9))
    b.output(b.op("Reshape", y, [6]), name="y")
    return b.build()


def test_ports_are_found_behind_what_only_moves_numbers() -> None:
    model = moving()
    assert of_input(model.graph.inputs[0]) == Quantization(DType.INT8, 0.5, -4)
    assert of_output(model.graph.outputs[0]) == Quantization(DType.UINT8, 0.25, 9)


def test_integers_that_are_counted_are_no_ports() -> None:
    b = GraphBuilder()
    b.output(b.op("Add", b.input("x", "int8", [3]), np.int8(1)), name="y")
    graph = b.build().graph
    assert Ports.of(graph) == Ports({}, {})


def test_scales_of_channels_are_no_parameters_of_a_tensor() -> None:
    b = GraphBuilder()
    b.output(b.op("DequantizeLinear", b.input("x", "int8", [3, 2]), np.ones(3, np.float32), axis=0), name="y")
    model = b.build()
    assert quantization_of(model.graph.nodes[0]) is None
    assert of_input(model.graph.inputs[0]) is None


def test_real_numbers_become_integers_and_integers_stay() -> None:
    ports = Ports.of(moving().graph)
    real = np.float32([[0, 1, 2], [3, -1, 62]])
    integers = ports.feed({"x": real})["x"]
    assert integers.tolist() == [[-4, -2, 0], [2, -6, 120]]
    assert ports.feed({"x": integers})["x"] is integers
    assert ports.real_feed({"x": integers})["x"].tolist() == real.tolist()
    assert ports.real({"y": np.uint8([9, 11])})["y"].tolist() == [0.0, 0.5]
    assert ports.integers({"x": integers})
    assert not ports.integers({"x": real})


def test_only_ports_that_were_real_before() -> None:
    b = GraphBuilder()
    x = b.input("x", "int8", [2, 3])
    b.output(b.op("Cast", x, to=DType.FLOAT.onnx), name="y")
    found = Ports.between(b.build().graph, moving().graph)
    assert (list(found.inputs), list(found.outputs)) == ([], ["y"])
