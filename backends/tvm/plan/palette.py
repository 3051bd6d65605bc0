"""Palettes become ordinary constants before the plan: kernels are chosen by the numbers, not by how they were written.

Weights of few distinct values stay few distinct values; what stores or reads them in fewer bits looks at that.
"""

from __future__ import annotations

from irc.ir.graph import Graph, Node, Value
from irc.ir.palette import palette_of


def expand_palettes(graph: Graph) -> None:
    """Replace every palette of `graph`, with the constant that it may be multiplied by, by a constant."""
    for node in graph.nodes:
        palette = palette_of(node.output) if node.is_op("Gather") else None
        if palette is None:
            continue
        data = palette.numpy()
        for user in node.output.users:
            factor = _factor(user, node.output)
            if factor is not None:
                graph.replace_uses(user.output, graph.add_constant(data * factor.numpy(), user.output.name))
        if any(_factor(user, node.output) is None for user in node.output.users) or node.output.is_output:
            graph.replace_uses(node.output, graph.add_constant(data, node.output.name))


def _factor(node: Node, value: Value) -> Value | None:
    """The constant that `node` multiplies `value` by, without making it larger."""
    if not node.is_op("Mul") or node.output.is_output or node.output.shape != value.shape:
        return None
    other = node.need(1) if node.need(0) is value else node.need(0)
    return other if other.is_constant else None
