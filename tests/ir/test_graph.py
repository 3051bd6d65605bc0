"""Changes of graphs keep uses, producers, names and outputs right."""

from __future__ import annotations

import numpy as np
import pytest

from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Graph, Model, Value
from irc.ir.verify import verify


def chain() -> tuple[GraphBuilder, Value, Value, Value]:
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    y = b.op("Relu", x)
    z = b.op("Neg", y)
    b.output(z, name="z")
    return b, x, y, z


def test_uses_and_producers() -> None:
    b, x, y, z = chain()
    model = b.build()
    relu, neg = model.graph.nodes
    assert [(u.node, u.index) for u in y.uses] == [(neg, 0)]
    assert y.producer is relu
    assert x.producer is None
    assert z.is_output
    assert not y.is_output
    twice = model.graph.add("Add", [y, y])
    assert y.users == (neg, twice)
    assert len(y.uses) == 3


def test_replacing_an_output_keeps_its_name() -> None:
    b, _, y, z = chain()
    graph = b.build().graph
    made = graph.add("Abs", [y], types=[y.type])
    graph.replace_uses(z, made.output)
    assert [v.name for v in graph.outputs] == ["z"]
    assert graph.outputs[0] is made.output
    assert not z.is_output
    assert z.producer is not None
    graph.remove(z.producer)
    verify(Model(graph))


def test_replacing_an_output_by_an_input_leaves_an_identity() -> None:
    b, x, _, z = chain()
    graph = b.build().graph
    graph.replace_uses(z, x)
    assert graph.outputs[0].name == "z"
    assert graph.outputs[0].producer is not None
    assert graph.outputs[0].producer.op_type == "Identity"
    assert z.producer is not None
    graph.remove(z.producer)
    verify(Model(graph))


def test_a_node_put_behind_a_value_keeps_reading_it() -> None:
    b, _, y, _ = chain()
    graph = b.build().graph
    made = graph.add("Sigmoid", [y], before=graph.nodes[1], types=[y.type])
    graph.replace_uses(y, made.output, keep=[made])
    assert [n.op_type for n in graph.nodes] == ["Relu", "Sigmoid", "Neg"]
    assert made.inputs == (y,)
    verify(Model(graph))


def test_removing_needs_dead_outputs() -> None:
    b, _, y, z = chain()
    graph = b.build().graph
    relu, neg = graph.nodes
    for node in (relu, neg):
        with pytest.raises(ValueError, match="still in use"):
            graph.remove(node)
    graph.set_outputs([y])
    graph.remove(neg)
    assert y.uses == ()
    assert neg.graph is None
    with pytest.raises(ValueError, match="is not in graph"):
        graph.remove(neg)
    assert graph.unique_name("z") == "z"  # the name is free again
    assert z not in list(graph.values())


def test_remove_nodes_takes_whole_chains() -> None:
    b, x, _, _ = chain()
    graph = b.build().graph
    graph.set_outputs([x])
    graph.remove_nodes(graph.nodes)
    assert graph.nodes == ()
    assert x.uses == ()


def test_names_are_unique_over_subgraphs() -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [4]), b.input("c", "bool", [])
    body = b.subgraph(lambda s: s.output(s.op("Relu", x)))
    other = b.subgraph(lambda s: s.output(s.op("Relu", x)))
    b.output(b.op("If", c, then_branch=body, else_branch=other))
    model = b.build()
    assert body.outputs[0].name != other.outputs[0].name
    with pytest.raises(ValueError, match="exists already"):
        body.add_input("x", None)
    with pytest.raises(ValueError, match="exists already"):
        model.graph.rename(x, body.outputs[0].name)


def test_subgraph_reads_count_as_uses_and_end_with_the_node() -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [4]), b.input("c", "bool", [])
    y = b.op("Abs", x)
    z = b.op(
        "If",
        c,
        then_branch=b.subgraph(lambda s: s.output(s.op("Relu", y))),
        else_branch=b.subgraph(lambda s: s.output(s.op("Add", y, y))),
    )
    b.output(y)
    graph = b.build().graph
    assert {u.node.op_type for u in y.uses} == {"Relu", "Add"}
    assert z.producer is not None
    assert z.producer.subgraphs[0].captured() == (y,)
    graph.replace_uses(y, x)
    assert z.producer.subgraphs[0].captured() == (x,)
    graph.remove(z.producer)
    assert {u.node.op_type for u in x.uses} == {"Abs", "Identity"}
    assert graph.unique_name("Relu_out") == "Relu_out"


def test_a_subgraph_cannot_return_what_it_does_not_define() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    with pytest.raises(ValueError, match="add an Identity"):
        b.graph.subgraph("body").set_outputs([x])


def test_set_input_extends_and_trims() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    clip = b.node("Clip", x)
    high = b.constant(np.float32(6))
    b.graph.set_input(clip, 2, high)
    assert clip.inputs == (x, None, high)
    b.graph.set_input(clip, 2, None)
    assert clip.inputs == (x,)
    assert high.uses == ()
    b.graph.remove_constant(high)
    assert high.name not in b.graph.constants


def test_renaming_a_constant() -> None:
    b = GraphBuilder()
    value = b.constant(weights(3), "w")
    b.graph.rename(value, "weights")
    assert list(b.graph.constants) == ["weights"]
    assert b.graph.unique_name("w") == "w"


def test_a_failed_add_changes_nothing() -> None:
    b, x, y, _ = chain()
    before = (b.graph.nodes, x.uses, y.uses)
    with pytest.raises(ValueError, match="exists already"):
        b.graph.add("Split", [x], ["new", "z"], name="split")
    with pytest.raises(ValueError, match="exists already"):
        b.graph.add("Split", [x], ["new", "new"], name="split")
    with pytest.raises(ValueError, match="parent"):
        b.graph.add("If", [x], 1, {"then_branch": Graph()}, name="split")
    assert (b.graph.nodes, x.uses, y.uses) == before
    assert b.graph.add("Split", [x], ["new", "newer"], name="split").name == "split"


def test_sort_restores_order_and_finds_cycles() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    late = b.node("Neg", x)
    b.graph.set_input(late, 0, b.op("Relu", x))
    b.output(late.output)
    b.graph.sort()
    assert [n.op_type for n in b.graph.nodes] == ["Relu", "Neg"]
    b.build()
    b.graph.set_input(b.graph.nodes[0], 0, late.output)
    with pytest.raises(ValueError, match="cycle"):
        b.graph.sort()


def test_unique_names_are_the_smallest_free() -> None:
    g = Graph()
    names = [g.add("Relu", []).output.name for _ in range(4)]
    assert names == ["Relu_out", "Relu_1_out", "Relu_2_out", "Relu_3_out"]
    for i in range(4):
        g.add_input(g.unique_name("v"), None)
        assert g.inputs[-1].name == ("v" if i == 0 else f"v_{i}")
    g.rename(g.inputs[1], "other")
    assert g.unique_name("v") == "v_1"


@pytest.mark.parametrize("seed", range(40))
def test_any_sequence_of_changes_leaves_a_valid_model(seed: int) -> None:
    steps = np.random.default_rng(seed).integers(0, [7, 100, 100], size=(40, 3)).tolist()
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    b.output(b.op("Relu", x))
    graph = b.build().graph
    for action, i, j in steps:
        _change(graph, action, i, j)
        verify(Model(graph))
    assert len(graph.outputs) == 1
    assert graph.outputs[0].name == "Relu_out"


def _change(graph: Graph, action: int, i: int, j: int) -> None:
    values = list(graph.values())
    nodes = graph.nodes
    value, node = values[i % len(values)], nodes[j % len(nodes)]
    if action == 0:
        graph.add("Add", [value, values[j % len(values)]])
    elif action == 1:
        graph.add("Neg", [graph.inputs[0]], before=node)
    elif action == 2 and not (node.output.uses or node.output.is_output):
        graph.remove(node)
    elif action == 3:
        later = [v for v in values if v.producer is None or nodes.index(v.producer) < nodes.index(node)]
        graph.replace_uses(node.output, later[i % len(later)])
    elif action == 4 and not value.is_output:
        graph.rename(value, graph.unique_name(f"r{j}"))
    elif action == 5:
        graph.set_input(node, 0, graph.add_constant(np.ones(4, np.float32)))
    elif action == 6:
        graph.sort()


def test_names_of_thousands_of_equal_nodes_take_no_quadratic_search() -> None:
    """Counts look-ups rather than seconds."""

    class Counting(set[str]):
        asked = 0

        def __contains__(self, name: object) -> bool:
            Counting.asked += 1
            return super().__contains__(name)

    g = Graph()
    g._names._taken, g._node_names._taken = Counting(), Counting()
    value = g.add_input("x", None)
    for _ in range(2000):
        value = g.add("Relu", [value]).output
    g.set_outputs([value])
    for node in g.nodes:
        made = g.add("Relu", [node.inputs[0]], before=node)
        g.replace_uses(node.output, made.output)
        g.remove(node)
    assert len(g) == 2000
    assert Counting.asked < 100_000  # about 20 per node; a search from 1 each time would ask millions of times
    verify(Model(g))
