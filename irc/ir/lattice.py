"""Types as a lattice: `meet` knows what both types know, `join` only what they agree on."""

from __future__ import annotations

from irc.errors import ShapeError
from irc.ir.graph import Node, Value
from irc.ir.types import Dim, OptionalType, SequenceType, Shape, TensorType, ValueType


def meet(a: ValueType | None, b: ValueType | None) -> ValueType | None:
    """What both say together. Raises ValueError when they contradict each other."""
    if a is None or b is None or a == b:
        return a if b is None else b
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.dtype is not b.dtype:
            raise ValueError(f"{a.dtype.value} against {b.dtype.value}")
        return TensorType(a.dtype, _meet_shapes(a.shape, b.shape))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(meet(a.elem, b.elem) or a.elem)
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        return OptionalType(meet(a.elem, b.elem) or a.elem)
    if type(a) is not type(b):
        raise ValueError(f"{a} against {b}")
    return a


def _meet_shapes(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None:
        return a if b is None else b
    if a.rank != b.rank:
        raise ValueError(f"{a} against {b}")
    dims: list[Dim] = []
    for x, y in zip(a, b, strict=True):
        if isinstance(x, int) and isinstance(y, int) and x != y:
            raise ValueError(f"{a} against {b}")
        dims.append(y if isinstance(y, int) or x is None else x)
    return Shape(tuple(dims))


def join(a: ValueType | None, b: ValueType | None) -> ValueType | None:
    """What is true of a value that has either type (the result of an If)."""
    if a is None or b is None:
        return None
    if isinstance(a, TensorType) and isinstance(b, TensorType) and a.dtype is b.dtype:
        if a.shape is None or b.shape is None or a.shape.rank != b.shape.rank:
            return TensorType(a.dtype)
        return TensorType(a.dtype, Shape(tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True))))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        elem = join(a.elem, b.elem)
        return None if elem is None else SequenceType(elem)
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        elem = join(a.elem, b.elem)
        return None if elem is None else OptionalType(elem)
    return a if a == b else None


def refine(node: Node, value: Value, found: ValueType | None) -> None:
    """Let `value` have its own type and `found` together. Raises ShapeError naming `node`."""
    try:
        value.type = meet(value.type, found)
    except ValueError:
        raise ShapeError(
            f"the type of '{value.name}' contradicts its inputs",
            where=node.label,
            expected=str(found),
            got=str(value.type),
        ) from None
