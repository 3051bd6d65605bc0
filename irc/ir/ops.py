"""What is known of operators: their schema, attribute defaults, and a few algebraic facts.

Arity, attributes and types come from `onnx.defs`, never from a list kept here. Only what no schema says is written
down: which operators are commutative, and which compute every output element from the input elements at its place.
onnx is imported on first use, because it costs a third of a second.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from irc.ir.graph import CANONICAL_OPSET, AttributeValue, Graph, Node
from irc.ir.types import Constant, DType

if TYPE_CHECKING:
    import onnx


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMMUTATIVE = _words("Add Mul And Or Xor Equal BitwiseAnd BitwiseOr BitwiseXor Max Min Sum Mean")

_UNARY_ELEMENTWISE = _words("""
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
    Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    """)

_BROADCAST_ELEMENTWISE = _words("""
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike Clip Div Equal Greater GreaterOrEqual Less LessOrEqual
    Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
    """)

_RANDOM = _words("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli")


@functools.cache
def schema(op_type: str, domain: str = "", opset: int | None = None) -> onnx.defs.OpSchema | None:
    """The schema in force at `opset`, or None when onnx does not define the operator.

    Without `opset`: CANONICAL_OPSET for the standard domain, the newest version for other domains.
    """
    import onnx

    domain = "" if domain == "ai.onnx" else domain
    newest = CANONICAL_OPSET if domain == "" else 10_000
    try:
        return onnx.defs.get_schema(op_type, max_inclusive_version=opset or newest, domain=domain)
    except onnx.defs.SchemaError:
        return None


def node_schema(node: Node) -> onnx.defs.OpSchema | None:
    """The schema of a node; None for a custom operator or a model-local function."""
    return schema(node.op_type, node.domain)


@functools.cache
def _defaults(op_type: str, domain: str) -> dict[str, AttributeValue]:
    import onnx

    found = schema(op_type, domain)
    if found is None:
        return {}
    out: dict[str, AttributeValue] = {}
    for name, spec in found.attributes.items():
        if spec.default_value.type != onnx.AttributeProto.UNDEFINED:
            out[name] = _python_value(onnx.helper.get_attribute_value(spec.default_value))
    return out


def _python_value(value: Any) -> AttributeValue:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    assert isinstance(value, int | float)
    return value


def default_attribute(node: Node, name: str) -> AttributeValue | None:
    """The schema's default of an attribute; None where there is none or the operator is unknown."""
    return _defaults(node.op_type, node.domain).get(name)


def attribute(node: Node, name: str) -> AttributeValue | None:
    """The value of an attribute, or the schema's default; None where it has neither."""
    value = node.attributes.get(name)
    return default_attribute(node, name) if value is None else value


def attribute_kind(node: Node, name: str) -> str | None:
    """What the schema wants: "INT", "FLOATS", "GRAPH", ... (names of `AttributeProto.AttributeType`) or None."""
    found = node_schema(node)
    if found is None or name not in found.attributes:
        return None
    return str(found.attributes[name].type.name)


def value_kind(value: AttributeValue) -> str:
    """The `AttributeProto.AttributeType` name of a value. An empty tuple counts as INTS: ask `attribute_kind` first."""
    if isinstance(value, tuple):
        if not value:
            return "INTS"
        kinds = {value_kind(v) for v in value}
        return "FLOATS" if kinds == {"INT", "FLOAT"} else kinds.pop() + "S"
    if isinstance(value, bool | int):
        return "INT"
    if isinstance(value, float):
        return "FLOAT"
    if isinstance(value, str | bytes):
        return "STRING"
    if isinstance(value, Constant):
        return "TENSOR"
    if isinstance(value, Graph):
        return "GRAPH"
    return "TYPE_PROTO"


def is_deterministic(node: Node) -> bool:
    """Whether equal inputs always give equal outputs.

    Random generators never are (a seed only fixes the sequence of results); Dropout is unless it trains; control
    flow is when its body is; of custom operators nothing is known, so they are not.
    """
    if node_schema(node) is None:
        return False
    if node.domain != "":
        return True
    if node.op_type in _RANDOM:
        return False
    if node.op_type == "Dropout":
        mode = node.input(2)
        return mode is None or (mode.constant is not None and not mode.numpy().any())
    return all(is_deterministic(inner) for sub in node.subgraphs for inner in sub.walk())


def is_commutative(node: Node) -> bool:
    """Whether all inputs may be put in any order. (Floating-point sums of more than two still round differently.)"""
    return node.domain == "" and node.op_type in _COMMUTATIVE


def is_unary_elementwise(node: Node) -> bool:
    """One tensor in, one out, of the same shape, each element computed alone. Activations are among them."""
    return node.domain == "" and node.op_type in _UNARY_ELEMENTWISE


def is_elementwise(node: Node) -> bool:
    """Each output element depends only on the input elements at its place, after numpy broadcasting.

    QuantizeLinear and DequantizeLinear are not: their scales may broadcast along an axis or by blocks.
    """
    return node.domain == "" and (node.op_type in _UNARY_ELEMENTWISE or node.op_type in _BROADCAST_ELEMENTWISE)


def is_control_flow(node: Node) -> bool:
    return node.is_op("If", "Loop", "Scan", "SequenceMap")


def small_integers(value: DType) -> bool:
    """Whether this is a type that quantized data is stored in (8 bits or fewer)."""
    return value.is_integer and 0 < value.bits <= 8
