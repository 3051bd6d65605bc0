"""Remove whole channels, heads and residual branches, so that tensors really shrink.

Which channels can go together is found in the graph (dependencies.py). With `criterion=hessian` those go whose loss the
layers that read them can best make up for with the others (fit.py), as He et al., "Channel Pruning for Accelerating
Very Deep Neural Networks" (2017), do with one layer; how many of each group, and which branches, is tried out on the
outputs of the network (search.py), and all layers behind are fitted to the original again (rebuild.py). No labels, no
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from irc.calibrate.collect import Wanted
from irc.calibrate.gather import gather, need_samples
from irc.calibrate.observers import ChannelMean, Observer
from irc.errors import OptionError
from irc.ir.clone import clone
from irc.ir.graph import Model, Node
from irc.ir.types import Array
from irc.passes.prune.branches import find_branches, remove_branches
from irc.passes.prune.budget import Allocation, Costs, Curve, Cut, Quantity, allocate, products, rounded_levels, uniform
from irc.passes.prune.dependencies import Dependencies, Group, find_dependencies
from irc.passes.prune.rebuild import Choice, Feeds, add_biases, drop_zero_biases, make_feeds, rank, rebuild
from irc.passes.prune.search import (
    TRIAL_ROWS,
    Guard,
    Judge,
    Trials,
    can_be_fitted,
    measured,
    readers_of,
    trial_samples,
)
from irc.passes.prune.shrink import remove_units
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal

_ROWS = 65536  # rows that the layers are fitted to in the end
_CURVE_ROWS = 16384
_LANES = 8  # that channels are rounded to where no target is known
_BEYOND = 0.08  # of the multiply-adds that go, more: the data that layers read and write does not shrink as fast
_WORTH_TRYING = 1.5  # plans whose expected error is so many times the least one's are tried out
_MOST_PLANS = 4
_FIRST_CUTS = 4  # branches of the least price that plans without the others may leave out


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Options. The target is one of `macs`, `bytes` (shares that stay, of multiply-adds and of constants) and
    `sparsity` (share of the channels that goes); without any it is macs=0.7.

    `round`: channels stay in multiples of this; `target`: of the lanes of the target's vectors.
    `branches`: whole residual branches may go, too (with `criterion=hessian` and `allocation=sensitivity`).
    """

    name: ClassVar[str] = "prune-channels"
    summary: ClassVar[str] = "remove channels, heads and residual branches, so that tensors shrink"

    macs: float | None = None
    bytes: float | None = None
    sparsity: float | None = None
    criterion: Literal["hessian", "activation", "magnitude", "random"] = "hessian"
    allocation: Literal["sensitivity", "global", "uniform"] = "sensitivity"
    round: int | Literal["target"] = "target"
    branches: bool = True
    damping: float = 0.001

    def __post_init__(self) -> None:
        given = [n for n in ("macs", "bytes", "sparsity") if getattr(self, n) is not None]
        if len(given) > 1:
            raise OptionError("these targets exclude each other", where=self.name, got=" ".join(given))
        for name in ("macs", "bytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise OptionError(f"{name} is out of range", where=self.name, expected="(0, 1]", got=str(value))
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise OptionError("sparsity is out of range", where=self.name, expected="[0, 1)", got=str(self.sparsity))
        if self.round != "target" and self.round < 1:
            raise OptionError(
                "round is no multiple", where=self.name, expected="target or 1, 2, ...", got=str(self.round)
            )
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise OptionError("damping is out of range", where=self.name, expected="at least 0", got=str(self.damping))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        found = find_dependencies(model)
        refusals = tuple(Refusal(g.makers[0].label, self.name, g.refusal) for g in found.groups if not g.units)
        if not any(g.units for g in found.groups):
            return PassResult(False, {"groups": [], "branches": []}, refusals)
        return _Run(self, model, ctx, found).result(refusals)

    @property
    def target(self) -> tuple[Quantity, float]:
        """What is counted, and the share of it that stays."""
        if self.bytes is not None:
            return "bytes", self.bytes
        if self.sparsity is not None:
            return "channels", 1 - self.sparsity
        return "macs", 0.7 if self.macs is None else self.macs


class _Run:
    """One run of the pass."""

    def __init__(self, options: PruneChannels, model: Model, ctx: PassContext, found: Dependencies) -> None:
        self.options, self.model, self.ctx, self.found = options, model, ctx, found
        self.reference = clone(model)
        self.quantity, self.share = options.target
        self.fit = options.criterion == "hessian"
        self.measure = options.allocation == "sensitivity"
        self.feeds = make_feeds(model, need_samples(ctx, model)) if self.fit or self.measure else None

    def costs(self) -> Costs:
        return Costs(self.model, self.found, self.quantity)

    def result(self, refusals: tuple[Refusal, ...]) -> PassResult:
        whole = self.costs().whole
        if self.share >= 1 or not whole:
            return PassResult(False, {"groups": [], "branches": []}, refusals)
        curves = self._curves()
        goal = self.share - _BEYOND * (1 - self.share) if self.quantity == "macs" else self.share
        curves, plan, trials = self._plan(curves, max(goal, 0.0) * whole)
        if plan.total > self.share * whole * (1 + 1e-6):
            raise self._unreachable(curves, whole)
        before = sum(products(n) for n in self.model.graph.nodes)
        lines = self._lines(curves, plan)
        self._make(self.model, curves, plan, _ROWS, self.feeds)
        after = sum(products(n) for n in self.model.graph.nodes)
        facts: dict[str, Any] = {"groups": lines, "branches": plan.cuts, "macs": round(after / max(before, 1), 4)}
        if trials is not None:
            facts["output_error"] = round(trials.judge.error(self.model), 6)
        return PassResult(True, facts, refusals)

    def _unreachable(self, curves: Sequence[Curve], whole: float) -> OptionError:
        costs = self.costs()
        for curve in curves:
            costs.apply(costs.shares(curve.group, curve.removed(len(curve.levels) - 1)))
        hint = "a larger share" + ("" if self.options.round == 1 else ", or round=1")
        return OptionError(
            f"{self.options.name}: so little cannot be left",
            expected=f"{self.quantity} of at least {math.ceil(1000 * costs.total / whole) / 1000:g}",
            got=f"{self.share:g}",
            hint=hint,
        )

    # What each group may lose

    def _curves(self) -> list[Curve]:
        groups = [g for g in self.found.groups if g.units]
        orders = self._eliminated(groups) if self.fit else {}
        curves = []
        for i, group in enumerate(groups):
            order, errors = orders.get(i) or _ranked(group, self._scores(group, i))
            if not np.isfinite(errors).all():
                continue  # weights or data that are no numbers say nothing
            levels = rounded_levels(group, len(order), self._multiple())
            if len(levels) > 1:
                known = (0.0, *errors)
                curves.append(Curve(group, tuple(order), levels, tuple(known[n] for n in levels)))
        return curves

    def _multiple(self) -> int:
        if self.options.round != "target":
            return self.options.round
        return self.ctx.target.vector_bytes // 4 if self.ctx.target is not None else _LANES

    def _eliminated(self, groups: Sequence[Group]) -> dict[int, tuple[list[int], list[float]]]:
        """For each group (by place) that can be fitted: the order in which units go, and the error after each."""
        assert self.feeds is not None
        places = [i for i, g in enumerate(groups) if can_be_fitted(g)]
        choices = [Choice(g.units, len(g.units), readers_of(g), Guard(g)) for g in (groups[i] for i in places)]
        rank(
            self.model, self.feeds, choices, rows=_CURVE_ROWS, damping=self.options.damping, progress=self._progress(0)
        )
        return {i: (c.removed, c.errors) for i, c in zip(places, choices, strict=True) if c.removed is not None}

    def _scores(self, group: Group, place: int) -> dict[int, float]:
        if self.options.criterion == "random":
            drawn = np.random.default_rng((self.ctx.seed, place)).random(len(group.units))
            return dict(zip(group.units, drawn.tolist(), strict=True))
        if self.options.criterion == "activation" and group.readers:
            return activation_scores(self.ctx, self.reference, group)
        return magnitude_scores(group)

    # How much each loses

    def _plan(self, curves: list[Curve], goal: float) -> tuple[list[Curve], Allocation, Trials | None]:
        if self.options.allocation == "uniform":
            return curves, uniform(self.costs(), curves, goal), None
        if not self.measure:
            return curves, allocate(self.costs(), curves, [], goal), None
        assert self.feeds is not None
        branches = (
            find_branches(self.model) if self.options.branches and self.fit and self.quantity != "channels" else []
        )
        count = trial_samples(
            Costs(self.model, self.found, "macs").whole, 2 * len(curves) + len(branches), self.feeds.count
        )
        judge = Judge(self.reference, self.feeds.first(count))
        trials = Trials(self.model, judge, self.options.damping, self.fit)
        curves, cuts = measured(trials, curves, branches, self._progress(1))
        cuts = sorted(
            cuts, key=lambda c: (c.error / max(self.costs().whole - self.costs().without(c.nodes), 1.0), c.name)
        )
        plans: list[Allocation] = []
        for forced in _sets_of(cuts):
            plan = allocate(self.costs(), curves, forced, goal, forced=len(forced))
            if plan not in plans:
                plans.append(plan)
        reached = min(plan.total > goal * (1 + 1e-6) for plan in plans)
        plans = [p for p in plans if (p.total > goal * (1 + 1e-6)) == reached]
        least = min(p.error for p in plans)
        plans = sorted((p for p in plans if p.error <= _WORTH_TRYING * least), key=lambda p: p.error)[:_MOST_PLANS]
        if len(plans) == 1:
            return curves, plans[0], trials
        prices = [self._tried(trials, curves, p) * self._moved(curves, p) for p in plans]
        return curves, plans[int(np.argmin(prices))], trials

    def _moved(self, curves: Sequence[Curve], plan: Allocation) -> float:
        """The share of the numbers that linear layers read and write which is left."""
        costs = Costs(self.model, self.found, "numbers")
        gone = set(plan.cuts)
        costs.drop([n for b in find_branches(self.model) if b.name in gone for n in b.nodes])
        for curve, level in zip(curves, plan.levels, strict=True):
            costs.apply(costs.shares(curve.group, curve.removed(level)))
        return costs.total / costs.whole if costs.whole else 1.0

    def _tried(self, trials: Trials, curves: Sequence[Curve], plan: Allocation) -> float:
        trial = clone(self.reference)
        self._make(trial, curves, plan, TRIAL_ROWS, trials.judge.feeds)
        return trials.judge.error(trial)

    def _progress(self, phase: int) -> Callable[[int, int], None]:
        what = ("rank channels", "try groups and branches", "fit layers")[phase]
        return lambda done, total: self.ctx.progress(what, done, total)

    # Doing it

    def _make(self, model: Model, curves: Sequence[Curve], plan: Allocation, rows: int, feeds: Feeds | None) -> None:
        """`plan` on `model`, which is the model that was planned for or a copy of it."""
        remove_branches(model, plan.cuts)
        given = add_biases(model) if self.fit else []
        found = find_dependencies(model)
        choices = []
        for curve, level in zip(curves, plan.levels, strict=True):
            group, order = _found_again(found, curve) if level else (None, [])
            if group is None:
                continue
            guard = Guard(group)
            removed = [u for u in order if guard(u)][: curve.levels[level]]
            choice = Choice(group.units, len(removed), readers_of(group), Guard(group), removed)
            if self.fit and can_be_fitted(group):
                choice.free = True
            choices.append(choice)
            for node in {*group.makers, *(r.node for r in group.readers)}:
                node.origin = node.origin.touched(self.options.name)
        if self.fit:
            assert feeds is not None
            progress = self._progress(2)
            rebuild(model, self.reference, feeds, choices, rows=rows, damping=self.options.damping, progress=progress)
        remove_units(model, found, [u for c in choices for u in c.removed or ()])
        drop_zero_biases(given)

    def _lines(self, curves: Sequence[Curve], plan: Allocation) -> list[dict[str, Any]]:
        """The report: one line for each group that loses something."""
        costs = Costs(self.model, self.found, "macs")
        lines = []
        for curve, level in zip(curves, plan.levels, strict=True):
            if level == 0:
                continue
            removed = curve.removed(level)
            slot = max(curve.group.slots, key=lambda s: int(np.isin(s.units, removed).sum()))
            saved = costs.total - costs.after(costs.shares(curve.group, removed))
            lines.append(
                {
                    "group": curve.group.name,
                    "layers": [n.name for n in curve.group.makers],
                    "channels": len(slot.units),
                    "left": int((~np.isin(slot.units, removed)).sum()),
                    "macs_saved": round(saved / costs.whole, 4) if costs.whole else 0.0,
                    "error": float(f"{curve.errors[level]:.4g}"),
                }
            )
        return lines


def _sets_of(cuts: Sequence[Cut]) -> list[list[Cut]]:
    """Sets of branches to leave out: none, the cheapest ones, and pairs of them."""
    first = list(cuts[:_FIRST_CUTS])
    alone = [[c] for c in first]
    pairs = [[a, b] for i, a in enumerate(first) for b in first[i + 1 :]]
    return [[], *alone, *pairs, *(first[:n] for n in range(3, len(first) + 1))]


def _ranked(group: Group, scores: Mapping[int, float]) -> tuple[list[int], list[float]]:
    """Units with the least scores first, as far as every tensor keeps one, and the sums of the scores."""
    guard = Guard(group)
    order = [u for u in sorted(group.units, key=lambda u: (scores[u], u)) if guard(u)]
    return order, np.cumsum([scores[u] for u in order]).tolist()


def _found_again(found: Dependencies, curve: Curve) -> tuple[Group | None, list[int]]:
    """The group of a changed copy that has the tensors of `curve`, and its order in the numbers of the copy."""
    slots = {(s.value.name, s.axis): (g, s) for g in found.groups for s in g.slots}
    same: dict[int, int] = {}
    group: Group | None = None
    for old in curve.group.slots:
        new = slots.get((old.value.name, old.axis))
        if new is None or len(new[1].units) != len(old.units) or (group is not None and new[0] is not group):
            continue
        group = new[0]
        same.update(zip(old.units.tolist(), new[1].units.tolist(), strict=True))
    return group, [same[u] for u in curve.order if same.get(u, -1) >= 0]


def magnitude_scores(group: Group) -> dict[int, float]:
    """Sum of squared weights of each unit, each matrix as a share of its own sum."""
    total = dict.fromkeys(group.units, 0.0)
    for slot in group.slots:
        if slot.value.is_constant and len(slot.value.static_shape()) > 1 and slot.value.tensor.dtype.is_float:
            data = np.moveaxis(slot.value.numpy().astype(np.float64), slot.axis, 0).reshape(len(slot.units), -1)
            _add_shares(total, slot.units, np.square(data).sum(axis=1))
    return total


def activation_scores(ctx: PassContext, model: Model, group: Group) -> dict[int, float]:
    """|W|^2 E[x^2] of each unit in the layers that read it, each layer as a share of its own sum (as Sun et al., "A
    Simple and Effective Pruning Approach for Large Language Models", 2023, do with single weights)."""
    wanted: dict[str, list[Observer]] = {}
    for reader in group.readers:
        wanted.setdefault(reader.node.need(0).name, [ChannelMean(_data_axis(reader.node))])
    known: Wanted = wanted
    statistics = gather(ctx, model, known, stage=group.name)
    total = dict.fromkeys(group.units, 0.0)
    for reader in group.readers:
        seen = statistics.get(reader.node.need(0).name, ChannelMean)
        weight, units = reader.slot.value, reader.slot.units
        data = np.moveaxis(weight.numpy().astype(np.float64), reader.slot.axis, 0).reshape(len(units), -1)
        squares = (seen.squares if seen.squares is not None else np.ones(len(units))) / max(seen.count, 1)
        squares = squares.reshape(-1, len(units)).mean(axis=0)  # of grouped convolutions: over the groups
        _add_shares(total, units, np.square(data).sum(axis=1) * squares)
    return total


def _data_axis(node: Node) -> int:
    return 1 if node.is_op("Conv", "ConvTranspose") else -1


def _add_shares(total: dict[int, float], units: Array, amounts: Array) -> None:
    whole = float(amounts.sum()) or 1.0
    for unit, amount in zip(units.tolist(), amounts.tolist(), strict=True):
        if unit >= 0:
            total[unit] += amount / whole
