"""fold-constants: what depends on constants alone is computed now.

Three things make constants: nodes that read only constants (run by onnxruntime, all of a graph in one session),
shapes that are known although the data is not, and If with a constant condition (its branch is inlined).

Left alone: what is not deterministic; a result that is larger than `max_bytes` and than what it was computed from;
DequantizeLinear of a constant, Cast of a 16-bit one that is a weight, palettes: somebody made them small on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from irc.ir import ops
from irc.ir.clone import copy_nodes
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.palette import part_of_palette
from irc.ir.types import Array, Constant, Shape
from irc.passes.clean.evaluate import CannotEvaluate, evaluate
from irc.pipeline.contract import Pass, PassContext, PassResult
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, apply_rules, op, var
from irc.rewrite.facts import ints, is_half_weight, static
from irc.rewrite.tracer import Tracer


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Computes constant subgraphs. Exact: the same kernels compute the same numbers, only earlier.

    `max_bytes`: results larger than this are made only when they are no larger than their inputs.
    """

    name: ClassVar[str] = "fold-constants"
    summary: ClassVar[str] = "computes what depends on constants alone"

    max_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError("max-bytes must not be negative")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        from irc.ir.infer import infer

        tracer = Tracer(self.name)
        statistics: dict[str, int] = {}
        changed = True
        while changed:  # a folded target gives shapes, which give more constants
            result = apply_rules(model, RULES, ctx, pass_name=self.name)
            tracer = Tracer(self.name)
            folded = _fold(model.graph, self.max_bytes, tracer)
            changed = result.changed or folded > 0
            for name, count in {**result.statistics, "nodes": folded}.items():
                statistics[name] = statistics.get(name, 0) + count
            if changed:
                infer(model)
        refusals = (*tracer.refusals, *result.refusals)
        return PassResult(any(statistics.values()), {k: v for k, v in statistics.items() if v}, refusals)


def _fold(graph: Graph, max_bytes: int, tracer: Tracer) -> int:
    """Fold one graph and its subgraphs; gives the number of nodes that went."""
    count = 0
    nodes = _foldable(graph, max_bytes, tracer)
    if nodes:
        count += _replace(graph, nodes, max_bytes, tracer)
    for node in graph.nodes:
        for sub in node.subgraphs:
            count += _fold(sub, max_bytes, tracer)
    return count


def _foldable(graph: Graph, max_bytes: int, tracer: Tracer) -> list[Node]:
    """Nodes that read only constants and each other, in topological order. `origin` counts bytes a value comes from."""
    origin: dict[Value, int] = {}
    found = []
    for node in graph.nodes:
        read = [v for v in node.inputs if v is not None]
        read.extend(v for sub in node.subgraphs for v in sub.captured())
        if not all(v.is_constant or v in origin for v in read):
            continue
        if node.is_op("Identity") and node.output.is_output and node.need(0).is_constant:
            continue  # it carries the name of an output
        size = sum(v.constant.nbytes if v.constant is not None else origin[v] for v in dict.fromkeys(read))
        reason = _refusal(node, size, max_bytes)
        if reason is not None:
            tracer.refuse(node, "evaluate", reason)
            continue
        origin.update(dict.fromkeys(node.outputs, size))
        found.append(node)
    return found


def _refusal(node: Node, size: int, max_bytes: int) -> str | None:
    if node.is_op("DequantizeLinear") and node.need(0).is_constant:
        return "a quantized weight stays as small as it is"
    if is_half_weight(node):
        return "a weight stored in 16 bits stays so"
    if part_of_palette(node):
        return "a weight stored as a palette stays so"
    if not ops.is_deterministic(node):
        return "its result is not determined by its inputs"
    made = [_nbytes(v) for v in node.outputs]
    if max(made) > max(max_bytes, size):
        return f"its result has {max(made)} bytes, more than max-bytes={max_bytes} and than its inputs"
    return None


def _nbytes(value: Value) -> int:
    """Bytes of a tensor where they are known, else 0 (checked again after it is computed)."""
    shape = static(value)
    return 0 if shape is None else (math.prod(shape) * value.tensor.dtype.bits + 7) // 8


def _replace(graph: Graph, nodes: list[Node], max_bytes: int, tracer: Tracer) -> int:
    inside = set(nodes)
    captured = {v for n in graph.nodes if n not in inside for s in n.subgraphs for v in s.captured()}
    wanted = [
        v
        for node in nodes
        for v in node.outputs
        if v.is_output or v in captured or any(user not in inside for user in v.users)
    ]
    results = _compute(nodes, wanted, tracer)
    replaced = 0
    for value, constant in results.items():
        if constant.nbytes > max(max_bytes, _region_bytes(nodes)):
            assert value.producer is not None
            tracer.refuse(value.producer, "evaluate", f"its result has {constant.nbytes} bytes, more than max-bytes")
            continue
        graph.replace_uses(value, graph.add_constant(constant, value.name))
        replaced += 1
    before = len(graph)
    dead: set[Node] = set()
    for node in reversed(nodes):
        if not any(v.is_output or v in captured or any(u not in dead for u in v.users) for v in node.outputs):
            dead.add(node)
    graph.remove_nodes(dead)
    return max(before - len(graph), replaced)


def _region_bytes(nodes: list[Node]) -> int:
    read = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v.is_constant)
    return sum(v.constant.nbytes for v in read if v.constant is not None)


def _compute(nodes: list[Node], wanted: list[Value], tracer: Tracer) -> dict[Value, Constant]:
    """All at once; where that fails, node by node, so that one bad node does not stop the others."""
    easy = _views(nodes)
    rest = [v for v in wanted if v not in easy]
    results = {v: c for v, c in easy.items() if v in wanted}
    if not rest:
        return results
    try:
        return results | dict(zip(rest, evaluate(nodes, rest), strict=True))
    except CannotEvaluate:
        return results | _one_by_one(nodes, rest, tracer)


def _one_by_one(nodes: list[Node], wanted: list[Value], tracer: Tracer) -> dict[Value, Constant]:
    """Each wanted value from its own ancestors."""
    results: dict[Value, Constant] = {}
    for value in wanted:
        assert value.producer is not None
        try:
            results[value] = evaluate(_ancestors(value.producer, nodes), [value])[0]
        except CannotEvaluate as error:
            tracer.refuse(value.producer, "evaluate", str(error))
    return results


def _ancestors(node: Node, nodes: list[Node]) -> list[Node]:
    needed = {node}
    for candidate in reversed(nodes):
        if candidate in needed:
            read = [v for v in candidate.inputs if v is not None]
            read.extend(v for sub in candidate.subgraphs for v in sub.captured())
            needed.update(v.producer for v in read if v.producer is not None)
    return [n for n in nodes if n in needed]


def _views(nodes: list[Node]) -> dict[Value, Constant]:
    """Transpose, Reshape and their like of a constant, as views that copy nothing and load only when asked."""
    made: dict[Value, Constant] = {}
    for node in nodes:
        source = node.input(0)
        data = None if source is None else source.constant or made.get(source)
        shape = static(node.output) if node.outputs else None
        if data is None or shape is None or not node.is_op(*_VIEWS):
            continue
        made[node.output] = Constant(data.dtype, shape, _view(data, shape, node))
    return made


_VIEWS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def _view(data: Constant, shape: tuple[int, ...], node: Node) -> Callable[[], Array]:
    perm = node.get_ints("perm", tuple(range(len(data.shape)))[::-1]) if node.op_type == "Transpose" else None
    if perm is not None:
        return lambda: data.numpy().transpose(perm)
    return lambda: data.numpy().reshape(shape)


class ShapeOf(Rule):
    """Shape(x) where the extents asked for are known."""

    name = "shape-of"
    pattern = op("Shape", var("x"))

    def check(self, m: Match) -> str | None:
        dims = _shape_dims(m.root)
        return None if dims is not None and all(isinstance(d, int) for d in dims) else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.constant(_int64([d for d in _shape_dims(m.root) or () if isinstance(d, int)]), m.root.name)


def _shape_dims(node: Node) -> tuple[int | str | None, ...] | None:
    """The extents that a Shape node gives, known or not; None where not even the rank is known."""
    shape = node.need(0).shape
    if shape is None:
        return None
    end = node.attributes.get("end")
    return shape.dims[node.get_int("start") : end if isinstance(end, int) else None]


def _int64(dims: npt.ArrayLike) -> Array:
    return np.array(dims, np.int64)


class PartOfShape(Rule):
    """Gather(Shape(x), i) and Slice(Shape(x), ...) where just the extents picked are known."""

    name = "part-of-shape"
    pattern = op("Gather|Slice")

    def check(self, m: Match) -> str | None:
        return NOT_A_CANDIDATE if _picked(m.root) is None else None

    def rewrite(self, m: Match, edit: Editor) -> Value:
        picked = _picked(m.root)
        assert picked is not None
        return edit.constant(picked, m.root.name)


def _picked(node: Node) -> Array | None:
    shape_node = node.need(0).producer
    dims = _shape_dims(shape_node) if shape_node is not None and shape_node.is_op("Shape") else None
    if dims is None:
        return None
    index = _picked_indices(node, len(dims))
    if index is None or not all(isinstance(dims[i], int) for i in index.reshape(-1)):
        return None
    return _int64([dims[i] for i in index.reshape(-1)]).reshape(index.shape)


def _picked_indices(node: Node, length: int) -> Array | None:
    if node.op_type == "Gather":
        index = node.need(1)
        if not index.is_constant or bool((np.abs(index.numpy() + 0.5) > length).any()):
            return None
        return index.numpy() % length
    starts, ends, steps = ints(node.input(1)), ints(node.input(2)), ints(node.input(4))
    if not starts or not ends or (node.input(4) is not None and not steps):
        return None
    return np.arange(length)[slice(starts[0], ends[0], steps[0] if steps else 1)]


class SizeOf(Rule):
    """Size(x) of a known shape."""

    name = "size-of"
    pattern = op("Size", var("x"))

    def check(self, m: Match) -> str | None:
        return None if static(m["x"]) is not None else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        shape = m["x"].shape
        assert isinstance(shape, Shape)
        return edit.constant(_int64(shape.numel()), m.root.name)


class ConstantIf(Rule):
    """If with a constant condition is its branch."""

    name = "constant-if"
    pattern = op("If")

    def check(self, m: Match) -> str | None:
        return None if m.root.need(0).is_constant else "its condition is not constant"

    def rewrite(self, m: Match, edit: Editor) -> list[Value | None]:
        node, graph = m.root, edit.graph
        branch = node.attributes["then_branch" if bool(node.need(0).numpy().reshape(-1)[0]) else "else_branch"]
        assert isinstance(branch, Graph)
        values: dict[Value, Value] = {}
        for value in branch.constants.values():
            assert value.constant is not None
            values[value] = graph.add_constant(value.constant, value.name)
        copy_nodes(graph, branch.nodes, values, before=node)
        return [values.get(v, v) for v in branch.outputs]


RULES: tuple[Rule, ...] = (ShapeOf(), PartOfShape(), SizeOf(), ConstantIf())
