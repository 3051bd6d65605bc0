"""Which nodes become integer kernels, and which tensors are held in 8 bits between them.

A kernel is a group of nodes that a backend runs as one integer loop: no QuantizeLinear may stand inside it. Linear
layers with constant weights always become kernels; other operators only where they stand between kernels, because a
quantize step around a lone float operator costs time and accuracy and gains nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import DType
from irc.pipeline.contract import Refusal

Kind = Literal["linear", "binary", "unary", "same"]

# One 256-entry table each; a backend may also fuse them behind a linear kernel.
_TABLES = """
Relu Clip Sigmoid Tanh HardSigmoid HardSwish LeakyRelu Elu Selu Celu ThresholdedRelu Softplus Softsign Mish Swish Gelu
Erf Exp Abs Neg Sqrt
"""
UNARY = frozenset(_TABLES.split())
# These hand the 8-bit numbers through (or average them), so the scale is the same on both sides.
_HANDED_THROUGH = """
MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean Concat Reshape Transpose Flatten Squeeze Unsqueeze Slice
Pad
"""
SAME_SCALE = frozenset(_HANDED_THROUGH.split())
_LINEAR = ("Conv", "Gemm", "MatMul")
_LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True)
class Linear:
    """A Conv, Gemm or MatMul by a constant. `axis`: that of the output channels in the weight."""

    core: Node
    weight: Value
    axis: int
    bias: Value | None  # constant; read by the core, or by `bias_add`
    bias_add: Node | None

    @property
    def bias_node(self) -> Node:
        return self.bias_add or self.core

    @property
    def bias_index(self) -> int:
        if self.bias_add is None:
            return 2
        return next(i for i, v in enumerate(self.bias_add.inputs) if v is self.bias)

    @property
    def channel_axis(self) -> int:
        """The axis of the layer's data input that its weights sum over."""
        return 1 if self.core.op_type == "Conv" else -1


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one integer loop. `inputs`: the tensors it reads in 8 bits."""

    kind: Kind
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    output: Value
    linear: Linear | None = None


@dataclass
class Regions:
    """The outcome: kernels in topological order, and why others were left in floating point."""

    kernels: list[Kernel] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def find_regions(graph: Graph, skip: Collection[str] = ()) -> Regions:
    """Kernels of `graph` (not of its subgraphs). `skip`: names of nodes that must stay in floating point."""
    regions = Regions()
    claimed: set[int] = set()
    candidates: list[Kernel] = []
    for node in graph.nodes:
        if id(node) in claimed or not _is_float(node):
            continue
        kernel = _linear_kernel(node, regions.refusals) if node.is_op(*_LINEAR) else _other_kernel(node)
        if kernel is None:
            continue
        if any(named(n, skip) for n in kernel.nodes):
            regions.refusals.append(Refusal(node.label, "quantize", "named by the option skip"))
            continue
        claimed.update(id(n) for n in kernel.nodes)
        candidates.append(kernel)
    regions.kernels = _between_kernels(candidates)
    return regions


def named(node: Node, names: Collection[str]) -> bool:
    return node.name in names or any(n in names for n in node.origin.nodes)


def _is_float(node: Node) -> bool:
    """Only float32 is quantized; half precision models are not touched."""
    return node.output.dtype is DType.FLOAT


def sole_user(value: Value) -> Node | None:
    """The node that alone reads `value`, once; None where there are others or it leaves the graph."""
    if len(value.uses) != 1 or value.is_output:
        return None
    user = value.uses[0].node
    return user if user.graph is value.graph else None


def _linear_kernel(node: Node, refusals: list[Refusal]) -> Kernel | None:
    reason = refuse_linear(node)
    if reason:
        refusals.append(Refusal(node.label, "quantize", reason))
        return None
    weight = node.need(1)
    axis = output_axis(node)
    nodes, output = [node], node.output
    bias, bias_add = node.input(2), None
    if bias is None and node.op_type == "MatMul":
        bias_add = sole_user(output)
        bias = _bias_operand(bias_add, output, weight.static_shape()[axis]) if bias_add else None
        if bias is None or bias_add is None:
            bias_add = None
        else:
            nodes.append(bias_add)
            output = bias_add.output
    activation = sole_user(output)
    if activation is not None and _is_unary(activation):
        nodes.append(activation)
        output = activation.output
    return Kernel("linear", tuple(nodes), (node.need(0),), output, Linear(node, weight, axis, bias, bias_add))


def output_axis(node: Node) -> int:
    """The axis of the output channels in the weight of a Conv, Gemm or MatMul."""
    return 0 if node.op_type == "Conv" or node.get_int("transB") else 1


def refuse_linear(node: Node) -> str:
    """Why a Conv, Gemm or MatMul is not run in integers; empty where it is."""
    data, weight = node.need(0), node.need(1)
    if data.is_constant:
        return "its first input is constant, and only constant weights on the right are quantized"
    if not weight.is_constant:
        produced = weight.producer
        if produced is not None and produced.is_op("DequantizeLinear"):
            return "its weights are quantized already"
        return "its weights are not constant"
    shape = weight.static_shape()
    if node.op_type == "Conv" and len(shape) != 4:
        return f"only 2-D convolutions have an integer kernel, this one has {len(shape) - 2} spatial dimensions"
    if node.op_type != "Conv" and len(shape) != 2:
        return f"its weights have rank {len(shape)}, the integer kernel takes matrices"
    if node.op_type == "Gemm":
        if node.get_int("transA"):
            return "its data input is transposed (transA)"
        if node.get_float("alpha", 1.0) != 1.0 or (node.input(2) is not None and node.get_float("beta", 1.0) != 1.0):
            return "alpha or beta is not 1"
    channels = shape[output_axis(node)]
    bias = node.input(2)
    if bias is not None and not bias.is_constant:
        return "its bias is not constant"
    if bias is not None and bias.static_shape() not in ((channels,), (1, channels)):
        return f"its bias of shape {list(bias.static_shape())} is not one number per output channel"
    if 0 in shape:
        return "its weights are empty"
    if not np.isfinite(weight.numpy()).all():
        return "its weights hold NaN or infinity"
    terms = int(np.prod(shape)) // channels
    if terms * 255 * 127 + 2**30 > _LARGEST_SUM:
        return f"a sum of {terms} products may not fit into 32 bits"
    return ""


def _bias_operand(add: Node | None, output: Value, channels: int) -> Value | None:
    """The constant that `add` adds to `output`, where it is one number per channel of the last axis."""
    if add is None or not add.is_op("Add"):
        return None
    other = add.need(1) if add.need(0) is output else add.need(0)
    if not other.is_constant or other.dtype is not DType.FLOAT:
        return None
    shape = other.static_shape()
    rank = output.shape.rank if output.shape is not None else 0
    fits = bool(shape) and shape[-1] == channels and all(d == 1 for d in shape[:-1]) and len(shape) <= max(rank, 1)
    return other if fits else None


def _is_unary(node: Node) -> bool:
    if node.domain != "" or node.op_type not in UNARY or not _is_float(node):
        return False
    return all(v is None or v.is_constant for v in node.inputs[1:])


def _other_kernel(node: Node) -> Kernel | None:
    if node.is_op("Add", "Mul"):
        return _binary_kernel(node)
    if _is_unary(node):
        return Kernel("unary", (node,), (node.need(0),), node.output)
    if node.domain != "" or node.op_type not in SAME_SCALE or any(o.uses for o in node.outputs[1:]):
        return None
    if node.op_type == "Pad" and not _pads_zeros(node):
        return None
    if node.op_type == "Concat":
        inputs = tuple(v for v in node.inputs if v is not None)
        return None if any(v.is_constant for v in inputs) else Kernel("same", (node,), inputs, node.output)
    return Kernel("same", (node,), (node.need(0),), node.output)


def _binary_kernel(node: Node) -> Kernel | None:
    inputs = (node.need(0), node.need(1))
    if any(v.is_constant for v in inputs):
        return None
    activation = sole_user(node.output)
    if activation is not None and activation.is_op("Relu", "Clip") and _is_unary(activation):
        return Kernel("binary", (node, activation), inputs, activation.output)
    return Kernel("binary", (node,), inputs, node.output)


def _pads_zeros(node: Node) -> bool:
    if node.get_str("mode", "constant") != "constant":
        return False
    value = node.input(2)
    return value is None or (value.is_constant and not np.any(value.numpy()))


def _between_kernels(candidates: Iterable[Kernel]) -> list[Kernel]:
    """Drops the operators that do not stand between integer kernels, until nothing changes.

    Kept: every linear kernel, and others whose inputs all come from a kernel or a network input and whose output
    some kernel reads.
    """
    kept = list(candidates)
    while True:
        made = {id(k.output) for k in kept}
        read = {id(v) for k in kept for v in k.inputs}
        still = [
            k
            for k in kept
            if k.kind == "linear"
            or (id(k.output) in read and all(id(v) in made or comes_in_8_bits(v) for v in k.inputs))
        ]
        if len(still) == len(kept):
            return kept
        kept = still


def comes_in_8_bits(value: Value) -> bool:
    """Network inputs can be quantized where they enter; outputs of DequantizeLinear are 8-bit numbers already."""
    if value.producer is None:
        return not value.is_constant
    return value.producer.is_op("DequantizeLinear")
