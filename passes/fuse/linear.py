"""Linear operators with constant weights, and what a scale and a shift per output channel makes of them.

    a * (W x + b) + c = (a W) x + (a b + c)        a, b, c: one number per output channel

The linear operator is Conv, ConvTranspose, Gemm or MatMul (whose bias is an Add of a constant behind it). Sums and
products are made in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from irc.ir.graph import Node, Value
from irc.ir.types import Array
from irc.rewrite import Editor
from irc.rewrite.facts import is_dequantized, is_float, is_half_weight, rank

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A linear operator: `node`, and the Add that is its bias where it is a MatMul. `channels`: output channels."""

    node: Node
    add: Node | None
    channels: int

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.node,) if self.add is None else (self.add, self.node)

    @property
    def channel_axis(self) -> int:
        """The axis of the output that counts channels."""
        if self.node.op_type == "MatMul":
            return (rank(self.node.output) or 0) - 1
        return 1

    def bias(self) -> Array | None:
        """float64, one number per channel (or one for all); None where there is none."""
        if self.add is not None:
            return _wide(self.add.need(1)).reshape(-1)
        value = self.node.input(2)
        return None if value is None else _wide(value).reshape(-1)


def linear_before(value: Value, *, with_add: bool = True) -> Linear | str:
    """The linear operator that makes `value` and nothing else reads, or the reason why it cannot be changed.

    The empty reason: `value` does not come from a linear operator at all.
    """
    node, add = value.producer, None
    if node is not None and with_add and node.is_op("Add") and node.need(1).is_constant:
        inner = node.need(0).producer
        if inner is None or not inner.is_op("MatMul"):
            return ""
        add, node = node, inner
    if node is None or not node.is_op(*LINEAR):
        return ""
    for read in (value, node.output):
        if reason := _read_elsewhere(read):
            return reason
    weight = node.need(1)
    if is_dequantized(weight):
        return f"the weight of {node.label} is quantized"
    if weight.producer is not None and is_half_weight(weight.producer):
        return f"the weight of {node.label} is stored in 16 bits"
    if not weight.is_constant or not is_float(weight):
        return f"the weight of {node.label} is not a floating-point constant"
    bias = node.input(2)
    if bias is not None and not bias.is_constant:
        return f"the bias of {node.label} is not constant"
    return _with_channels(node, add)


def _read_elsewhere(value: Value) -> str:
    if value.is_output:
        return f"'{value.name}' is an output of the model"
    return f"'{value.name}' has other readers" if len(value.uses) > 1 else ""


def _with_channels(node: Node, add: Node | None) -> Linear | str:
    weight = node.need(1).constant
    assert weight is not None
    shape = weight.shape
    if node.op_type == "Conv":
        return Linear(node, add, shape[0])
    if node.op_type == "ConvTranspose":
        return Linear(node, add, shape[1] * node.get_int("group", 1))
    if node.op_type == "Gemm":
        return _gemm(node, shape)
    if len(shape) != 2:
        return f"the weight of {node.label} is no matrix"
    made = Linear(node, add, shape[1])
    if add is None:
        return made
    if per_channel(add.need(1), shape[1], made.channel_axis, rank(node.output)) is None:
        return f"what {add.label} adds is not one number per channel"
    return made


def _gemm(node: Node, shape: tuple[int, ...]) -> Linear | str:
    if node.get_float("alpha", 1.0) != 1.0 or node.get_float("beta", 1.0) != 1.0 or node.get_int("transB"):
        return f"{node.label} is not in normal form"
    made = Linear(node, None, shape[1])
    bias = node.input(2)
    if bias is not None and per_channel(bias, shape[1], 1, 2) is None:
        return f"the bias of {node.label} is not one number per channel"
    return made


def per_channel(value: Value, channels: int, axis: int, out_rank: int | None) -> Array | None:
    """A constant that broadcasts along every axis but `axis` of an output, as float64 [channels]; else None."""
    if value.constant is None or not is_float(value) or out_rank is None or len(value.constant.shape) > out_rank:
        return None
    shape = (1,) * (out_rank - len(value.constant.shape)) + value.constant.shape
    if shape[axis] not in (1, channels) or any(d != 1 for i, d in enumerate(shape) if i != axis):
        return None
    return np.broadcast_to(_wide(value).reshape(-1), (channels,))


def _wide(value: Value) -> npt.NDArray[np.float64]:
    return value.numpy().astype(np.float64)


def rescaled(edit: Editor, linear: Linear, a: Array | None, c: Array | None) -> Value:
    """New nodes for a * linear(x) + c (None: 1 and 0). Ask `check_rescaled` first."""
    node, kind = linear.node, linear.node.need(1).tensor.dtype.numpy
    weight, bias = node.need(1), linear.bias()
    new_weight: Value = weight
    if a is not None:
        new_weight = edit.constant(_scaled(linear, a).astype(kind), weight.name)
    total = _total_bias(linear, bias, a, c)
    named = None if total is None else edit.constant(total.astype(kind), f"{node.name}_bias")
    if node.op_type != "MatMul":
        made = edit.node(node.op_type, [node.need(0), new_weight, named], node.attributes, name=node.name)
        return made.output
    product = edit.node("MatMul", [node.need(0), new_weight], name=node.name).output
    return product if named is None else edit.value("Add", [product, named])


def check_rescaled(linear: Linear, a: Array | None, c: Array | None) -> str | None:
    """A reason to refuse: the new weights or bias would not be finite numbers of the weight's type."""
    kind = linear.node.need(1).tensor.dtype.numpy
    with np.errstate(all="ignore"):
        if a is not None and not _finite(_scaled(linear, a).astype(kind)):
            return "the scaled weights are not finite"
        total = _total_bias(linear, linear.bias(), a, c)
        if total is not None and not _finite(total.astype(kind)):
            return "the new bias is not finite"
    return None


def _finite(array: Array) -> bool:
    return bool(np.isfinite(array.astype(np.float64)).all())


def _total_bias(linear: Linear, bias: Array | None, a: Array | None, c: Array | None) -> Array | None:
    if bias is None:
        return None if c is None else np.broadcast_to(c, (linear.channels,))
    total: Any = np.broadcast_to(bias, (linear.channels,))
    total = total if a is None else total * a
    return np.asarray(total if c is None else total + c)


def _scaled(linear: Linear, a: Array) -> Array:
    """The weight, float64, each output channel times its number."""
    weight = _wide(linear.node.need(1))
    if linear.node.op_type == "Conv":
        return np.asarray(weight * a.reshape(-1, *[1] * (weight.ndim - 1)))
    if linear.node.op_type == "ConvTranspose":
        # [C_in, C_out / group, ...]: output channel g * (C_out / group) + j belongs to the inputs of group g.
        groups = linear.node.get_int("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        factor = a.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return np.asarray((split * factor).reshape(weight.shape))
    return np.asarray(weight * a)
