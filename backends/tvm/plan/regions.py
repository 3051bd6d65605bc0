"""Regions: one root operator and the elementwise operators after it that one kernel computes.

From the root's output the region grows along the topological order by elementwise nodes of the same shape. It may end
wherever exactly one of its values is needed outside: so diamonds (x * sigmoid(x)) fuse, and a value with other readers
ends the region. Dequantizations are never an end (who reads the integers dequantizes for itself).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from irc.backends.tvm.expression import ExpressionBuilder, needs_scalar
from irc.backends.tvm.plan.kinds import kind_of
from irc.backends.tvm.plan.translate import Build, builder_of, data_inputs, storage_dtype
from irc.ir.graph import Graph, Node, Value

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
    finder = _Finder(graph)
    regions = [finder.region(node) for node in graph.nodes]
    found = [r for r in regions if r is not None]
    found.sort(key=lambda r: finder.position[id(r.nodes[-1])])
    return found


class _Finder:
    """What growing one region after another needs to know of the graph."""

    def __init__(self, graph: Graph) -> None:
        self.position = {id(n): i for i, n in enumerate(graph.nodes)}
        self.taken: set[int] = set()
        self._scalar: dict[int, bool] = {}

    def region(self, node: Node) -> Region | None:
        """The region that starts with `node`, or None where it is in one already or needs no kernel."""
        if id(node) in self.taken:
            return None
        kind = kind_of(node)
        if kind in ("view", "weights", "dequantize"):
            return None
        grown = [node] if kind in ("library", "concat", "recurrent") else self._grow(node, kind)
        self.taken.update(id(n) for n in grown)
        return Region(kind, tuple(grown), grown[-1].output)

    def _grow(self, root: Node, kind: str) -> list[Node]:
        """The longest run of readers from `root` on whose only value needed outside is the last one."""
        nodes: list[Node] = []
        needed: dict[int, int] = {}  # value inside -> readers outside; one more where it is a network output
        inside: set[int] = set()
        waiting = [(self.position[id(root)], root)]
        queued = {id(root)}
        best = 1
        while waiting and len(nodes) <= _LIMIT:
            _, node = heapq.heappop(waiting)
            if nodes and not (self._joins(node, kind, root) and self._is_ready(node, inside, root)):
                break  # the value that it reads is needed outside for good
            nodes.append(node)
            for key in {id(v) for v in node.inputs if v is not None} & needed.keys():
                needed[key] -= 1
                if not needed[key]:
                    del needed[key]
            value, readers = node.output, node.output.users
            inside.add(id(value))
            if len(readers) + value.is_output:
                needed[id(value)] = len(readers) + value.is_output
            if needed.keys() == {id(value)} and not _stops(node):
                best = len(nodes)
            if value.is_output or any(id(u) in self.taken for u in readers):
                break  # needed outside for good
            for reader in readers:
                if id(reader) not in queued:
                    queued.add(id(reader))
                    heapq.heappush(waiting, (self.position[id(reader)], reader))
        return nodes[:best]

    def _joins(self, node: Node, kind: str, root: Node) -> bool:
        """Whether a kernel of this kind can compute `node` on its output's shape."""
        build = builder_of(node)
        if build is None or node.output.shape != root.output.shape:
            return False
        return kind in _SCALAR_KINDS or not self._needs_scalar(node, build)

    def _needs_scalar(self, node: Node, build: Build) -> bool:
        known = self._scalar.get(id(node))
        if known is None:
            b = ExpressionBuilder()
            args = [b.operand(i, storage_dtype(v.dtype)) for i, v in enumerate(data_inputs(node))]
            expression = b.finish(build(b, node, args, storage_dtype(node.output.dtype)))
            known = self._scalar[id(node)] = needs_scalar(expression)
        return known

    def _is_ready(self, node: Node, inside: set[int], root: Node) -> bool:
        """Every other input exists without this region: it does not depend on the region's root."""
        return all(id(v) in inside or not self._depends(v, root) for v in data_inputs(node))

    def _depends(self, value: Value, root: Node) -> bool:
        stack, seen = [value], set()
        floor = self.position[id(root)]
        while stack:
            producer = stack.pop().producer
            if producer is None or id(producer) in seen or self.position[id(producer)] < floor:
                continue
            if producer is root:
                return True
            seen.add(id(producer))
            stack.extend(v for v in producer.inputs if v is not None)
        return False


def _stops(node: Node) -> bool:
    """Whether a region must not end with this node's output."""
    return node.is_op("DequantizeLinear")
