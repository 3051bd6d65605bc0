"""Every kind of broken model is refused, and the message names the node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sample_models import branches, conv_net

from irc.errors import ModelError
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Graph, Model, Use, Value
from irc.ir.types import DType, Shape, TensorType
from irc.ir.verify import verify


def test_good_models_pass() -> None:
    verify(conv_net(), strict=True)
    verify(branches(), strict=True)


def later(model: Model) -> None:
    model.graph._nodes.reverse()


def cycle(model: Model) -> None:
    first, last = model.graph.nodes[0], model.graph.nodes[-1]
    model.graph.set_input(first, 0, last.output)


def own_output(model: Model) -> None:
    first = model.graph.nodes[0]
    model.graph.set_input(first, 0, first.output)


def foreign(model: Model) -> None:
    model.graph.set_input(model.graph.nodes[0], 0, Graph().add_input("y", None))


def removed(model: Model) -> None:
    gone = model.graph.add("Relu", [model.graph.inputs[0]])
    model.graph.remove(gone)
    model.graph.set_input(model.graph.nodes[0], 0, gone.output)


def lost_use(model: Model) -> None:
    model.graph.inputs[0]._uses.clear()


def false_use(model: Model) -> None:
    last = model.graph.nodes[-1]
    model.graph.inputs[0]._uses[id(last), 0] = Use(last, 0)


def lost_producer(model: Model) -> None:
    model.graph.nodes[1].output.producer = model.graph.nodes[0]


def same_name(model: Model) -> None:
    model.graph.nodes[1].output.name = model.graph.nodes[0].output.name


def same_node_name(model: Model) -> None:
    model.graph.nodes[1].name = "conv1"


def missing_attribute(model: Model) -> None:
    model.graph.add("Cast", [model.graph.inputs[0]], name="cast")


def unknown_attribute(model: Model) -> None:
    model.graph.nodes[0].attributes["padding"] = 1


def wrong_kind(model: Model) -> None:
    model.graph.nodes[0].attributes["group"] = 1.0


def too_many_inputs(model: Model) -> None:
    x = model.graph.inputs[0]
    model.graph.add("Relu", [x, x], name="relu2")


def too_many_outputs(model: Model) -> None:
    model.graph.add("Relu", [model.graph.inputs[0]], 2, name="relu2")


def left_out(model: Model) -> None:
    x = model.graph.inputs[0]
    model.graph.add("Conv", [None, x], name="conv2")


def no_operator(model: Model) -> None:
    model.graph.add("Relux", [model.graph.inputs[0]], name="relu2")


def wrong_constant_type(model: Model) -> None:
    next(iter(model.graph.constants.values())).type = TensorType(DType.INT8, Shape.of(4))


def foreign_output(model: Model) -> None:
    model.graph._outputs.append(Value("elsewhere"))


BROKEN: list[tuple[Callable[[Model], None], str]] = [
    (later, r"node 'head' \(Gemm\): reads 'Flatten_out', which node 'Flatten' \(Flatten\) makes only later"),
    (cycle, r"node 'conv1' \(Conv\): is on a cycle through 'logits'"),
    (own_output, r"node 'conv1' \(Conv\): reads its own output"),
    (foreign, r"node 'conv1' \(Conv\): reads 'y', which is not in the model"),
    (removed, r"node 'conv1' \(Conv\): reads 'Relu_1_out', which is not in the model"),
    (lost_use, "the recorded readers of value 'x' are wrong; got none"),
    (false_use, r"the recorded readers of value 'x' are wrong; got node 'conv1' \(Conv\), node 'head'"),
    (lost_producer, r"node 'Relu' \(Relu\): its output 'Relu_out' does not know that it makes it"),
    (same_name, "two values are called 'conv1_out'"),
    (same_node_name, r"node 'conv1' \(Relu\): two nodes have this name"),
    (missing_attribute, r"node 'cast' \(Cast\): attribute to is missing"),
    (unknown_attribute, r"node 'conv1' \(Conv\): has no attribute padding; expected .*pads"),
    (wrong_kind, r"node 'conv1' \(Conv\): attribute group has the wrong kind; expected INT; got FLOAT"),
    (too_many_inputs, r"node 'relu2' \(Relu\): wrong number of inputs; expected 1; got 2"),
    (too_many_outputs, r"node 'relu2' \(Relu\): wrong number of outputs; expected 1; got 2"),
    (left_out, r"node 'conv2' \(Conv\): input 0 is left out, but it is required"),
    (no_operator, r"node 'relu2' \(Relux\): no such operator"),
    (wrong_constant_type, r"constant 'const' has a type that its data does not have; expected float32"),
    (foreign_output, "output 'elsewhere' of graph 'net' is not defined in it"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=lambda p: getattr(p, "__name__", ""))
def test_broken_models_are_refused(damage: Callable[[Model], None], message: str) -> None:
    model = conv_net()
    verify(model)
    damage(model)
    with pytest.raises(ModelError, match=f"^net: {message}"):
        verify(model)


def test_a_graph_cannot_see_into_a_branch() -> None:
    model = branches()
    inner = model.graph.nodes[-1].subgraphs[1].nodes[0].output
    model.graph.add("Relu", [inner], name="peek")
    with pytest.raises(ModelError, match=r"node 'peek' \(Relu\): reads 'Neg_out' of graph 'body', which it cannot see"):
        verify(model)


def test_a_branch_cannot_see_what_comes_later() -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [2]), b.input("c", "bool", [])
    late = b.node("Abs", x, name="late")
    body = b.subgraph(lambda s: s.output(s.op("Relu", late.output)))
    other = b.subgraph(lambda s: s.output(s.op("Neg", x)))
    b.output(b.op("If", c, then_branch=body, else_branch=other))
    b.graph._nodes.reverse()
    with pytest.raises(ModelError, match=r"node 'Relu' \(Relu\): reads 'late_out'"):
        b.build()


def test_custom_operators_pass_unless_strict() -> None:
    b = GraphBuilder()
    b.output(b.op("Mystery", b.input("x", "float32", [2]), domain="my.ops", name="m"))
    model = b.build()
    with pytest.raises(ModelError, match=r"node 'm' \(my.ops.Mystery\): no such operator"):
        verify(model, strict=True)


def test_another_opset_is_refused() -> None:
    model = conv_net()
    model.opsets[""] = 13
    with pytest.raises(ModelError, match="canonical opset; expected 26; got 13"):
        verify(model)


def test_variadic_and_optional_inputs() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    b.output(b.op("Clip", b.op("Sum", x, x, x), None, np.float32(6)))
    b.build()
    b.graph.add("Concat", [], attributes={"axis": 0}, name="none")
    with pytest.raises(ModelError, match=r"node 'none' \(Concat\): wrong number of inputs; expected at least 1; got 0"):
        verify(Model(b.graph))
