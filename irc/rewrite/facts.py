"""Small questions that rules ask of values. "Unknown" always answers as the careful side wants."""

from __future__ import annotations

from irc.ir.graph import Node, Value
from irc.ir.types import DType, Shape, TensorType


def is_static(value: Value) -> bool:
    """Whether rank and all extents are known numbers."""
    shape = value.shape
    return shape is not None and shape.is_static


def static(value: Value | None) -> tuple[int, ...] | None:
    """The extents, or None where they are not all known numbers."""
    if value is None or value.shape is None or not value.shape.is_static:
        return None
    return value.shape.static()


def rank(value: Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank


def same_shape(a: Shape | None, b: Shape | None) -> bool:
    """Whether two shapes are provably equal: every extent the same number or the same symbol."""
    return a is not None and b is not None and a == b and all(d is not None for d in a)


def same_type(a: Value, b: Value) -> bool:
    """Whether two tensors provably have the same element type and shape."""
    return a.dtype is not None and a.dtype is b.dtype and same_shape(a.shape, b.shape)


def cannot_widen(constant: Value, x: Value) -> bool:
    """Whether broadcasting x against this constant surely leaves the shape of x: it is one number of no higher rank."""
    data, n = constant.constant, rank(x)
    return data is not None and n is not None and data.size == 1 and len(data.shape) <= n


def ints(value: Value | None) -> tuple[int, ...] | None:
    """The elements of an integer constant, or None for anything else."""
    if value is None or value.constant is None or not value.constant.dtype.is_integer:
        return None
    return tuple(int(v) for v in value.numpy().reshape(-1))


def is_float(value: Value | None) -> bool:
    """A float16, bfloat16, float32 or float64 tensor."""
    return value is not None and value.dtype in (DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16)


def sole_user(value: Value) -> Node | None:
    """The only node input that reads this value; None when it is read more or less often, or is an output."""
    return value.uses[0].node if len(value.uses) == 1 and not value.is_output else None


def tensor_type(value: Value) -> TensorType | None:
    return value.type if isinstance(value.type, TensorType) else None


def normalized(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Axes counted from the front."""
    return tuple(a + rank if a < 0 else a for a in axes)


def is_dequantized(value: Value | None) -> bool:
    """Whether a value is a constant behind DequantizeLinear: a weight that must stay as small as it is."""
    producer = None if value is None else value.producer
    return producer is not None and producer.is_op("DequantizeLinear") and producer.need(0).is_constant


def is_half_weight(node: Node) -> bool:
    """Whether `node` restores float32 weights of a linear operator that somebody stored in 16 bits on purpose."""
    if not node.is_op("Cast") or not node.need(0).is_constant or node.output.dtype is not DType.FLOAT:
        return False
    if node.need(0).dtype not in (DType.FLOAT16, DType.BFLOAT16):
        return False
    return any(use.index in weight_inputs(use.node) for use in node.output.uses)


def weight_inputs(node: Node) -> tuple[int, ...]:
    """Which inputs of a linear or recurrent operator are weights that it multiplies."""
    if node.is_op("LSTM", "GRU"):
        return 1, 2
    return (1,) if node.is_op("Conv", "Gemm", "MatMul") else ()
