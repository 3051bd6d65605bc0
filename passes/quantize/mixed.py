"""Which precision each layer needs: steps of the weights by what they cost in bits and in the network's output.

Each layer's sensitivity is measured: rounded alone, how much does the network's output change for a given change of
the layer's own output? The changes of several layers add up, so the best steps for a budget are where every layer
gains equally many bits for a little more noise: minimise bits + damage / price over the steps of each layer, for the
one price at which the estimated damage is what `drop` allows. Then the layers are rounded one after another on what
the rounded layers before them give, the damage of the whole is measured, and the price corrected until it fits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irc.calibrate.gather import gather, sample_count
from irc.calibrate.layers import from_rows, moment_observer, spread_outputs, sum_outputs, to_rows
from irc.calibrate.observers import Observer, SecondMoment
from irc.calibrate.sequential import LayerMoments, refit, walk
from irc.ir.clone import clone
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array
from irc.passes.quantize.affine import WEIGHT_LIMIT
from irc.passes.quantize.damage import Damage, Reference, noise_for, split
from irc.passes.quantize.levels import NAMED, Levels
from irc.passes.quantize.rate import Curve, conditional, curve, entropy_bits, round_for_rate, unclipped
from irc.passes.quantize.regions import Linear, find_regions
from irc.passes.quantize.weights import quantize_layer
from irc.pipeline.contract import PassContext

MENU = (NAMED["int4"], NAMED["int8"])
"""Levels that every target executes well, from few bits to many."""
_DAMPING = 0.01
_SPREAD = 0.5
"""Power of an output's deviation that its step follows: 0 would make all outputs of a layer equally noisy, 1 equally
noisy in proportion. Measured, the network's output cares for something between."""
_STEPS = np.exp2(np.arange(-40, 1) / 4)  # of the step at which half of the output would be noise
_MOST_CHANGE = 0.25  # of a layer's output; beyond, changes of layers do not add up
_PROBE = 0.01  # change of a layer's output with which its sensitivity is measured
_LEAST_SENSITIVITY = 1e-3  # of the median: samples do not show everything
_REFIT = 100.0  # times that damping where weights mend errors made before: these are less sure than the weights are
_SMALL = 1024  # weights up to which a layer is not worth a kernel that unpacks
_ROUNDS = 5
_CLOSE = 0.9  # of the budget: near enough
_AIM = 0.96
_BIAS = 1.0


@dataclass(frozen=True)
class Rounded:
    """Integers of one layer (in the weight's shape), their scales per output channel, and the error that its bias may
    have per output channel without doing more damage than a weight does."""

    q: Array
    scales: Array
    bias_step: Array
    levels: Levels


@dataclass
class _Layer:
    """One layer under study. `number`: its place among the linear layers of the graph; `followers`: places of those
    that read the same weights. `menu`: the levels to choose from; where it is empty the step is free, and `scales`
    are those of the output channels for each choice."""

    number: int
    followers: tuple[int, ...]
    linear: Linear
    moment: SecondMoment
    menu: tuple[Levels, ...]
    scales: Array  # [choices, output channels], powers of two times one number
    costs: Array  # [groups, k]
    signal: float
    curve: Curve
    sensitivity: float = 0.0
    choice: int = 0

    @property
    def change(self) -> float:
        return float(self.curve.change[self.choice])

    @property
    def bits(self) -> float:
        return float(self.curve.bits[self.choice])

    @property
    def groups(self) -> int:
        return len(self.costs)

    def rows(self) -> Array:
        return to_rows(self.linear.core, self.linear.weight.numpy(), self.groups).astype(np.float64)

    def units(self) -> Array:
        """The step of each row at the choice made."""
        return spread_outputs(self.linear.core, self.scales[self.choice], self.groups)


@dataclass(frozen=True)
class Fitted:
    """`layers`: integers by layer, where steps were free; `levels`: what was chosen from a menu; `lines`: what to
    report of each; `damage`: of all weights together."""

    layers: dict[Node, Rounded]
    levels: dict[Node, Levels]
    lines: list[dict[str, Any]]
    damage: Damage


def fit_drop(model: Model, ctx: PassContext, skip: Collection[str], drop: float, menu: Sequence[Levels] = ()) -> Fitted:
    """Choose the precision of every linear layer of `model` so that about `drop` points of accuracy are lost.

    Without `menu` steps are free, and the weights and biases in `model` become float32 constants that lie on the grids
    of the result; with it, from few bits to many, each layer gets one of these levels, and `model` stays as it is.
    Layers whose rows cannot be formed or never vary are left out.
    """
    fitting, measuring = split(ctx, model)
    reference = Reference(model, measuring)
    layers = _study(model, ctx, skip, tuple(menu))
    for layer in layers:
        _probe(model, layer, reference, skip)
    typical = float(np.median([x.sensitivity for x in layers])) if layers else 0.0
    for layer in layers:
        layer.sensitivity = max(layer.sensitivity, _LEAST_SENSITIVITY * typical, 1e-9)
    best: tuple[list[int], Damage] | None = None
    price, low, high = _first_price(layers, noise_for(drop)), 0.0, math.inf
    for attempt in range(_ROUNDS):
        _choose(layers, price)
        trial = clone(model)
        _round_all(trial, model, fitting, layers, skip)
        found = reference.compare(trial, f"trial {attempt}")
        if best is None or _better(found, best[1], drop):
            best = [layer.choice for layer in layers], found
        if _CLOSE * drop <= found.drop <= drop:
            break
        low, high = (price, high) if found.drop <= drop else (low, price)
        price = _next_price(price, found.drop, drop, low, high)
    if best is None:
        return Fitted({}, {}, [], Damage(0.0, 0.0))
    for layer, chosen in zip(layers, best[0], strict=True):
        layer.choice = chosen
    if menu:
        return Fitted({}, _levels(layers, _linears(model.graph, skip)), _report(layers, {}), best[1])
    final = clone(model)
    rounded = _round_all(final, model, ctx, layers, skip)  # now all samples may teach
    return Fitted(_adopt(model, final, rounded, skip), {}, _report(layers, rounded), best[1])


def _levels(layers: Sequence[_Layer], linears: Sequence[Linear]) -> dict[Node, Levels]:
    """What was chosen from the menu."""
    return {linears[i].core: x.menu[x.choice] for x in layers for i in (x.number, *x.followers)}


def _better(found: Damage, best: Damage, drop: float) -> bool:
    """Within the budget the larger damage has the smaller weights; beyond it the smaller one is nearer."""
    if (found.drop <= drop) != (best.drop <= drop):
        return found.drop <= drop
    return found.drop > best.drop if found.drop <= drop else found.drop < best.drop


def _next_price(price: float, found: float, drop: float, low: float, high: float) -> float:
    """Noise is about proportional to the price and the drop to its root; the known bounds hold in any case."""
    aimed: float = price * min(max((_AIM * drop / max(found, 1e-9)) ** 2, 1e-3), 1e3)
    if low < aimed < high:
        return aimed
    return math.sqrt(low * high) if low > 0 and math.isfinite(high) else price * (0.5 if high <= price else 2.0)


def _linears(graph: Graph, skip: Collection[str]) -> list[Linear]:
    return [k.linear for k in find_regions(graph, skip).kernels if k.linear is not None]


def _study(model: Model, ctx: PassContext, skip: Collection[str], menu: tuple[Levels, ...]) -> list[_Layer]:
    """The trade-off of each layer, from one run over the samples."""
    linears = _linears(model.graph, skip)
    wanted: dict[str, list[Observer]] = {}
    first: dict[int, int] = {}
    for number, linear in enumerate(linears):
        observer = moment_observer(linear.core, sample_count(ctx))
        if observer is None:
            continue
        first.setdefault(id(linear.weight), number)
        observers = wanted.setdefault(linear.core.need(0).name, [])
        if all(o.key != observer.key for o in observers):
            observers.append(observer)
    statistics = gather(ctx, model, wanted, stage="moments of all layers")
    layers = []
    for number in first.values():
        linear = linears[number]
        observer = moment_observer(linear.core, sample_count(ctx))
        assert observer is not None
        found = statistics.entries[linear.core.need(0).name, observer.key]
        assert isinstance(found, SecondMoment)
        same = tuple(i for i, x in enumerate(linears) if x.weight is linear.weight and i != number)
        layer = _layer(number, same, linear, found, _usable(linear, menu))
        if layer is not None:
            layers.append(layer)
    return layers


def _usable(linear: Linear, menu: tuple[Levels, ...]) -> tuple[Levels, ...]:
    """Few bits only where they save more than they cost: depthwise and tiny layers have the most bits."""
    shape = linear.weight.static_shape()
    depthwise = linear.core.op_type == "Conv" and shape[1] == 1
    return menu[-1:] if depthwise or math.prod(shape) < _SMALL else menu


def _layer(
    number: int, followers: tuple[int, ...], linear: Linear, moment: SecondMoment, menu: tuple[Levels, ...]
) -> _Layer | None:
    """None where every sample gives the same: there is nothing to measure then."""
    node, weight = linear.core, linear.weight.numpy()
    metric = _metric(linear, moment)
    rows = to_rows(node, weight, moment.groups).astype(np.float64)
    power = sum_outputs(node, np.einsum("goi,gij,goj->go", rows, metric, rows, optimize=True))
    power = np.maximum(power, 1e-6 * float(power.max(initial=0.0)))
    if not power.any():
        return None
    deviation = np.sqrt(power)
    ratios = np.exp2(np.rint(_SPREAD * np.log2(deviation / float(np.median(deviation)))))
    costs = conditional(metric, _damping(moment))
    spread = spread_outputs(node, ratios, moment.groups)
    signal = float(power.sum())
    noise = float((np.square(spread)[:, :, None] * costs[:, None, :]).sum()) / 12  # of a step of 1
    if menu:
        errors = [rows - _nearest(linear, weight, levels, moment) for levels in menu]
        change = np.array([float((np.square(e) * costs[:, None, :]).sum()) / signal for e in errors])
        bits = np.array([levels.bits * weight.size for levels in menu], np.float64)
        return _Layer(number, followers, linear, moment, menu, ratios[None], costs, signal, Curve(bits, change))
    steps = _STEPS * math.sqrt(signal / (2 * noise))
    # Weights of inputs that hardly vary may be too large for their layer's steps; clipping them costs little then.
    scales = [ratios * s * unclipped(rows, spread * s, costs, lambda x: sum_outputs(node, x)) for s in steps]
    known = curve(rows, [spread_outputs(node, s, moment.groups) for s in scales], costs, signal)
    return _Layer(number, followers, linear, moment, menu, np.array(scales), costs, signal, known)


def _metric(linear: Linear, moment: SecondMoment | LayerMoments) -> Array:
    return moment.covariance if _free(linear) else moment.moment


def _free(linear: Linear) -> bool:
    """Whether a bias can take back the mean error."""
    return linear.bias is not None or linear.core.op_type != "MatMul"


def _damping(moment: SecondMoment | LayerMoments) -> float:
    """More where there are few samples for so many columns: what they did not show must not be bent."""
    columns = int(moment.mean.shape[1])
    return _DAMPING * max(1.0, 4.0 * columns / max(moment.count, 1))


def _probe(model: Model, layer: _Layer, reference: Reference, skip: Collection[str]) -> None:
    """Sensitivity of a layer: noise of the network's output for each unit of change of the layer's."""
    layer.choice = int(np.argmin(np.abs(np.log(np.maximum(layer.curve.change, 1e-12) / _PROBE))))
    trial = clone(model)
    rows = layer.rows()
    if layer.menu:
        q = _nearest(layer.linear, layer.linear.weight.numpy(), layer.menu[layer.choice], layer.moment)
    else:
        units = layer.units()[:, :, None]
        q = np.clip(np.rint(rows / units), -WEIGHT_LIMIT, WEIGHT_LIMIT) * units
    error, metric = rows - q, _metric(layer.linear, layer.moment)
    change = float(np.einsum("goi,gij,goj->", error, metric, error, optimize=True)) / layer.signal
    shift = np.einsum("gok,gk->go", error, layer.moment.mean)
    _install(trial.graph, layer, _linears(trial.graph, skip), q, shift)
    found = reference.compare(trial, f"probe {layer.number}")
    layer.sensitivity = found.noise / max(change, 1e-12)


def _nearest(linear: Linear, weight: Array, levels: Levels, moment: SecondMoment) -> Array:
    """Rows of the weights on these levels, each to its nearest."""
    found = quantize_layer(linear.core, weight, levels, moment, rounding="nearest")
    return to_rows(linear.core, found.real(), moment.groups).astype(np.float64)


def _first_price(layers: Sequence[_Layer], noise: float) -> float:
    """The price at which the noise expected of all layers is `noise`."""
    low, high = -60.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        _choose(layers, math.exp2(middle))
        low, high = (middle, high) if sum(x.sensitivity * x.change for x in layers) < noise else (low, middle)
    return math.exp2(low)


def _choose(layers: Sequence[_Layer], price: float) -> None:
    """The step of each layer where noise + price * bits is least."""
    for layer in layers:
        total = layer.sensitivity * layer.curve.change + price * layer.curve.bits
        layer.choice = int(np.argmin(np.where(layer.curve.change <= _MOST_CHANGE, total, np.inf)))


def _round_all(
    trial: Model, reference: Model, ctx: PassContext, layers: Sequence[_Layer], skip: Collection[str]
) -> dict[int, Rounded]:
    """Round the layers of `trial` in turn, each on what those before it give; the results by layer number."""
    linears = _linears(trial.graph, skip)
    by_node = {linears[layer.number].core: layer for layer in layers}
    rounded: dict[int, Rounded] = {}
    for wave in walk(trial, reference, list(by_node), ctx):
        for moments in wave:
            layer = by_node[moments.node]
            exact, damping = layer.rows(), _damping(moments)
            fitted, _ = refit(exact, moments, _REFIT * damping, bias=_free(layer.linear))
            restored, found = _round(layer, fitted, moments, damping)
            shift = np.einsum("gok,gk->go", exact, moments.reference_mean) - np.einsum(
                "gok,gk->go", restored, moments.mean
            )
            _install(trial.graph, layer, linears, restored, shift)
            rounded.update(dict.fromkeys((layer.number, *layer.followers), found))
    return rounded


def _round(layer: _Layer, rows: Array, moments: LayerMoments, damping: float) -> tuple[Array, Rounded]:
    """The choice made for a layer: its rows as they will be, and its integers."""
    linear, shape = layer.linear, layer.linear.weight.static_shape()
    if layer.menu:
        levels = layer.menu[layer.choice]
        weight = from_rows(linear.core, rows, shape)
        stored = quantize_layer(linear.core, weight, levels, moments, bias=_free(linear), damping=damping)
        real = to_rows(linear.core, stored.real(), layer.groups).astype(np.float64)
        return real, Rounded(stored.q.astype(np.int8), stored.scales, np.zeros(layer.scales.shape[1]), levels)
    units = layer.units()
    q = round_for_rate(rows, units, _metric(linear, moments), damping)
    scales = layer.scales[layer.choice].astype(np.float32)
    return q * units[:, :, None], Rounded(from_rows(linear.core, q, shape), scales, _bias_step(layer), NAMED["int8"])


def _bias_step(layer: _Layer) -> Array:
    """Steps of the bias, [output channels], that do as much damage as those of a few weights."""
    node = layer.linear.core
    each = np.repeat(layer.costs.mean(axis=1)[:, None], layer.units().shape[1], axis=1)
    parts = layer.groups // (node.get_int("group", 1) if node.op_type == "Conv" else 1)
    found: Array = _BIAS * layer.scales[layer.choice] * np.sqrt(sum_outputs(node, each) / parts)
    return found


def _install(graph: Graph, layer: _Layer, linears: Sequence[Linear], rows: Array, shift: Array) -> None:
    """Let the layer and its followers compute with these rows, and add `shift` [groups, outputs] to its bias."""
    own = linears[layer.number]
    shape = own.weight.static_shape()
    weight = graph.add_constant(from_rows(own.core, rows, shape).astype(np.float32), f"{own.weight.name}_rounded")
    for linear in (own, *(linears[i] for i in layer.followers)):
        graph.set_input(linear.core, 1, weight)
    if not _free(own):
        return
    total = sum_outputs(own.core, shift)
    if own.bias is not None:
        total = own.bias.numpy() + total.reshape(own.bias.static_shape())
    bias = graph.add_constant(total.astype(np.float32), f"{own.weight.name}_bias")
    graph.set_input(own.bias_node, own.bias_index, bias)


def _adopt(model: Model, trial: Model, rounded: dict[int, Rounded], skip: Collection[str]) -> dict[Node, Rounded]:
    """Give `model` the weights and biases of `trial`."""
    graph, made = model.graph, {}
    copies: dict[Value, Value] = {}
    for number, (own, other) in enumerate(zip(_linears(graph, skip), _linears(trial.graph, skip), strict=True)):
        if number not in rounded:
            continue
        made[own.core] = rounded[number]
        pairs: list[tuple[Node, int, Value | None, Value]] = [(own.core, 1, own.weight, other.weight)]
        if other.bias is not None:
            pairs.append((own.bias_node, own.bias_index, own.bias, other.bias))
        for node, index, old, new in pairs:
            if new not in copies:
                copies[new] = graph.add_constant(new.numpy(), new.name)
            graph.set_input(node, index, copies[new])
            if old is not None and not old.uses and not old.is_output:
                graph.remove_constant(old)
    return made


def _report(layers: Sequence[_Layer], rounded: dict[int, Rounded]) -> list[dict[str, Any]]:
    """Bits per weight reached, sensitivity, and the share of the damage expected, by layer."""
    total = sum(x.sensitivity * x.change for x in layers) or 1.0
    return [
        {
            "node": x.linear.core.name,
            "weights": int(x.linear.weight.numpy().size),
            "bits": x.menu[x.choice].bits
            if x.menu
            else round(entropy_bits(rounded[x.number].q) / rounded[x.number].q.size, 3),
            "sensitivity": float(f"{x.sensitivity:.3g}"),
            "share_of_damage": round(x.sensitivity * x.change / total, 4),
            "why": _why(x, total),
        }
        for x in layers
        if x.menu or x.number in rounded
    ]


def _why(layer: _Layer, total: float) -> str:
    """Why the layer has these bits and not fewer."""
    if len(layer.menu) == 1:
        return "depthwise, or too few weights for another kernel"
    if layer.choice == len(layer.curve.bits) - 1 and not layer.menu:
        return "coarser steps would leave too little of its output"
    if layer.menu and layer.choice == 0:
        return "no fewer are offered"
    fewer = layer.choice - 1 if layer.menu else layer.choice + 1
    saved = layer.curve.bits[layer.choice] - layer.curve.bits[fewer]
    more = layer.sensitivity * (layer.curve.change[fewer] - layer.change) / total
    return f"the next coarser choice saves {saved / 8:.0f} bytes for {100 * more:.2g} % more damage"
