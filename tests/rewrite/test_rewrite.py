"""Patterns, matches, rules and the driver."""

from __future__ import annotations

import numpy as np
import pytest

from irc.errors import InternalError
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model, Node, Value
from irc.ir.verify import verify
from irc.pipeline import PassContext
from irc.rewrite import (
    NOT_A_CANDIDATE,
    Editor,
    Match,
    Rule,
    apply_rules,
    const,
    is_uniform,
    match,
    op,
    remove_dead,
    scalar,
    uniform,
    var,
)
from irc.rewrite.pattern import Op


def _root(build: GraphBuilder, value: Value) -> Node:
    build.output(value, name="y")
    build.build()
    assert value.producer is not None
    return value.producer


@pytest.mark.parametrize("swapped", [False, True])
def test_commuted_inputs_match(swapped: bool) -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    operands = [b.op("Exp", x), b.constant(np.float32([1, 2]))]
    root = _root(b, b.op("Add", *(operands[::-1] if swapped else operands)))
    found = match(op("Add", op("Exp", var("x")), const("c")), root)
    assert found is not None
    assert found["x"] is x
    assert found.array("c").tolist() == [1, 2]
    assert [n.op_type for n in found.nodes] == ["Add", "Exp"]


def test_order_matters_where_it_does() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    root = _root(b, b.op("Sub", 1.0, x))
    assert match(op("Sub", var("x"), const("c")), root) is None
    assert match(op("Sub", const("c"), var("x")), root) is not None


def test_the_same_name_is_the_same_value() -> None:
    b = GraphBuilder()
    x, z = b.input("x", "float32", [2]), b.input("z", "float32", [2])
    pattern = op("Mul", var("x"), op("Tanh", var("x")))
    same = b.op("Mul", b.op("Tanh", x), x)
    other = b.op("Mul", x, b.op("Tanh", z))
    b.output(same, other)
    b.build()
    assert same.producer is not None
    assert other.producer is not None
    assert match(pattern, same.producer) is not None
    assert match(pattern, other.producer) is None


def test_backtracking_over_commuted_inputs() -> None:
    """The first order binds x wrongly; only the second one fits the rest."""
    b = GraphBuilder()
    x, z = b.input("x", "float32", [2]), b.input("z", "float32", [2])
    root = _root(b, b.op("Mul", b.op("Add", z, x), x))
    found = match(op("Mul", op("Add", var("x"), var("z")), var("x")), root)
    assert found is not None
    assert found["x"] is x


def test_number_of_inputs_and_left_out_ones() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    root = _root(b, b.op("Clip", x, None, 6.0))
    assert match(op("Clip", var("x"), None, scalar(6)), root) is not None
    assert match(op("Clip", var("x"), scalar(0), scalar(6)), root) is None
    assert match(op("Clip", var("x")), root) is None
    assert match(op("Clip"), root) is not None


def test_scalars() -> None:
    b = GraphBuilder()
    half, mixed, empty = (b.constant(np.float32(v)) for v in ([0.5, 0.5], [0.5, 0.6], []))
    assert is_uniform(half, 0.5)
    assert is_uniform(half, 0.5001, tolerance=1e-3)
    assert not is_uniform(half, 0.5001)
    assert uniform(mixed) is None
    assert uniform(empty) is None
    assert uniform(b.input("x", "float32", [2])) is None


class _NegNeg(Rule):
    """-(-x) = x, not below a Relu."""

    name = "neg-neg"
    pattern: Op = op("Neg", op("Neg", var("x"), name="inner"))

    def check(self, m: Match) -> str | None:
        if (shared := m.shared()) is not None:
            return shared
        producer = m["x"].producer
        return "it is below a Relu" if producer is not None and producer.is_op("Relu") else None

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.value("Abs", [m["x"]])


def _negs(count: int, first: str = "Exp") -> Model:
    b = GraphBuilder()
    x: Value = b.op(first, b.input("x", "float32", [2]), name="start")
    for i in range(count):
        x = b.op("Neg", x, name=f"neg{i}")
    b.output(x, name="y")
    return b.build()


def test_rules_run_to_a_fixpoint_and_leave_nothing_dead() -> None:
    model = _negs(4)
    result = apply_rules(model, [_NegNeg()], PassContext())
    assert [n.op_type for n in model.graph.nodes] == ["Exp", "Abs", "Abs"]
    assert dict(result.statistics) == {"neg-neg": 2}
    assert model.graph.outputs[0].name == "y"
    assert model.graph.outputs[0].static_shape() == (2,)


def test_a_constant_that_a_dead_node_reads_twice() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    one = b.constant(np.array([1]))
    root = b.op("Neg", b.op("Slice", x, one, [3], [0], one))
    b.output(b.op("Relu", x), name="y")
    model = b.build()
    assert root.producer is not None
    assert remove_dead(root.producer) == 2
    assert not model.graph.constants
    verify(model)


def test_new_nodes_come_from_all_matched_nodes() -> None:
    model = _negs(2)
    apply_rules(model, [_NegNeg()], PassContext())
    assert set(model.graph.nodes[-1].origin.nodes) == {"neg0", "neg1"}


def test_refusals_give_the_rule_and_the_reason() -> None:
    model = _negs(2, first="Relu")
    result = apply_rules(model, [_NegNeg()], PassContext(), pass_name="demo")
    assert not result.changed
    (refusal,) = result.refusals
    assert refusal.rule == "demo/neg-neg"
    assert refusal.reason == "it is below a Relu"
    assert "neg1" in refusal.node


def test_inner_values_that_others_read() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    inner = b.op("Neg", x)
    b.output(b.op("Neg", inner), b.op("Exp", inner))
    result = apply_rules(b.build(), [_NegNeg()], PassContext())
    assert "is also read by" in result.refusals[0].reason


class _Flip(Rule):
    """Turns Exp into Tanh or back: the two together never end."""

    def __init__(self, old: str, new: str) -> None:
        self.name, self.pattern, self.new = f"to-{new}", op(old), new  # type: ignore[misc]  # per instance, for the test

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.value(self.new, [m.root.need(0)])


def test_rules_that_undo_each_other_are_stopped() -> None:
    with pytest.raises(InternalError, match=r"do not come to an end; .*to-Tanh"):
        apply_rules(_negs(0), [_Flip("Exp", "Tanh"), _Flip("Tanh", "Exp")], PassContext())


def test_what_is_no_candidate_is_not_reported() -> None:
    class Shy(_NegNeg):
        def check(self, m: Match) -> str | None:
            return NOT_A_CANDIDATE

    assert apply_rules(_negs(2), [Shy()], PassContext()).refusals == ()


def test_rules_reach_into_branches() -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [2]), b.input("c", "bool", [])

    def body(inner: GraphBuilder) -> None:
        inner.output(inner.op("Neg", inner.op("Neg", x)))

    b.output(b.op("If", c, then_branch=b.subgraph(body, "t"), else_branch=b.subgraph(body, "e")), name="y")
    model = b.build()
    apply_rules(model, [_NegNeg()], PassContext())
    assert [n.op_type for n in model.graph.walk()] == ["If", "Abs", "Abs"]
