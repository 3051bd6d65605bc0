"""Which nodes of a graph cannot have a kernel whatever the library knows: asked before anything is compiled."""

from __future__ import annotations

from irc.backends.tvm.plan.kinds import stored_half
from irc.ir.graph import Graph, Node, Value
from irc.ir.palette import part_of_palette
from irc.ir.types import DType, TensorType

_STORED = (
    *("float32", "float64", "float16", "bfloat16", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


def unsupported_nodes(graph: Graph) -> list[tuple[str, str]]:
    """(label, reason) of every such node, network input and output."""
    found = []
    for value in (*graph.inputs, *graph.outputs):
        reason = _value_reason(value)
        if reason:
            found.append((f"'{value.name}'", reason))
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
    weights = weights or (len(node.outputs) == 1 and stored_half(node.output) is not None)
    weights = weights or part_of_palette(node)
    for value in (*node.inputs, *node.outputs):
        if value is None or (value.is_constant and weights):
            continue
        if value.type is None and not value.uses and not value.is_output:
            continue  # an optional output that nobody asked for
        reason = _value_reason(value)
        if reason:
            return reason
    return ""


def _value_reason(value: Value) -> str:
    if not isinstance(value.type, TensorType):
        return f"value '{value.name}' is a {value.type}, not a tensor"
    if value.type.dtype is DType.STRING:
        return "strings"
    if value.type.dtype.value not in _STORED:
        return f"element type {value.type.dtype.value}"
    return ""
