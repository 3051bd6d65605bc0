"""Layers of a graph from real to integer weights: `fit` decides the numbers, `store` puts them into the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from irc.calibrate.layers import sum_outputs, to_rows
from irc.calibrate.observers import ChannelMean, Observer, SecondMoment
from irc.calibrate.sequential import LayerMoments
from irc.ir.types import Array
from irc.passes.quantize.affine import (
    BIAS_LIMIT,
    Affine,
    bias_scales,
    quantize_bias,
    quantize_weight,
    scales_for_bias,
)
from irc.passes.quantize.correction import conv_correction, matrix_correction
from irc.passes.quantize.given import coarse_bias, given_scales
from irc.passes.quantize.levels import Levels
from irc.passes.quantize.mixed import Rounded
from irc.passes.quantize.regions import Linear
from irc.passes.quantize.report import layer_line
from irc.passes.quantize.rewrite import Inserter
from irc.passes.quantize.rounding import mean_error
from irc.passes.quantize.weights import LayerWeights, Moments, Rounding, Scheme, quantize_layer

Observed = Observer | LayerMoments


@dataclass(frozen=True)
class WeightChoice:
    """How the weights of all layers are quantized."""

    levels: Levels
    per_channel: bool
    scheme: Scheme
    rounding: Rounding
    correct_bias: bool


@dataclass(frozen=True)
class Fitted:
    """Integers for one layer. `bias`: real, per output channel, or None where it has none. `line`: of the report."""

    linear: Linear
    weights: LayerWeights
    bias: Array | None
    line: dict[str, Any]
    notes: Sequence[str] = field(default=())
    bias_step: Array | None = None  # what the bias may be rounded to, per output channel


def fit(
    choice: WeightChoice,
    linear: Linear,
    entry: Affine | None,
    observed: Observed | None,
    *,
    target: Array | None = None,
    shift: Array | None = None,
    known: LayerWeights | None = None,
    given: Rounded | None = None,
    damping: float = 0.01,
) -> Fitted:
    """Quantize one layer. `entry`: parameters of its input (None: it stays real). `observed`: moments of its input.

    `target`: weights to approximate instead of its own, and `shift`, what the bias gains with them, per output channel.
    `known`: weights of a layer that shares the constant; only the bias is fitted. `given`: weights that lie on their
    grid already, and what the bias may be rounded to.
    """
    node = linear.core
    weight = linear.core.need(1).numpy() if target is None else target
    moments = _moments(observed)
    bias = linear.bias.numpy().reshape(-1).astype(np.float64) if linear.bias is not None else None
    movable = choice.correct_bias and entry is not None and has_bias(linear)
    if given is not None and entry is not None:
        known = _on_grid(choice, linear, given, bias, entry)
    stored = known or quantize_layer(
        node,
        weight,
        choice.levels,
        moments,
        per_channel=choice.per_channel,
        scheme=choice.scheme,
        rounding=choice.rounding,
        bias=movable,
        least_scales=_least_scales(bias, entry),
        damping=damping,
    )
    if entry is not None and bias is not None and known is None:
        stored = _widened(stored, bias, entry)
    if movable:
        correction = _correction(linear, weight, stored.real(), observed)
        for part in (correction, shift):
            bias = part if bias is None else bias if part is None else bias + part
    notes = [] if weight.any() else [f"the weights of {node.label} are all zero"]
    step = given.bias_step if given is not None else None
    return Fitted(linear, stored, bias, layer_line(node, weight, stored, moments, entry), notes, step)


def _on_grid(choice: WeightChoice, linear: Linear, given: Rounded, bias: Array | None, entry: Affine) -> LayerWeights:
    largest = np.zeros(1) if bias is None else bias
    scales = given.scales if bias is None else given_scales(given, largest, entry.scale)
    q = quantize_weight(linear.core.need(1).numpy(), scales, linear.axis)
    return LayerWeights(q, scales, None, linear.axis, 0, choice.levels)


def store(inserter: Inserter, fitted: Fitted, entry: Affine | None) -> None:
    """Replace weight and bias of the layer by integers. Without `entry` the bias stays as it is."""
    linear, weights = fitted.linear, fitted.weights
    inserter.replace_constant(linear.core, 1, inserter.weight(linear.weight, weights, linear.core.origin))
    if entry is None or fitted.bias is None:
        return
    bias, scales = fitted.bias, weights.scales
    shape = linear.bias.static_shape() if linear.bias_add is not None and linear.bias is not None else (len(bias),)
    q = quantize_bias(bias, entry.scale, scales)
    if fitted.bias_step is not None:
        q = coarse_bias(q, bias_scales(entry.scale, scales), fitted.bias_step)
    q = q.reshape(shape)
    axis = len(shape) - 1 if scales.ndim else None
    base = linear.bias.name if linear.bias is not None else f"{linear.core.name}_bias"
    stored = inserter.integers(q, bias_scales(entry.scale, scales), axis, base, linear.bias_node.origin)
    inserter.replace_constant(linear.bias_node, linear.bias_index, stored)


def has_bias(linear: Linear) -> bool:
    """Whether there is a bias, or a place to put one."""
    return linear.bias is not None or linear.core.op_type != "MatMul"


def _moments(observed: Observed | None) -> Moments | None:
    return observed if isinstance(observed, SecondMoment | LayerMoments) and observed.count else None


def _least_scales(bias: Array | None, entry: Affine | None) -> Array | None:
    """Scales from which on the bias fits into 32 bits, with room for what is added to it."""
    if bias is None or entry is None:
        return None
    return np.asarray(2 * np.abs(bias) / entry.scale / BIAS_LIMIT)


def _widened(stored: LayerWeights, bias: Array, entry: Affine) -> LayerWeights:
    """Channels without weights get the scale that suits their bias."""
    if stored.axis is None:
        empty, largest = np.asarray(not stored.q.any()), np.asarray(np.abs(bias).max(initial=0.0))
    else:
        others = tuple(i for i in range(stored.q.ndim) if i != stored.axis)
        empty, largest = np.asarray(~stored.q.astype(np.int8).any(axis=others)), bias
    return stored.with_scales(scales_for_bias(stored.scales, largest, entry.scale, empty))


def _correction(linear: Linear, weight: Array, rounded: Array, observed: Observed | None) -> Array | None:
    """What the rounding error adds to each output channel on average."""
    node = linear.core
    if isinstance(observed, SecondMoment | LayerMoments) and observed.count:
        rows, approximate = (to_rows(node, w, observed.groups) for w in (weight, rounded))
        return sum_outputs(node, mean_error(rows, approximate, observed.mean))
    if not isinstance(observed, ChannelMean) or not np.isfinite(observed.mean).all():
        return None
    if node.op_type == "Conv":
        return conv_correction(weight, rounded, observed.mean)
    return matrix_correction(weight, rounded, observed.mean, linear.axis)
