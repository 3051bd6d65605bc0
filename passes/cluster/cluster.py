"""Weights that share a palette of few values, chosen so that the layer's output changes least.

Han et al., "Deep Compression" (2016), without its training: the values come from k-means weighted by how much the
output feels each weight (the diagonal of H = E[x xT]). Layers go one after another: each is first fitted to what the
layers before it give by then (`irc.calibrate.sequential`), indices are assigned one column after another with the error
made up for by the rest (as GPTQ rounds), the values are then fitted once more to that assignment by least squares, and
the bias takes back the mean error. Weights that were quantized before keep their scales: their palette is of int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from irc.calibrate.gather import calibrated
from irc.calibrate.sequential import LayerMoments, walk
from irc.errors import OptionError, suggest
from irc.ir.clone import clone
from irc.ir.graph import Model, Node
from irc.ir.types import Array, DType
from irc.passes.cluster.kmeans import assign, fit, kmeans, nearest
from irc.passes.cluster.layers import Layer, bias_slot, constant_of, is_palette, layer_of, named, outputs_of
from irc.passes.cluster.rewrite import NAME, rewrite, share_codebook
from irc.passes.quantize.ranges import decibel
from irc.passes.quantize.rounding import inverse_factor
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal

_FIT = 10**11  # multiply-adds that fitting the values once more may take
_SPARSE = 0.2  # share of zeros from which on they are taken for pruned: they stay zero
_PER_ENTRY = 16  # weights for each entry of a palette: with fewer the palette is a second set of weights


@dataclass(frozen=True)
class Cluster(Pass):
    """Options. `bits`: the palette has at most 2^bits values. `scope`: a palette for each `tensor`, for each `group` of
    so many output channels, or one for the whole `model` (its weights are normalized first).

    `rounding=least-squares` needs calibration data and is nearest without it. `skip` names nodes that are left alone.
    """

    name: ClassVar[str] = NAME
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
        scaled = self.scope == "model"
        shared = self._shared(nodes) if scaled and nodes else None
        lines: dict[Node, dict[str, Any]] = {}

        def finish(node: Node, moments: LayerMoments | None) -> None:
            layer = layer_of(node, moments, normalize=scaled, correct_bias=self.correct_bias)
            palette = _Chosen(layer, self, shared)
            lines[node] = palette.line()
            rewrite(layer, palette, scaled=scaled)

        if calibrated(ctx) and self.rounding == "least-squares" and nodes:
            for wave in walk(model, clone(model), nodes, ctx):
                for moments in wave:
                    finish(moments.node, moments)
        for node in nodes:
            if node not in lines:
                finish(node, None)
        if shared is not None:
            share_codebook(model.graph)
        model.graph.sort()
        return PassResult(bool(lines), {"layers": [lines[n] for n in nodes]}, tuple(refusals))

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
            reason = "named by the option skip" if named(node, self.skip) else self._refuse(node)
            if reason:
                refusals.append(Refusal(node.label, self.name, reason))
            else:
                found.setdefault(id(constant_of(node)), node)
        return list(found.values()), refusals

    def _refuse(self, node: Node) -> str:
        weight = constant_of(node)
        if weight is None:
            made = node.need(1)
            return "its weights are a palette already" if is_palette(made) else "its weights are not constant"
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
        palettes = 1 if self.scope != "group" else -(-outputs_of(node, shape) // self.group)
        if palettes * entries > 1 << 24:
            return f"{palettes} palettes of {entries} entries are too many"
        if data.size < palettes * entries * _PER_ENTRY and self.scope != "model":
            return f"{data.size} weights are too few for {palettes} palettes of {entries} values"
        if len(np.unique(data)) <= entries and self.scope != "model":
            return f"its weights have no more than {entries} values"
        return ""

    def _shared(self, nodes: Sequence[Node]) -> Array:
        """The codebook of the whole model. Every layer counts as much as it adds to the noise of its own weights."""
        layers = [layer_of(n, None, normalize=True, correct_bias=False) for n in nodes]
        units = np.concatenate([layer.units.reshape(-1) for layer in layers])
        weights = []
        for layer in layers:
            total = float((layer.importance * np.square(layer.units)).sum())
            weights.append(layer.importance.reshape(-1) / (total if total > 0 else 1.0))
        zero = float(np.mean(units == 0)) >= _SPARSE
        integer = all(layer.integer for layer in layers)
        return np.unique(_storable(kmeans(units, np.concatenate(weights), 1 << self.bits, zero=zero), integer))


class _Chosen:
    """The palettes of one layer, and the weights that they make."""

    def __init__(self, layer: Layer, options: Cluster, shared: Array | None) -> None:
        self.layer, self.options = layer, options
        outputs = layer.rows.shape[1]
        size = options.group if options.scope == "group" else outputs
        if options.scope == "group" and layer.rows.shape[0] > 1 and layer.node.get_int("group", 1) > 1:
            size = outputs  # the channels of a grouped convolution are told apart by their groups
        self.parts = [slice(i, min(i + size, outputs)) for i in range(0, outputs, size)]
        self.codebooks: list[Array] = []
        self.indices = np.empty(layer.rows.shape, np.int64)
        factor, order = self._factor() if layer.seen is not None else (None, None)
        for part in self.parts:
            self._choose(part, factor, order, shared)

    @property
    def corrects(self) -> bool:
        return self.options.correct_bias and self.layer.seen is not None and bias_slot(self.layer.node)

    def _factor(self) -> tuple[Array, Array]:
        assert self.layer.seen is not None
        metric = self.layer.seen.metric
        # Few rows show few directions: the others must not be bent, so that what few rows say of them counts less.
        shrink = min(1.0, metric.shape[1] / max(self.layer.seen.count, 1))
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
            metric = None if layer.seen is None else layer.seen.metric
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
        error = layer.original - made
        power = float(np.square(layer.original).sum())
        line: dict[str, Any] = {
            "node": layer.node.name,
            "op": layer.node.op_type,
            "weights": int(layer.rows.size),
            "palettes": len(self.codebooks),
            "values": sum(len(c) for c in self.codebooks),
            "bits": max(1, int(np.ceil(np.log2(max(len(c) for c in self.codebooks))))),
            "weight_snr_db": round(decibel(power, float(np.square(error).sum())), 2),
        }
        if layer.seen is not None:
            rest, metric = layer.rows - made, layer.seen.metric
            signal = np.einsum("goi,gij,goj->", layer.rows, metric, layer.rows, optimize=True)
            noise = np.einsum("goi,gij,goj->", rest, metric, rest, optimize=True)
            line["output_snr_db"] = round(decibel(float(signal), float(noise)), 2)
        return line


def _storable(codebook: Array, integer: bool) -> Array:
    """What the codebook becomes when it is stored, float64."""
    if integer:
        return np.clip(np.rint(codebook), -127, 127)
    return codebook.astype(np.float32).astype(np.float64)
