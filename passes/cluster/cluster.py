"""Weights that share a palette of few values, chosen so that the layer's output changes least.

Han et al., "Deep Compression" (2016), without its training: the values come from k-means weighted by how much the
output feels each weight (the diagonal of H = E[x xT]), indices are assigned one column after another with the error
made up for by the rest (as GPTQ rounds), the values are then fitted once more to that assignment by least squares, and
the bias takes back the mean error. Weights that were quantized before keep their scales: their palette is of int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from irc.calibrate.gather import calibrated, gather, sample_count
from irc.calibrate.layers import from_rows, moment_observer, spread_outputs, sum_outputs, to_rows
from irc.calibrate.observers import Observer, SecondMoment
from irc.errors import OptionError, suggest
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.palette import palette_of
from irc.ir.types import Array, DType, Origin, Shape, TensorType
from irc.passes.cluster.kmeans import assign, fit, kmeans, nearest
from irc.passes.quantize.ranges import decibel
from irc.passes.quantize.rounding import inverse_factor
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal

_FIT = 10**11  # multiply-adds that fitting the values once more may take
_SPARSE = 0.2  # share of zeros from which on they are taken for pruned: they stay zero
_PER_ENTRY = 16  # weights for each entry of a palette: with fewer the palette is a second set of weights


@dataclass(frozen=True)
class _Layer:
    """A weight and its first reader. `rows` [groups, outputs, k] are `scales` [groups, outputs] times the numbers that
    the palette is made of."""

    node: Node
    weight: Value  # what the palette replaces: the constant itself
    rows: Array
    scales: Array
    moment: SecondMoment | None

    @property
    def units(self) -> Array:
        found: Array = self.rows / self.scales[:, :, None]
        return found

    @property
    def importance(self) -> Array:
        """How much the squared output error is that a squared error of each unit makes, [groups, outputs, k]."""
        squares = np.square(self.scales)[:, :, None]
        if self.moment is None:
            return np.broadcast_to(squares, self.rows.shape)
        seen = np.diagonal(self.moment.moment, axis1=1, axis2=2)[:, None, :]
        return np.asarray(squares * seen)

    @property
    def integer(self) -> bool:
        return self.weight.dtype is DType.INT8


@dataclass(frozen=True)
class Cluster(Pass):
    """Options. `bits`: the palette has at most 2^bits values. `scope`: a palette for each `tensor`, for each `group` of
    so many output channels, or one for the whole `model` (its weights are normalized first).

    `rounding=least-squares` needs calibration data and is nearest without it. `skip` names nodes that are left alone.
    """

    name: ClassVar[str] = "cluster"
    summary: ClassVar[str] = "weights that share a palette of few values"

    bits: int = 4
    scope: Literal["tensor", "group", "model"] = "tensor"
    group: int = 16
    rounding: Literal["nearest", "least-squares"] = "least-squares"
    correct_bias: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise OptionError("bits is out of range", where=self.name, expected="1 to 8", got=str(self.bits))
        if self.group < 1:
            raise OptionError("group is out of range", where=self.name, expected="at least 1", got=str(self.group))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError where `skip` names no node."""
        nodes, refusals = self._nodes(model)
        layers = _layers(model, nodes, ctx, self.scope == "model")
        shared = self._shared(layers) if self.scope == "model" and layers else None
        lines = []
        for layer in layers:
            palette = _Chosen(layer, self, shared)
            lines.append(palette.line())
            _rewrite(layer, palette, self)
        if shared is not None:
            _share_codebook(model.graph)
        model.graph.sort()
        return PassResult(bool(lines), {"layers": lines}, tuple(refusals))

    def _nodes(self, model: Model) -> tuple[list[Node], list[Refusal]]:
        known = {n.name for n in model.graph.nodes} | {o for n in model.graph.nodes for o in n.origin.nodes}
        for name in self.skip:
            if name not in known:
                raise OptionError(f"skip names no node: '{name}'", where=self.name, hint=suggest(name, known))
        found: dict[int, Node] = {}
        refusals = []
        for node in model.graph.nodes:
            if not node.is_op("Conv", "Gemm", "MatMul"):
                continue
            reason = "named by the option skip" if _named(node, self.skip) else self._refuse(node)
            if reason:
                refusals.append(Refusal(node.label, self.name, reason))
            else:
                found.setdefault(id(_constant(node)), node)
        return list(found.values()), refusals

    def _refuse(self, node: Node) -> str:
        weight = _constant(node)
        if weight is None:
            made = node.need(1)
            return "its weights are a palette already" if _is_palette(made) else "its weights are not constant"
        if weight.dtype not in (DType.FLOAT, DType.INT8):
            kind = weight.dtype.value if weight.dtype else "unknown"
            return f"its weights are {kind}: a palette is made of float32 or int8"
        shape = weight.static_shape()
        if node.op_type != "Conv" and len(shape) != 2:
            return f"its weights have rank {len(shape)}, not 2"
        data = weight.numpy()
        if not np.isfinite(data.astype(np.float32)).all():
            return "its weights hold NaN or infinity"
        entries = 1 << self.bits
        palettes = 1 if self.scope != "group" else -(-_outputs(node, shape) // self.group)
        if palettes * entries > 1 << 24:
            return f"{palettes} palettes of {entries} entries are too many"
        if data.size < palettes * entries * _PER_ENTRY and self.scope != "model":
            return f"{data.size} weights are too few for {palettes} palettes of {entries} values"
        if len(np.unique(data)) <= entries and self.scope != "model":
            return f"its weights have no more than {entries} values"
        return ""

    def _shared(self, layers: Sequence[_Layer]) -> Array:
        """The codebook of the whole model."""
        units = np.concatenate([layer.units.reshape(-1) for layer in layers])
        # Every layer counts as much as it adds to the noise of its own output.
        weights = []
        for layer in layers:
            importance = np.broadcast_to(layer.importance, layer.rows.shape)
            total = float((importance * np.square(layer.units)).sum())
            weights.append(importance.reshape(-1) / (total if total > 0 else 1.0))
        zero = float(np.mean(units == 0)) >= _SPARSE
        integer = all(layer.integer for layer in layers)
        return np.unique(_storable(kmeans(units, np.concatenate(weights), 1 << self.bits, zero=zero), integer))


class _Chosen:
    """The palettes of one layer, and the weights that they make."""

    def __init__(self, layer: _Layer, options: Cluster, shared: Array | None) -> None:
        self.layer, self.options = layer, options
        outputs = layer.rows.shape[1]
        size = options.group if options.scope == "group" else outputs
        if options.scope == "group" and layer.rows.shape[0] > 1 and layer.node.get_int("group", 1) > 1:
            size = outputs  # the channels of a grouped convolution are told apart by their groups
        self.parts = [slice(i, min(i + size, outputs)) for i in range(0, outputs, size)]
        self.codebooks: list[Array] = []
        self.indices = np.empty(layer.rows.shape, np.int64)
        least = options.rounding == "least-squares" and layer.moment is not None
        factor, order = self._factor() if least else (None, None)
        for part in self.parts:
            self._choose(part, factor, order, shared)

    @property
    def metric(self) -> Array | None:
        """What the error of a layer is measured in: without the mean where a bias takes that back."""
        moment = self.layer.moment
        if moment is None:
            return None
        return moment.covariance if self.corrects else moment.moment

    @property
    def corrects(self) -> bool:
        return self.options.correct_bias and self.layer.moment is not None and _bias_slot(self.layer.node)

    def _factor(self) -> tuple[Array, Array]:
        metric = self.metric
        assert metric is not None
        assert self.layer.moment is not None
        # Few rows show few directions: the others must not be bent, so that what few rows say of them counts less.
        shrink = min(1.0, metric.shape[1] / max(self.layer.moment.count, 1))
        metric = metric + shrink * metric * np.eye(metric.shape[1])
        order = np.argsort(-np.diagonal(metric, axis1=1, axis2=2), axis=1, kind="stable")
        sorted_ = np.take_along_axis(np.take_along_axis(metric, order[:, :, None], 1), order[:, None, :], 2)
        return inverse_factor(sorted_, 0.01), order

    def _choose(self, part: slice, factor: Array | None, order: Array | None, shared: Array | None) -> None:
        layer, count = self.layer, 1 << self.options.bits
        units = layer.units[:, part]
        zeros = layer.rows[:, part] == 0
        pruned = float(zeros.mean()) >= _SPARSE
        if shared is not None:
            codebook = shared
        else:
            importance = np.broadcast_to(layer.importance, layer.rows.shape)[:, part]
            codebook = np.unique(_storable(kmeans(units, importance, count, zero=pruned), layer.integer))
        if factor is None or order is None:
            found = nearest(units, codebook)
        else:
            keep = zeros if pruned else None
            found = assign(layer.rows[:, part], layer.scales[:, part], codebook, factor, order, keep)
            metric = self.metric
            if shared is None and metric is not None and found.size * layer.rows.shape[2] * count < _FIT:
                pinned = int(np.argmin(np.abs(codebook))) if pruned else None
                codebook = _storable(
                    fit(layer.rows[:, part], layer.scales[:, part], found, codebook, metric, pinned), layer.integer
                )
        self.indices[:, part] = found
        self.codebooks.append(codebook)

    def rounded(self) -> Array:
        """The new weights, as `rows`."""
        made = np.empty(self.layer.rows.shape)
        for part, codebook in zip(self.parts, self.codebooks, strict=True):
            made[:, part] = codebook[self.indices[:, part]] * self.layer.scales[:, part, None]
        return made

    def line(self) -> dict[str, Any]:
        layer, made = self.layer, self.rounded()
        error = layer.rows - made
        entries = sum(len(c) for c in self.codebooks)
        line: dict[str, Any] = {
            "node": layer.node.name,
            "op": layer.node.op_type,
            "weights": int(layer.rows.size),
            "palettes": len(self.codebooks),
            "values": entries,
            "bits": max(1, int(np.ceil(np.log2(max(len(c) for c in self.codebooks))))),
            "weight_snr_db": round(decibel(float(np.square(layer.rows).sum()), float(np.square(error).sum())), 2),
        }
        metric = self.metric
        if layer.moment is not None and metric is not None:
            signal = np.einsum("goi,gij,goj->", layer.rows, layer.moment.moment, layer.rows, optimize=True)
            noise = np.einsum("goi,gij,goj->", error, metric, error, optimize=True)
            line["output_snr_db"] = round(decibel(float(signal), float(noise)), 2)
        return line


def _storable(codebook: Array, integer: bool) -> Array:
    """What the codebook becomes when it is stored, float64."""
    if integer:
        return np.clip(np.rint(codebook), -127, 127)
    return codebook.astype(np.float32).astype(np.float64)


def _named(node: Node, names: Sequence[str]) -> bool:
    return node.name in names or any(n in names for n in node.origin.nodes)


def _constant(node: Node) -> Value | None:
    """The constant that holds the weights of a layer: itself, or behind a DequantizeLinear per channel or tensor."""
    weight = node.need(1)
    if weight.is_constant:
        return weight
    restore = weight.producer
    if restore is None or not restore.is_op("DequantizeLinear") or restore.get_int("block_size", 0):
        return None
    scale, zero = restore.need(1), restore.input(2)
    if not restore.need(0).is_constant or not scale.is_constant:
        return None
    if zero is not None and (not zero.is_constant or zero.numpy().any()):
        return None
    if scale.numpy().size > 1 and restore.get_int("axis", 1) % len(weight.static_shape()) != _output_axis(node):
        return None
    return restore.need(0)


def _is_palette(value: Value) -> bool:
    node = value.producer
    inner = node.need(0) if node is not None and node.is_op("DequantizeLinear", "Mul") else value
    return palette_of(inner) is not None


def _output_axis(node: Node) -> int:
    return 0 if node.op_type == "Conv" or node.get_int("transB") else 1


def _outputs(node: Node, shape: tuple[int, ...]) -> int:
    return shape[_output_axis(node)]


def _bias_slot(node: Node) -> bool:
    """Whether the bias of `node` can be changed: a float32 constant, or int32 behind DequantizeLinear."""
    bias = node.input(2)
    if node.op_type == "MatMul" or node.get_float("alpha", 1.0) != 1.0 or node.get_float("beta", 1.0) != 1.0:
        return False
    if bias is None or bias.static_shape() != (_outputs(node, node.need(1).static_shape()),):
        return False
    restore = bias.producer
    return bias.is_constant or (
        restore is not None and restore.is_op("DequantizeLinear") and restore.need(0).is_constant
    )


def _layers(model: Model, nodes: Sequence[Node], ctx: PassContext, normalize: bool) -> list[_Layer]:
    moments = _moments(model, nodes, ctx)
    found = []
    for node in nodes:
        weight = _constant(node)
        assert weight is not None
        moment = moments.get(id(node))
        axis, data = _output_axis(node), weight.numpy().astype(np.float64)
        every = np.ones(data.shape[axis])
        if weight.dtype is DType.INT8:
            restore = node.need(1).producer
            assert restore is not None
            every = every * restore.need(1).numpy().astype(np.float64).reshape(-1)
        elif normalize:
            power = float(np.sqrt(np.square(data).mean()))
            every = every * (float(np.float32(power)) if power > 0 else 1.0)
            data = data / every[0]
        groups = moment.groups if moment is not None else node.get_int("group", 1) if node.op_type == "Conv" else 1
        spread = np.moveaxis(np.moveaxis(data, axis, -1) * every, -1, axis)
        rows = to_rows(node, spread, groups)
        found.append(_Layer(node, weight, rows, spread_outputs(node, every, groups), moment))
    return found


def _moments(model: Model, nodes: Sequence[Node], ctx: PassContext) -> Mapping[int, SecondMoment]:
    if not calibrated(ctx) or not nodes:
        return {}
    wanted: dict[str, list[Observer]] = {}
    keys: dict[int, tuple[str, str]] = {}
    for node in nodes:
        observer = moment_observer(node, sample_count(ctx))
        if observer is None:
            continue
        observers = wanted.setdefault(node.need(0).name, [])
        if all(o.key != observer.key for o in observers):
            observers.append(observer)
        keys[id(node)] = (node.need(0).name, observer.key)
    statistics = gather(ctx, model, wanted)
    found = {}
    for number, key in keys.items():
        seen = statistics.entries[key]
        if isinstance(seen, SecondMoment) and seen.count and np.isfinite(seen.moment).all():
            found[number] = seen
    return found


def _rewrite(layer: _Layer, chosen: _Chosen, options: Cluster) -> None:
    node, weight = layer.node, layer.weight
    graph = node.graph
    assert graph is not None
    made = chosen.rounded()
    if chosen.corrects and layer.moment is not None:
        change = np.einsum("gok,gk->go", layer.rows - made, layer.moment.mean)
        _shift_bias(graph, node, sum_outputs(node, change))
    shape = weight.static_shape()
    indices = from_rows(node, chosen.indices, shape)
    starts = np.cumsum([0, *(len(c) for c in chosen.codebooks)])[:-1]
    offsets = None
    if len(chosen.parts) > 1:
        each = np.empty(layer.rows.shape[:2], np.int64)
        for part, start in zip(chosen.parts, starts, strict=True):
            each[:, part] = start
        spread = from_rows(node, np.broadcast_to(each[:, :, None], layer.rows.shape), shape)
        offsets = _along(spread, _output_axis(node))
    codebook = np.concatenate(chosen.codebooks).astype(np.int8 if layer.integer else np.float32)
    scale = None if layer.integer or options.scope != "model" else np.float32(layer.scales.reshape(-1)[0])
    place = _palette(graph, weight, codebook, indices, offsets, scale, node.origin)
    readers = weight.users
    graph.replace_uses(weight, place)
    for reader in (*readers, node):
        reader.origin = reader.origin.touched(Cluster.name)
    graph.remove_constant(weight)


def _along(spread: Array, axis: int) -> Array:
    """`spread`, which varies along `axis` only, with extent 1 everywhere else."""
    index = tuple(slice(None) if i == axis else slice(0, 1) for i in range(spread.ndim))
    return np.ascontiguousarray(spread[index])


def _palette(
    graph: Graph,
    weight: Value,
    codebook: Array,
    indices: Array,
    offsets: Array | None,
    scale: np.float32 | None,
    origin: Origin,
) -> Value:
    """The nodes of `irc.ir.palette` in front of the readers of `weight`."""
    shape = Shape(tuple(indices.shape))
    small = DType.UINT4 if indices.max(initial=0) < 16 else DType.UINT8
    mark = origin.touched(Cluster.name)
    stored = graph.add_constant(indices.astype(small.numpy), f"{weight.name}_indices")
    book = graph.add_constant(codebook, f"{weight.name}_palette")
    wide = TensorType(DType.INT32, shape)
    at = graph.add("Cast", [stored], attributes={"to": DType.INT32.onnx}, types=[wide], origin=mark).output
    if offsets is not None:
        starts = graph.add_constant(offsets.astype(np.int32), f"{weight.name}_starts")
        at = graph.add("Add", [at, starts], types=[wide], origin=mark).output
    type_ = TensorType(DType.from_numpy(codebook.dtype), shape)
    made = graph.add("Gather", [book, at], attributes={"axis": 0}, types=[type_], origin=mark).output
    if scale is None:
        return made
    factor = graph.add_constant(np.asarray(scale, np.float32), f"{weight.name}_scale")
    return graph.add("Mul", [made, factor], types=[type_], origin=mark).output


def _shift_bias(graph: Graph, node: Node, change: Array) -> None:
    """Add `change`, one number for each output channel, to the bias, in steps of its scale where it is quantized."""
    bias = node.need(2)
    if bias.is_constant:
        new = graph.add_constant((bias.numpy() + change).astype(np.float32), bias.name)
        graph.set_input(node, 2, new)
        old: Value = bias
    else:
        restore = bias.producer
        assert restore is not None
        old = restore.need(0)
        steps = np.rint(change / restore.need(1).numpy().astype(np.float64).reshape(-1))
        q = np.clip(old.numpy().astype(np.int64) + steps.astype(np.int64), -(2**30), 2**30).astype(np.int32)
        inputs = [graph.add_constant(q, old.name), *restore.inputs[1:]]
        made = graph.add(
            "DequantizeLinear", inputs, attributes=restore.attributes, types=[bias.type], origin=restore.origin
        )
        graph.set_input(node, 2, made.output)
        if not bias.uses and not bias.is_output:
            graph.remove(restore)
    if not old.uses and not old.is_output:
        graph.remove_constant(old)


def _share_codebook(graph: Graph) -> None:
    """One constant for palettes that are equal."""
    found: dict[bytes, Value] = {}
    for node in graph.nodes:
        palette = palette_of(node.output) if node.is_op("Gather") else None
        if palette is None:
            continue
        data = palette.codebook.numpy()
        first = found.setdefault(data.dtype.str.encode() + data.tobytes(), palette.codebook)
        if first is not palette.codebook:
            graph.set_input(node, 0, first)
            if not palette.codebook.uses:
                graph.remove_constant(palette.codebook)
