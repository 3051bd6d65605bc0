"""eliminate-dead: nodes and constants that no output of the model depends on. Inputs stay: they are the interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irc.ir.graph import Graph, Model, Value
from irc.pipeline.contract import Pass, PassContext, PassResult


@dataclass(frozen=True)
class EliminateDead(Pass):
    """Removes what no output depends on. Exact."""

    name: ClassVar[str] = "eliminate-dead"
    summary: ClassVar[str] = "removes nodes and constants that no output depends on"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        removed = {"nodes": 0, "constants": 0, "outputs": 0}
        _clean(model.graph, removed)
        return PassResult(any(removed.values()), {k: v for k, v in removed.items() if v})


def _clean(graph: Graph, removed: dict[str, int]) -> None:
    """One walk backwards is enough, because a node's readers stand after it; subgraphs first, they read too."""
    for node in graph.nodes:
        for sub in node.subgraphs:
            _clean(sub, removed)
    live = set(graph.outputs)
    dead = []
    for node in reversed(graph.nodes):
        if not any(v in live for v in node.outputs):
            dead.append(node)
            continue
        live.update(v for v in node.inputs if v is not None)
        for sub in node.subgraphs:
            live.update(sub.captured())
    removed["nodes"] += len(dead)
    graph.remove_nodes(dead)
    removed["constants"] += _remove_constants(graph, live)
    removed["outputs"] += _trim_outputs(graph, live)


def _remove_constants(graph: Graph, live: set[Value]) -> int:
    gone = [v for v in graph.constants.values() if v not in live]
    for value in gone:
        graph.remove_constant(value)
    return len(gone)


def _trim_outputs(graph: Graph, live: set[Value]) -> int:
    """Trailing optional outputs that nobody reads (the mask of Dropout, the indices of MaxPool)."""
    count = 0
    for node in graph.nodes:
        while len(node.outputs) > 1 and node.outputs[-1] not in live and _may_omit(node.op_type, len(node.outputs) - 1):
            graph.drop_last_output(node)
            count += 1
    return count


def _may_omit(op_type: str, index: int) -> bool:
    from irc.ir import ops

    schema = ops.schema(op_type)
    if schema is None or index >= len(schema.outputs):
        return False
    return bool(schema.outputs[index].option == type(schema.outputs[index].option).Optional)
