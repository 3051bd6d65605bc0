"""Quantized numbers of a graph: real = (q - zero_point) * scale, and what inputs and outputs of integers stand for.

The graph itself says it: an input of integers is read by a DequantizeLinear, an output of integers is made by a
QuantizeLinear, perhaps with operators between that only move numbers. So a model keeps it wherever it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array, DType

STORED = (DType.INT8, DType.UINT8, DType.INT16)
"""Types that quantized data have."""

_MOVES = """
Reshape Transpose Flatten Squeeze Unsqueeze Identity Slice Gather Pad Concat MaxPool GlobalMaxPool DepthToSpace
SpaceToDepth
"""
MOVES = frozenset(_MOVES.split())
"""Operators whose (first) data input and output are quantized alike: they move numbers, or take the largest."""
_DEPTH = 16


@dataclass(frozen=True)
class Quantization:
    """Parameters of a whole tensor. `scale` is a float32 number."""

    dtype: DType
    scale: float
    zero_point: int

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest integer of the type."""
        info = np.iinfo(self.dtype.numpy)
        return int(info.min), int(info.max)

    @property
    def range(self) -> tuple[float, float]:
        """The real numbers that these stand for."""
        low, high = self.limits
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def quantize(self, x: Array) -> Array:
        """What QuantizeLinear gives for `x`: a division in float32, rounded half to even. NaN: the lowest number."""
        low, high = (limit - self.zero_point for limit in self.limits)
        with np.errstate(over="ignore"):
            steps = np.rint(np.asarray(x, np.float32) / np.float32(self.scale))
        steps = np.clip(np.where(np.isnan(steps), low, steps), low, high)
        q: Array = (steps.astype(np.int32) + self.zero_point).astype(self.dtype.numpy)
        return q

    def dequantize(self, q: Array) -> Array:
        """What DequantizeLinear gives for `q`: float32."""
        steps: Array = np.asarray(q).astype(np.int32) - self.zero_point
        real: Array = steps.astype(np.float32) * np.float32(self.scale)
        return real

    def as_type(self, dtype: DType) -> Quantization | None:
        """The same real numbers in the other 8-bit type; None where there is no such thing."""
        if dtype is self.dtype:
            return self
        if {dtype, self.dtype} != {DType.INT8, DType.UINT8}:
            return None
        return Quantization(dtype, self.scale, self.zero_point + (128 if dtype is DType.UINT8 else -128))

    def same_numbers(self, other: Quantization) -> bool:
        """Whether both stand for the same real numbers, in types that may differ."""
        return other.as_type(self.dtype) == self


def quantization_of(node: Node) -> Quantization | None:
    """The parameters of a QuantizeLinear or DequantizeLinear with one constant scale; None for every other node."""
    if not node.is_op("QuantizeLinear", "DequantizeLinear"):
        return None
    scale, zero = node.input(1), node.input(2)
    dtype = node.need(0).dtype if node.is_op("DequantizeLinear") else node.output.dtype
    if scale is None or not scale.is_constant or scale.dtype is not DType.FLOAT or scale.numpy().size != 1:
        return None
    if dtype not in STORED or dtype is None:
        return None
    if zero is None:
        return Quantization(dtype, float(scale.numpy().reshape(-1)[0]), 0)
    if not zero.is_constant or zero.numpy().size != 1:
        return None
    return Quantization(dtype, float(scale.numpy().reshape(-1)[0]), int(zero.numpy().reshape(-1)[0]))


def of_input(value: Value) -> Quantization | None:
    """What the integers of a graph input stand for: as the first DequantizeLinear behind it says."""
    return next(behind(value, "DequantizeLinear"), None) if value.dtype in STORED else None


def of_output(value: Value) -> Quantization | None:
    """What the integers of a graph output stand for: as the QuantizeLinear before it says."""
    if value.dtype not in STORED:
        return None
    node = before(value)
    return quantization_of(node) if node is not None and node.is_op("QuantizeLinear") else None


def behind(value: Value, op_type: str, depth: int = _DEPTH) -> Iterator[Quantization]:
    """The parameters of every node of this type that reads `value`, at once or behind operators that move numbers."""
    for node in value.users:
        if node.inputs[0] is not value and not node.is_op("Concat"):
            continue
        found = quantization_of(node) if node.is_op(op_type) else None
        if found is not None:
            yield found
        elif node.is_op(*MOVES) and depth:
            yield from behind(node.output, op_type, depth - 1)


def before(value: Value) -> Node | None:
    """The node that `value` comes from, the operators that only move numbers left out."""
    for _ in range(_DEPTH):
        node = value.producer
        if node is None or not node.is_op(*MOVES):
            return node
        value = node.need(0)
    return None


@dataclass(frozen=True)
class Ports:
    """The quantized inputs and outputs of a network, by name: between real numbers and the integers at its ports."""

    inputs: Mapping[str, Quantization]
    outputs: Mapping[str, Quantization]

    @staticmethod
    def of(graph: Graph) -> Ports:
        inputs = {v.name: q for v in graph.inputs if (q := of_input(v)) is not None}
        return Ports(inputs, {v.name: q for v in graph.outputs if (q := of_output(v)) is not None})

    @staticmethod
    def between(real: Graph, quantized: Graph) -> Ports:
        """Of the ports of `quantized` those that are floating point in `real`."""
        found = Ports.of(quantized)
        inputs = {v.name for v in real.inputs if v.dtype is not None and v.dtype.is_float}
        outputs = {v.name for v in real.outputs if v.dtype is not None and v.dtype.is_float}
        return Ports(
            {name: q for name, q in found.inputs.items() if name in inputs},
            {name: q for name, q in found.outputs.items() if name in outputs},
        )

    def feed(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs as the network takes them: real numbers are quantized, integers stay."""
        known = self.inputs
        return {n: known[n].quantize(a) if n in known and a.dtype.kind == "f" else a for n, a in arrays.items()}

    def real_feed(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs as real numbers; `feed` gives the same integers again."""
        return _real(self.inputs, arrays)

    def real(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs as real numbers."""
        return _real(self.outputs, outputs)

    def integers(self, arrays: Mapping[str, Array]) -> bool:
        """Whether these inputs hold integers for a quantized input."""
        return any(arrays[name].dtype.kind in "iu" for name in self.inputs if name in arrays)


NO_PORTS = Ports({}, {})


def _real(known: Mapping[str, Quantization], arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {n: known[n].dequantize(a) if n in known and a.dtype.kind in "iu" else a for n, a in arrays.items()}
