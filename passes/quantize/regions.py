"""Which nodes become integer kernels, and which tensors are held in 8 bits between them.

A kernel is a group of nodes that a backend runs as one integer loop: no QuantizeLinear may stand inside it. Linear
layers with constant weights always become kernels; other operators only where they stand between kernels, because a
quantize step around a lone float operator costs time and accuracy and gains nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import DType
from irc.pipeline.contract import Refusal

Kind = Literal["linear", "product", "binary", "unary", "average", "same"]

# One 256-entry table each; a backend may also fuse them behind a linear kernel.
_FUNCTIONS = """
Relu Clip Sigmoid Tanh HardSigmoid HardSwish LeakyRelu Elu Selu Celu ThresholdedRelu Softplus Softsign Mish Swish Gelu
Erf Exp Abs Neg Sqrt
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div"))
# These hand the 8-bit numbers through, so the scale is the same on both sides.
_HANDED_THROUGH = """
MaxPool GlobalMaxPool Concat Reshape Transpose Flatten Squeeze Unsqueeze Slice Pad
"""
SAME_SCALE = frozenset(_HANDED_THROUGH.split())
# Means of many numbers lie in a narrower range than the numbers: they get a scale of their own.
AVERAGES = frozenset(("AveragePool", "GlobalAveragePool", "ReduceMean"))
_LINEAR = ("Conv", "Gemm", "MatMul")
_FLOAT_ONLY = ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum")
NO_KERNEL = "has no integer kernel"
_LARGEST_SUM = 2**31 - 1
_LONGEST_TAIL = 16  # elementwise nodes after a kernel


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
        return next(i for i, v in enumerate(self.bias_add.inputs) if v is not None and v.producer is not self.core)

    @property
    def channel_axis(self) -> int:
        """The axis of the layer's data input that its weights sum over."""
        return 1 if self.core.op_type == "Conv" else -1


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one integer loop. `inputs`: the tensors it reads in 8 bits (a linear layer's data first)."""

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


def find_regions(graph: Graph, skip: Collection[str] = (), *, attention: bool = False) -> Regions:
    """Kernels of `graph` (not of its subgraphs). `skip`: names of nodes that must stay in floating point.

    `attention`: the two products of attention are kernels too.
    """
    regions = Regions()
    products = {id(k.nodes[0]): k for node in graph.nodes for k in (_attention(node) if attention else ())}
    claimed: set[int] = set()
    candidates: list[Kernel] = []
    for node in graph.nodes:
        if id(node) in claimed or not _is_float(node):
            continue
        if node.is_op(*_FLOAT_ONLY) and any(v is not None and v.is_constant for v in node.inputs):
            regions.refusals.append(Refusal(node.label, "quantize", f"{node.op_type} {NO_KERNEL}"))
            continue
        kernel = products.get(id(node))
        if kernel is None:
            kernel = _linear_kernel(node, regions.refusals) if node.is_op(*_LINEAR) else _other_kernel(node)
        if kernel is None:
            continue
        if any(named(n, skip) for n in kernel.nodes):
            regions.refusals.append(Refusal(node.label, "quantize", "named by the option skip"))
            continue
        claimed.update(id(n) for n in kernel.nodes)
        candidates.append(kernel)
    regions.kernels = _join_residuals(_between_kernels(candidates))
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
    tail, output = _pointwise_tail(output)
    return Kernel("linear", (*nodes, *tail), (node.need(0),), output, Linear(node, weight, axis, bias, bias_add))


_SCORES = frozenset(("Add", "Sub", "Mul", "Div", "Where"))
_AFTER_SOFTMAX = frozenset(("Where", "IsNaN", "Identity", "Cast"))


def _attention(softmax: Node) -> tuple[Kernel, ...]:
    """The products q k^T and p v on both sides of a softmax over the last axis, where nothing else reads in between."""
    if not softmax.is_op("Softmax") or not _is_float(softmax) or softmax.output.shape is None:
        return ()
    rank = softmax.output.shape.rank
    if softmax.get_int("axis", -1) not in (-1, rank - 1):
        return ()
    nodes, scores = [softmax], softmax.need(0).producer
    while scores is not None and scores.op_type in _SCORES and sole_user(scores.output) is not None:
        nodes.append(scores)
        behind = [v.producer for v in scores.inputs if v is not None and v.shape == softmax.output.shape]
        scores = next((n for n in behind if n is not None and (n.is_op("MatMul") or n.op_type in _SCORES)), None)
    values, output = _reader_of_probabilities(softmax)
    if scores is None or values is None or not (_multiplies_computed(scores) and _multiplies_computed(values)):
        return ()
    if sole_user(scores.output) is None or values.need(0) is not output or values.need(1) is output:
        return ()
    first = Kernel("product", (scores, *nodes), (scores.need(0), scores.need(1)), output)
    return first, Kernel("product", (values,), (output, values.need(1)), values.output)


def _reader_of_probabilities(softmax: Node) -> tuple[Node | None, Value]:
    """The product that alone reads a softmax, and the value that it reads (NaN may have been replaced on the way)."""
    value = softmax.output
    while True:
        readers = {id(n): n for n in value.users}
        if value.is_output or not readers or any(n.graph is not value.graph for n in readers.values()):
            return None, value
        following = [n for n in readers.values() if not n.is_op("IsNaN")]
        if len(following) != 1:
            return None, value
        node = following[0]
        if node.is_op("MatMul"):
            return (node if len(readers) == 1 else None), value
        if node.op_type not in _AFTER_SOFTMAX or node.output.shape != value.shape:
            return None, value
        value = node.output


def _multiplies_computed(node: Node) -> bool:
    """Whether it is a MatMul of two computed matrices (or stacks of them)."""
    if not node.is_op("MatMul") or any(v.is_constant or v.shape is None for v in (node.need(0), node.need(1))):
        return False
    return all(v.shape is not None and v.shape.rank >= 2 for v in (node.need(0), node.need(1)))


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
    if node.op_type == "Conv" and len(shape) not in (3, 4):
        return f"only 1-D and 2-D convolutions have an integer kernel, this one has {len(shape) - 2} spatial dimensions"
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


def _variable(node: Node) -> tuple[Value, ...] | None:
    """The values that an elementwise node is a function of: its inputs but for single numbers. None for other nodes."""
    if node.domain != "" or not _is_float(node):
        return None
    given = [v for v in node.inputs if v is not None]
    if node.op_type in FUNCTIONS:
        return (given[0],) if all(v.is_constant for v in given[1:]) else None
    if node.op_type not in _ARITHMETIC:
        return None
    found = tuple(v for v in given if not (v.is_constant and v.numpy().size == 1))
    return found if found and not any(v.is_constant for v in found) else None


def _pointwise_tail(start: Value) -> tuple[tuple[Node, ...], Value]:
    """The longest run of elementwise nodes after `start` that depend on it alone and end in one value.

    Diamonds such as x * sigmoid(x) are in it. Returns the nodes and that value (`start` where there are none).
    """
    inside = {id(start): start}
    nodes: list[Node] = []
    best: tuple[int, Value] = (0, start)
    while len(nodes) < _LONGEST_TAIL:
        node = next((u for v in inside.values() for u in v.users if u not in nodes and _stays(u, inside, start)), None)
        if node is None:
            break
        nodes.append(node)
        inside[id(node.output)] = node.output
        live = [v for v in inside.values() if v.is_output or any(u not in nodes for u in v.users)]
        if len(live) == 1 and live[0] is node.output:
            best = (len(nodes), node.output)
        if any(v.is_output for v in inside.values()):
            break
    return tuple(nodes[: best[0]]), best[1]


def _stays(node: Node, inside: Mapping[int, Value], start: Value) -> bool:
    if node.graph is not start.graph or node.output.shape != start.shape:
        return False
    variable = _variable(node)
    return variable is not None and all(id(v) in inside for v in variable)


def _other_kernel(node: Node) -> Kernel | None:
    variable = _variable(node)
    if variable is not None:
        if len(set(map(id, variable))) > 1 and not node.is_op("Add", "Mul"):
            return None
        tail, output = _pointwise_tail(node.output)
        kind: Kind = "binary" if len(variable) > 1 else "unary"
        return Kernel(kind, (node, *tail), tuple({id(v): v for v in variable}.values()), output)
    if node.domain != "" or node.op_type not in SAME_SCALE | AVERAGES or any(o.uses for o in node.outputs[1:]):
        return None
    if node.op_type == "Pad" and not _pads_zeros(node):
        return None
    if node.op_type == "Concat":
        inputs = tuple(v for v in node.inputs if v is not None)
        return None if any(v.is_constant for v in inputs) else Kernel("same", (node,), inputs, node.output)
    return Kernel("average" if node.op_type in AVERAGES else "same", (node,), (node.need(0),), node.output)


def _pads_zeros(node: Node) -> bool:
    if node.get_str("mode", "constant") != "constant":
        return False
    value = node.input(2)
    return value is None or (value.is_constant and not np.any(value.numpy()))


def _between_kernels(candidates: Iterable[Kernel]) -> list[Kernel]:
    """Drops the operators that do not stand between integer kernels, until nothing changes.

    Kept: every linear kernel, products of attention, and others whose inputs all come from a kernel or a network input
    and whose output some kernel reads.
    """
    kept = list(candidates)
    while True:
        made = {id(k.output) for k in kept}
        read = {id(v) for k in kept for v in k.inputs}
        still = [
            k
            for k in kept
            if k.kind in ("linear", "product")
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


def _join_residuals(kernels: list[Kernel]) -> list[Kernel]:
    """Sums and products move into the linear kernel that makes one of their operands and nobody else reads.

    The operand then is never rounded to 8 bits. Of two linear kernels the earlier takes the sum: the other one's
    result is read in 8 bits.
    """
    made = {id(k.output): i for i, k in enumerate(kernels) if k.kind == "linear"}
    joined: dict[int, Kernel | None] = dict(enumerate(kernels))
    for i, kernel in enumerate(kernels):
        if kernel.kind != "binary" or len(kernel.inputs) != 2:
            continue
        root = kernel.nodes[0]
        takers = [
            made[id(v)]
            for v in kernel.inputs
            if id(v) in made and sole_user(v) is root and v.shape == root.output.shape
        ]
        if not takers:
            continue
        taker = min(takers)
        linear = joined[taker]
        if linear is None:
            continue
        other = next(v for v in kernel.inputs if v is not linear.output)
        whole = Kernel("linear", (*linear.nodes, *kernel.nodes), (*linear.inputs, other), kernel.output, linear.linear)
        del made[id(linear.output)]
        joined[taker], joined[i] = whole, None
        made[id(whole.output)] = taker
    return [k for k in joined.values() if k is not None]
