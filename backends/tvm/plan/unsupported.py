"""Which nodes of a graph cannot have a kernel whatever the library knows: asked before anything is compiled."""

from __future__ import annotations

from irc.ir.graph import Graph, Node
from irc.ir.types import DType, TensorType

_STORED = frozenset(
    "float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()
)


def unsupported_nodes(graph: Graph) -> list[tuple[str, str]]:
    """(node label, reason) of every such node."""
    found = []
    for node in graph.nodes:
        reason = _reason(node)
        if reason:
            found.append((node.label, reason))
    return found


def _reason(node: Node) -> str:
    if node.domain not in ("", "irc"):
        return f"operator of the unknown domain '{node.domain}'"
    if node.subgraphs:
        return "control flow with a condition or trip count that is not constant"
    weights = node.is_op("DequantizeLinear") and all(v is None or v.is_constant for v in node.inputs)
    for value in (*node.inputs, *node.outputs):
        if value is None or (value.is_constant and weights):
            continue
        if not isinstance(value.type, TensorType):
            return f"value '{value.name}' is a {value.type}, not a tensor"
        if value.type.dtype is DType.STRING:
            return "strings"
        if value.type.dtype.value not in _STORED:
            return f"element type {value.type.dtype.value}"
    return ""
