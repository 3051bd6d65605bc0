"""Copies are equal, and independent."""

from __future__ import annotations

import pytest
from sample_models import branches, conv_net, everything

from irc.ir.clone import clone, copy_nodes
from irc.ir.compare import difference
from irc.ir.graph import Model, Value
from irc.ir.printer import print_model
from irc.ir.verify import verify


@pytest.mark.parametrize("make", [conv_net, branches, everything])
def test_a_clone_is_the_same_text(make: object) -> None:
    assert callable(make)
    model = make()
    assert print_model(clone(model)) == print_model(model)
    assert difference(clone(model), model) is None


def test_constants_are_shared() -> None:
    model = conv_net()
    copy = clone(model)
    ours = [v.constant for v in model.graph.constants.values()]
    theirs = [v.constant for v in copy.graph.constants.values()]
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_changing_a_clone_leaves_the_original() -> None:
    model = branches()
    before = print_model(model)
    copy = clone(model)
    for node in copy.graph.nodes:
        made = copy.graph.add("Neg", [node.output], types=[node.output.type])
        copy.graph.replace_uses(node.output, made.output, keep=[made])
    copy.graph.sort()
    copy.metadata["a"] = "b"
    copy.notes.append("changed")
    copy.opsets["other"] = 1
    verify(copy)
    assert print_model(model) == before
    verify(model)


def test_captured_values_are_those_of_the_copy() -> None:
    copy = clone(branches())
    inside = {v for n in copy.graph.nodes for sub in n.subgraphs for v in sub.captured()}
    assert inside <= set(copy.graph.values())
    assert inside


def test_copied_nodes_get_new_names_and_mapped_inputs() -> None:
    model = branches()
    graph = model.graph
    x = graph.inputs[0]
    other = graph.add_input("other", x.type)
    values: dict[Value, Value] = {x: other}
    made = copy_nodes(graph, graph.nodes, values)
    verify(Model(graph))
    assert [n.op_type for n in made] == ["Abs", "If"]
    assert made[0].inputs == (other,)
    assert {v for sub in made[1].subgraphs for v in sub.captured()} == {other, made[0].output}
    assert values[graph.outputs[0]] is made[1].output
