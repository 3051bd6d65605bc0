"""Replace linear layers by two thinner ones where that saves multiply-adds.

A matrix W [outputs, inputs] becomes W2 [outputs, r] @ W1 [r, inputs]. A k x k convolution becomes either k x k to r
channels and 1 x 1 to all, or kh x 1 to r channels and 1 x kw to all (Jaderberg et al., "Speeding up Convolutional
Neural Networks with Low Rank Expansions", 2014), whichever needs fewer multiply-adds. With calibration data the error
is that of the output instead of the weights (lowrank.py), the bias takes back its mean, and the first form is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from irc.calibrate.gather import calibrated, gather, sample_count
from irc.calibrate.layers import moment_observer
from irc.calibrate.observers import Observer, SecondMoment
from irc.errors import OptionError
from irc.ir.graph import AttributeValue, Graph, Model, Node, Value
from irc.ir.infer import infer_node
from irc.ir.types import Array, DType
from irc.passes.factorize.lowrank import Decomposition, decompose
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal

_WORTH = 0.9  # share of the multiply-adds above which two layers are no gain over one


@dataclass(frozen=True)
class _Choice:
    """How one layer is replaced. `cost`: multiply-adds over those of the layer."""

    form: str  # "pair" or "spatial"
    found: Decomposition
    rank: int
    cost: float


@dataclass(frozen=True)
class Factorize(Pass):
    """Options. `rank`: of every layer; otherwise the least rank that keeps the share `energy` of the squared output
    (with calibration data) or weights.

    1 - energy is the noise that each layer adds: 0.999 is 30 dB, which most networks bear; 0.95, 13 dB, needs recovery.
    """

    name: ClassVar[str] = "factorize"
    summary: ClassVar[str] = "split linear layers into two of low rank where that saves work"

    rank: int | None = None
    energy: float = 0.999

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise OptionError("rank is out of range", where="factorize", expected="at least 1", got=str(self.rank))
        if not 0 < self.energy <= 1:
            raise OptionError("energy is out of range", where="factorize", expected="(0, 1]", got=str(self.energy))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        refusals, candidates = [], []
        for node in model.graph.nodes:
            if not node.is_op("Conv", "Gemm", "MatMul"):
                continue
            reason = refuse(node)
            if reason:
                refusals.append(Refusal(node.label, self.name, reason))
            else:
                candidates.append(node)
        moments = _moments(model, candidates, ctx)
        lines = []
        for node in candidates:
            choice, reason = self._choose(node, moments.get(id(node)))
            if choice is None:
                refusals.append(Refusal(node.label, self.name, reason))
                continue
            lines.append(_line(node, choice))
            _correct_bias(model.graph, node, choice, moments.get(id(node)))
            _rewrite(model.graph, node, choice)
        return PassResult(bool(lines), {"layers": lines}, tuple(refusals))

    def _choose(self, node: Node, moment: SecondMoment | None) -> tuple[_Choice | None, str]:
        """The cheapest replacement, or why there is none."""
        metric = None
        if moment is not None:
            metric = moment.covariance if _has_bias(node) else moment.moment
        options = []
        found = decompose(_matrix(node), metric)
        rank = self._rank(found)
        outputs, inputs = len(found.left), found.right.shape[1]
        options.append(_Choice("pair", found, rank, rank * (outputs + inputs) / (outputs * inputs)))
        if metric is None and _can_split(node):
            split = decompose(_spatial_matrix(node))
            rank = self._rank(split)
            options.append(_Choice("spatial", split, rank, _spatial_cost(node, rank)))
        best = min(options, key=lambda o: o.cost)
        if best.cost > _WORTH:
            return None, f"rank {best.rank} would need {best.cost:.2f} of its multiply-adds, more than {_WORTH}"
        return best, ""

    def _rank(self, found: Decomposition) -> int:
        return min(self.rank, len(found.singular)) if self.rank is not None else found.rank(self.energy)


def refuse(node: Node) -> str:
    """Why a Conv, Gemm or MatMul cannot be factorized at all; empty where it can."""
    weight = node.need(1)
    if Factorize.name in node.origin.passes:
        return "it is one of two factors already"
    if not weight.is_constant:
        quantized = weight.producer is not None and weight.producer.is_op("DequantizeLinear")
        return "its weights are quantized already: factorize first" if quantized else "its weights are not constant"
    if weight.dtype is not DType.FLOAT:
        return f"its weights are {weight.dtype.value if weight.dtype else 'unknown'}, not float32"
    if len(weight.uses) > 1 or weight.is_output:
        return "other nodes read its weights too, so they would stay beside the factors"
    if node.op_type == "Gemm" and node.get_int("transA"):
        return "its data input is transposed (transA)"
    shape = weight.static_shape()
    if node.op_type == "Conv":
        if node.get_int("group", 1) != 1:
            return "its channels are in groups, which have little to share"
        if len(shape) != 4:
            return f"only 2-D convolutions are factorized, this one has {len(shape) - 2} spatial dimensions"
    elif len(shape) != 2:
        return f"its weights have rank {len(shape)}, not 2"
    if not np.isfinite(weight.numpy()).all():
        return "its weights hold NaN or infinity"
    if not np.count_nonzero(weight.numpy()) > 0.9 * math.prod(shape):
        return "it is sparse: its factors would be dense"
    rows, columns = _matrix(node).shape
    if (rows + columns) > _WORTH * rows * columns:
        return f"a matrix of {rows} x {columns} is too thin for two factors to save anything"
    return ""


def _matrix(node: Node) -> Array:
    """The weights as [outputs, inputs]."""
    weight = node.need(1).numpy()
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1)
    return weight if node.get_int("transB") else weight.T


def _moments(model: Model, nodes: list[Node], ctx: PassContext) -> Mapping[int, SecondMoment]:
    if not calibrated(ctx) or not nodes:
        return {}
    wanted: dict[str, list[Observer]] = {}
    keys: dict[int, tuple[str, str]] = {}
    for node in nodes:
        observer = moment_observer(node, sample_count(ctx))
        if observer is None:
            continue
        name = node.need(0).name
        observers = wanted.setdefault(name, [])
        if all(o.key != observer.key for o in observers):
            observers.append(observer)
        keys[id(node)] = name, observer.key
    statistics = gather(ctx, model, wanted)
    return {node: statistics.get(name, SecondMoment, key) for node, (name, key) in keys.items()}


def _can_split(node: Node) -> bool:
    if node.op_type != "Conv" or node.get_str("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    return min(node.need(1).static_shape()[2:]) > 1


def _spatial_matrix(node: Node) -> Array:
    """[outputs * kw, inputs * kh]."""
    weight = node.need(1).numpy()
    outputs, inputs, kh, kw = weight.shape
    return weight.transpose(0, 3, 1, 2).reshape(outputs * kw, inputs * kh)


def _spatial_cost(node: Node, rank: int) -> float:
    """Multiply-adds of kh x 1 and 1 x kw over those of the layer; the first works on every column of the image."""
    outputs, inputs, kh, kw = node.need(1).static_shape()
    columns = float(node.get_ints("strides", (1, 1))[1])
    entry, result = node.need(0).shape, node.output.shape
    if entry is not None and result is not None:
        width_in, width_out = entry[3], result[3]
        if isinstance(width_in, int) and isinstance(width_out, int):
            columns = width_in / width_out
    return rank * (inputs * kh * columns + outputs * kw) / (outputs * inputs * kh * kw)


def _line(node: Node, choice: _Choice) -> dict[str, Any]:
    return {
        "node": node.name,
        "op": node.op_type,
        "form": choice.form,
        "rank": choice.rank,
        "full_rank": len(choice.found.singular),
        "energy": round(choice.found.kept(choice.rank), 6),
        "multiply_adds": round(choice.cost, 4),
    }


def _has_bias(node: Node) -> bool:
    """Whether a bias can be changed, or one be given."""
    bias = node.input(2)
    if node.op_type == "MatMul" or node.get_float("alpha", 1.0) != 1.0 or node.get_float("beta", 1.0) != 1.0:
        return False
    return bias is None or (bias.is_constant and bias.static_shape() == (len(_matrix(node)),))


def _correct_bias(graph: Graph, node: Node, choice: _Choice, moment: SecondMoment | None) -> None:
    """Add what the factors change on average: E[(W - W2 W1) x]."""
    if moment is None or not _has_bias(node):
        return
    left, right = choice.found.factors(choice.rank)
    change = (_matrix(node).astype(np.float64) - left @ right) @ moment.mean.reshape(-1)
    old = node.input(2)
    data = change + (old.numpy() if old is not None else 0)
    name = old.name if old is not None else f"{node.name}_bias"
    graph.set_input(node, 2, graph.add_constant(data.astype(np.float32), name))
    if old is not None and not old.uses and not old.is_output and old.graph is not None:
        old.graph.remove_constant(old)


def _rewrite(graph: Graph, node: Node, choice: _Choice) -> None:
    left, right = choice.found.factors(choice.rank)
    weight = node.need(1)
    if node.op_type != "Conv":
        first = _first(graph, node, "MatMul", np.ascontiguousarray(right.T), {})
        second = left if node.get_int("transB") else np.ascontiguousarray(left.T)
        graph.set_input(node, 1, graph.add_constant(second, f"{weight.name}_left"))
    elif choice.form == "pair":
        first = _pair(graph, node, left, right)
    else:
        first = _split(graph, node, left, right)
    graph.set_input(node, 0, first)
    node.origin = node.origin.touched(Factorize.name)
    graph.remove_constant(weight)


def _pair(graph: Graph, node: Node, left: Array, right: Array) -> Value:
    """k x k to `rank` channels, then 1 x 1."""
    _, inputs, kh, kw = node.need(1).static_shape()
    first = _first(graph, node, "Conv", right.reshape(-1, inputs, kh, kw), _moved(node, kernel_shape=(kh, kw)))
    second = left[:, :, None, None]
    _become(graph, node, second, kernel_shape=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1))
    return first


def _split(graph: Graph, node: Node, left: Array, right: Array) -> Value:
    """kh x 1 to `rank` channels, then 1 x kw."""
    outputs, inputs, kh, kw = node.need(1).static_shape()
    rank = len(right)
    (sh, sw), (dh, dw) = node.get_ints("strides", (1, 1)), node.get_ints("dilations", (1, 1))
    top, side, bottom, far = node.get_ints("pads", (0, 0, 0, 0))
    moved = _moved(node, kernel_shape=(kh, 1), strides=(sh, 1), pads=(top, 0, bottom, 0), dilations=(dh, 1))
    first = _first(graph, node, "Conv", right.reshape(rank, inputs, kh, 1), moved)
    second = np.ascontiguousarray(left.reshape(outputs, kw, rank).transpose(0, 2, 1))[:, :, None, :]
    _become(graph, node, second, kernel_shape=(1, kw), strides=(1, sw), pads=(0, side, 0, far), dilations=(1, dw))
    return first


def _moved(node: Node, **changed: AttributeValue) -> dict[str, AttributeValue]:
    return {**node.attributes, **changed}


def _become(graph: Graph, node: Node, weight: Array, **attributes: AttributeValue) -> None:
    node.attributes.pop("auto_pad", None)
    node.attributes.update(attributes)
    graph.set_input(node, 1, graph.add_constant(weight, f"{node.need(1).name}_left"))


def _first(graph: Graph, node: Node, op_type: str, weight: Array, attributes: Mapping[str, AttributeValue]) -> Value:
    """The first of the two layers, before `node`; it has no bias."""
    stored = graph.add_constant(weight, f"{node.need(1).name}_right")
    made = graph.add(
        op_type,
        [node.need(0), stored],
        attributes=attributes,
        name=f"{node.name}_factor",
        origin=node.origin.touched(Factorize.name),
        before=node,
    )
    infer_node(made)
    return made.output
