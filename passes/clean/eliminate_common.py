"""eliminate-common: equal constants become one, and equal nodes on equal inputs are computed once.

Only deterministic nodes without subgraphs, and only within one graph: a branch may never run. Constants of a
subgraph may be replaced by those of the graphs around it, which are always there.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from irc.ir import ops
from irc.ir.graph import AttributeValue, Graph, Model, Node, Value
from irc.ir.types import Constant
from irc.pipeline.contract import Pass, PassContext, PassResult


@dataclass(frozen=True)
class EliminateCommon(Pass):
    """Merges equal constants and equal nodes. Exact."""

    name: ClassVar[str] = "eliminate-common"
    summary: ClassVar[str] = "computes equal things once"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        merged = {"nodes": 0, "constants": 0}
        _merge(model.graph, {}, merged)
        return PassResult(any(merged.values()), {k: v for k, v in merged.items() if v})


def _merge(graph: Graph, outer: dict[Hashable, list[Value]], merged: dict[str, int]) -> None:
    constants = {kind: list(values) for kind, values in outer.items()}
    for value in tuple(graph.constants.values()):
        merged["constants"] += _merge_constant(graph, value, constants)
    seen: dict[Hashable, Node] = {}
    for node in graph.nodes:
        for sub in node.subgraphs:
            _merge(sub, constants, merged)
        merged["nodes"] += _merge_node(graph, node, seen)


def _merge_constant(graph: Graph, value: Value, constants: dict[Hashable, list[Value]]) -> bool:
    """Contents are only read and hashed where another constant has the same type."""
    constant = value.constant
    assert constant is not None
    same_type = constants.setdefault((constant.dtype, constant.shape), [])
    twin = next((v for v in same_type if _equal(v.constant, constant)), None)
    if twin is None:
        same_type.append(value)
        return False
    if value.is_output:
        return False
    graph.replace_uses(value, twin)
    graph.remove_constant(value)
    return True


def _equal(a: Constant | None, b: Constant) -> bool:
    return a is b or (a is not None and a.digest() == b.digest())


def _merge_node(graph: Graph, node: Node, seen: dict[Hashable, Node]) -> bool:
    if node.is_op("Identity") or node.subgraphs or not ops.is_deterministic(node):
        return False
    attributes = tuple(sorted((name, _key(value)) for name, value in node.attributes.items()))
    key = (node.domain, node.op_type, node.overload, node.inputs, attributes, len(node.outputs))
    first = seen.setdefault(key, node)
    if first is node:
        return False
    for old, new in zip(node.outputs, first.outputs, strict=True):
        graph.replace_uses(old, new)
    graph.remove(node)
    return True


def _key(value: AttributeValue) -> str:
    """Equal for equal attribute values. repr tells 1 from 1.0, 0.0 from -0.0, and is exact for floats."""
    if isinstance(value, Constant):
        return value.digest()
    if isinstance(value, tuple):
        return "(" + ",".join(_key(v) for v in value) + ")"
    return repr(value)
