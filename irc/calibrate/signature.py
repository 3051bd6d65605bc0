"""What a value of a model is, as a hash: the operators, attributes and weights that compute it from the inputs.

Two values with one signature hold the same numbers for the same samples, in whatever model and under whatever name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from irc.ir.analysis import in_order
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Constant, TensorType


def signatures(model: Model) -> dict[Value, str]:
    """Of every value of the main graph, hexadecimal. Names and extents of inputs count, batch sizes do not."""
    found: dict[Value, str] = {}
    _graph(model.graph, found)
    return found


def model_signature(model: Model) -> str:
    """Of the model as a whole: what its outputs are computed by, hexadecimal."""
    found = signatures(model)
    return _hash([v.name for v in model.graph.inputs], [found[v] for v in model.graph.outputs])


def _graph(graph: Graph, found: dict[Value, str]) -> None:
    for i, value in enumerate(graph.inputs):
        name = value.name if graph.parent is None else i
        found[value] = _hash("input", name, _type(value))
    for value in graph.constants.values():
        assert value.constant is not None
        found[value] = _hash("constant", value.constant.digest())
    for node in in_order(graph):
        own = _node(node, found)
        for value in node.outputs:
            found[value] = _hash(own, value.output_index)


def _type(value: Value) -> str:
    """The type but for the first extent, which is the batch."""
    if isinstance(value.type, TensorType) and value.type.shape is not None:
        return f"{value.type.dtype.value}{list(value.type.shape.dims[1:])}"
    return str(value.type)


def _node(node: Node, found: dict[Value, str]) -> str:
    inputs = ["" if v is None else found[v] for v in node.inputs]
    attributes = [(name, _attribute(node.attributes[name], found)) for name in sorted(node.attributes)]
    return _hash(node.domain, node.op_type, node.overload, inputs, attributes)


def _attribute(value: object, outer: Mapping[Value, str]) -> object:
    if isinstance(value, Constant):
        return value.digest()
    if isinstance(value, Graph):
        found = dict(outer)
        _graph(value, found)
        return [len(value.inputs), [found[v] for v in value.outputs]]
    if isinstance(value, tuple):
        return [_attribute(v, outer) for v in value]
    return f"{type(value).__name__} {value!r}"


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
