"""How much each group of channels, and each residual branch, can lose: tried out on the network's own outputs.

Every candidate is made on its own in a copy of the model, the layers behind it are fitted again (rebuild.py), and the
change of the outputs over some calibration samples is its price. No labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from irc.calibrate.segments import Segments
from irc.ir.clone import clone
from irc.ir.graph import Model, Node, Value
from irc.ir.types import Array
from irc.passes.prune.branches import Branch, remove_branches
from irc.passes.prune.budget import Curve, Cut
from irc.passes.prune.dependencies import Group, find_dependencies
from irc.passes.prune.rebuild import Choice, Feeds, layer_of, rebuild, set_constant

TRIAL_ROWS = 16384
_TRIAL_MACS = 2e12  # multiply-adds that all trials together may take, about; fewer samples where they would take more
_LEAST_SAMPLES = 16
_SHARES = (0.25, 0.5)  # of a group's units: where its error is measured


class Judge:
    """Compares models with the original by what they give before the last Softmax, on the same samples."""

    def __init__(self, reference: Model, feeds: Feeds) -> None:
        self.feeds = feeds
        self.names = [_telling(v) for v in reference.graph.outputs if v.dtype is not None and v.dtype.is_float]
        self.wanted = self._run(reference)
        self.scale = [float(np.square(w - w.mean(axis=0)).sum()) or 1.0 for w in self.wanted]

    def _run(self, model: Model) -> list[Array]:
        parts: list[list[Array]] = [[] for _ in self.names]
        with closing(Segments(model, iter(self.feeds), 0, joined=self.feeds.joined)) as run:
            for found in run.advance(list(dict.fromkeys(self.names)), []):
                for part, name in zip(parts, self.names, strict=True):
                    part.append(np.asarray(found[name], np.float64).reshape(-1, *found[name].shape[1:]))
        return [np.concatenate(p) for p in parts]

    def error(self, model: Model) -> float:
        """The squared change of the outputs over their variance, mean over the outputs."""
        pairs = zip(self._run(model), self.wanted, self.scale, strict=True)
        found = [float(np.square(given - wanted).sum()) / scale for given, wanted, scale in pairs]
        return float(np.mean([f if np.isfinite(f) else 1e30 for f in found])) if found else 0.0


def _telling(value: Value) -> str:
    """The value that says most about an output: probabilities near 0 and 1 say little."""
    producer = value.producer
    if producer is not None and producer.is_op("Softmax", "LogSoftmax", "Sigmoid"):
        return producer.need(0).name
    return value.name


class Guard:
    """Lets units go as long as every tensor keeps an element. `__call__` counts what it allows."""

    def __init__(self, group: Group) -> None:
        distinct = {s.units.tobytes(): s.units for s in group.slots}
        self._left: list[int] = []
        self._where: dict[int, list[tuple[int, int]]] = {}
        for i, units in enumerate(distinct.values()):
            self._left.append(len(units))
            names, counts = np.unique(units[units >= 0], return_counts=True)
            for unit, count in zip(names.tolist(), counts.tolist(), strict=True):
                self._where.setdefault(unit, []).append((i, count))

    def __call__(self, unit: int) -> bool:
        where = self._where.get(unit, [])
        if any(self._left[i] <= count for i, count in where):
            return False
        for i, count in where:
            self._left[i] -= count
        return True


def readers_of(group: Group) -> dict[Node, Array]:
    """The unit of each summed element, by layer."""
    return {r.node: r.slot.units for r in group.readers}


def can_be_fitted(group: Group) -> bool:
    """Whether all layers that read the group can make up for lost channels."""
    return bool(group.readers) and all(r.index == 1 and layer_of(r.node) is not None for r in group.readers)


def zero_units(group: Group, removed: Sequence[int]) -> None:
    """Zero the weights that read these units, in place."""
    gone = list(removed)
    for reader in group.readers:
        weight = reader.slot.value
        data = np.moveaxis(weight.numpy().copy(), reader.slot.axis, 0)
        data[np.isin(reader.slot.units, gone)] = 0
        set_constant(weight, np.moveaxis(data, 0, reader.slot.axis))


@dataclass
class Trials:
    """Copies of `model` with something gone. `damping`: of the fits; without `fit` weights that stay are kept."""

    model: Model
    judge: Judge
    damping: float
    fit: bool

    def group(self, name: str, removed: Sequence[int]) -> float:
        """The error with these units of the group of this name gone."""
        trial = clone(self.model)  # the same names and the same order: the same numbers
        group = next(g for g in find_dependencies(trial).groups if g.name == name)
        if self.fit and can_be_fitted(group):
            choice = Choice(group.units, len(removed), readers_of(group), lambda unit: True, list(removed))
            rebuild(trial, self.model, self.judge.feeds, [choice], rows=TRIAL_ROWS, damping=self.damping)
        else:
            zero_units(group, removed)
        return self.judge.error(trial)

    def branches(self, names: Sequence[str]) -> float:
        trial = clone(self.model)
        remove_branches(trial, names)
        if self.fit:
            rebuild(trial, self.model, self.judge.feeds, [], rows=TRIAL_ROWS, damping=self.damping)
        return self.judge.error(trial)


def trial_samples(macs: float, trials: int, samples: int) -> int:
    """How many samples the trials may use, of a model with so many multiply-adds."""
    each = 2.5 * max(macs, 1.0)  # the copy, the original and the output
    return int(min(samples, max(_LEAST_SAMPLES, _TRIAL_MACS / (each * max(trials, 1)))))


def measured(
    trials: Trials,
    curves: Sequence[Curve],
    branches: Sequence[Branch],
    progress: Callable[[int, int], None],
) -> tuple[list[Curve], list[Cut]]:
    """Curves whose errors are those of the network's outputs, and the price of each branch.

    Each curve is tried at a few levels; between them its own estimate, scaled, gives the shape.
    """
    steps = len(curves) * len(_SHARES) + len(branches)
    done = 0
    scaled = []
    for curve in curves:
        known: dict[int, float] = {}
        for share in _SHARES:
            level = int(np.argmin([abs(n / len(curve.group.units) - share) for n in curve.levels]))
            if level > 0 and level not in known:
                known[level] = trials.group(curve.group.name, curve.removed(level))
            done += 1
            progress(done, steps)
        scaled.append(_scaled(curve, known))
    cuts = []
    for branch in branches:
        inside = set(branch.nodes)
        own = [i for i, c in enumerate(curves) if inside.issuperset((*c.group.makers, *readers_of(c.group)))]
        cuts.append(Cut(branch.name, branch.nodes, tuple(own), trials.branches([branch.name])))
        done += 1
        progress(done, steps)
    return scaled, cuts


def _scaled(curve: Curve, known: dict[int, float]) -> Curve:
    """The curve through the measured errors: its own, times a factor that goes from one measured level to the next."""
    if not known:
        return curve
    levels = sorted(known)
    factors = [known[n] / max(curve.errors[n], 1e-30) for n in levels]
    places = [curve.levels[n] for n in levels]
    errors = [e * float(np.interp(n, places, factors)) for n, e in zip(curve.levels, curve.errors, strict=True)]
    return Curve(curve.group, curve.order, curve.levels, tuple(np.maximum.accumulate(errors).tolist()))
