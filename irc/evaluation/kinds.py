"""What the weights of a model take, by the kind of layer that multiplies them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from irc.ir.analysis import macs
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Constant

_RESTORE = ("DequantizeLinear", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity")
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass
class KindCost:
    """All layers of a kind. `bytes`: what they read of constants (scales, codebooks and indices too), each counted
    once; `zeros`: of `parameters`. `macs` None where shapes are not static."""

    kind: str
    layers: int = 0
    parameters: int = 0
    bytes: int = 0
    zeros: int = 0
    macs: int | None = 0

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.parameters if self.parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "layers": self.layers,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "sparsity": round(self.sparsity, 4),
            "macs": self.macs,
        }


def by_kind(model: Model) -> list[KindCost]:
    """The largest first; subgraphs included."""
    found: dict[str, KindCost] = {}
    seen: set[int] = set()
    for node in model.graph.walk():
        name = _kind(node)
        if name:
            row = found.setdefault(name, KindCost(name))
            row.layers += 1
            row.macs = _sum(row.macs, node)
    for constant, reader in _constants(model.graph):
        if id(constant) in seen:
            continue
        seen.add(id(constant))
        name = _kind(reader) or "other"
        row = found.setdefault(name, KindCost(name))
        row.bytes += constant.nbytes
        if constant.dtype.is_float or constant.dtype.is_integer:
            row.parameters += constant.size
            row.zeros += constant.size - int(np.count_nonzero(constant.numpy()))
    return sorted(found.values(), key=lambda row: (-row.bytes, row.kind))


def _sum(total: int | None, node: Node) -> int | None:
    try:
        own = macs(node)
    except ValueError:  # a shape is not static
        own = None
    return None if total is None or own is None else total + own


def _kind(node: Node) -> str:
    """Empty for operators that are no layers."""
    if node.is_op("Conv", "ConvTranspose"):
        groups = node.get_int("group", 1)
        return f"depthwise {node.op_type}" if groups > 1 and _per_group(node) == 1 else node.op_type
    if node.is_op("Gemm", "MatMul"):
        return "Gemm and MatMul"
    if node.is_op(*_RECURRENT):
        return "recurrent"
    return "Gather" if node.is_op("Gather") and not _restores(node) else ""


def _per_group(node: Node) -> int:
    shape = node.need(1).shape
    extent = shape[1] if shape is not None and len(shape) > 1 else None
    return extent if isinstance(extent, int) else 0


def _constants(graph: Graph) -> Iterator[tuple[Constant, Node]]:
    """Every constant with the node that works with it, behind what only restores it."""
    for value in graph.constants.values():
        if value.constant is not None and value.uses:
            yield value.constant, _reader(value)
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from _constants(sub)


def _reader(value: Value) -> Node:
    node = value.uses[0].node
    while node.outputs and node.outputs[0].uses and _restores(node):
        node = node.outputs[0].uses[0].node
    return node


def _restores(node: Node) -> bool:
    """Whether a node makes a weight out of constants: palettes and low-bit numbers are unpacked so."""
    if not node.is_op(*_RESTORE, "Gather", "Add"):
        return False
    return all(v is None or v.is_constant or (v.producer is not None and _restores(v.producer)) for v in node.inputs)
