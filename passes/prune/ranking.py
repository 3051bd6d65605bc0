"""In which order a layer's blocks of weights are removed, by each criterion.

`magnitude` (Han et al., 2015), `random`, `wanda`: |w| times the root mean square of what it multiplies (Sun et al., "A
Simple and Effective Pruning Approach for Large Language Models", 2023), `hessian`: see `obs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irc.ir.types import Array
from irc.passes.prune.layers import Form
from irc.passes.prune.obs import Grid, eliminate


@dataclass(frozen=True)
class Ranking:
    """The blocks of a layer that may go, in order, and how much damage each does.

    `order`: indices into the flattened blocks [groups, units, blocks]; `growth`: of the damage, float64, not falling
    per weight; `gone`: bool, blocks that are zero already; `sizes`: weights of each block.
    """

    order: Array
    growth: Array
    gone: Array
    sizes: Array

    @property
    def weights(self) -> int:
        return int(self.sizes.sum())

    @property
    def already(self) -> int:
        """Weights in blocks that are zero already."""
        return int(self.sizes[self.gone].sum())

    @property
    def removable(self) -> Array:
        """`order` without the last block of all: a layer never loses everything."""
        everything = len(self.order) == int((~self.gone & (self.sizes > 0)).sum())
        return self.order[:-1] if everything else self.order

    def density(self) -> Array:
        """Damage per weight of each removable block, not falling."""
        order = self.removable
        found: Array = np.maximum.accumulate(self.growth[: len(order)] / self.sizes.reshape(-1)[order])
        return found

    def kept(self, zeros: int) -> Array:
        """bool [groups, units, blocks]: what stays when at most `zeros` weights (those that are gone among them) go."""
        order = self.removable
        count = np.cumsum(self.sizes.reshape(-1)[order]) + self.already
        kept = (~self.gone).reshape(-1)
        kept[order[: int(np.searchsorted(count, zeros, side="right"))]] = False
        return kept.reshape(self.gone.shape)


def rank_scores(form: Form, scores: Array, gone: Array) -> Ranking:
    """By a score of each weight, float64 [groups, outputs, k]: blocks of the least mean score first."""
    sizes = form.sizes()
    total = form.blocks(form.fold(scores))
    mean = np.where(sizes > 0, total / np.maximum(sizes, 1), np.inf)
    free = ~gone & (sizes > 0)
    if form.pattern.run:
        free &= _loosest(np.where(gone, -1.0, mean), form.pattern.grid)
    flat = np.flatnonzero(free)
    order = flat[np.argsort(mean.reshape(-1)[flat], kind="stable")]
    return Ranking(order, total.reshape(-1)[order], gone, sizes)


def rank_random(form: Form, gone: Array, seed: tuple[int, ...]) -> Ranking:
    """In an order that depends on the seed alone."""
    scores = np.random.default_rng(seed).random(gone.shape)
    return rank_scores(form, form.spread(scores), gone)


def rank_by_hessian(form: Form, units: Array, metrics: list[Array], gone: Array, share: float) -> Ranking:
    """By the damage in the metric of the inputs with the rest moved to the best place.

    `units`: least squares weights, folded; `metrics`: one damped H for each group, in the order of the columns.
    """
    sizes = form.sizes()
    per_group = gone[0].size
    found = [
        eliminate(units[g], metric, form.pattern.grid, gone[g] | (sizes[g] == 0), share)
        for g, metric in enumerate(metrics)
    ]
    order = np.concatenate([f.blocks + g * per_group for g, f in enumerate(found)])
    growth = np.concatenate([f.growth for f in found])
    by = np.argsort(growth, kind="stable")
    return Ranking(order[by], growth[by], gone, sizes)


def _loosest(scores: Array, grid: Grid) -> Array:
    """Which blocks are among the `loose` lowest of their run, bool [groups, units, blocks]."""
    runs = scores.reshape(*scores.shape[:2], -1, grid.run)
    rank = np.argsort(np.argsort(runs, axis=3, kind="stable"), axis=3, kind="stable")
    found: Array = (rank < grid.loose).reshape(scores.shape)
    return found
