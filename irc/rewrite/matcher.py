"""Finds a pattern in the graph, from its root node upwards, with backtracking over commuted inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.types import Array
from irc.rewrite.pattern import COMMUTATIVE, Const, Op, Pattern, Scalar


@dataclass(frozen=True)
class Match:
    """What the names of a pattern stand for, and every node matched (the root first)."""

    root: Node
    values: dict[str, Value]
    named: dict[str, Node]
    nodes: tuple[Node, ...]

    def __getitem__(self, name: str) -> Value:
        """The value of a variable or constant. KeyError where the pattern has no such name."""
        return self.values[name]

    def node(self, name: str) -> Node:
        return self.named[name]

    def array(self, name: str) -> Array:
        """The data of a named constant."""
        return self.values[name].numpy()

    def shared(self) -> str | None:
        """A reason to refuse when an inner value is read from outside the match, so that it could not go."""
        inside = set(self.nodes)
        for node in self.nodes[1:]:
            for value in node.outputs:
                if value.is_output:
                    return f"'{value.name}' is an output of the model"
                other = next((u for u in value.users if u not in inside), None)
                if other is not None:
                    return f"'{value.name}' is also read by {other.label}"
        return None


@dataclass(frozen=True)
class _State:
    values: dict[str, Value]
    named: dict[str, Node]
    nodes: tuple[Node, ...]


def match(pattern: Op, root: Node) -> Match | None:
    """The first way in which `pattern` fits at `root`, or None."""
    state = next(_match_node(pattern, root, _State({}, {}, ())), None)
    if state is None:
        return None
    return Match(root, state.values, state.named, tuple(dict.fromkeys(state.nodes)))


def _match_node(pattern: Op, node: Node, state: _State) -> Iterator[_State]:
    if not node.is_op(*pattern.op_types):
        return
    if pattern.name and state.named.get(pattern.name, node) is not node:
        return
    named = {**state.named, pattern.name: node} if pattern.name else state.named
    state = _State(state.values, named, (*state.nodes, node))
    if pattern.inputs is None:
        yield state
        return
    yield from _match_inputs(pattern.inputs, node.inputs, state)
    if len(node.inputs) == 2 and node.op_type in COMMUTATIVE:
        yield from _match_inputs(pattern.inputs, node.inputs[::-1], state)


def _match_inputs(
    patterns: tuple[Pattern | None, ...], inputs: tuple[Value | None, ...], state: _State
) -> Iterator[_State]:
    if not patterns:
        if all(v is None for v in inputs):
            yield state
        return
    first = inputs[0] if inputs else None
    if patterns[0] is None or first is None:
        if patterns[0] is None and first is None:
            yield from _match_inputs(patterns[1:], inputs[1:], state)
        return
    for found in _match_value(patterns[0], first, state):
        yield from _match_inputs(patterns[1:], inputs[1:], found)


def _match_value(pattern: Pattern, value: Value, state: _State) -> Iterator[_State]:
    if isinstance(pattern, Op):
        if value.producer is not None and value.output_index == 0:
            yield from _match_node(pattern, value.producer, state)
        return
    if isinstance(pattern, Scalar):
        if is_uniform(value, pattern.value, pattern.tolerance):
            yield state
        return
    if isinstance(pattern, Const) and not value.is_constant:
        return
    if state.values.get(pattern.name, value) is value:
        yield _State({**state.values, pattern.name: value}, state.named, state.nodes)


def uniform(value: Value | None) -> Any:
    """The number that every element of a constant has, as a numpy scalar; None where there is no such number."""
    if value is None or value.constant is None or value.constant.size == 0:
        return None
    if value.constant.dtype.value == "string":
        return None
    data = value.numpy()
    first = data.reshape(-1)[0]
    return first if data.size == 1 or bool((data == first).all()) else None


def is_uniform(value: Value | None, number: float, tolerance: float = 0.0) -> bool:
    """Whether every element of a constant is `number`, within a relative `tolerance`."""
    found = uniform(value)
    if found is None or np.iscomplexobj(found):
        return False
    return bool(abs(float(found) - number) <= tolerance * abs(number))
