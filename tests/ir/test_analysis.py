"""Dominators, liveness, convexity, costs, pictures."""

from __future__ import annotations

import numpy as np
import pytest
from sample_models import branches, conv_net

from irc.ir.analysis import (
    boundary,
    digraph,
    dominators,
    dot,
    in_order,
    is_convex,
    liveness,
    macs,
    model_macs,
    parameter_bytes,
    parameters,
    post_dominators,
    value_bytes,
)
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model, Node, Value
from irc.ir.types import DType, Shape, TensorType


def diamond() -> tuple[Model, dict[str, Node]]:
    """top -> left, right -> join -> end, and join reads top too."""
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    top = b.op("Abs", x, name="top")
    left, right = b.op("Neg", top, name="left"), b.op("Relu", top, name="right")
    join = b.op("Sum", left, right, top, name="join")
    b.output(b.op("Exp", join, name="end"))
    model = b.build()
    return model, {n.name: n for n in model.graph.nodes}


def test_digraph_and_dominators() -> None:
    model, n = diamond()
    view = digraph(model.graph)
    assert set(view.successors(n["top"])) == {n["left"], n["right"], n["join"]}
    assert dominators(model.graph) == {
        n["top"]: None,
        n["left"]: n["top"],
        n["right"]: n["top"],
        n["join"]: n["top"],
        n["end"]: n["join"],
    }
    assert post_dominators(model.graph)[n["top"]] is n["join"]
    assert post_dominators(model.graph)[n["left"]] is n["join"]
    assert post_dominators(model.graph)[n["end"]] is None


def test_an_inner_output_ends_post_domination() -> None:
    model, n = diamond()
    model.graph.set_outputs([*model.graph.outputs, n["left"].output])
    assert post_dominators(model.graph)[n["left"]] is None
    assert post_dominators(model.graph)[n["top"]] is None
    assert post_dominators(model.graph)[n["right"]] is n["join"]


def test_a_second_input_ends_domination() -> None:
    b = GraphBuilder()
    x, y = b.input("x", "float32", [4]), b.input("y", "float32", [4])
    first = b.node("Abs", x)
    second = b.node("Add", first.output, y)
    b.output(second.output)
    assert dominators(b.build().graph) == {first: None, second: None}


def test_captured_values_are_edges() -> None:
    model = branches()
    outer, holder = model.graph.nodes
    assert list(digraph(model.graph).edges) == [(outer, holder)]
    intervals = liveness(model.graph)
    assert (intervals[outer.output].first, intervals[outer.output].last) == (0, 1)
    assert intervals[model.graph.inputs[0]].last == 1  # the else branch reads x


def test_liveness() -> None:
    model, n = diamond()
    spans = {v.name: (i.first, i.last) for v, i in liveness(model.graph).items()}
    assert spans == {
        "x": (-1, 0),
        "top_out": (0, 3),
        "left_out": (1, 3),
        "right_out": (2, 3),
        "join_out": (3, 4),
        "end_out": (4, 5),
    }
    found = liveness(model.graph)
    assert found[n["left"].output].overlaps(found[n["right"].output])
    assert not found[model.graph.inputs[0]].overlaps(found[n["left"].output])


@pytest.mark.parametrize(
    ("names", "convex"),
    [
        (["top", "left"], True),
        (["left", "right"], True),
        (["top", "left", "right", "join"], True),
        (["top", "join"], False),
        (["top", "left", "join"], False),
        (["top", "end"], False),
        (["end"], True),
        ([], True),
    ],
)
def test_convexity(names: list[str], convex: bool) -> None:
    _, n = diamond()
    assert is_convex([n[name] for name in names]) is convex


def test_boundary() -> None:
    model, n = diamond()
    found = boundary([n["top"], n["left"]])
    assert found.inputs == tuple(model.graph.inputs)
    assert found.outputs == (n["top"].output, n["left"].output)
    net = conv_net()
    conv, relu = net.graph.nodes[:2]
    found = boundary([conv, relu])
    assert [v.name for v in found.inputs] == ["x"]
    assert found.constants == conv.inputs[1:]
    assert found.outputs == (relu.output,)


def test_boundary_of_a_region_with_bodies() -> None:
    model = branches()
    holder = model.graph.nodes[1]
    assert {v.name for v in boundary([holder]).inputs} == {"c", "x", "Abs_out"}
    assert boundary(model.graph.nodes).outputs == model.graph.outputs


def one(op_type: str, shapes: list[list[int | str]], **attrs: object) -> Node:
    b = GraphBuilder()
    inputs = [b.input(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]
    outputs = 2 if op_type == "LSTM" else 1
    node = b.node(op_type, *inputs, outputs=outputs, **attrs)
    b.output(*node.outputs)
    b.build()
    return node


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (one("Conv", [[1, 8, 5, 5], [16, 8, 3, 3]], pads=[1, 1, 1, 1]), 16 * 25 * 8 * 9),
        (one("Conv", [[2, 8, 5, 5], [8, 1, 3, 3]], group=8), 2 * 8 * 9 * 9),
        (one("ConvTranspose", [[1, 8, 5, 5], [8, 4, 2, 2]], strides=[2, 2]), 8 * 25 * 4 * 4),
        (one("Gemm", [[3, 4], [5, 4]], transB=1), 3 * 4 * 5),
        (one("Gemm", [[4, 3], [4, 5]], transA=1), 3 * 4 * 5),
        (one("MatMul", [[2, 1, 3, 4], [7, 4, 5]]), 2 * 7 * 3 * 4 * 5),
        (one("MatMul", [[4], [4]]), 4),
        (one("Einsum", [[2, 3, 4], [2, 4, 5]], equation="bij,bjk->bik"), 2 * 3 * 4 * 5),
        (one("Einsum", [[6, 2, 3], [6, 3, 4]], equation="...ij, ...jk -> ...ik"), 6 * 2 * 3 * 4),
        (one("LSTM", [[7, 2, 3], [1, 20, 3], [1, 20, 5]], hidden_size=5), 7 * 2 * 20 * 8),
        (one("Relu", [[4]]), 0),
        (one("MatMul", [["N", 4], [4, 5]]), None),
    ],
    ids=lambda v: v.op_type if isinstance(v, Node) else str(v),
)
def test_macs(node: Node, expected: int | None) -> None:
    assert macs(node) == expected


def test_custom_operators_have_no_macs() -> None:
    b = GraphBuilder()
    assert macs(b.node("Conv", b.input("x", "float32", [1]), domain="other")) == 0


def test_costs_of_a_model() -> None:
    model = conv_net()
    conv, head = model.graph.nodes[0], model.graph.nodes[-1]
    assert model_macs(model) == 4 * 64 * 27 + 40
    assert parameters(conv) == 4 * 27 + 4
    assert parameter_bytes(head) == 160
    model.graph.set_input(conv, 1, model.graph.add("Identity", [conv.inputs[1]]).output)
    assert model_macs(model) is None


def test_value_bytes() -> None:
    assert value_bytes(Value("v", TensorType(DType.INT4, Shape.of(3)))) == 2
    assert value_bytes(Value("v", TensorType(DType.DOUBLE, Shape.of(2, 2)))) == 32
    assert value_bytes(Value("v", TensorType(DType.FLOAT, Shape.of("N")))) is None
    assert value_bytes(Value("v")) is None


def test_a_constant_read_twice_counts_once() -> None:
    b = GraphBuilder()
    w = b.constant(weights(4))
    assert parameters(b.node("Sum", w, w)) == 4


def test_dot() -> None:
    text = dot(branches())
    assert text.startswith("digraph {\n")
    assert text.count("{") == text.count("}") == 4
    assert '[label="x", shape=ellipse]' in text
    assert "subgraph cluster_" in text
    assert 'label="float32[2,3]"' in text
    b = GraphBuilder()
    b.output(b.op("Add", b.input('a"b', "float32", [1]), np.ones(1, np.float32), name='n"1'))
    assert 'label="Add\\nn\\"1"' in dot(b.build())


def test_nodes_that_were_added_late_come_before_what_reads_them() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    first = b.node("Relu", x)
    second = b.node("Neg", first.output)
    b.output(second.output)
    graph = b.build().graph
    late = graph.add("Abs", [x])
    graph.set_input(first, 0, late.output)
    assert graph.nodes == (first, second, late)
    assert in_order(graph) == [late, first, second]
