"""8-bit post-training quantization, as QuantizeLinear/DequantizeLinear pairs around integer kernels.

Weights are symmetric int8 in [-127, 127]; biases are int32 at the scale input x weight; activations are 8 bits with a
range from calibration. What stands between the pairs is chosen so that each group of nodes is one integer kernel
(`regions.py`). Nagel et al., "A White Paper on Neural Network Quantization" (2021), chapter 3.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from irc.calibrate.collect import Statistics
from irc.calibrate.gather import calibrated, gather, sample_count
from irc.calibrate.layers import from_rows, moment_observer, spread_outputs, sum_outputs, to_rows
from irc.calibrate.observers import ChannelMean, ChannelOctaves, Histogram, Observer, SecondMoment
from irc.errors import DataError, OptionError, suggest
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array, DType
from irc.passes.quantize.affine import (
    Affine,
    asymmetric,
    bias_scales,
    dequantize_weight,
    quantize_bias,
    quantize_weight,
    scales_for_bias,
    symmetric,
    weight_scales,
)
from irc.passes.quantize.correction import conv_correction, matrix_correction
from irc.passes.quantize.equalize import equalize, find_links, observer
from irc.passes.quantize.given import coarse_bias, given_scales
from irc.passes.quantize.mixed import Fitted, Rounded, fit_drop
from irc.passes.quantize.ranges import Calibrator, Range, choose, decibel, saturation, signal_to_noise
from irc.passes.quantize.regions import NO_KERNEL, Kernel, Linear, Regions, find_regions
from irc.passes.quantize.rewrite import NAME, Inserter
from irc.passes.quantize.rounding import mean_error, round_least_squares
from irc.passes.quantize.store_half import store_half
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal


@dataclass(frozen=True)
class Quantize(Pass):
    """Options. `activations=none` stores weights in int8 (or, `weights=float16`, in 16 bits: `store_half.py`) and
    computes in floating point.

    `scheme` is that of the activations: asymmetric ones have the 8-bit type that the target's dot product wants
    (uint8 without a target), symmetric ones are int8 with zero point 0. `percentile` counts for that calibrator only.
    `attention`: its two products take 8 bits too (queries, keys, values and softmax results).
    `rounding=least-squares` rounds weights for the least change of the layer's output. `skip` names nodes that stay
    in floating point. `bits=free` gives each layer the steps that an entropy coder stores in the fewest bits at an
    estimated loss of `drop` points (`mixed.py`).
    """

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "8-bit weights and activations from calibration data"

    weights: Literal["int8", "float16", "bfloat16"] = "int8"
    activations: Literal["int8", "none"] = "int8"
    per_channel: bool = True
    scheme: Literal["symmetric", "asymmetric"] = "asymmetric"
    calibrator: Calibrator = "mse"
    percentile: float = 99.99
    rounding: Literal["nearest", "least-squares"] = "least-squares"
    equalize: bool = True
    correct_bias: bool = True
    attention: bool = True
    bits: Literal["fixed", "free"] = "fixed"
    drop: float = 1.0
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.drop <= 100:
            raise OptionError("drop is out of range", where=NAME, expected="points in (0, 100]", got=str(self.drop))
        if self.bits == "free" and (self.weights != "int8" or self.activations != "int8" or not self.per_channel):
            raise OptionError(
                "free steps are for int8 weights with a scale per channel and int8 activations",
                where=NAME,
                hint="quantize{bits=free drop=1} without weights, activations and per-channel",
            )
        if not 50 < self.percentile <= 100:
            raise OptionError("percentile is out of range", where=NAME, expected="(50, 100]", got=str(self.percentile))
        if self.weights != "int8" and self.activations != "none":
            raise OptionError(
                f"{self.weights} weights are multiplied in floating point, so that activations stay so too",
                where=NAME,
                hint=f"quantize{{weights={self.weights} activations=none}}",
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration data (where activations are quantized), OptionError for `skip`."""
        _check_skip(model.graph, self.skip)
        if self.weights != "int8":
            return store_half(model.graph, self.weights, self.skip)
        if self.activations == "none":
            return self._weights_only(model.graph)
        if not calibrated(ctx):
            raise DataError(
                "quantizing activations needs calibration data",
                where=f"pass '{NAME}'",
                expected="samples of real inputs",
                got="none",
                hint="--calibration samples.npz, or quantize{activations=none}",
            )
        regions = find_regions(model.graph, self.skip, attention=self.attention)
        if not any(k.kind == "linear" for k in regions.kernels):
            return PassResult(False, _summary([], [], _floating(regions)), tuple(regions.refusals))
        stage = ""
        if self.equalize and _equalize(model, regions.kernels, ctx):
            stage = "equalized"
            regions = find_regions(model.graph, self.skip, attention=self.attention)
        fitted: Fitted | None = None
        if self.bits == "free":
            fitted, stage = fit_drop(model, ctx, self.skip, self.drop), "rounded"
            regions = find_regions(model.graph, self.skip, attention=self.attention)
        statistics = gather(ctx, model, self._wanted(regions.kernels, sample_count(ctx)), stage=stage)
        dtype: Literal["uint8", "int8"] = ctx.target.activations if ctx.target is not None else "uint8"
        result = _Run(self, model.graph, regions.kernels, statistics, dtype, fitted)
        result.notes.extend(_floating(regions))
        return result.run(tuple(regions.refusals))

    def _wanted(self, kernels: list[Kernel], samples: int) -> dict[str, list[Observer]]:
        wanted: dict[str, list[Observer]] = {}
        for value in _held_in_8_bits(kernels):
            wanted[value.name] = [Histogram()]
        for kernel in kernels:
            if kernel.linear is None:
                continue
            observers = wanted.setdefault(kernel.inputs[0].name, [])
            needed = self._layer_observer(kernel.linear, samples)
            if all(o.key != needed.key for o in observers):
                observers.append(needed)
        return wanted

    def _layer_observer(self, linear: Linear, samples: int) -> Observer:
        moment = moment_observer(linear.core, samples) if self.rounding == "least-squares" else None
        return moment if moment is not None else ChannelMean(linear.channel_axis)

    def _weights_only(self, graph: Graph) -> PassResult:
        regions = find_regions(graph, self.skip)
        inserter, layers = Inserter(graph), []
        for kernel in regions.kernels:
            if kernel.linear is not None:
                layers.append(_store_weight(self, inserter, kernel.linear, None, None)[0])
        inserter.finish()
        return PassResult(bool(layers), _summary(layers, [], _floating(regions)), tuple(regions.refusals))


def _equalize(model: Model, kernels: list[Kernel], ctx: PassContext) -> int:
    """Equalize the ranges of channels. It is a run of its own: the histograms must be those of the new channels."""
    links = find_links(kernels)
    if not links:
        return 0
    fresh = {link.value.name: observer(link) for link in links}
    statistics = gather(ctx, model, {name: [o] for name, o in fresh.items()})
    found = {name: statistics.get(name, ChannelOctaves, o.key) for name, o in fresh.items()}
    return equalize(model.graph, links, found)


def _check_skip(graph: Graph, skip: Collection[str]) -> None:
    known = {n.name for n in graph.nodes} | {o for n in graph.nodes for o in n.origin.nodes}
    for name in skip:
        if name not in known:
            hint = suggest(name, known)
            raise OptionError(f"skip names no node: '{name}'", where=f"pass '{NAME}'", hint=hint)


def _held_in_8_bits(kernels: list[Kernel]) -> list[Value]:
    """The values that get a pair, each once: what kernels read, unless it is 8-bit numbers already."""
    read = {id(v): v for k in kernels for v in k.inputs}
    return [v for v in read.values() if fixed_parameters(v) is None]


def fixed_parameters(value: Value) -> Affine | None:
    """The parameters of a value that a per-tensor DequantizeLinear made."""
    node = value.producer
    if node is None or not node.is_op("DequantizeLinear"):
        return None
    scale, zero, source = node.need(1), node.input(2), node.need(0)
    if not scale.is_constant or scale.numpy().size != 1 or source.dtype not in (DType.UINT8, DType.INT8):
        return None
    point = int(zero.numpy().reshape(-1)[0]) if zero is not None and zero.is_constant else 0
    return Affine(float(scale.numpy().reshape(-1)[0]), point, "uint8" if source.dtype is DType.UINT8 else "int8")


class _Run:
    """One run of the pass over one graph: parameters first, then the rewrite."""

    def __init__(
        self,
        options: Quantize,
        graph: Graph,
        kernels: list[Kernel],
        statistics: Statistics,
        dtype: Literal["uint8", "int8"],
        fitted: Fitted | None = None,
    ) -> None:
        self.fitted = fitted
        self.options, self.graph, self.kernels, self.statistics, self.dtype = (
            options,
            graph,
            kernels,
            statistics,
            dtype,
        )
        self.notes: list[str] = []
        self.histograms = {id(v): statistics.get(v.name, Histogram) for v in _held_in_8_bits(kernels)}

    def run(self, refusals: tuple[Refusal, ...]) -> PassResult:
        held = _held_in_8_bits(self.kernels)
        parameters = self._parameters(held)
        tensors = [_tensor_line(v, parameters[id(v)], self.histograms[id(v)]) for v in held]
        inserter, layers = Inserter(self.graph), []
        for kernel in self.kernels:
            if kernel.linear is not None:
                entry = kernel.inputs[0]
                affine = parameters.get(id(entry)) or fixed_parameters(entry)
                observed = self._observed(kernel.linear, entry)
                given = self.fitted.layers.get(kernel.linear.core) if self.fitted is not None else None
                line, note = _store_weight(self.options, inserter, kernel.linear, affine, observed, given)
                layers.append(line)
                self.notes.extend(note)
        made = {id(k.output) for k in self.kernels}
        for value in held:
            readers = None if id(value) in made else _readers(self.kernels, value)
            inserter.pair(value, parameters[id(value)], readers)
        for kernel in self.kernels:
            for node in kernel.nodes:
                node.origin = node.origin.touched(NAME)
        inserter.finish()
        summary = _summary(layers, tensors, self.notes)
        if self.fitted is not None:
            summary |= {"precision": self.fitted.lines, "estimate": self.fitted.damage.to_json()}
        return PassResult(True, summary, refusals)

    def _observed(self, linear: Linear, entry: Value) -> Observer:
        key = self.options._layer_observer(linear, self.statistics.samples).key
        return self.statistics.entries[entry.name, key]

    def _parameters(self, held: list[Value]) -> dict[int, Affine]:
        """One Affine for each value; values that a kernel hands through unchanged share theirs."""
        groups = {id(v): id(v) for v in held}

        def root(key: int) -> int:
            while groups[key] != key:
                key = groups[key]
            return key

        for kernel in self.kernels:
            if kernel.kind == "same":
                keys = [id(v) for v in (*kernel.inputs, kernel.output) if id(v) in groups]
                for key in keys[1:]:
                    groups[root(key)] = root(keys[0])
        ranges: dict[int, Range] = {}
        for value in held:
            found, key = self._range(value), root(id(value))
            ranges[key] = ranges[key].union(found) if key in ranges else found
        # zero points cost a product of two computed matrices a sum of each factor; softmax results have none
        factors = (v for k in self.kernels if k.kind == "product" for v in k.inputs)
        centred = {root(id(v)) for v in factors if id(v) in groups and ranges[root(id(v))].low < 0}
        return {id(v): self._affine(ranges[root(id(v))], root(id(v)) in centred) for v in held}

    def _range(self, value: Value) -> Range:
        histogram = self.histograms[id(value)]
        if histogram.bad:
            self.notes.append(f"'{value.name}' held NaN or infinity in {histogram.bad} elements, which were left out")
        found = choose(histogram, self.options.calibrator, self.options.percentile)
        if found.low == found.high:
            self.notes.append(f"'{value.name}' was 0 in every calibration sample")
        elif histogram.low == histogram.high:
            self.notes.append(f"'{value.name}' was {histogram.low:g} in every calibration sample")
        return found

    def _affine(self, found: Range, centred: bool) -> Affine:
        if self.options.scheme == "symmetric" or centred:
            return symmetric(found.low, found.high)
        return asymmetric(found.low, found.high, self.dtype)


def _readers(kernels: list[Kernel], value: Value) -> list[Node]:
    return [n for k in kernels if any(v is value for v in k.inputs) for n in k.nodes]


def _store_weight(
    options: Quantize,
    inserter: Inserter,
    linear: Linear,
    entry: Affine | None,
    observed: Observer | None,
    given: Rounded | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Replace weight and bias by integers. Without `entry` (weights only) the bias stays. Returns a line, and notes."""
    node, weight = linear.core, linear.weight.numpy()
    axis = linear.axis if options.per_channel else None
    moment = observed if isinstance(observed, SecondMoment) and observed.count else None
    scales = (
        given.scales if given is not None else weight_scales(weight, axis, importance=_importance(node, weight, moment))
    )
    bias = linear.bias.numpy().reshape(-1) if linear.bias is not None else None
    if entry is not None and bias is not None:
        largest = bias if axis is not None else np.abs(bias).max()
        if given is None:
            scales = scales_for_bias(scales, largest, entry.scale, _empty(weight, axis))
        else:
            scales = given_scales(given, largest, entry.scale)
    if given is not None or moment is None:  # given weights lie on their grid
        q = quantize_weight(weight, scales, axis)
    else:
        q = _round(options, linear, weight, scales, moment)
    rounded = dequantize_weight(q, scales, axis)
    stored = inserter.weight(linear.weight, q, scales, axis, node.origin)
    inserter.replace_constant(node, 1, stored)
    if entry is not None:
        _store_bias(
            options, inserter, linear, entry, scales, bias, _correction(linear, weight, rounded, observed), given
        )
    exact = weight.astype(np.float64)
    snr = decibel(float(np.square(exact).sum()), float(np.square(exact - rounded).sum()))
    line: dict[str, Any] = {
        "node": node.name,
        "op": node.op_type,
        "weights": int(weight.size),
        "weight_snr_db": round(snr, 2),
    }
    if moment is not None:
        line["output_snr_db"] = round(_output_snr(node, exact, rounded, moment), 2)
    if entry is not None:
        line["input"] = {"scale": entry.scale, "zero_point": entry.zero_point, "type": entry.dtype}
    notes = [] if weight.any() else [f"the weights of {node.label} are all zero"]
    return line, notes


def _importance(node: Node, weight: Array, moment: SecondMoment | None) -> Array | None:
    """E[x^2] of what each weight multiplies, in the weight's shape."""
    if moment is None:
        return None
    outputs = to_rows(node, weight, moment.groups).shape[1]
    diagonal = np.diagonal(moment.moment, axis1=1, axis2=2)
    return from_rows(node, np.repeat(diagonal[:, None, :], outputs, axis=1), weight.shape)


def _round(options: Quantize, linear: Linear, weight: Array, scales: Array, moment: SecondMoment) -> Array:
    node = linear.core
    every = np.broadcast_to(scales, weight.shape[linear.axis])
    metric = moment.covariance if options.correct_bias and _has_bias(linear) else moment.moment
    rows = to_rows(node, weight, moment.groups)
    q = round_least_squares(rows, spread_outputs(node, every, moment.groups), metric)
    return from_rows(node, q, weight.shape)


def _has_bias(linear: Linear) -> bool:
    """Whether there is a bias, or a place to put one."""
    return linear.bias is not None or linear.core.op_type != "MatMul"


def _output_snr(node: Node, weight: Array, rounded: Array, moment: SecondMoment) -> float:
    """Power of the layer's output over that of the error that rounded weights make, dB (bias correction included)."""
    exact, error = (to_rows(node, w, moment.groups) for w in (weight, weight - rounded))
    signal = np.einsum("goi,gij,goj->", exact, moment.moment, exact, optimize=True)
    noise = np.einsum("goi,gij,goj->", error, moment.covariance, error, optimize=True)
    return decibel(float(signal), float(noise))


def _empty(weight: Array, axis: int | None) -> Array:
    """Whether all weights are zero, of each output channel (of all for axis None)."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(~weight.any(axis=others))


def _correction(linear: Linear, weight: Array, rounded: Array, observed: Observer | None) -> Array | None:
    """What the rounding error adds to each output channel on average."""
    node = linear.core
    if isinstance(observed, SecondMoment) and observed.count:
        rows, approximate = (to_rows(node, w, observed.groups) for w in (weight, rounded))
        return sum_outputs(node, mean_error(rows, approximate, observed.mean))
    if not isinstance(observed, ChannelMean) or not np.isfinite(observed.mean).all():
        return None
    if node.op_type == "Conv":
        return conv_correction(weight, rounded, observed.mean)
    return matrix_correction(weight, rounded, observed.mean, linear.axis)


def _store_bias(
    options: Quantize,
    inserter: Inserter,
    linear: Linear,
    entry: Affine,
    scales: Array,
    bias: Array | None,
    correction: Array | None,
    given: Rounded | None = None,
) -> None:
    """The int32 bias. A layer without one gets it where that takes back a mean error (not MatMul: it has no slot)."""
    corrected = bias
    if options.correct_bias and correction is not None and _has_bias(linear):
        corrected = correction if bias is None else bias + correction
    if corrected is None:
        return
    shape = linear.bias.static_shape() if linear.bias_add is not None and linear.bias is not None else (len(corrected),)
    q = quantize_bias(corrected, entry.scale, scales)
    if given is not None:
        q = coarse_bias(q, bias_scales(entry.scale, scales), given.bias_step)
    q = q.reshape(shape)
    axis = len(shape) - 1 if options.per_channel else None
    base = linear.bias.name if linear.bias is not None else f"{linear.core.name}_bias"
    stored = inserter.integers(q, bias_scales(entry.scale, scales), axis, base, linear.bias_node.origin)
    inserter.replace_constant(linear.bias_node, linear.bias_index, stored)


def _tensor_line(value: Value, affine: Affine, histogram: Histogram) -> dict[str, Any]:
    return {
        "value": value.name,
        "observed": [histogram.low, histogram.high] if histogram.exponent is not None else [0.0, 0.0],
        "range": [round(r, 6) for r in affine.range],
        "scale": affine.scale,
        "zero_point": affine.zero_point,
        "type": affine.dtype,
        "snr_db": round(signal_to_noise(histogram, affine), 2),
        "saturated": round(saturation(histogram, affine), 6),
    }


def _floating(regions: Regions) -> list[str]:
    """Layers whose weights nobody would expect to stay as they are."""
    return [f"{r.node} stays in floating point: {r.reason}" for r in regions.refusals if r.reason.endswith(NO_KERNEL)]


def _summary(layers: list[dict[str, Any]], tensors: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    return {"layers": layers, "tensors": tensors, "notes": notes}
