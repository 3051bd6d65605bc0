"""Zero the least important weights of linear layers, single or in blocks.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (2015). Blocks lie over output x input
channels, so that a kernel that works on vectors of channels can skip them whole. Masks need not be kept: pruned weights
are exactly 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from irc.errors import OptionError
from irc.ir.graph import Model, Node, Value
from irc.ir.types import Array, Constant, DType
from irc.passes.prune.patterns import apply, block_scores, block_sizes, lowest, random_scores
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal

_FEWEST = 256  # weights of a layer: below, zeros save nothing and cost accuracy


@dataclass(frozen=True)
class _Layer:
    """A weight, the linear nodes that share it, and how it is seen as [outputs, inputs, positions]."""

    weight: Value
    nodes: tuple[Node, ...]

    def matrix(self) -> Array:
        data, node = self.weight.numpy(), self.nodes[0]
        if node.op_type == "Conv":
            return data.reshape(*data.shape[:2], -1)
        return (data if node.get_int("transB") else data.T)[:, :, None]

    def restored(self, matrix: Array) -> Array:
        data, node = self.weight.numpy(), self.nodes[0]
        if node.op_type == "Conv" or node.get_int("transB"):
            return matrix.reshape(data.shape)
        return np.ascontiguousarray(matrix[:, :, 0].T)


@dataclass(frozen=True)
class Prune(Pass):
    """Options. `sparsity`: share of the weights to zero, in [0, 1). `block`: outputs x inputs, for `pattern=block`.

    `scope=layer` takes that share of every layer; `global` takes the least of all layers together.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "zero the smallest weights, single or in blocks"

    sparsity: float = 0.5
    pattern: Literal["element", "block"] = "element"
    block: str = "16x4"
    criterion: Literal["magnitude", "random"] = "magnitude"
    scope: Literal["layer", "global"] = "layer"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise OptionError("sparsity is out of range", where="prune", expected="[0, 1)", got=str(self.sparsity))
        _block(self.block)

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        layers, refusals = _layers(model)
        if not layers:
            return PassResult(False, {"layers": [], "sparsity": 0.0}, refusals)
        block = _block(self.block) if self.pattern == "block" else (1, 1)
        matrices = [layer.matrix() for layer in layers]
        if self.criterion == "random":
            scores = [random_scores(m, block, (ctx.seed, i)) for i, m in enumerate(matrices)]
        else:
            scores = [block_scores(m, block) for m in matrices]
        sizes = [block_sizes(m, block) for m in matrices]
        if self.scope == "global":
            dropped = lowest(scores, sizes, self.sparsity)
        else:
            dropped = [lowest([s], [n], self.sparsity)[0] for s, n in zip(scores, sizes, strict=True)]
        changed, lines = False, []
        for layer, matrix, mask in zip(layers, matrices, dropped, strict=True):
            pruned = apply(matrix, mask, block)
            if np.count_nonzero(pruned) != np.count_nonzero(matrix):
                _replace(layer, layer.restored(pruned))
                changed = True
            lines.append(_line(layer, pruned))
        zeros, total = sum(line["zeros"] for line in lines), sum(line["weights"] for line in lines)
        return PassResult(changed, {"layers": lines, "sparsity": round(zeros / total, 6)}, refusals)


def _block(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise OptionError("this is no block", where="prune", expected="outputs x inputs such as 16x4", got=f"'{text}'")
    return int(found[1]), int(found[2])


def _line(layer: _Layer, pruned: Array) -> dict[str, Any]:
    zeros = int(pruned.size - np.count_nonzero(pruned))
    names = [n.name for n in layer.nodes]
    return {"nodes": names, "weights": int(pruned.size), "zeros": zeros, "sparsity": round(zeros / pruned.size, 6)}


def _layers(model: Model) -> tuple[list[_Layer], tuple[Refusal, ...]]:
    """Every weight to prune, once also where layers share it."""
    shared: dict[int, list[Node]] = {}
    refusals = []
    for node in model.graph.walk():
        if not node.is_op("Conv", "Gemm", "MatMul"):
            continue
        reason = _refuse(node)
        if reason:
            refusals.append(Refusal(node.label, "prune", reason))
        else:
            shared.setdefault(id(node.need(1)), []).append(node)
    return [_Layer(nodes[0].need(1), tuple(nodes)) for nodes in shared.values()], tuple(refusals)


def _refuse(node: Node) -> str:
    weight = node.need(1)
    if not weight.is_constant:
        quantized = weight.producer is not None and weight.producer.is_op("DequantizeLinear")
        return "its weights are quantized already: prune first" if quantized else "its weights are not constant"
    if weight.dtype is not DType.FLOAT:
        return f"its weights are {weight.dtype.value if weight.dtype else 'unknown'}, not float32"
    shape = weight.static_shape()
    if node.op_type == "Conv" and shape[1] == 1 and node.get_int("group", 1) > 1:
        return "it is depthwise: a channel has too few weights to lose some"
    if node.op_type != "Conv" and len(shape) != 2:
        return f"its weights have rank {len(shape)}, not 2"
    if weight.constant is not None and weight.constant.size < _FEWEST:
        return f"it has {weight.constant.size} weights, fewer than {_FEWEST}"
    other = next((u for u in weight.uses if u.index != 1 or not u.node.is_op("Conv", "Gemm", "MatMul")), None)
    if other is not None or weight.is_output:
        return f"its weights are also read by {other.node.label if other else 'the caller'}"
    return ""


def _replace(layer: _Layer, data: Array) -> None:
    """One new constant for all nodes that shared the old one, under its name."""
    old = layer.weight
    graph = old.graph
    if graph is None:
        raise ValueError(f"constant '{old.name}' is in no graph")
    new = graph.add_constant(Constant.of(data), old.name)
    for node in layer.nodes:
        if node.graph is not None:
            node.graph.set_input(node, 1, new)
            node.origin = node.origin.touched(Prune.name)
    name = old.name
    graph.remove_constant(old)
    graph.rename(new, name)
