"""The linear layers that pruning works on, and their weights as blocks.

A weight [outputs, inputs, positions] is cut into blocks over outputs x inputs, each kernel position for itself. `Form`
lays it out so that blocks are neighbouring columns of units (rows that share a mask), padded with zeros where blocks do
not fill the edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from irc.calibrate.layers import from_rows, to_rows
from irc.ir.analysis import macs
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array, Constant, DType
from irc.passes.prune.obs import Grid
from irc.pipeline.contract import Refusal

NAME = "prune"
_FEWEST = 256  # weights of a layer: below, zeros save nothing and cost accuracy


@dataclass(frozen=True)
class Pattern:
    """Which weights go together: blocks of `outputs` x `inputs`; with `run`, at least `zeros` of `run` inputs."""

    outputs: int = 1
    inputs: int = 1
    run: int = 0
    zeros: int = 0

    @property
    def grid(self) -> Grid:
        return Grid(self.inputs, self.run, self.zeros)


@dataclass(eq=False)
class Layer:
    """A weight and the linear nodes that share it. `replace` changes it."""

    weight: Value
    nodes: tuple[Node, ...]

    @property
    def node(self) -> Node:
        return self.nodes[0]

    @property
    def own_groups(self) -> int:
        return self.node.get_int("group", 1) if self.node.op_type == "Conv" else 1

    @property
    def positions(self) -> int:
        shape = self.weight.static_shape()
        return math.prod(shape[2:]) if self.node.op_type == "Conv" else 1

    @property
    def size(self) -> int:
        return math.prod(self.weight.static_shape())

    @property
    def name(self) -> str:
        return self.node.name or self.weight.name

    def rows(self, groups: int) -> Array:
        """The weights as [groups, outputs, k]."""
        return to_rows(self.node, self.weight.numpy(), groups)

    def replace(self, rows: Array) -> None:
        """Give all nodes that share the weight a new one, [groups, outputs, k], under its name."""
        old, graph = self.weight, self.weight.graph
        if graph is None:
            raise ValueError(f"constant '{old.name}' is in no graph")
        data = from_rows(self.node, rows.astype(np.float32), old.static_shape())
        new = graph.add_constant(Constant.of(data), old.name)
        for node in self.nodes:
            if node.graph is not None:
                node.graph.set_input(node, 1, new)
                node.origin = node.origin.touched(NAME)
        name = old.name
        graph.remove_constant(old)
        graph.rename(new, name)
        self.weight = new

    def macs(self) -> int | None:
        """Multiply-adds of one sample by all nodes; None where shapes are not static."""
        counts = [_sample_macs(n) for n in self.nodes]
        return None if None in counts else sum(c for c in counts if c is not None)


@dataclass(frozen=True)
class Form:
    """How rows [groups, outputs, k] are laid out as units [groups, units, rows, columns] of blocks."""

    groups: int
    outputs: int
    k: int
    pattern: Pattern
    order: Array  # the column of the rows that stands at each column; -1: padding

    @staticmethod
    def of(groups: int, outputs: int, k: int, positions: int, pattern: Pattern) -> Form:
        width = pattern.run or pattern.inputs
        channels = k // positions
        channel = np.arange(-(-channels // width) * width).reshape(-1, 1, width)
        order = np.where(channel < channels, channel * positions + np.arange(positions)[:, None], -1)
        return Form(groups, outputs, k, pattern, order.reshape(-1))

    @property
    def units(self) -> int:
        return -(-self.outputs // self.pattern.outputs)

    def fold(self, rows: Array) -> Array:
        """[groups, outputs, k] -> [groups, units, rows, columns]"""
        padded = np.pad(rows, ((0, 0), (0, -self.outputs % self.pattern.outputs), (0, 1)))
        found: Array = padded[:, :, self.order].reshape(self.groups, self.units, self.pattern.outputs, -1)
        return found

    def unfold(self, units: Array) -> Array:
        """The inverse of `fold`."""
        rows = units.reshape(self.groups, -1, len(self.order))[:, : self.outputs]
        found = np.zeros((self.groups, self.outputs, self.k), units.dtype)
        real = self.order >= 0
        found[:, :, self.order[real]] = rows[:, :, real]
        return found

    def metric(self, metric: Array) -> Array:
        """H [k, k] of one group in the order of the columns; padding depends on nothing."""
        padded = np.pad(metric, ((0, 1), (0, 1)))
        found: Array = padded[np.ix_(self.order, self.order)]
        at = np.flatnonzero(self.order < 0)
        found[at, at] = max(float(np.trace(metric)) / max(len(metric), 1), 1e-12)
        return found

    def blocks(self, units: Array) -> Array:
        """Sums over the blocks of [groups, units, rows, columns]: [groups, units, blocks]."""
        summed: Array = units.reshape(*units.shape[:3], -1, self.pattern.inputs).sum(axis=(2, 4))
        return summed

    def sizes(self) -> Array:
        """Weights of each block, int64 [groups, units, blocks]; 0 for padding."""
        return self.blocks(self.fold(np.ones((self.groups, self.outputs, self.k), np.int64)))

    def spread(self, blocks: Array) -> Array:
        """A flag of each block for each of its weights: [groups, outputs, k]."""
        columns = blocks.repeat(self.pattern.inputs, axis=2)
        return self.unfold(np.repeat(columns[:, :, None], self.pattern.outputs, axis=2))


def find_layers(model: Model) -> tuple[list[Layer], tuple[Refusal, ...]]:
    """Every weight to prune, once also where layers share it."""
    shared: dict[int, list[Node]] = {}
    refusals = []
    for node in model.graph.walk():
        if not node.is_op("Conv", "Gemm", "MatMul"):
            continue
        reason = _refuse(node)
        if reason:
            refusals.append(Refusal(node.label, NAME, reason))
        else:
            shared.setdefault(id(node.need(1)), []).append(node)
    layers = []
    for nodes in shared.values():
        views = {(n.op_type, n.get_int("transB"), n.get_int("group", 1)) for n in nodes}
        if len(views) == 1:
            layers.append(Layer(nodes[0].need(1), tuple(nodes)))
        else:
            reason = "its weights are read in another way by " + nodes[1].label
            refusals.extend(Refusal(n.label, NAME, reason) for n in nodes)
    return layers, tuple(refusals)


def _refuse(node: Node) -> str:
    weight = node.need(1)
    if not weight.is_constant:
        quantized = weight.producer is not None and weight.producer.is_op("DequantizeLinear")
        return "its weights are quantized already: prune first" if quantized else "its weights are not constant"
    if weight.dtype is not DType.FLOAT:
        return f"its weights are {weight.dtype.value if weight.dtype else 'unknown'}, not float32"
    shape = weight.static_shape()
    if node.op_type == "Conv" and shape[1] == 1 and node.get_int("group", 1) > 1:
        return "it is depthwise: a channel has too few weights to lose some"
    if node.get_int("transA"):
        return "its data are transposed"
    if node.op_type != "Conv" and len(shape) != 2:
        return f"its weights have rank {len(shape)}, not 2"
    if weight.constant is not None and weight.constant.size < _FEWEST:
        return f"it has {weight.constant.size} weights, fewer than {_FEWEST}"
    other = next((u for u in weight.uses if u.index != 1 or not u.node.is_op("Conv", "Gemm", "MatMul")), None)
    if other is not None or weight.is_output:
        return f"its weights are also read by {other.node.label if other else 'the caller'}"
    if not np.isfinite(weight.numpy()).all():
        return "its weights hold NaN or infinity"
    return ""


def _sample_macs(node: Node) -> int | None:
    """Multiply-adds with a symbolic first dimension taken as 1."""
    found = macs(node)
    if found is not None:
        return found
    shape = node.output.shape
    extents = shape.dims[1:] if shape is not None else ()
    known = [d for d in extents if isinstance(d, int)]
    if not extents or len(known) < len(extents):
        return None
    weight = node.need(1).static_shape()
    sums = math.prod(weight[1:]) if node.op_type == "Conv" else weight[1 if node.get_int("transB") else 0]
    return math.prod(known) * sums


@dataclass(frozen=True)
class BiasPlace:
    """Where the bias of a layer is, or could be: input `index` of `node`, [outputs] in `shape`."""

    node: Node
    index: int
    value: Value | None

    def add(self, shift: Array) -> None:
        """Add `shift` [outputs] to it."""
        graph: Graph | None = self.node.graph
        if graph is None:
            raise ValueError(f"{self.node.label} is in no graph")
        if self.value is None:
            name = f"{self.node.name or self.node.output.name}_bias"
            graph.set_input(self.node, self.index, graph.add_constant(Constant.of(shift.astype(np.float32)), name))
            return
        data = self.value.numpy()
        made = (data.reshape(-1).astype(np.float64) + shift).astype(data.dtype).reshape(data.shape)
        old = self.value
        graph.set_input(self.node, self.index, graph.add_constant(Constant.of(made), old.name))
        if not old.uses and not old.is_output and old.graph is graph:
            graph.remove_constant(old)


def bias_place(layer: Layer) -> tuple[BiasPlace, ...]:
    """One place for each node of the layer; empty where any has none."""
    found = [_bias_place(node, layer) for node in layer.nodes]
    return tuple(f for f in found if f is not None) if None not in found else ()


def _bias_place(node: Node, layer: Layer) -> BiasPlace | None:
    shape = layer.weight.static_shape()
    outputs = shape[0] if node.op_type == "Conv" or node.get_int("transB") else shape[1]
    if node.op_type != "MatMul":
        if node.get_float("alpha", 1.0) != 1.0 or node.get_float("beta", 1.0) != 1.0:
            return None
        bias = node.input(2)
        if bias is None:
            return BiasPlace(node, 2, None)
        fits = bias.is_constant and bias.static_shape() in ((outputs,), (1, outputs)) and bias.dtype is DType.FLOAT
        return BiasPlace(node, 2, bias) if fits else None
    users = node.output.users
    if len(users) != 1 or node.output.is_output or not users[0].is_op("Add") or users[0].graph is not node.graph:
        return None
    for index, value in enumerate(users[0].inputs):
        if value is not None and value.is_constant and value.dtype is DType.FLOAT:
            extents = value.static_shape()
            if extents and extents[-1] == outputs and value.numpy().size == outputs:
                return BiasPlace(users[0], index, value)
    return None
