"""What a definition of an operator sees: one node with its operands, and the words to write its formula in.

A definition is a function `f(op: Op) -> list[Tensor]` over `tvm.te` tensors (https://tvm.apache.org/docs, "tensor
expression"). It follows the operator's page in the ONNX standard; it raises `Refused` with a reason for a case that
it does not cover. All shapes are static and all tensors C-contiguous.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder

from irc.ir.types import Array

Expr = Any
"""A scalar TIR expression."""
Tensor = Any
"""A `te.Tensor`."""


class Refused(Exception):
    """This case of the operator is not covered; the message is the reason, in the user's words."""


@dataclass
class Value:
    """An operand: a tensor computed at run time, or (`array`) a constant known now."""

    tensor: Tensor | None = None
    array: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape) if self.array is not None else shape_of(self.tensor)

    @property
    def dtype(self) -> str:
        return str(self.array.dtype) if self.array is not None else dtype_of(self.tensor)


@dataclass
class Op:
    """A node under lowering. `values` are its operands (None: left out), `graph` makes tensors from constants."""

    node: onnx.NodeProto
    attributes: dict[str, Any]
    values: list[Value | None]
    materialize: Callable[[Array], Tensor]
    since: int = 0
    types: dict[str, tuple[str, tuple[int, ...] | None]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.node.op_type)

    @property
    def arity(self) -> int:
        """Number of outputs, counting those left out in the middle."""
        return len(self.node.output)

    def wants(self, i: int) -> bool:
        """Whether output `i` is used."""
        return i < len(self.node.output) and bool(self.node.output[i])

    def has(self, i: int) -> bool:
        """Whether input `i` is given."""
        return i < len(self.values) and self.values[i] is not None

    def value(self, i: int) -> Value:
        value = self.values[i] if i < len(self.values) else None
        if value is None:
            raise Refused(f"input {i} is missing")
        return value

    def tensor(self, i: int) -> Tensor:
        """Input `i` as a tensor, constant or not."""
        value = self.value(i)
        if value.array is not None:
            return self.materialize(value.array)
        return value.tensor

    def optional(self, i: int) -> Tensor | None:
        return self.tensor(i) if self.has(i) else None

    def array(self, i: int, what: str = "") -> Array:
        """Input `i`, which has to be constant."""
        array = self.value(i).array
        if array is None:
            raise Refused(f"input {i}{what and f' ({what})'} is not a constant")
        return array

    def integers(self, i: int, what: str = "") -> list[int]:
        return [int(v) for v in self.array(i, what).reshape(-1)]

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute's value, else the default of the standard, else `default`."""
        value = self.attributes.get(name)
        return default if value is None else value


_names = itertools.count()


def fresh(name: str) -> str:
    """A name no other stage has (schedules find stages by name)."""
    return f"{name}_{next(_names)}"


def restart_names() -> None:
    """Names count from zero again: the same region gives the same text whatever was lowered before."""
    global _names
    _names = itertools.count()


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(d) for d in tensor.shape)


def dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype)


def compute(shape: Sequence[int], formula: Callable[..., Expr], name: str = "t") -> Tensor:
    """The tensor whose element at (i, j, ...) is `formula(i, j, ...)`."""
    shape = tuple(int(d) for d in shape)
    if len(shape) == 0:
        return te.compute((), lambda: formula(), name=fresh(name))
    return te.compute(shape, lambda *index: formula(*index), name=fresh(name))


def elementwise(formula: Callable[..., Expr], *tensors: Tensor, name: str = "t") -> Tensor:
    """`formula` over the elements of the tensors, broadcast as numpy does."""
    shape = np.broadcast_shapes(*[shape_of(t) for t in tensors])
    return compute(shape, lambda *index: formula(*[at(t, index) for t in tensors]), name)


def at(tensor: Tensor, index: Sequence[Expr]) -> Expr:
    """The element of `tensor` broadcast to the rank of `index` (numpy's rule)."""
    shape = shape_of(tensor)
    own = list(index)[len(index) - len(shape) :]
    return element(tensor, [0 if extent == 1 else i for i, extent in zip(own, shape, strict=True)])


def element(tensor: Tensor, index: Sequence[Expr]) -> Expr:
    """The element at a full index."""
    return tensor(*index)


def type_of(value: Expr) -> str:
    """The element type of an expression."""
    return str(value.ty.dtype)


def const(value: Any, dtype: str) -> Expr:
    """A scalar constant (infinities and NaN too)."""
    if dtype == "bool":
        return tirx.const(bool(value), "bool")
    if "float" in dtype:
        return tirx.const(float(value), dtype)
    return tirx.const(int(value), dtype)


def cast(value: Expr, dtype: str) -> Expr:
    if type_of(value) == "float64" and dtype == "float16":  # as onnxruntime; in one step it would be a library call
        value = tirx.Cast("float32", value)
    return value if type_of(value) == dtype else tirx.Cast(dtype, value)


def index32(value: Expr) -> Expr:
    """An integer as an index variable's type."""
    return cast(value, "int32")


def wrap(index: Expr, extent: int) -> Expr:
    """A possibly negative index counted from the end, as the standard allows.

    One out of range is an error of the caller; it is moved into the range, so that no foreign memory is touched.
    """
    index = index32(index)
    return limit(tirx.Select(index < 0, index + extent, index), 0, max(extent - 1, 0))


def limit(value: Expr, low: Expr, high: Expr) -> Expr:
    return tirx.max(tirx.min(value, high), low)


def lowest(dtype: str) -> Any:
    """The identity of Max: minus infinity, or the smallest integer."""
    if dtype == "bool":
        return False
    return -math.inf if "float" in dtype else int(np.iinfo(dtype).min)


def highest(dtype: str) -> Any:
    if dtype == "bool":
        return True
    return math.inf if "float" in dtype else int(np.iinfo(dtype).max)


def axis_of(axis: int, rank: int) -> int:
    if not -rank <= axis < max(rank, 1):
        raise Refused(f"axis {axis} is outside of rank {rank}")
    return axis + rank if axis < 0 else axis


def axes_of(axes: Sequence[int], rank: int) -> list[int]:
    return [axis_of(int(a), rank) for a in axes]


def flatten_index(index: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """The row-major position of `index` in `shape`."""
    position: Expr = 0
    for i, extent in zip(index, shape, strict=True):
        position = position * extent + i
    return position


def unflatten_index(position: Expr, shape: Sequence[int]) -> list[Expr]:
    """The index at a row-major `position` of `shape`."""
    index: list[Expr] = []
    for extent in reversed(list(shape)):
        index.append(0 if extent == 1 else tirx.floormod(position, extent))
        position = tirx.floordiv(position, extent)
    return index[::-1]


def reshape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """`tensor` with its elements in the same order and another shape."""
    old = shape_of(tensor)
    if tuple(shape) == old:
        return tensor
    if 0 in old:
        return compute(shape, lambda *_: const(0, dtype_of(tensor)), "empty")
    if [d for d in shape if d != 1] == [d for d in old if d != 1]:
        return compute(shape, lambda *i: element(tensor, _same_axes(i, shape, old)), "reshape")
    return compute(shape, lambda *i: element(tensor, unflatten_index(flatten_index(i, shape), old)), "reshape")


def _same_axes(index: Sequence[Expr], new: Sequence[int], old: Sequence[int]) -> list[Expr]:
    left = iter([i for i, extent in zip(index, new, strict=True) if extent != 1])
    return [0 if extent == 1 else next(left) for extent in old]


def transpose(tensor: Tensor, order: Sequence[int]) -> Tensor:
    shape = shape_of(tensor)
    place = {axis: i for i, axis in enumerate(order)}
    return compute(
        [shape[a] for a in order], lambda *i: element(tensor, [i[place[a]] for a in range(len(shape))]), "transpose"
    )


def sequential(
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[str],
    inputs: Sequence[Tensor],
    body: Callable[[list[Any], list[Any]], None],
    name: str,
) -> list[Tensor]:
    """Tensors written by a loop nest of its own, for what has no formula per element.

    `body(inputs, outputs)` is called inside an `IRBuilder` and writes to the output buffers; further outputs serve
    as its scratch memory. Buffers are indexed with full indices.
    """
    from tvm.script.ir_builder import tirx as T

    def build(ins: list[Any], outs: list[Any]) -> Any:
        with IRBuilder() as builder:
            with T.seq_scope():
                body([T.buffer_proxy(b) for b in ins], [T.buffer_proxy(b) for b in outs])
            return builder.get().body  # without the scope, which only held the statements together

    name = fresh(name)
    types = list(zip(shapes, dtypes, strict=True))
    made = te.extern(
        [tuple(s) for s in shapes],
        list(inputs),
        build,
        name=name,
        dtype=list(dtypes),
        in_buffers=[tirx.decl_buffer(t.shape, t.dtype, f"{name}_in{i}", layout=None) for i, t in enumerate(inputs)],
        out_buffers=[tirx.decl_buffer(tuple(s), d, f"{name}_out{i}", layout=None) for i, (s, d) in enumerate(types)],
    )
    return [made] if len(shapes) == 1 else list(made)
