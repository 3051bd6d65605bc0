"""Regions: one root operator and the elementwise operators after it that one kernel computes.

From the root's output the region grows along the topological order by elementwise nodes of the same shape. It may end
wherever exactly one of its values is needed outside: so diamonds (x * sigmoid(x)) fuse, and a value with other readers
ends the region. Dequantizations are never an end (who reads the integers dequantizes for itself).
"""

from __future__ import annotations

from dataclasses import dataclass

from irc.backends.tvm.expression import ExpressionBuilder, needs_scalar
from irc.backends.tvm.plan.kinds import kind_of
from irc.backends.tvm.plan.translate import Build, builder_of, data_inputs, storage_dtype
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Shape

_LIMIT = 32  # nodes looked at beyond the root
_SCALAR_KINDS = ("elementwise", "reduce")  # kernels that can go element by element


@dataclass(frozen=True)
class Region:
    """`nodes` in topological order, the root first; `output` is the only value others read."""

    kind: str
    nodes: tuple[Node, ...]
    output: Value

    @property
    def root(self) -> Node:
        return self.nodes[0]

    @property
    def label(self) -> str:
        return "+".join(n.op_type for n in self.nodes)

    @property
    def origin(self) -> tuple[str, ...]:
        names = dict.fromkeys(name for n in self.nodes for name in (n.origin.nodes or (n.name,)))
        return tuple(names)


def find_regions(graph: Graph) -> list[Region]:
    """Every node that needs a kernel, in regions, in the order in which they can run.

    Views, constants' dequantizations and other dequantizations are in no region: they are made on demand.
    """
    position = {id(n): i for i, n in enumerate(graph.nodes)}
    taken: set[int] = set()
    regions: list[Region] = []
    for node in graph.nodes:
        if id(node) in taken:
            continue
        kind = kind_of(node)
        if kind in ("view", "weights", "dequantize"):
            continue
        region = _grow(graph, node, kind, position, taken) if kind not in ("library", "concat") else None
        region = region or Region(kind, (node,), node.output)
        taken.update(id(n) for n in region.nodes)
        regions.append(region)
    regions.sort(key=lambda r: position[id(r.nodes[-1])])
    return regions


def _grow(graph: Graph, root: Node, kind: str, position: dict[int, int], taken: set[int]) -> Region | None:
    shape = root.output.shape
    inside: dict[int, Value] = {id(root.output): root.output}
    nodes: list[Node] = [root]
    best: tuple[int, Value] | None = None
    if not _stops(root):
        best = (1, root.output)
    waiting = _followers(root.output, position, taken, set())
    seen = {id(root)}
    while waiting and len(nodes) <= _LIMIT:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if not _joins(node, kind, shape) or not _ready(node, inside, root, position):
            if _stuck(node, inside):
                break
            continue
        nodes.append(node)
        inside[id(node.output)] = node.output
        live = [v for v in inside.values() if v.is_output or any(id(u) not in _ids(nodes) for u in v.users)]
        if len(live) == 1 and live[0] is node.output and not _stops(node):
            best = (len(nodes), node.output)
        if any(v.is_output for v in live if v is not node.output):
            break
        more = _followers(node.output, position, taken, seen)
        waiting = sorted({id(n): n for n in (*waiting, *more)}.values(), key=lambda n: position[id(n)])
    if best is None:
        return None
    count, output = best
    return Region(kind, tuple(nodes[:count]), output)


def _joins(node: Node, kind: str, shape: Shape | None) -> bool:
    """Whether a kernel of this kind can compute `node` on its output's shape."""
    build = builder_of(node)
    if build is None or node.output.shape != shape:
        return False
    return kind in _SCALAR_KINDS or not _needs_scalar(node, build)


def _needs_scalar(node: Node, build: Build) -> bool:
    b = ExpressionBuilder()
    args = [b.operand(i, storage_dtype(v.dtype)) for i, v in enumerate(data_inputs(node))]
    return needs_scalar(b.finish(build(b, node, args, storage_dtype(node.output.dtype))))


def _ids(nodes: list[Node]) -> set[int]:
    return {id(n) for n in nodes}


def _followers(value: Value, position: dict[int, int], taken: set[int], seen: set[int]) -> list[Node]:
    users = [u for u in value.users if id(u) in position and id(u) not in taken and id(u) not in seen]
    return sorted(users, key=lambda n: position[id(n)])


def _stops(node: Node) -> bool:
    """Whether a region must not end with this node's output."""
    return node.is_op("DequantizeLinear")


def _stuck(node: Node, inside: dict[int, Value]) -> bool:
    """A reader that cannot join makes its input an output of the region for good; growing on is useless only when
    that input is not the newest value."""
    newest = next(reversed(inside.values()))
    return any(id(v) in inside and v is not newest for v in node.inputs if v is not None)


def _ready(node: Node, inside: dict[int, Value], root: Node, position: dict[int, int]) -> bool:
    """Every other input exists without this region: it does not depend on the region's root."""
    return all(id(v) in inside or not _depends(v, root, position) for v in data_inputs(node))


def _depends(value: Value, root: Node, position: dict[int, int]) -> bool:
    stack, seen = [value], set()
    floor = position[id(root)]
    while stack:
        producer = stack.pop().producer
        if producer is None or id(producer) in seen or position.get(id(producer), -1) < floor:
            continue
        if producer is root:
            return True
        seen.add(id(producer))
        stack.extend(v for v in producer.inputs if v is not None)
    return False
