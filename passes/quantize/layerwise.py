"""Layers one after another, each rounded on what the rounded layers before it give.

The input of a layer in the quantized network differs from the original one: its weights are first refitted to that
(`irc.calibrate.sequential.refit`), then rounded, and its bias takes what is left of the mean. So each layer also mends
what it can of the errors before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from irc.calibrate.gather import sample_count
from irc.calibrate.layers import from_rows, sum_outputs, to_rows
from irc.calibrate.sequential import LayerMoments, refit, walk
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.passes.quantize.affine import Affine
from irc.passes.quantize.regions import Linear
from irc.passes.quantize.rewrite import Inserter
from irc.passes.quantize.rounding import ridge
from irc.passes.quantize.store import Fitted, WeightChoice, fit, has_bias
from irc.passes.quantize.weights import LayerWeights
from irc.pipeline.contract import PassContext

Entry = Callable[[Linear], Affine | None]
Choices = Callable[[Linear], WeightChoice]


_REFIT = 1.0  # damping: less bends weights to what few samples happen to show, more mends less of the errors before
_PLACES = 4
"""So many rows of one sample tell as much as independent ones would: places of one image are alike."""


def fit_layers(
    model: Model,
    reference: Model,
    layers: Sequence[Linear],
    choice: Choices,
    entry: Entry,
    ctx: PassContext,
    inserter: Inserter,
) -> dict[int, Fitted]:
    """Fitted integers of all `layers` that can be measured, by the id of their core.

    `model` already holds its activations in few bits; its layers have their rounded weights as real constants
    afterwards. `reference`: the same model as it was before.
    """
    by_core = {id(linear.core): linear for linear in layers}
    tied = _tied(layers)
    found: dict[int, Fitted] = {}
    shared: dict[int, LayerWeights] = {}
    for wave in walk(model, reference, [linear.core for linear in layers], ctx):
        for moments in wave:
            linear = by_core[id(moments.node)]
            if id(linear.weight) in tied:  # the best for none of them alone: they keep their weights
                known = shared.get(id(linear.weight))
                fitted = fit(choice(linear), linear, entry(linear), moments, known=known)
            else:
                fitted = _fit(linear, choice(linear), entry(linear), moments, sample_count(ctx))
            found[id(linear.core)] = fitted
            if id(linear.weight) in tied:
                shared.setdefault(id(linear.weight), fitted.weights)
        for moments in wave:
            _set_real(inserter, found[id(moments.node)])
    return found


def _fit(linear: Linear, choice: WeightChoice, entry: Affine | None, moments: LayerMoments, samples: int) -> Fitted:
    node, weight = linear.core, linear.weight.numpy()
    movable = choice.correct_bias and has_bias(linear)
    metric = moments.covariance if movable else moments.moment
    damping = ridge(metric, min(moments.count, _PLACES * samples))
    rows, change = refit(to_rows(node, weight, moments.groups), moments, _REFIT, bias=movable)
    target, shift = from_rows(node, rows, weight.shape), sum_outputs(node, change) if movable else None
    return fit(choice, linear, entry, moments, target=target, shift=shift, damping=damping)


def _tied(layers: Sequence[Linear]) -> dict[int, int]:
    """Ids of constants that several layers read, and how many."""
    counts: dict[int, int] = {}
    for linear in layers:
        counts[id(linear.weight)] = counts.get(id(linear.weight), 0) + 1
    return {key: count for key, count in counts.items() if count > 1}


def _set_real(inserter: Inserter, fitted: Fitted) -> None:
    """The rounded weights and the new bias as real constants: what later layers are measured with."""
    linear = fitted.linear
    graph = inserter.graph
    weight = graph.add_constant(fitted.weights.real(), f"{linear.weight.name}_real")
    inserter.replace_constant(linear.core, 1, weight)
    if fitted.bias is None:
        return
    shape = linear.bias.static_shape() if linear.bias is not None else (len(fitted.bias),)
    bias: Array = fitted.bias.reshape(shape).astype(np.float32)
    real = graph.add_constant(bias, f"{linear.core.name}_bias_real")
    inserter.replace_constant(linear.bias_node, linear.bias_index, real)
