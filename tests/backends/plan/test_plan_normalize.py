"""Last rewrites before the plan. That results stay the same is what test_integer_networks.py shows for all targets."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_networks import build_networks

from irc.backends.tvm.plan.kinds import dequantized, kind_of
from irc.backends.tvm.plan.normalize import normalize
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Graph, Value
from irc.ir.types import DType
from irc.targets.catalogue import TARGETS

F = np.float32


def ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes]


def normalized(b: GraphBuilder, *outputs: Value, target: str = "x86-64-v3") -> Graph:
    b.output(*outputs)
    graph = b.build().graph
    normalize(graph, TARGETS[target])
    return graph


def start(dtype: type = np.uint8, shape: tuple[int, ...] = (1, 4, 6, 6)) -> tuple[GraphBuilder, Value, Value]:
    """(builder, integers of x, its real values)"""
    b = GraphBuilder()
    q = b.quantize(b.input("x", "float32", shape), F(0.1), dtype(7))
    return b, q, b.dequantize(q, F(0.1), dtype(7))


def test_dequantizations_sink_below_what_moves_elements() -> None:
    b, _, x = start()
    y = b.op("Transpose", x, perm=[0, 2, 3, 1])
    y = b.op("Slice", y, [1], [5], [1])
    y = b.op("MaxPool", b.op("Transpose", y, perm=[0, 3, 1, 2]), kernel_shape=[2, 2])
    graph = normalized(b, b.op("Relu", y))
    assert ops(graph)[-2:] == ["DequantizeLinear", "Relu"]
    assert [n.output.dtype for n in graph.nodes if n.op_type in ("Transpose", "Slice", "MaxPool")] == [DType.UINT8] * 4


def test_different_parameters_do_not_sink_through_concat() -> None:
    b, q, x = start()
    other = b.dequantize(q, F(0.2), np.uint8(7))
    graph = normalized(b, b.op("Concat", x, other, axis=1))
    assert ops(graph)[-1] == "Concat"
    assert graph.outputs[0].dtype is DType.FLOAT


def test_quantize_of_concat_becomes_concat_of_quantized() -> None:
    b, _, x = start()
    y = b.op("Relu", x)
    graph = normalized(b, b.quantize(b.op("Concat", x, y, axis=1), F(0.1), np.uint8(7)))
    concat = graph.outputs[0].producer
    assert concat is not None
    assert concat.op_type == "Concat"
    assert all(v is not None and v.dtype is DType.UINT8 for v in concat.inputs)
    first = concat.need(0).producer
    assert first is not None, "Q(DQ(q)) with equal parameters is q"
    assert graph.inputs[0].users == (first,)


def test_quantize_of_concat_with_other_readers_stays() -> None:
    b, _, x = start()
    joined = b.op("Concat", x, b.op("Relu", x), axis=1)
    graph = normalized(b, b.quantize(joined, F(0.1), np.uint8(7)), b.op("Exp", joined))
    assert "Concat" in ops(graph)
    assert graph.outputs[0].producer is not None
    assert graph.outputs[0].producer.op_type == "QuantizeLinear"


@pytest.mark.parametrize(("scale", "zero", "gone"), [(0.1, 7, True), (0.2, 7, False), (0.1, 8, False)])
def test_quantize_of_dequantize_cancels_only_with_equal_parameters(scale: float, zero: int, gone: bool) -> None:
    b, _, x = start()
    again = b.quantize(x, F(scale), np.uint8(zero))
    graph = normalized(b, b.op("Relu", b.dequantize(again, F(scale), np.uint8(zero))))
    assert (ops(graph).count("QuantizeLinear") == 1) == gone


# Signs
@pytest.mark.parametrize("target", TARGETS)
def test_data_of_dot_products_have_the_targets_sign(target: str) -> None:
    graph = build_networks()[0].graph
    interface = [(v.name, v.type) for v in (*graph.inputs, *graph.outputs)]
    normalize(graph, TARGETS[target])
    assert [(v.name, v.type) for v in (*graph.inputs, *graph.outputs)] == interface
    wanted = DType(TARGETS[target].activations)
    seen = 0
    for node in graph.nodes:
        found = dequantized(node.need(0)) if kind_of(node) in ("linear", "depthwise") else None
        if found is not None and found[0].dtype is not DType.INT16:
            seen += 1
            assert found[0].dtype is wanted or TARGETS[target].dot == "widening"
    assert seen > 10


def test_normalizing_again_changes_nothing() -> None:
    graph = build_networks()[0].graph
    normalize(graph, TARGETS["arm"])
    before = [(n.op_type, [v.name if v else "" for v in n.inputs]) for n in graph.nodes]
    normalize(graph, TARGETS["arm"])
    assert [(n.op_type, [v.name if v else "" for v in n.inputs]) for n in graph.nodes] == before


def test_zero_points_move_with_the_sign() -> None:
    b, _, x = start(np.uint8)
    graph = normalized(b, b.conv(x, b.dequantize(np.ones((2, 4, 1, 1), np.int8), F(0.1))), target="arm")
    conv = next(n for n in graph.nodes if n.op_type == "Conv")
    found = dequantized(conv.need(0))
    assert found is not None
    assert found[0].dtype is DType.INT8
    assert found[2] == 7 - 128
    assert "Flip" not in ops(graph), "the quantization itself takes the other sign"


def test_no_zero_point_is_zero() -> None:
    """The zero point is optional: without one, uint8 with zero point 0."""
    b = GraphBuilder()
    x = b.input("x", "uint8", [1, 4, 6, 6])
    real = b.op("DequantizeLinear", x, F(0.1))
    graph = normalized(b, b.conv(real, b.dequantize(np.ones((2, 4, 1, 1), np.int8), F(0.1))), target="arm")
    found = dequantized(next(n for n in graph.nodes if n.op_type == "Conv").need(0))
    assert found is not None
    assert found[0].dtype is DType.INT8
    assert found[2] == -128
    assert ops(graph).count("Flip") == 1


def test_other_readers_keep_their_sign() -> None:
    """Bytes that are also an output and also read as they are."""
    b, q, x = start(np.uint8)
    y = b.conv(x, b.dequantize(np.ones((2, 4, 1, 1), np.int8), F(0.1)))
    b.graph.rename(q, "bytes")
    graph = normalized(b, y, q, b.op("Cast", q, to=int(DType.FLOAT.onnx)), target="arm")
    assert graph.outputs[1].name == "bytes"
    assert graph.outputs[1].dtype is DType.UINT8
    producer = graph.outputs[1].producer
    assert producer is not None
    assert producer.op_type == "Flip"
    cast = graph.outputs[2].producer
    assert cast is not None
    assert cast.need(0).dtype is DType.UINT8


def test_float_networks_are_left_alone() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4, 6, 6])
    graph = normalized(b, b.op("Relu", b.conv(x, weights(3, 4, 1, 1))))
    assert ops(graph) == ["Conv", "Relu"]
