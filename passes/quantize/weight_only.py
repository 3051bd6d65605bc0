"""Weights in few bits, arithmetic in floating point: what layers that wait for memory gain from.

A scale for each output channel or, with `group`, for each so many input channels of each output. With calibration
samples the weights are rounded by least squares, layer after layer on what the rounded ones before give; without, each
to its nearest level. Frantar et al., "GPTQ" (2023).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from irc.calibrate.gather import calibrated, sample_count
from irc.calibrate.layers import from_rows, sum_outputs, to_rows
from irc.calibrate.sequential import LayerMoments, refit, walk
from irc.ir.clone import clone
from irc.ir.graph import Graph, Model, Node
from irc.ir.types import Array
from irc.passes.quantize.regions import Linear, find_regions
from irc.passes.quantize.report import floating, layer_line, share_damage, summary
from irc.passes.quantize.rewrite import NAME, Inserter
from irc.passes.quantize.rounding import ridge
from irc.passes.quantize.store import WeightChoice, has_bias
from irc.passes.quantize.weights import LayerWeights, quantize_layer
from irc.pipeline.contract import PassContext, PassResult, Refusal

_PLACES = 4  # rows of one sample that tell as much as independent ones


def store_weights(
    model: Model, ctx: PassContext, choice: WeightChoice, skip: Collection[str], group: int, sequential: bool
) -> PassResult:
    """Put the constant weights of all linear layers behind a DequantizeLinear. `group`: 0 for a scale per channel."""
    regions = find_regions(model.graph, skip)
    linears = [k.linear for k in regions.kernels if k.linear is not None]
    refusals = [*regions.refusals, *(r for x in linears if (r := _refuse_group(x, group)) is not None)]
    known, lines = fit_weights(model, ctx, choice, linears, group, sequential)
    inserter = Inserter(model.graph)
    for linear in linears:
        inserter.replace_constant(
            linear.core, 1, inserter.weight(linear.weight, known[linear.core], linear.core.origin)
        )
        linear.core.origin = linear.core.origin.touched(NAME)
    inserter.finish()
    share_damage(lines, {})
    return PassResult(bool(linears), summary(lines, [], floating(regions)), tuple(refusals))


def fit_weights(
    model: Model, ctx: PassContext, choice: WeightChoice, linears: Sequence[Linear], group: int, sequential: bool
) -> tuple[Mapping[Node, LayerWeights], list[dict[str, Any]]]:
    """Integers for the weights of each layer, and lines of the report; biases take what is left of mean errors.

    The nodes keep reading real weights: the rounded ones where layers were fitted to samples.
    """
    known: dict[Node, LayerWeights] = {}
    lines: dict[Node, dict[str, Any]] = {}
    shared: dict[int, LayerWeights] = {}
    by_core = {linear.core: linear for linear in linears}
    tied = [id(linear.weight) for linear in linears]
    if sequential and calibrated(ctx) and choice.rounding != "nearest":
        reference = clone(model)
        for wave in walk(model, reference, list(by_core), ctx):
            for moments in wave:
                linear = by_core[moments.node]
                alone = tied.count(id(linear.weight)) == 1
                found = shared.get(id(linear.weight)) or _fit(linear, choice, moments, group, ctx, alone)
                shared[id(linear.weight)] = known[linear.core] = found
                lines[linear.core] = layer_line(linear.core, linear.weight.numpy(), found, moments, None)
                _set_real(model.graph, linear, found, moments)
    for linear in linears:
        if linear.core in known:
            continue
        found = shared.get(id(linear.weight)) or quantize_layer(
            linear.core,
            linear.weight.numpy(),
            choice.levels,
            per_channel=choice.per_channel,
            block=block_of(linear, group),
            scheme=choice.scheme,
            rounding="nearest",
        )
        shared[id(linear.weight)] = known[linear.core] = found
        lines[linear.core] = layer_line(linear.core, linear.weight.numpy(), found, None, None)
    return known, [lines[linear.core] for linear in linears]


def block_of(linear: Linear, group: int) -> int:
    """`group` where it divides the input channels of the layer, 0 (a scale per channel) otherwise."""
    return group if group and _input_channels(linear) % group == 0 else 0


def _input_channels(linear: Linear) -> int:
    shape = linear.weight.static_shape()
    return shape[1] if linear.core.op_type == "Conv" else shape[1 - linear.axis]


def _refuse_group(linear: Linear, group: int) -> Refusal | None:
    if not group or block_of(linear, group):
        return None
    channels = _input_channels(linear)
    return Refusal(
        linear.core.label, NAME, f"groups of {group} do not divide its {channels} input channels: a scale per channel"
    )


def _fit(
    linear: Linear, choice: WeightChoice, moments: LayerMoments, group: int, ctx: PassContext, alone: bool
) -> LayerWeights:
    """Weights that others share are not refitted: what is best for one need not be for the others."""
    node, weight = linear.core, linear.weight.numpy()
    movable = choice.correct_bias and has_bias(linear)
    if alone:
        metric = moments.covariance if movable else moments.moment
        damping = ridge(metric, min(moments.count, _PLACES * sample_count(ctx)))
        rows, _ = refit(to_rows(node, weight, moments.groups), moments, damping, bias=movable)
        weight = from_rows(node, rows, weight.shape)
    return quantize_layer(
        node,
        weight,
        choice.levels,
        moments,
        per_channel=choice.per_channel,
        block=block_of(linear, group),
        scheme=choice.scheme,
        rounding=choice.rounding,
        bias=movable,
    )


def _set_real(graph: Graph, linear: Linear, found: LayerWeights, moments: LayerMoments) -> None:
    """Let the layer compute with its rounded weights, and its bias restore the mean of what it gave."""
    node, old = linear.core, linear.weight
    real = found.real()
    graph.set_input(node, 1, graph.add_constant(real, f"{old.name}_real"))
    if has_bias(linear):
        exact, rounded = (to_rows(node, w, moments.groups).astype(np.float64) for w in (old.numpy(), real))
        shift: Array = sum_outputs(
            node,
            np.einsum("gok,gk->go", exact, moments.reference_mean) - np.einsum("gok,gk->go", rounded, moments.mean),
        )
        if linear.bias is not None:
            shift = linear.bias.numpy() + shift.reshape(linear.bias.static_shape())
        bias = graph.add_constant(shift.astype(np.float32), f"{old.name}_bias")
        graph.set_input(linear.bias_node, linear.bias_index, bias)
    for value in (old, linear.bias):
        if value is not None and not value.uses and not value.is_output and value.graph is graph:
            graph.remove_constant(value)
