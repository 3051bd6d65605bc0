"""Zero weights of linear layers, singly or in blocks, where that changes the network's outputs least.

No training: weights go by what their removal does to the layer's output, and what is left takes over (`obs.py`,
`sweep.py`). Masks need not be kept: pruned weights are exactly 0, and later passes leave exact zeros alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from irc.calibrate.gather import calibrated, gather, sample_count
from irc.calibrate.layers import moment_observer
from irc.calibrate.observers import SecondMoment
from irc.errors import DataError, OptionError
from irc.ir.analysis import macs
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.passes.prune.allocate import Goal, cheapest, uniform
from irc.passes.prune.layers import NAME, Form, Layer, Pattern, find_layers
from irc.passes.prune.patterns import parse_pattern, prospects
from irc.passes.prune.ranking import Ranking, rank_random, rank_scores
from irc.passes.prune.sensitivity import sensitivities
from irc.passes.prune.sweep import Fit, fits, pruned, rank_fit, store, zero_blocks
from irc.pipeline.contract import Pass, PassContext, PassResult

_FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class Prune(Pass):
    """Options. `sparsity`: share of the prunable weights that is zero afterwards, in [0, 1). Instead of it, `macs`:
    share of the network's multiply-adds to keep, or `bytes`: float32 bytes of the linear layers' weights to keep.

    `pattern`: `element`, `block` (`block`: outputs x inputs, or `target` for what the target's kernels skip), or n:m
    (n of m neighbouring inputs stay). `scope`: how much each layer loses: `uniform`; `global`: by the damage to its
    own output; `sensitivity`: by the damage to the network's outputs, measured. `update`: fit the weights that stay
    (by default for `criterion=hessian`).
    """

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "zero the weights that matter least, singly or in blocks, and fit the rest"

    sparsity: float | None = None
    macs: float | None = None
    bytes: int | None = None
    pattern: str = "element"
    block: str = "16x4"
    criterion: Literal["hessian", "wanda", "magnitude", "random"] = "hessian"
    scope: Literal["uniform", "global", "sensitivity"] = "uniform"
    update: bool | None = None

    def __post_init__(self) -> None:
        goals = [n for n in ("sparsity", "macs", "bytes") if getattr(self, n) is not None]
        if len(goals) > 1:
            raise OptionError("there are several goals", where="prune", expected="one", got=" and ".join(goals))
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise OptionError("sparsity is out of range", where="prune", expected="[0, 1)", got=str(self.sparsity))
        if self.macs is not None and not 0 < self.macs <= 1:
            raise OptionError("macs is out of range", where="prune", expected="(0, 1]", got=str(self.macs))
        if self.bytes is not None and self.bytes <= 0:
            raise OptionError("bytes is out of range", where="prune", expected="more than 0", got=str(self.bytes))
        if self.block != "target":
            parse_pattern("block", self.block, None)
        if self.pattern != "block" and parse_pattern(self.pattern, self.block, None).run and goals:
            raise OptionError(f"{self.pattern} fixes how much goes", where="prune", got=goals[0])

    @property
    def updates(self) -> bool:
        return self.criterion == "hessian" if self.update is None else self.update

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration data where it is needed, OptionError for impossible goals."""
        pattern = parse_pattern(self.pattern, self.block, ctx.target)
        layers, refusals = find_layers(model)
        if not layers:
            return PassResult(False, {"layers": [], "sparsity": 0.0}, refusals)
        self._check_data(model, ctx)
        work = _Work(self, model, ctx, layers, pattern)
        changed = work.run()
        lines = [work.line(layer) for layer in layers]
        zeros, total = sum(line["zeros"] for line in lines), sum(line["weights"] for line in lines)
        notes = [*work.notes, *filter(None, [prospects(pattern, ctx.target) if changed else ""])]
        statistics = {
            "layers": lines,
            "sparsity": round(zeros / total, 6),
            "pattern": self.block if self.pattern == "block" else self.pattern,
            "notes": notes,
        }
        return PassResult(changed, statistics, refusals)

    def _check_data(self, model: Model, ctx: PassContext) -> None:
        measured = self.scope == "sensitivity" or self.updates or self.criterion in ("hessian", "wanda")
        if not measured:
            return
        if not calibrated(ctx):
            raise DataError(
                "this needs calibration data",
                where=f"pass '{NAME}'",
                expected="samples of real inputs",
                got="none",
                hint="--calibration samples.npz, or prune{criterion=magnitude}",
            )
        count = sample_count(ctx)
        if count < _FEWEST_SAMPLES:
            raise DataError(
                "too few calibration samples to tell which weights matter",
                where=f"pass '{NAME}'",
                expected=f"{_FEWEST_SAMPLES} or more, better 256",
                got=str(count),
                hint="prune{criterion=magnitude}",
            )


class _Work:
    """One run of the pass over one model."""

    def __init__(self, options: Prune, model: Model, ctx: PassContext, layers: list[Layer], pattern: Pattern) -> None:
        self.options, self.model, self.ctx, self.layers, self.pattern = options, model, ctx, layers, pattern
        self.notes: list[str] = []
        self.errors: dict[Layer, float] = {}

    def run(self) -> bool:
        forms = {layer: self._form(layer) for layer in self.layers}
        gone = {layer: zero_blocks(form, layer.rows(form.groups)) for layer, form in forms.items()}
        rankings = {} if self.options.criterion == "hessian" else self._score(forms, gone)
        zeros = self._zeros(forms, gone, rankings)
        if all(zeros[layer] <= int(forms[layer].sizes()[gone[layer]].sum()) for layer in self.layers):
            return False
        before = {layer: layer.weight for layer in self.layers}
        if self.options.updates or self.options.criterion == "hessian":
            self._sweep(zeros, rankings)
        for layer in self.layers:
            if layer.weight is before[layer]:  # nothing is known of its input, or nothing is to be fitted
                ranking = rankings.get(layer) or self._by_magnitude(layer, forms[layer], gone[layer])
                form = forms[layer]
                rows = layer.rows(form.groups)
                kept = form.spread(ranking.kept(zeros[layer]))
                if np.count_nonzero(rows[~kept]):
                    layer.replace(np.where(kept, rows, np.zeros((), rows.dtype)))
        return any(layer.weight is not old for layer, old in before.items())

    def _form(self, layer: Layer) -> Form:
        groups = layer.own_groups
        if len({id(n.graph) for n in layer.nodes} | {id(self.model.graph)}) == 1 and calibrated(self.ctx):
            observer = moment_observer(layer.node, 1)
            groups = observer.groups if observer is not None else groups
        groups, outputs, k = layer.rows(groups).shape
        return Form.of(groups, outputs, k, layer.positions, self.pattern)

    def _score(self, forms: Mapping[Layer, Form], gone: Mapping[Layer, Array]) -> dict[Layer, Ranking]:
        if self.options.criterion == "random":
            return {
                layer: rank_random(form, gone[layer], (self.ctx.seed, i))
                for i, (layer, form) in enumerate(forms.items())
            }
        if self.options.criterion == "magnitude":
            return {layer: self._by_magnitude(layer, form, gone[layer]) for layer, form in forms.items()}
        found = {}
        powers = self._powers()
        for layer, form in forms.items():
            scores = np.square(layer.rows(form.groups).astype(np.float64))
            if layer in powers:
                scores *= powers[layer][:, None, :]
                signal = max(float(scores.sum()), 1e-30)  # layers are compared by their relative error
                found[layer] = rank_scores(form, scores / signal, gone[layer])
            else:
                found[layer] = self._by_magnitude(layer, form, gone[layer])
        return found

    def _by_magnitude(self, layer: Layer, form: Form, gone: Array) -> Ranking:
        return rank_scores(form, np.square(layer.rows(form.groups).astype(np.float64)), gone)

    def _powers(self) -> dict[Layer, Array]:
        """E[x^2] of each layer's input, [groups, k]."""
        samples = sample_count(self.ctx)
        wanted: dict[str, list[SecondMoment]] = {}
        keys: dict[Layer, tuple[str, str]] = {}
        for layer in self.layers:
            observer = moment_observer(layer.node, samples) if layer.node.graph is self.model.graph else None
            if observer is None:
                continue
            name = layer.node.need(0).name
            keys[layer] = name, observer.key
            mine = wanted.setdefault(name, [])
            if all(o.key != observer.key for o in mine):
                mine.append(observer)
        statistics = gather(self.ctx, self.model, wanted)
        return {
            layer: np.diagonal(statistics.get(name, SecondMoment, key).moment, axis1=1, axis2=2)
            for layer, (name, key) in keys.items()
        }

    def _zeros(
        self, forms: Mapping[Layer, Form], gone: Mapping[Layer, Array], rankings: Mapping[Layer, Ranking]
    ) -> dict[Layer, int]:
        """How many weights of each layer shall be zero."""
        weights = [layer.size for layer in self.layers]
        if self.pattern.run:
            return {layer: layer.size for layer in self.layers}
        goal = self._goal()
        if self.options.scope == "uniform":
            return dict(
                zip(self.layers, uniform(weights, goal, self.pattern.outputs * self.pattern.inputs), strict=True)
            )
        factors = dict.fromkeys(self.layers, 1.0)
        if self.options.criterion == "hessian" or self.options.scope == "sensitivity":
            rankings, factors = self._measure(goal, forms, gone, rankings)
        counts = cheapest([rankings[a] for a in self.layers], [factors[a] for a in self.layers], goal)
        return dict(zip(self.layers, counts, strict=True))

    def _goal(self) -> Goal:
        options, ones = self.options, tuple(1.0 for _ in self.layers)
        size = sum(layer.size for layer in self.layers)
        if options.macs is not None:
            counts = [layer.macs() for layer in self.layers]
            every = [macs(n) for n in self.model.graph.walk()]
            if None in counts:
                raise OptionError("the multiply-adds are not known: shapes are not static", where=f"pass '{NAME}'")
            each = [c or 0 for c in counts]
            total = max(sum(c or 0 for c in every), sum(each))
            worth = tuple(c / layer.size for c, layer in zip(each, self.layers, strict=True))
            return Goal((1 - options.macs) * total, worth, f"macs={options.macs:g}", total)
        if options.bytes is not None:
            pruned_ones = {node for layer in self.layers for node in layer.nodes}
            rest = {
                id(n.need(1)): math.prod(n.need(1).static_shape())
                for n in self.model.graph.walk()
                if n.is_op("Conv", "Gemm", "MatMul") and n not in pruned_ones and n.need(1).is_constant
            }
            total = 4 * (size + sum(rest.values()))
            return Goal(total - options.bytes, tuple(4.0 for _ in ones), f"bytes={options.bytes}", total)
        share = 0.5 if options.sparsity is None else options.sparsity
        return Goal(share * size, ones, f"sparsity={share:g}", size)

    def _measure(
        self, goal: Goal, forms: Mapping[Layer, Form], gone: Mapping[Layer, Array], rankings: Mapping[Layer, Ranking]
    ) -> tuple[dict[Layer, Ranking], dict[Layer, float]]:
        """Rankings of all layers by their damage, and what each one's damage counts."""
        share = min(0.9, goal.amount / max(sum(s.size * w for s, w in zip(self.layers, goal.worth, strict=True)), 1))
        found, factors, probes = dict(rankings), dict.fromkeys(self.layers, 0.0), {}
        for layer, fit in fits(self.model, self.layers, self.pattern, self.ctx, keep=True):
            if self.options.criterion == "hessian":
                found[layer] = rank_fit(fit, min(0.95, share + 0.3))
            kept = found[layer].kept(round(share * layer.size))
            units = pruned(fit, kept)
            factors[layer] = self._scaled(found[layer], kept, fit.error(units)) / max(fit.signal, 1e-30)
            if self.options.scope == "sensitivity":
                probes[layer] = Fit(fit.form, fit.rows, fit.target, fit.metrics, fit.means, fit.signal), units, kept
        if self.options.scope == "sensitivity":
            measured = sensitivities(self.model, self.layers, probes, self.ctx)
            factors = {
                layer: f * (factors[layer] * max(probes[layer][0].signal, 1e-30) if layer in probes else 0.0)
                for layer, f in zip(self.layers, measured, strict=True)
            }
        known = [f for f in factors.values() if f > 0]
        typical = float(np.median(known)) if known else 1.0
        for layer in self.layers:
            if layer not in found:
                found[layer] = self._by_magnitude(layer, forms[layer], gone[layer])
            factors[layer] = factors[layer] or typical
        return found, factors

    def _scaled(self, ranking: Ranking, kept: Array, error: float) -> float:
        """The error over what the ranking says it is: 1 but for scores that are no errors."""
        claimed = ranking.growth[~kept.reshape(-1)[ranking.order]].sum()
        return error / claimed if claimed > 0 and error > 0 else 1.0

    def _sweep(self, zeros: Mapping[Layer, int], rankings: Mapping[Layer, Ranking]) -> None:
        done = 0
        for layer, fit in fits(self.model, self.layers, self.pattern, self.ctx):
            share = min(0.99, zeros[layer] / layer.size)
            ranking = rankings.get(layer) or rank_fit(fit, share)
            kept = ranking.kept(zeros[layer])
            units = pruned(fit, kept)
            self.errors[layer] = fit.error(units) / max(fit.signal, 1e-30)
            store(layer, fit, units, kept)
            done += 1
            self.ctx.progress("prune", done, len(self.layers))
        if done < len(self.layers):
            self.notes.append(f"{len(self.layers) - done} layers are pruned by magnitude: their input is not known")

    def line(self, layer: Layer) -> dict[str, Any]:
        data = layer.weight.numpy()
        zeros = int(data.size - np.count_nonzero(data))
        found: dict[str, Any] = {
            "nodes": [n.name for n in layer.nodes],
            "weights": int(data.size),
            "zeros": zeros,
            "sparsity": round(zeros / data.size, 6),
        }
        if layer in self.errors:
            found["error"] = round(self.errors[layer], 6)
        count = layer.macs()
        if count is not None:
            found["macs"], found["macs_left"] = count, round(count * (1 - zeros / data.size))
        return found
