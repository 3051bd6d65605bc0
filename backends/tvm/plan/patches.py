"""The first layers of a network strip by strip: less memory for some arithmetic that is done twice.

The images of the first layers are the largest ones. Only some of their rows are needed for some rows of a later,
smaller image, so that image is computed in strips: for each, the layers before run on the rows that it needs; where
the rows of two strips overlap, they are computed twice (MCUNetV2, Lin et al. 2021, "patch-based inference"; here
patches are strips of whole rows). The result is what it was, bit for bit.

It is a rewrite of the graph: a Slice of the rows, copies of the layers with the padding that is left of theirs, and a
Concat of the strips. Slices are views, and what is concatenated is written in place, so neither takes time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from irc.backends.tvm.plan.kinds import is_weight
from irc.backends.tvm.plan.window import Window, window
from irc.ir.clone import clone
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Shape, TensorType

_STRIPS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
_TRIALS = 24  # plans that are made to find one that fits
_WINDOWS = ("Conv", "MaxPool", "AveragePool")
_QUANTIZERS = ("DequantizeLinear", "QuantizeLinear")
_ARITHMETIC = ("Add", "Clip", "Div", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh")
_PLACEWISE = (*_ARITHMETIC, *_QUANTIZERS)

Rows = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """The layers between the values of `sources` and `exit`, in order: nobody else reads what they compute."""

    nodes: tuple[Node, ...]
    exit: Value


@dataclass(frozen=True)
class Patching:
    """A stage in `strips`, and the multiply-adds that are done more than once then."""

    exit: str  # name of the value
    strips: int
    recomputed: int


def stages(graph: Graph) -> list[Stage]:
    """The stages that can run in strips and have two windows or more, the shortest first."""
    found = []
    for node in graph.nodes:
        value = node.outputs[0] if len(node.outputs) == 1 else None
        if value is None or not _is_local(node) or not _ends(value):
            continue
        nodes = _before(value)
        inside = {id(n) for n in nodes}
        closed = all(
            not n.output.is_output and all(id(u) in inside for u in n.output.users) for n in nodes if n is not node
        )
        if closed and sum(n.is_op(*_WINDOWS) for n in nodes) > 1:
            order = {id(n): i for i, n in enumerate(graph.nodes)}
            found.append(Stage(tuple(sorted(nodes, key=lambda n: order[id(n)])), value))
    return found


def _ends(value: Value) -> bool:
    """Whether a layer ends here: what comes next is not computed together with it."""
    node = value.producer
    if node is None or value.is_output:
        return False
    if node.is_op("QuantizeLinear"):
        return True
    return not any(u.is_op(*_PLACEWISE) for u in value.users) and not node.is_op("DequantizeLinear")


def _data(node: Node) -> list[Value]:
    """The images that a node reads."""
    if node.is_op("Conv", "QuantizeLinear", "DequantizeLinear", "Clip"):
        return [node.need(0)]
    return [v for v in node.inputs if v is not None and not is_weight(v)]


def _is_local(node: Node) -> bool:
    """Whether rows of the result need rows near them only."""
    if node.domain != "" or len(node.outputs) != 1 or not _is_image(node.output):
        return False
    data = _data(node)
    if not data or any(not _is_image(v) for v in data):
        return False
    if node.is_op(*_WINDOWS):
        return not node.get_int("ceil_mode", 0)
    if not node.is_op(*_PLACEWISE):
        return False
    height = node.output.static_shape()[2]
    others = [v for v in node.inputs if v is not None and all(v is not d for d in data)]
    alone = all(v.shape is not None and v.shape.is_static and _rows_of(v) == 1 for v in others)
    return alone and all(v.static_shape()[2] == height for v in data)


def _rows_of(value: Value) -> int:
    shape = value.static_shape()
    return shape[-2] if len(shape) > 2 else 1


def _is_image(value: Value) -> bool:
    return value.shape is not None and value.shape.is_static and value.shape.rank == 4 and value.static_shape()[0] == 1


def _before(value: Value) -> list[Node]:
    """All local nodes from which `value` is computed without leaving them."""
    found: dict[int, Node] = {}
    todo = [value]
    while todo:
        node = todo.pop().producer
        if node is None or id(node) in found or not _is_local(node):
            continue
        if all(is_weight(v) for v in _data(node)):
            continue
        found[id(node)] = node
        todo += _data(node)
    return list(found.values())


def _window(node: Node) -> Window:
    shape = node.need(0).static_shape()[2:]
    kernel = node.need(1).static_shape()[2:] if node.is_op("Conv") else node.get_ints("kernel_shape")
    return window(node, shape, kernel)


def _reads(node: Node, rows: Rows) -> Rows:
    """The rows of its data that a node needs for these rows of its result."""
    if not node.is_op(*_WINDOWS):
        return rows
    g, height = _window(node), node.need(0).static_shape()[2]
    first = rows[0] * g.stride[0] - g.pads[0]
    last = (rows[1] - 1) * g.stride[0] - g.pads[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    return max(0, first), min(height, last)


def _needs(stage: Stage, rows: Rows) -> dict[int, Rows] | None:
    """The rows of every value (by id) that are needed for these rows of the exit; None where some window is empty."""
    needs = {id(stage.exit): rows}
    for node in reversed(stage.nodes):
        mine = _reads(node, needs[id(node.output)])
        if mine[0] >= mine[1]:
            return None
        for value in _data(node):
            known = needs.get(id(value), mine)
            needs[id(value)] = (min(known[0], mine[0]), max(known[1], mine[1]))
    return needs


def _cuts(height: int, strips: int) -> Iterator[Rows]:
    for i in range(strips):
        yield height * i // strips, height * (i + 1) // strips


def _macs(node: Node, rows: int) -> int:
    if not node.is_op("Conv"):
        return 0
    _, channels, _, width = node.output.static_shape()
    return rows * width * channels * math.prod(node.need(1).static_shape()[1:])


def _candidates(graph: Graph) -> list[tuple[Stage, int, int, int]]:
    """(stage, strips, recomputed multiply-adds, bytes that it needs at least), the least work first."""
    found = []
    for stage in stages(graph):
        height = stage.exit.static_shape()[2]
        for strips in _STRIPS:
            if strips > height:
                continue
            needs = [_needs(stage, rows) for rows in _cuts(height, strips)]
            if any(n is None for n in needs):
                continue
            each = [n for n in needs if n is not None]
            done = sum(_macs(n, b - a) for need in each for n in stage.nodes for a, b in [need[id(n.output)]])
            once = sum(_macs(n, n.output.static_shape()[2]) for n in stage.nodes)
            least = max(_inner_bytes(stage, need) for need in each)
            found.append((stage, strips, done - once, max(least, _bytes(stage.exit, height))))
    return sorted(found, key=lambda c: (c[2], c[1]))


def _bytes(value: Value, rows: int) -> int:
    _, channels, _, width = value.static_shape()
    return rows * width * channels * np.dtype(value.tensor.dtype.numpy).itemsize


def _inner_bytes(stage: Stage, needs: dict[int, Rows]) -> int:
    """The largest image inside of a strip."""
    stored = [n.output for n in stage.nodes if _ends(n.output) and n.output is not stage.exit]
    return max((_bytes(v, needs[id(v)][1] - needs[id(v)][0]) for v in stored), default=0)


def apply(graph: Graph, stage: Stage, strips: int) -> None:
    """Rewrite `stage` of `graph`."""
    after = stage.nodes[-1]
    index = graph.nodes.index(after)
    before = graph.nodes[index + 1] if index + 1 < len(graph) else None
    parts = []
    for rows in _cuts(stage.exit.static_shape()[2], strips):
        needs = _needs(stage, rows)
        assert needs is not None, "candidates have no empty windows"
        parts.append(_strip(graph, stage, needs, before))
    joined = graph.add("Concat", parts, 1, {"axis": 2}, types=[stage.exit.type], origin=after.origin, before=before)
    graph.replace_uses(stage.exit, joined.output)
    graph.remove_nodes(stage.nodes)


def _strip(graph: Graph, stage: Stage, needs: dict[int, Rows], before: Node | None) -> Value:
    """Copies of the stage's nodes for one strip; its part of the exit."""
    made: dict[int, tuple[Value, Rows]] = {}
    slices: dict[tuple[int, Rows], Value] = {}

    def rows_of(value: Value, rows: Rows) -> Value:
        have, lies = made.get(id(value), (value, (0, value.static_shape()[2])))
        if rows == lies:
            return have
        key = (id(have), rows)
        if key not in slices:
            limits = [np.array([r - lies[0]]) for r in rows]
            constants = [graph.add_constant(a, "rows") for a in (*limits, np.array([2]))]
            node = graph.add("Slice", [have, *constants], 1, types=[_cut_type(have, rows[1] - rows[0])], before=before)
            slices[key] = node.output
        return slices[key]

    for node in stage.nodes:
        rows = needs[id(node.output)]
        reads = _reads(node, rows)
        data = {id(v) for v in _data(node)}
        inputs = [v if v is None or id(v) not in data else rows_of(v, reads) for v in node.inputs]
        attributes = dict(node.attributes)
        if node.is_op(*_WINDOWS):
            attributes.pop("auto_pad", None)
            attributes["pads"] = _pads(node, rows)
        copy = graph.add(
            node.op_type,
            inputs,
            1,
            attributes,
            types=[_cut_type(node.output, rows[1] - rows[0])],
            name=node.name,
            origin=node.origin,
            before=before,
        )
        made[id(node.output)] = (copy.output, rows)
    return made[id(stage.exit)][0]


def _pads(node: Node, rows: Rows) -> tuple[int, ...]:
    """What is left of the padding for these rows of the result."""
    g, height = _window(node), node.need(0).static_shape()[2]
    first = rows[0] * g.stride[0] - g.pads[0]
    last = (rows[1] - 1) * g.stride[0] - g.pads[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    return max(0, -first), g.pads[1], max(0, last - height), g.pads[3]


def _cut_type(value: Value, rows: int) -> TensorType:
    n, c, _, w = value.static_shape()
    return TensorType(value.tensor.dtype, Shape.of(n, c, rows, w))


def patched(model: Model, nbytes: int, workspace: Callable[[Model], int], now: int) -> tuple[Model, Patching | None]:
    """`model` with its first layers in strips, so that `workspace` of it is at most `nbytes`, with the least work.

    `now`: what it needs as it is. Where nothing fits, the form that needs least; the model itself where that is it.
    """
    best, best_bytes, best_patching = model, now, None
    names = [(c[0].exit.name, *c[1:]) for c in _candidates(model.graph) if c[3] <= nbytes]
    for exit, strips, recomputed, _ in _spread(names):
        tried = clone(model)
        stage = next(s for s in stages(tried.graph) if s.exit.name == exit)
        apply(tried.graph, stage, strips)
        needed = workspace(tried)
        if needed < best_bytes:
            best, best_bytes, best_patching = tried, needed, Patching(exit, strips, recomputed)
        if needed <= nbytes:
            break
    return best, best_patching


def _spread(candidates: Sequence[tuple[str, int, int, int]]) -> Sequence[tuple[str, int, int, int]]:
    """At most _TRIALS of them, evenly over the amount of work."""
    if len(candidates) <= _TRIALS:
        return candidates
    return [candidates[i * (len(candidates) - 1) // (_TRIALS - 1)] for i in range(_TRIALS)]
