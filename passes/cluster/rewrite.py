"""Putting palettes into the graph. Decides nothing."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from irc.calibrate.layers import from_rows, sum_outputs
from irc.ir.graph import Graph, Node, Value
from irc.ir.palette import palette_of
from irc.ir.types import Array, DType, Origin, Shape, TensorType
from irc.passes.cluster.layers import Layer, output_axis

NAME = "cluster"


class Chosen(Protocol):
    """The palettes of a layer."""

    parts: list[slice]  # of the output channels of a group
    codebooks: list[Array]
    indices: Array  # [groups, outputs, k]

    @property
    def corrects(self) -> bool:
        """Whether the bias takes back the mean error."""

    def rounded(self) -> Array: ...


def rewrite(layer: Layer, chosen: Chosen, *, scaled: bool) -> None:
    node, weight = layer.node, layer.weight
    graph = node.graph
    assert graph is not None
    made = chosen.rounded()
    if chosen.corrects and layer.seen is not None:
        change = layer.seen.shift + np.einsum("gok,gk->go", layer.rows - made, layer.seen.mean)
        _shift_bias(graph, node, sum_outputs(node, change))
    shape = weight.static_shape()
    indices = from_rows(node, chosen.indices, shape)
    starts = np.cumsum([0, *(len(c) for c in chosen.codebooks)])[:-1]
    offsets = None
    if len(chosen.parts) > 1:
        each = np.empty(layer.rows.shape[:2], np.int64)
        for part, start in zip(chosen.parts, starts, strict=True):
            each[:, part] = start
        spread = from_rows(node, np.broadcast_to(each[:, :, None], layer.rows.shape), shape)
        offsets = _along(spread, output_axis(node))
    codebook = np.concatenate(chosen.codebooks).astype(np.int8 if layer.integer else np.float32)
    scale = None if layer.integer or not scaled else np.float32(layer.scales.reshape(-1)[0])
    place = _palette(graph, weight, codebook, indices, offsets, scale, node.origin)
    readers = weight.users
    graph.replace_uses(weight, place)
    for reader in (*readers, node):
        reader.origin = reader.origin.touched(NAME)
    graph.remove_constant(weight)


def _along(spread: Array, axis: int) -> Array:
    """`spread`, which varies along `axis` only, with extent 1 everywhere else."""
    index = tuple(slice(None) if i == axis else slice(0, 1) for i in range(spread.ndim))
    return np.ascontiguousarray(spread[index])


def _palette(
    graph: Graph,
    weight: Value,
    codebook: Array,
    indices: Array,
    offsets: Array | None,
    scale: np.float32 | None,
    origin: Origin,
) -> Value:
    """The nodes of `irc.ir.palette` in front of the readers of `weight`."""
    shape = Shape(tuple(indices.shape))
    small = DType.UINT4 if indices.max(initial=0) < 16 else DType.UINT8
    mark = origin.touched(NAME)
    stored = graph.add_constant(indices.astype(small.numpy), f"{weight.name}_indices")
    book = graph.add_constant(codebook, f"{weight.name}_palette")
    wide = TensorType(DType.INT32, shape)
    at = graph.add("Cast", [stored], attributes={"to": DType.INT32.onnx}, types=[wide], origin=mark).output
    if offsets is not None:
        starts = graph.add_constant(offsets.astype(np.int32), f"{weight.name}_starts")
        at = graph.add("Add", [at, starts], types=[wide], origin=mark).output
    type_ = TensorType(DType.from_numpy(codebook.dtype), shape)
    made = graph.add("Gather", [book, at], attributes={"axis": 0}, types=[type_], origin=mark).output
    if scale is None:
        return made
    factor = graph.add_constant(np.asarray(scale, np.float32), f"{weight.name}_scale")
    return graph.add("Mul", [made, factor], types=[type_], origin=mark).output


def _shift_bias(graph: Graph, node: Node, change: Array) -> None:
    """Add `change`, one number for each output channel, to the bias, in steps of its scale where it is quantized."""
    bias = node.need(2)
    if bias.is_constant:
        new = graph.add_constant((bias.numpy() + change).astype(np.float32), bias.name)
        graph.set_input(node, 2, new)
        old: Value = bias
    else:
        restore = bias.producer
        assert restore is not None
        old = restore.need(0)
        steps = np.rint(change / restore.need(1).numpy().astype(np.float64).reshape(-1))
        q = np.clip(old.numpy().astype(np.int64) + steps.astype(np.int64), -(2**30), 2**30).astype(np.int32)
        inputs = [graph.add_constant(q, old.name), *restore.inputs[1:]]
        made = graph.add(
            "DequantizeLinear", inputs, attributes=restore.attributes, types=[bias.type], origin=restore.origin
        )
        graph.set_input(node, 2, made.output)
        if not bias.uses and not bias.is_output:
            graph.remove(restore)
    if not old.uses and not old.is_output:
        graph.remove_constant(old)


def share_codebook(graph: Graph) -> None:
    """One constant for palettes that are equal."""
    found: dict[bytes, Value] = {}
    for node in graph.nodes:
        palette = palette_of(node.output) if node.is_op("Gather") else None
        if palette is None:
            continue
        data = palette.codebook.numpy()
        first = found.setdefault(data.dtype.str.encode() + data.tobytes(), palette.codebook)
        if first is not palette.codebook:
            graph.set_input(node, 0, first)
            if not palette.codebook.uses:
                graph.remove_constant(palette.codebook)
