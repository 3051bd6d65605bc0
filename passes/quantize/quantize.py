"""Post-training quantization, as QuantizeLinear/DequantizeLinear pairs around integer kernels.

Weights are symmetric integers of 8 bits or fewer with a scale for each output channel; biases are int32 at the scale
input x weight; activations have 8 or 16 bits with a range from calibration. What stands between the pairs is chosen so
that each group of nodes is one integer kernel (`regions.py`). Nagel et al., "A White Paper on Neural Network
Quantization" (2021), chapter 3.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from irc.calibrate.collect import Statistics
from irc.calibrate.gather import calibrated, gather, sample_count
from irc.calibrate.layers import moment_observer
from irc.calibrate.observers import ChannelMean, ChannelOctaves, Histogram, Observer
from irc.errors import DataError, OptionError, suggest
from irc.ir.clone import clone
from irc.ir.graph import Graph, Model
from irc.passes.quantize.activations import Choice, choose_parameters, fixed_parameters, held_values, readers
from irc.passes.quantize.affine import LARGEST16, Affine
from irc.passes.quantize.dynamic import make_dynamic
from irc.passes.quantize.equalize import equalize, find_links, observer
from irc.passes.quantize.layerwise import fit_layers
from irc.passes.quantize.levels import NAMED
from irc.passes.quantize.mixed import MENU, fit_drop
from irc.passes.quantize.mixed import Fitted as Budgeted
from irc.passes.quantize.ranges import Calibrator
from irc.passes.quantize.regions import Kernel, Linear, Regions, find_regions
from irc.passes.quantize.report import floating, share_damage, summary, tensor_line
from irc.passes.quantize.rewrite import NAME, Inserter
from irc.passes.quantize.smooth import find_smoothings, smooth
from irc.passes.quantize.smooth import observer as smooth_observer
from irc.passes.quantize.store import Fitted, WeightChoice, fit, store
from irc.passes.quantize.store_half import store_half
from irc.passes.quantize.weight_only import store_weights
from irc.passes.quantize.weights import Rounding
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal

_FEW_LEVELS = 16  # of weights: as coarse as that they are what a layer loses most by


@dataclass(frozen=True)
class Quantize(Pass):
    """Options. `activations=none` stores weights in few bits (or, `weights=float16`, in 16: `store_half.py`) and
    computes in floating point, with a scale for each `group` input channels if given (`weight_only.py`);
    `activations=int16`: symmetric, clipped to as many steps as keep all sums within 32 bits; attention stays real.
    `activations=dynamic` takes the ranges of activations at run time (`dynamic.py`).

    `scheme` is that of the activations: asymmetric ones have the 8-bit type that the target's dot product wants
    (uint8 without a target), symmetric ones are int8 with zero point 0; `weight_scheme` that of the weights.
    `percentile` counts for that calibrator only. `attention`: its two products take 8 bits too (queries, keys, values
    and softmax results). `rounding=least-squares` rounds weights for the least change of the layer's output, and
    `sequential` does so layer by layer, on what the rounded layers before give. `skip` names nodes that stay in
    floating point. `bits=auto` gives each layer weights of 4 or 8 bits by its measured sensitivity, for an estimated
    loss of `drop` points; `bits=free` the steps that an entropy coder stores in the fewest bits (`mixed.py`).
    """

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "8-bit activations, and weights of 8 bits or fewer, from calibration data"

    weights: Literal["int8", "int4", "ternary", "binary", "float16", "bfloat16"] = "int8"
    activations: Literal["int8", "int16", "dynamic", "none"] = "int8"
    per_channel: bool = True
    group: int = 0
    scheme: Literal["symmetric", "asymmetric"] = "asymmetric"
    weight_scheme: Literal["auto", "symmetric", "asymmetric"] = "auto"
    calibrator: Calibrator = "mse"
    percentile: float = 99.99
    rounding: Rounding = "least-squares"
    sequential: bool = True
    equalize: bool = True
    smooth: float = 0.5
    correct_bias: bool = True
    attention: bool = True
    bits: Literal["fixed", "auto", "free"] = "fixed"
    drop: float = 1.0
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.drop <= 100:
            raise OptionError("drop is out of range", where=NAME, expected="points in (0, 100]", got=str(self.drop))
        if self.bits != "fixed" and (self.weights != "int8" or self.activations != "int8" or not self.per_channel):
            raise OptionError(
                f"bits={self.bits} chooses the weights of each layer, with a scale per channel and int8 activations",
                where=NAME,
                hint=f"quantize{{bits={self.bits} drop={self.drop:g}}} without weights, activations and per-channel",
            )
        if not 0 <= self.smooth <= 1:
            raise OptionError("smooth is out of range", where=NAME, expected="[0, 1]", got=str(self.smooth))
        if not 50 < self.percentile <= 100:
            raise OptionError("percentile is out of range", where=NAME, expected="(50, 100]", got=str(self.percentile))
        if self.weights in ("float16", "bfloat16") and self.activations != "none":
            raise OptionError(
                f"{self.weights} weights are multiplied in floating point, so that activations stay so too",
                where=NAME,
                hint=f"quantize{{weights={self.weights} activations=none}}",
            )
        if self.activations == "dynamic" and (self.weights != "int8" or self.weight_scheme == "asymmetric"):
            raise OptionError(
                "activations that are quantized at run time are multiplied by symmetric int8 weights",
                where=NAME,
                got=f"{self.weight_scheme} {self.weights}",
                hint="quantize{activations=dynamic}",
            )
        if self.group < 0 or (self.group and (self.activations != "none" or not self.per_channel)):
            raise OptionError(
                "scales for groups of input channels are for weights that are stored alone",
                where=NAME,
                got=str(self.group),
                hint="quantize{weights=int4 activations=none group=32}",
            )
        if self.activations == "int16" and self.weight_scheme == "asymmetric":
            raise OptionError(
                "16-bit activations are symmetric, and so are the weights they are multiplied by",
                where=NAME,
                hint="quantize{activations=int16} without weight-scheme",
            )
        if self.weights == "binary" and self.weight_scheme == "asymmetric":
            raise OptionError(
                "binary weights are -1 and 1: a zero point would leave one of two",
                where=NAME,
                hint="quantize{weights=binary}, or weights=ternary",
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration data (where activations are quantized), OptionError for `skip`."""
        _check_skip(model.graph, self.skip)
        if self.weights in ("float16", "bfloat16"):
            return store_half(model.graph, self.weights, self.skip)
        if self.activations == "none":
            return store_weights(model, ctx, self.weight_choice, self.skip, self.group, self.sequential)
        if self.activations == "dynamic":
            return make_dynamic(model, ctx, self.weight_choice, self.skip, self.sequential)
        if not calibrated(ctx):
            raise DataError(
                "quantizing activations needs calibration data",
                where=f"pass '{NAME}'",
                expected="samples of real inputs",
                got="none",
                hint="--calibration samples.npz, or quantize{activations=none}",
            )
        regions = find_regions(model.graph, self.skip, attention=self._attention)
        if not any(k.kind == "linear" for k in regions.kernels):
            return PassResult(False, summary([], [], floating(regions)), tuple(regions.refusals))
        stage = ""
        if self.equalize and _equalize(model, regions.kernels, ctx, few=self.weight_choice.levels.count <= _FEW_LEVELS):
            stage = "equalized"
            regions = find_regions(model.graph, self.skip, attention=self._attention)
        if self.smooth and _smooth(model, regions, ctx, self.smooth, stage):
            stage += "smoothed"
            refusals = regions.refusals
            regions = find_regions(model.graph, self.skip, attention=self._attention)
            regions.refusals = refusals
        given: Budgeted | None = None
        if self.bits == "free":
            given, stage = fit_drop(model, ctx, self.skip, self.drop), "rounded"
            regions = find_regions(model.graph, self.skip, attention=self._attention)
        elif self.bits == "auto":
            given = fit_drop(model, ctx, self.skip, self.drop, MENU)
        statistics = gather(ctx, model, self._wanted(regions.kernels, sample_count(ctx)), stage=stage)
        result = _Run(self, model, regions.kernels, statistics, given)
        result.notes.extend(floating(regions))
        return result.run(ctx, tuple(regions.refusals))

    @property
    def _attention(self) -> bool:
        """Sums of products of two 16-bit numbers would not fit into 32 bits."""
        return self.attention and self.activations == "int8"

    @property
    def weight_choice(self) -> WeightChoice:
        """How layers are quantized."""
        levels = NAMED[self.weights]
        scheme = "symmetric" if self.weight_scheme == "auto" and self.activations != "int8" else self.weight_scheme
        return WeightChoice(levels, self.per_channel, scheme, self.rounding, self.correct_bias)

    @property
    def layer_by_layer(self) -> bool:
        """Whether each layer is rounded on what the rounded layers before it give."""
        return self.sequential and self.rounding != "nearest" and self.bits != "free"

    def _wanted(self, kernels: Sequence[Kernel], samples: int) -> dict[str, list[Observer]]:
        wanted: dict[str, list[Observer]] = {}
        for value in held_values(kernels):
            wanted[value.name] = [Histogram()]
        for kernel in kernels:
            if kernel.linear is None or (self.layer_by_layer and moment_observer(kernel.linear.core, samples)):
                continue
            observers = wanted.setdefault(kernel.inputs[0].name, [])
            needed = self.layer_observer(kernel.linear, samples)
            if all(o.key != needed.key for o in observers):
                observers.append(needed)
        return wanted

    def layer_observer(self, linear: Linear, samples: int) -> Observer:
        """What has to be known of the input of a layer that is not measured layer by layer."""
        moment = moment_observer(linear.core, samples) if self.rounding != "nearest" else None
        return moment if moment is not None else ChannelMean(linear.channel_axis)


def _equalize(model: Model, kernels: list[Kernel], ctx: PassContext, *, few: bool) -> int:
    """Equalize the ranges of channels. It is a run of its own: the histograms must be those of the new channels.

    Weights of `few` bits that share a scale over the channels would lose more than the activations gain; those of
    depthwise readers lose nothing.
    """
    links = [link for link in find_links(kernels) if link.depthwise or not few]
    if not links:
        return 0
    fresh = {link.value.name: observer(link) for link in links}
    statistics = gather(ctx, model, {name: [o] for name, o in fresh.items()})
    found = {name: statistics.get(name, ChannelOctaves, o.key) for name, o in fresh.items()}
    return equalize(model.graph, links, found)


def _smooth(model: Model, regions: Regions, ctx: PassContext, strength: float, stage: str) -> int:
    """Even out the channels behind normalizations; reasons against it join the refusals."""
    found, refusals = find_smoothings(model.graph, regions.kernels)
    regions.refusals.extend(refusals)
    if not found:
        return 0
    fresh = {s.value.name: smooth_observer(s) for s in found}
    statistics = gather(ctx, model, {name: [o] for name, o in fresh.items()}, stage=stage)
    observed = {name: statistics.get(name, ChannelOctaves, o.key) for name, o in fresh.items()}
    return smooth(model.graph, found, observed, strength)


def _check_skip(graph: Graph, skip: Collection[str]) -> None:
    known = {n.name for n in graph.nodes} | {o for n in graph.nodes for o in n.origin.nodes}
    for name in skip:
        if name not in known:
            hint = suggest(name, known)
            raise OptionError(f"skip names no node: '{name}'", where=f"pass '{NAME}'", hint=hint)


class _Run:
    """One run of the pass over one graph: parameters of activations, their pairs, then layer after layer."""

    def __init__(
        self,
        options: Quantize,
        model: Model,
        kernels: list[Kernel],
        statistics: Statistics,
        given: Budgeted | None,
    ) -> None:
        self.options, self.model, self.kernels, self.statistics = options, model, kernels, statistics
        self.given = given
        self.held = held_values(kernels)
        self.histograms = {id(v): statistics.get(v.name, Histogram) for v in self.held}
        self.notes: list[str] = []
        self.parameters: dict[int, Affine] = {}
        self._kernel_of = {id(k.linear.core): k for k in kernels if k.linear is not None}

    def run(self, ctx: PassContext, refusals: tuple[Refusal, ...]) -> PassResult:
        options = self.options
        dtype = ctx.target.activations if ctx.target is not None else "uint8"
        levels = options.weight_choice.levels
        largest = max(-levels.low, levels.high) if options.activations == "int16" else 0
        choice = Choice(options.calibrator, options.percentile, options.scheme, dtype, largest)
        self.parameters, notes = choose_parameters(self.kernels, self.histograms, choice)
        self.notes.extend(notes)
        tensors = [tensor_line(v, self.parameters[id(v)], self.histograms[id(v)]) for v in self.held]
        inserter = Inserter(self.model.graph)
        reference = clone(self.model) if options.layer_by_layer else None
        self._pairs(inserter)
        fitted = self._fitted(ctx, inserter, reference)
        for part in fitted:
            store(inserter, part, self._entry(part.linear))
            self.notes.extend(part.notes)
        for kernel in self.kernels:
            for node in kernel.nodes:
                node.origin = node.origin.touched(NAME)
        inserter.finish()
        lines = [part.line for part in fitted]
        share_damage(lines, self._snr(tensors))
        if self.given is not None and self.given.damage.drop > options.drop:
            found_drop = self.given.damage.drop
            self.notes.append(f"a drop of {options.drop:g} points is out of reach: {found_drop:.2g} are expected")
        found = summary(lines, tensors, self.notes)
        if self.given is not None:
            found |= {"precision": self.given.lines, "estimate": self.given.damage.to_json()}
        return PassResult(True, found, refusals)

    def _pairs(self, inserter: Inserter) -> None:
        made = {id(k.output): k.kind for k in self.kernels}
        for value in self.held:
            affine, who = self.parameters[id(value)], None if id(value) in made else readers(self.kernels, value)
            inserter.pair(value, affine, who, clip=0 < affine.bound < LARGEST16 and made.get(id(value)) != "same")
        inserter.finish()

    def _fitted(self, ctx: PassContext, inserter: Inserter, reference: Model | None) -> list[Fitted]:
        """The numbers of all layers, in the order of the kernels."""
        layers = [k.linear for k in self.kernels if k.linear is not None]
        known: dict[int, Fitted] = {}
        if reference is not None:
            known = fit_layers(self.model, reference, layers, self._choice, self._entry, ctx, inserter)
        found = []
        for linear in layers:
            part = known.get(id(linear.core))
            given = self.given.layers.get(linear.core) if self.given is not None else None
            if part is None:
                part = fit(self._choice(linear), linear, self._entry(linear), self._observed(linear), given=given)
            found.append(part)
        return found

    def _choice(self, linear: Linear) -> WeightChoice:
        """How the layer is quantized."""
        choice = self.options.weight_choice
        if self.given is None or linear.core not in self.given.levels:
            return choice
        return replace(choice, levels=self.given.levels[linear.core])

    def _entry(self, linear: Linear) -> Affine | None:
        """The parameters of what the layer reads."""
        kernel = self._kernel_of[id(linear.core)]
        value = kernel.inputs[0]
        return self.parameters.get(id(value)) or fixed_parameters(value)

    def _observed(self, linear: Linear) -> Observer | None:
        key = self.options.layer_observer(linear, self.statistics.samples).key
        return self.statistics.entries.get((self._kernel_of[id(linear.core)].inputs[0].name, key))

    def _snr(self, tensors: list[dict[str, Any]]) -> dict[str, float]:
        """dB of what each layer reads, by the name of its node."""
        by_value = {line["value"]: float(line["snr_db"]) for line in tensors}
        return {
            k.linear.core.name: by_value[k.inputs[0].name]
            for k in self.kernels
            if k.linear is not None and k.inputs[0].name in by_value
        }
