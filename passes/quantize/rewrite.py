"""Putting QuantizeLinear and DequantizeLinear nodes into a graph. Knows the graph, decides nothing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array, Constant, DType, Origin, Shape, TensorType
from irc.passes.quantize.affine import Affine
from irc.passes.quantize.weights import LayerWeights

NAME = "quantize"


class Inserter:
    """Adds the pairs to one graph; constants of equal parameters are shared. Call `finish` at the end."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._parameters: dict[Affine, tuple[Value, Value]] = {}
        self._weights: dict[tuple[int, int | None, bytes, bytes], tuple[Value, Value]] = {}

    def pair(self, value: Value, affine: Affine, readers: Collection[Node] | None, *, clip: bool = False) -> Value:
        """Quantize and dequantize `value`; `readers` (None: everyone, graph outputs too) then read the result.

        `clip`: to the range of `affine` first, where its type reaches further.
        """
        scale, zero_point = self._constants(value.name, affine)
        origin = _origin(value)
        shape = value.shape
        first = self._clipped(value, affine, origin) if clip else None
        quantized = self.graph.add(
            "QuantizeLinear",
            [value if first is None else first.output, scale, zero_point],
            types=[TensorType(DType(affine.dtype), shape)],
            name=f"{value.name}_quantize",
            origin=origin,
        )
        restored = self.graph.add(
            "DequantizeLinear",
            [quantized.output, scale, zero_point],
            types=[TensorType(DType.FLOAT, shape)],
            name=f"{value.name}_dequantize",
            origin=origin,
        )
        if readers is None:
            self.graph.replace_uses(value, restored.output)
            self.graph.set_input(first or quantized, 0, value)
        else:
            for use in value.uses:
                if any(use.node is r for r in readers):
                    self.graph.set_input(use.node, use.index, restored.output)
        return restored.output

    def _clipped(self, value: Value, affine: Affine, origin: Origin) -> Node:
        ends = zip(("low", "high"), affine.range, strict=True)
        low, high = (self.graph.add_constant(np.asarray(r, np.float32), f"{value.name}_{end}") for end, r in ends)
        kind = TensorType(DType.FLOAT, value.shape)
        return self.graph.add("Clip", [value, low, high], types=[kind], name=f"{value.name}_clip", origin=origin)

    def integers(
        self,
        q: Constant | Array,
        scales: Array,
        axis: int | None,
        name: str,
        origin: Origin,
        *,
        zero_points: Array | None = None,
        block: int = 0,
    ) -> Value:
        """A dequantized constant: weights or a bias stored as integers. Without `zero_points` these are 0; `block`: the
        numbers along `axis` that share a scale."""
        stored = self.graph.add_constant(q, f"{name}_q")
        scale = self.graph.add_constant(scales.astype(np.float32), f"{name}_scale")
        zero = [] if zero_points is None else [self.graph.add_constant(zero_points, f"{name}_zero_point")]
        attributes = {"axis": axis} if axis is not None and scales.ndim else {}
        node = self.graph.add(
            "DequantizeLinear",
            [stored, scale, *zero],
            attributes=attributes | ({"block_size": block} if block else {}),
            types=[TensorType(DType.FLOAT, Shape(stored.tensor.shape.dims if stored.tensor.shape else ()))],
            name=f"{name}_dequantize",
            origin=origin.touched(NAME),
        )
        return node.output

    def weight(self, old: Value, new: LayerWeights, origin: Origin) -> Value:
        """The same for weights: layers that share a constant and its integers share the result."""
        key = (id(old), new.axis, new.q.tobytes(), new.scales.tobytes())
        if key not in self._weights:
            made = self.integers(
                new.q, new.scales, new.axis, old.name, origin, zero_points=new.zero_points, block=new.block
            )
            self._weights[key] = (made, old)
        return self._weights[key][0]

    def replace_constant(self, node: Node, index: int, new: Value) -> None:
        """Let `node` read `new`, and drop the old constant once nobody reads it."""
        old = node.input(index)
        self.graph.set_input(node, index, new)
        if old is not None and old.is_constant and not old.uses and not old.is_output and old.graph is not None:
            old.graph.remove_constant(old)

    def finish(self) -> None:
        """Restore the topological order."""
        self.graph.sort()

    def _constants(self, name: str, affine: Affine) -> tuple[Value, Value]:
        if affine not in self._parameters:
            scale = self.graph.add_constant(np.asarray(affine.scale, np.float32), f"{name}_scale")
            zero = self.graph.add_constant(np.asarray(affine.zero_point, affine.dtype), f"{name}_zero_point")
            self._parameters[affine] = (scale, zero)
        return self._parameters[affine]


def _origin(value: Value) -> Origin:
    return (value.producer.origin if value.producer is not None else Origin()).touched(NAME)
