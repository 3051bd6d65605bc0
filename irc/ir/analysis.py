"""Analyses that read a graph and change nothing: order, dominators, liveness, regions, costs, pictures.

networkx is imported on first use. Nodes of the networkx graphs are `Node` objects of one graph; a node that holds
subgraphs stands for everything that they read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import TensorType

if TYPE_CHECKING:
    import networkx as nx


def reads(node: Node) -> tuple[Value, ...]:
    """What a node reads: its inputs, and what its subgraphs capture; each value once."""
    captured = (v for sub in node.subgraphs for v in sub.captured())
    return tuple(dict.fromkeys(v for v in (*node.inputs, *captured) if v is not None))


def in_order(graph: Graph) -> list[Node]:
    """The nodes of one graph, each after what it reads: their own order where that is so already. A pass may have put
    nodes at the end and not sorted the graph yet."""
    order: dict[Node, None] = {}
    for start in graph.nodes:
        stack = [(start, False)]
        while stack:
            node, read = stack.pop()
            if node in order:
                continue
            if read:
                order[node] = None
                continue
            stack.append((node, True))
            before = (v.producer for v in reads(node))
            stack.extend((p, False) for p in before if p is not None and p.graph is graph and p not in order)
    return list(order)


def digraph(graph: Graph) -> nx.DiGraph:
    """The nodes of one graph, with an edge from producer to reader."""
    import networkx as nx

    view = nx.DiGraph()
    view.add_nodes_from(graph.nodes)
    for node in graph.nodes:
        for value in reads(node):
            if value.producer is not None and value.graph is graph:
                view.add_edge(value.producer, node)
    return view


def dominators(graph: Graph) -> dict[Node, Node | None]:
    """For each node, the last other node that every path from the graph's inputs or constants to it goes through.

    None: there is none (Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", 2001).
    """
    return _immediate(digraph(graph), lambda view, node: view.in_degree(node) == 0 or _reads_outside(graph, node))


def post_dominators(graph: Graph) -> dict[Node, Node | None]:
    """For each node, the first other node that every path from it to the graph's outputs goes through."""
    view = digraph(graph).reverse(copy=False)
    return _immediate(view, lambda view, node: view.in_degree(node) == 0 or any(v.is_output for v in node.outputs))


def _reads_outside(graph: Graph, node: Node) -> bool:
    return any((v.producer is None and v.constant is None) or v.graph is not graph for v in reads(node))


def _immediate(view: nx.DiGraph, starts: Callable[[nx.DiGraph, Node], bool]) -> dict[Node, Node | None]:
    import networkx as nx

    root = object()  # before everything
    whole = nx.DiGraph(view)
    whole.add_node(root)
    whole.add_edges_from((root, node) for node in view.nodes if starts(view, node))
    found = nx.immediate_dominators(whole, root)
    return {node: None if found[node] is root else found[node] for node in view.nodes}


@dataclass(frozen=True)
class Interval:
    """A value lives from position `first` to position `last`, both inclusive, in the order of the graph's nodes.

    Graph inputs start at -1; outputs live to `len(graph)`. A value that nobody reads lives only where it is made.
    """

    value: Value
    first: int
    last: int

    def overlaps(self, other: Interval) -> bool:
        return self.first <= other.last and other.first <= self.last


def liveness(graph: Graph) -> dict[Value, Interval]:
    """Intervals of inputs and of node outputs (not of constants), in order of definition."""
    first = dict.fromkeys(graph.inputs, -1)
    last = dict(first)
    for position, node in enumerate(graph.nodes):
        for value in reads(node):
            if value in last:
                last[value] = position
        for value in node.outputs:
            first[value] = last[value] = position
    for value in graph.outputs:
        if value in last:
            last[value] = len(graph)
    return {value: Interval(value, first[value], last[value]) for value in first}


def is_convex(nodes: Collection[Node]) -> bool:
    """Whether no path leaves this set of nodes (of one graph) and comes back: only then can it become one node."""
    inside = set(nodes)
    graph = next((n.graph for n in inside), None)
    if graph is None:
        return True
    position = {node: i for i, node in enumerate(graph.nodes)}
    earliest = min(position[n] for n in inside)
    seen: set[Node] = set()
    stack = [p for n in inside for p in _producers(n) if p not in inside]
    while stack:  # walk towards the inputs, from what the set reads
        node = stack.pop()
        if node in inside:
            return False
        if node in seen or position.get(node, -1) < earliest:
            continue
        seen.add(node)
        stack.extend(_producers(node))
    return True


def _producers(node: Node) -> Iterator[Node]:
    for value in reads(node):
        if value.producer is not None and value.graph is node.graph:
            yield value.producer


@dataclass(frozen=True)
class Boundary:
    """What a set of nodes reads from outside (constants apart) and what of it is read outside, in graph order."""

    inputs: tuple[Value, ...]
    constants: tuple[Value, ...]
    outputs: tuple[Value, ...]


def boundary(nodes: Iterable[Node]) -> Boundary:
    inside = dict.fromkeys(nodes)
    made = {v for n in inside for v in n.outputs}
    read = dict.fromkeys(v for n in inside for v in reads(n) if v not in made)
    outputs = [
        v
        for n in inside
        for v in n.outputs
        if v.is_output or any(_around(user, n.graph) not in inside for user in v.users)
    ]
    constants = tuple(v for v in read if v.is_constant)
    return Boundary(tuple(v for v in read if not v.is_constant), constants, tuple(outputs))


def _around(node: Node, graph: Graph | None) -> Node | None:
    """The node of `graph` itself that holds `node` in one of its subgraphs (or is it)."""
    while node.graph is not graph:
        inner = node.graph
        if inner is None or inner.parent is None:
            return None
        holder = next((n for n in inner.parent.nodes if inner in n.subgraphs), None)
        if holder is None:
            return None
        node = holder
    return node


# Costs


def macs(node: Node) -> int | None:
    """Multiply-adds of an operator that is made of them, 0 for others, None where shapes are not static.

    Counted as a direct computation does them: padding included, sparsity and fast algorithms ignored.
    """
    rule = _MACS.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return 0
    try:
        return rule(node)
    except ValueError:  # an unknown or symbolic extent
        return None


def _conv_macs(node: Node) -> int:
    weights = node.need(3 if node.op_type == "QLinearConv" else 1).static_shape()
    return _numel(node.output) * math.prod(weights[1:])


def _conv_transpose_macs(node: Node) -> int:
    return _numel(node.need(0)) * math.prod(node.need(1).static_shape()[1:])


def _gemm_macs(node: Node) -> int:
    a = node.need(0).static_shape()
    return _numel(node.output) * (a[0] if node.get_int("transA") else a[1])


def _matmul_macs(node: Node) -> int:
    return _numel(node.output) * node.need(0).static_shape()[-1]


def _einsum_macs(node: Node) -> int:
    """The product of all extents, when one loop nest computes it (Einsum's letters; ellipses add the output's)."""
    terms = node.get_str("equation").replace(" ", "").split("->")[0].split(",")
    extents: dict[str, int] = {}
    dots: dict[int, int] = {}
    for i, term in enumerate(terms):
        shape = node.need(i).static_shape()
        head, ellipsis, tail = term.partition("...")
        middle = len(shape) - len(head) - len(tail)
        if middle < 0 or (middle and not ellipsis):
            raise ValueError(f"{node.label}: equation does not fit its inputs")
        for letter, extent in zip(head + tail, shape[: len(head)] + shape[len(head) + middle :], strict=True):
            extents[letter] = max(extents.get(letter, 1), extent)
        for place, extent in enumerate(reversed(shape[len(head) : len(head) + middle])):
            dots[place] = max(dots.get(place, 1), extent)
    return math.prod(extents.values()) * math.prod(dots.values()) * max(len(terms) - 1, 0)


def _recurrent_macs(node: Node) -> int:
    steps, batch = node.need(0).static_shape()[:2]  # layout=1 swaps the two; the product is the same
    directions, rows, size = node.need(1).static_shape()  # rows: gates times hidden
    hidden = node.need(2).static_shape()[2]
    return steps * batch * directions * rows * (size + hidden)


_MACS: dict[str, Callable[[Node], int]] = {
    "Conv": _conv_macs,
    "ConvInteger": _conv_macs,
    "QLinearConv": _conv_macs,
    "ConvTranspose": _conv_transpose_macs,
    "Gemm": _gemm_macs,
    "MatMul": _matmul_macs,
    "MatMulInteger": _matmul_macs,
    "QLinearMatMul": _matmul_macs,
    "Einsum": _einsum_macs,
    "LSTM": _recurrent_macs,
    "GRU": _recurrent_macs,
    "RNN": _recurrent_macs,
}


def _numel(value: Value) -> int:
    return math.prod(value.static_shape())


def model_macs(model: Model) -> int | None:
    """The sum over all nodes, bodies counted once; None when any is not known."""
    total = 0
    for node in model.graph.walk():
        count = macs(node)
        if count is None:
            return None
        total += count
    return total


def parameters(node: Node) -> int:
    """Elements of the constants that a node reads directly."""
    return sum(v.constant.size for v in dict.fromkeys(node.inputs) if v is not None and v.constant is not None)


def parameter_bytes(node: Node) -> int:
    """Bytes of the constants that a node reads directly, as ONNX stores them."""
    return sum(v.constant.nbytes for v in dict.fromkeys(node.inputs) if v is not None and v.constant is not None)


def value_bytes(value: Value) -> int | None:
    """Bytes of a tensor, packed as ONNX packs it; None where it is not static or no tensor."""
    type = value.type
    if not isinstance(type, TensorType) or type.shape is None or not type.shape.is_static:
        return None
    return (type.shape.numel() * type.dtype.bits + 7) // 8


# Pictures


def dot(model: Model) -> str:
    """The graph in Graphviz's language: operators as boxes, edges labelled with types; constants left out."""
    lines = ["digraph {", '  node [shape=box, fontname="Helvetica", fontsize=10]', "  edge [fontsize=8]"]
    lines += _dot_graph(model.graph, {}, "  ")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_graph(graph: Graph, names: dict[object, str], indent: str) -> list[str]:
    def name(item: object) -> str:
        return names.setdefault(item, f"n{len(names)}")

    lines = [f"{indent}{name(v)} [label={_quoted(v.name)}, shape=ellipse]" for v in graph.inputs]
    for node in graph.nodes:
        label = node.op_type if node.name == node.op_type else f"{node.op_type}\n{node.name}"
        lines.append(f"{indent}{name(node)} [label={_quoted(label)}]")
        for value in dict.fromkeys(v for v in node.inputs if v is not None and v.constant is None):
            source = name(value.producer or value)
            lines.append(f"{indent}{source} -> {name(node)} [label={_quoted(str(value.type or '?'))}]")
        for sub in node.subgraphs:
            lines.append(f"{indent}subgraph cluster_{name(sub)} {{")
            lines.append(f"{indent}  label={_quoted(f'{node.name}: {sub.name}')}")
            lines += _dot_graph(sub, names, indent + "  ")
            lines.append(f"{indent}}}")
    for value in graph.outputs:
        key = ("output", value)
        lines.append(f"{indent}{name(key)} [label={_quoted(value.name)}, shape=ellipse]")
        lines.append(
            f"{indent}{name(value.producer or value)} -> {name(key)} [label={_quoted(str(value.type or '?'))}]"
        )
    return lines


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
