"""Hessian pruning of a whole network, layer by layer on what the pruned layers before really give.

Each layer first gets the weights that come closest, on its changed input, to the outputs of the original network; then
blocks go by `obs.py`, and what is left is fitted once more. No training: one walk through the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from irc.calibrate.gather import gather, sample_count
from irc.calibrate.layers import moment_observer, sum_outputs
from irc.calibrate.masked import fit_kept
from irc.calibrate.observers import SecondMoment
from irc.calibrate.sequential import LayerMoments, refit, walk
from irc.errors import DataError
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.passes.prune.layers import Form, Layer, Pattern, bias_place
from irc.passes.prune.obs import damped
from irc.passes.prune.ranking import Ranking, rank_by_hessian
from irc.pipeline.contract import PassContext

DAMPING = 0.01
Choose = Callable[[Layer, Ranking], Array]
"""What of a layer stays: bool [groups, units, blocks]."""


@dataclass(frozen=True)
class Fit:
    """What to choose from: the least squares weights of a layer on its input, not pruned yet."""

    form: Form
    rows: Array  # as they were
    target: Array  # [groups, units, rows, columns]
    metrics: list[Array]  # damped, one per group, in the order of the columns
    means: tuple[Array, Array] | None  # of the input as it is and in the original; None: there is no bias to use
    signal: float  # E[y^2] of the target

    def error(self, units: Array) -> float:
        """E[(y - y')^2] of all outputs together."""
        off = (units - self.target).reshape(len(units), -1, units.shape[-1])
        return sum(float(np.sum((o @ h) * o)) for o, h in zip(off, self.metrics, strict=True))


@dataclass
class Outcome:
    """What a sweep did to a layer: share of its output power that became error."""

    errors: dict[Layer, float] = field(default_factory=dict)


def fits(
    model: Model, layers: Sequence[Layer], pattern: Pattern, ctx: PassContext, *, keep: bool = False
) -> Iterator[tuple[Layer, Fit]]:
    """Each measurable layer on its input at that moment; the caller may prune it before the next comes.

    Layers whose weights several nodes share come first, on the input as it is at the start. `keep`: nothing will be
    pruned on the way.
    """
    single = {layer.node: layer for layer in layers if len(layer.nodes) == 1 and layer.node.graph is model.graph}
    shared = [layer for layer in layers if len(layer.nodes) > 1 and _all_at_top(layer, model)]
    reference = clone(model)
    yield from _shared(model, shared, pattern, ctx)
    for wave in walk(model, model if keep else reference, list(single), ctx):
        for moments in wave:
            layer = single[moments.node]
            yield layer, _fit(layer, moments, pattern)


def _all_at_top(layer: Layer, model: Model) -> bool:
    return all(node.graph is model.graph for node in layer.nodes)


def _fit(layer: Layer, moments: LayerMoments, pattern: Pattern) -> Fit:
    centred = bool(bias_place(layer))
    metric = moments.covariance if centred else moments.moment
    _check(layer, metric)
    rows = layer.rows(moments.groups)
    target, _ = refit(rows, moments, DAMPING, bias=centred)
    means = (moments.mean, moments.reference_mean) if centred else None
    return _folded(layer, rows, target, metric, moments.count, means, pattern)


def _shared(model: Model, layers: Sequence[Layer], pattern: Pattern, ctx: PassContext) -> Iterator[tuple[Layer, Fit]]:
    """Layers read by several nodes: the moments of all of them together, of the model as it is."""
    samples = sample_count(ctx)
    for number, layer in enumerate(layers):
        observers = [moment_observer(node, samples) for node in layer.nodes]
        if any(o is None for o in observers):
            continue
        found = [o for o in observers if o is not None]
        wanted: dict[str, list[SecondMoment]] = {}
        for node, observer in zip(layer.nodes, found, strict=True):
            mine = wanted.setdefault(node.need(0).name, [])
            if all(o.key != observer.key for o in mine):
                mine.append(observer)
        statistics = gather(ctx, model, wanted, stage=f"shared {number}")
        seen = [statistics.get(n.need(0).name, SecondMoment, o.key) for n, o in zip(layer.nodes, found, strict=True)]
        count = sum(s.count for s in seen)
        metric = sum(s.moment * (s.count / max(count, 1)) for s in seen)
        _check(layer, np.asarray(metric))
        rows = layer.rows(found[0].groups)
        yield layer, _folded(layer, rows, rows.astype(np.float64), np.asarray(metric), count, None, pattern)


def _folded(
    layer: Layer,
    rows: Array,
    target: Array,
    metric: Array,
    count: int,
    means: tuple[Array, Array] | None,
    pattern: Pattern,
) -> Fit:
    groups, outputs, k = rows.shape
    form = Form.of(groups, outputs, k, layer.positions, pattern)
    signal = float(np.einsum("gok,gkl,gol->", target, metric, target, optimize=True))
    metrics = [form.metric(damped(m, DAMPING, count)) for m in metric]
    return Fit(form, rows, form.fold(target), metrics, means, signal)


def _check(layer: Layer, metric: Array) -> None:
    if not np.isfinite(metric).all():
        raise DataError(
            "calibration gives NaN or infinity at the input of this layer",
            where=layer.node.label,
            hint="samples as the network gets them in use",
        )


def zero_blocks(form: Form, rows: Array) -> Array:
    """bool [groups, units, blocks]: blocks (and padding) whose weights are all zero."""
    return np.asarray(form.blocks(form.fold(rows) != 0) == 0)


def rank_fit(fit: Fit, share: float) -> Ranking:
    """By the damage to the output."""
    return rank_by_hessian(fit.form, fit.target, fit.metrics, zero_blocks(fit.form, fit.rows), share)


def pruned(fit: Fit, kept: Array) -> Array:
    """Folded weights with only `kept` blocks, fitted to the target."""
    width = fit.form.pattern.inputs
    start = np.where(kept.repeat(width, axis=2)[:, :, None], fit.target, 0)
    return np.stack(
        [fit_kept(t, h, k, width, start=s) for t, h, k, s in zip(fit.target, fit.metrics, kept, start, strict=True)]
    )


def store(layer: Layer, fit: Fit, units: Array, kept: Array) -> None:
    """Make `units` the layer's weights, and let the bias take back the change of the mean."""
    rows = np.where(fit.form.spread(kept), fit.form.unfold(units), 0)
    if fit.means is not None:
        mean, reference = fit.means
        shift = np.einsum("gok,gk->go", fit.rows.astype(np.float64), reference) - np.einsum("gok,gk->go", rows, mean)
        for place in bias_place(layer):
            place.add(sum_outputs(layer.node, shift))
    layer.replace(rows)
