"""Structural comparison: what counts, what does not, and that it says where."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from sample_models import branches, conv_net

from irc.ir.builder import GraphBuilder, weights
from irc.ir.compare import difference
from irc.ir.graph import Function, Model
from irc.ir.types import DType, Origin, Shape, TensorType


def small(
    *,
    names: tuple[str, str] = ("a", "b"),
    flip: bool = False,
    op: str = "Neg",
    value: float = 1.0,
    output: str = "y",
    axis: int = 0,
    shared: bool = False,
    swapped: bool = False,
    dead: bool = False,
) -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    ops = [("Abs", names[0]), (op, names[1])]
    made = {kind: b.op(kind, x, name=name) for kind, name in (reversed(ops) if flip else ops)}
    pair = [made["Abs"], made["Abs"] if shared else made[op]]
    if dead:
        b.op("Sqrt", x)
    y = b.op("Concat", *(reversed(pair) if swapped else pair), axis=axis)
    b.output(b.op("Add", y, np.full(4, value, np.float32)), name=output)
    return b.build()


def test_equal_up_to_inner_names_order_and_origin() -> None:
    other = small(names=("p", "q"), flip=True)
    other.graph.nodes[0].origin = Origin((), ("fuse",))
    other.graph.rename(next(iter(other.graph.constants.values())), "renamed")
    assert difference(small(), other) is None


DIFFERENT: list[tuple[Model, str]] = [
    (small(op="Sqrt"), r"node 'Concat' \(Concat\) input 1: node 'b' \(Neg\) against node 'b' \(Sqrt\)"),
    (small(value=2.0), r"node 'Add' \(Add\) input 1 \('const' against 'const'\): constants of different contents"),
    (small(output="z"), "outputs: y against z"),
    (small(axis=-1), r"node 'Concat' \(Concat\) attribute axis: 0 against -1"),
    (small(shared=True), r"node 'Concat' \(Concat\) input 1: node 'b' \(Neg\) against node 'a' \(Abs\)"),
    (small(swapped=True), r"node 'Concat' \(Concat\) input 1: node 'b' \(Neg\) against node 'a' \(Abs\)"),
    (small(dead=True), r"nodes that no output depends on: none against \{'Sqrt': 1\}"),
]


@pytest.mark.parametrize(("other", "message"), DIFFERENT, ids=[m[:30] for _, m in DIFFERENT])
def test_differences_are_found_and_located(other: Model, message: str) -> None:
    found = difference(small(), other)
    assert found is not None
    assert re.match(message, found), found
    assert difference(other, small()) is not None


def test_one_node_read_twice_is_not_two_nodes() -> None:
    def model(shared: bool) -> Model:
        b = GraphBuilder()
        x = b.input("x", "float32", [2])
        first = b.op("Abs", x)
        b.output(b.op("Add", first, first if shared else b.op("Abs", x)))
        return b.build()

    assert difference(model(True), model(False)) is not None
    assert difference(model(False), model(True)) is not None
    assert difference(model(False), model(False)) is None


def test_explicit_defaults_differ_from_none() -> None:
    a, b = conv_net(), conv_net()
    b.graph.nodes[0].attributes["group"] = 1
    assert difference(a, b) == "node 'conv1' (Conv): attributes {pads} against {group, pads}"


def test_integers_are_no_floats() -> None:
    a, b = small(), small()
    b.graph.nodes[2].attributes["axis"] = 0.0
    assert difference(a, b) == "node 'Concat' (Concat) attribute axis: 0 against 0.0"


def test_bodies_are_compared() -> None:
    a, b = branches(), branches()
    assert difference(a, b) is None
    body = b.graph.nodes[-1].subgraphs[1]
    made = body.add("Abs", [body.outputs[0]], types=[body.outputs[0].type])
    body.set_outputs([made.output])
    found = difference(a, b)
    assert found is not None
    assert "node 'If' (If) attribute else_branch output 0" in found


def test_types_count_where_both_are_known() -> None:
    a, b = small(), small()
    value = b.graph.nodes[0].output
    value.type = None
    assert difference(a, b) is None
    value.type = TensorType(DType.FLOAT, Shape.of("N"))
    assert difference(a, b) == "node 'a' (Abs) output 0: type float32[2] against float32[N]"


def test_opsets_and_functions_count() -> None:
    a, b = small(), small()
    b.opsets["com.x"] = 1
    assert difference(a, b) == "opsets: {'': 26} against {'': 26, 'com.x': 1}"
    a.opsets["com.x"] = 1
    a.functions["com.x", "F", ""] = Function("com.x", "F", "", b"1")
    assert str(difference(a, b)).startswith("functions:")
    b.functions["com.x", "F", ""] = Function("com.x", "F", "", b"2")
    assert difference(a, b) == "function com.x::F: the bodies differ"


def test_deep_graphs_need_no_recursion() -> None:
    def deep() -> Model:
        b = GraphBuilder()
        value = b.input("x", "float32", [2])
        for _ in range(3000):
            value = b.op("Relu", value)
        b.output(value)
        return b.build(check=False)

    assert difference(deep(), deep()) is None


@pytest.mark.parametrize("make", [conv_net, branches])
def test_a_model_is_itself(make: Callable[[], Model]) -> None:
    model = make()
    assert difference(model, model) is None
    assert difference(make(), make()) is None


def test_equal_contents_in_two_constants_are_equal() -> None:
    def model(shared: bool) -> Model:
        b = GraphBuilder()
        x, w = b.input("x", "float32", [2, 4]), b.constant(weights(4, 4))
        b.output(b.matmul(b.matmul(x, w), w if shared else weights(4, 4)))
        return b.build()

    assert difference(model(True), model(False)) is None
