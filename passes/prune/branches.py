"""Residual branches that can be left out whole: depth pruning.

Add(branch(x), shortcut) becomes the shortcut where both have the same shape; what only the branch needed is dead then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irc.ir.analysis import reads
from irc.ir.graph import Model, Node, Value
from irc.passes.prune.budget import products
from irc.rewrite.facts import same_type


@dataclass(frozen=True)
class Branch:
    """`add` is what goes, `shortcut` what stays, `nodes` what dies with it, `macs` their multiply-adds."""

    add: Node
    shortcut: Value
    nodes: tuple[Node, ...]
    macs: int

    @property
    def name(self) -> str:
        return self.add.name


def find_branches(model: Model) -> list[Branch]:
    """For each Add of two computed tensors of one shape the operand whose loss saves more multiply-adds.

    Only where the other operand is on the way to it: Add(f(x), g(x)) with both sides private has no shortcut, unless
    one of them needs no multiply-adds (a subsampled or padded x).
    """
    found = []
    for node in model.graph.nodes:
        if not node.is_op("Add") or len(node.inputs) != 2:
            continue
        a, b = node.need(0), node.need(1)
        if a is b or a.is_constant or b.is_constant or not (same_type(a, node.output) and same_type(b, node.output)):
            continue
        options = [_branch(node, gone, stays) for gone, stays in ((a, b), (b, a))]
        best = max(options, key=lambda o: o.macs)
        if best.macs > 0:
            found.append(best)
    return found


def _branch(add: Node, gone: Value, stays: Value) -> Branch:
    """What is dead once `add` gives `stays`."""
    dead: dict[Node, None] = {add: None}
    stack = [gone.producer]
    while stack:
        node = stack.pop()
        if node is None or node in dead or stays.producer is node or any(v.is_output for v in node.outputs):
            continue
        if all(u.node in dead for v in node.outputs for u in v.uses):
            dead[node] = None
            stack.extend(v.producer for v in reads(node))
    nodes = tuple(n for n in dead if n is not add)
    return Branch(add, stays, nodes, sum(products(n) for n in nodes))


def remove_branches(model: Model, names: Sequence[str]) -> None:
    """Leave out the branches of these Adds, in place, and everything that is dead then."""
    wanted = set(names)
    while True:  # removing one may change what the next is added to
        branch = next((b for b in find_branches(model) if b.name in wanted), None)
        if branch is None:
            break
        wanted.discard(branch.name)
        model.graph.replace_uses(branch.add.output, branch.shortcut)
        _remove_dead(model)


def _remove_dead(model: Model) -> None:
    graph = model.graph
    while True:
        dead = [n for n in graph.nodes if not any(v.uses or v.is_output for v in n.outputs)]
        if not dead:
            break
        graph.remove_nodes(dead)
    for value in list(graph.constants.values()):
        if not value.uses and not value.is_output:
            graph.remove_constant(value)
