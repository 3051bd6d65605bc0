"""What a model costs: parameters, bytes, multiply-adds and zeros, layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Constant


@dataclass(frozen=True)
class LayerCost:
    """One node. `parameters` and `bytes` of the constants it reads, `sparsity` the share of zeros among them.

    `macs` None where the shapes are not static.
    """

    name: str
    op_type: str
    output: str
    parameters: int
    bytes: int
    sparsity: float
    macs: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op_type": self.op_type,
            "output": self.output,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "sparsity": round(self.sparsity, 4),
            "macs": self.macs,
        }


@dataclass(frozen=True)
class Costs:
    """Totals count a constant once, however many nodes read it."""

    layers: tuple[LayerCost, ...]
    operators: dict[str, int]
    parameters: int
    bytes: int
    sparsity: float
    macs: int | None
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "operators": self.operators,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "sparsity": round(self.sparsity, 4),
            "macs": self.macs,
            "layers": [layer.to_json() for layer in self.layers],
        }


def costs(model: Model) -> Costs:
    """Costs of a model, subgraphs included."""
    zeros: dict[int, int] = {}
    layers = tuple(_layer(node, zeros) for node in model.graph.walk() if not node.is_op("Constant"))
    constants = {id(c): c for c in _constants(model.graph)}.values()
    parameters = sum(c.size for c in constants)
    macs = [layer.macs for layer in layers]
    return Costs(
        layers,
        dict(sorted(Counter(_full_name(n) for n in model.graph.walk()).items(), key=lambda kv: (-kv[1], kv[0]))),
        parameters,
        sum(c.nbytes for c in constants),
        sum(_zeros(c, zeros) for c in constants) / parameters if parameters else 0.0,
        None if None in macs else sum(m for m in macs if m is not None),
        {v.name: str(v.type) for v in model.graph.inputs},
        {v.name: str(v.type) for v in model.graph.outputs},
    )


def _full_name(node: Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _layer(node: Node, zeros: dict[int, int]) -> LayerCost:
    from irc.ir.analysis import macs

    read = {id(v.constant): v.constant for v in node.inputs if v is not None and v.constant is not None}.values()
    size = sum(c.size for c in read)
    try:
        products: int | None = macs(node)
    except ValueError:  # a shape is not static
        products = None
    return LayerCost(
        node.name,
        _full_name(node),
        _type(node.outputs[0]) if node.outputs else "",
        size,
        sum(c.nbytes for c in read),
        sum(_zeros(c, zeros) for c in read) / size if size else 0.0,
        products,
    )


def _type(value: Value) -> str:
    return str(value.type) if value.type is not None else "?"


def _zeros(constant: Constant, known: dict[int, int]) -> int:
    if id(constant) not in known:
        data = constant.numpy()
        known[id(constant)] = 0 if data.dtype.kind in "OSU" else int(data.size - np.count_nonzero(data))
    return known[id(constant)]


def _constants(graph: Graph) -> list[Constant]:
    """Initializers of a graph and of all subgraphs, and the tensors of Constant nodes."""
    found = [v.constant for v in graph.constants.values() if v.constant is not None]
    for node in graph.nodes:
        found.extend(a for a in node.attributes.values() if isinstance(a, Constant) and node.is_op("Constant"))
        for sub in node.subgraphs:
            found.extend(_constants(sub))
    return found
