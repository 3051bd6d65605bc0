"""How much each layer loses, so that all together lose what was asked for.

With `uniform` every layer loses the same share. Otherwise blocks go in the order of damage per cost, over all layers:
that is the allocation of least total damage, as each layer's damage grows ever faster (a Lagrangian relaxation that is
exact up to one block; Frantar and Alistarh, "Optimal Brain Compression", section 4, after its global mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irc.errors import OptionError
from irc.passes.prune.ranking import Ranking


@dataclass(frozen=True)
class Goal:
    """What to remove: `amount`, in units of which a weight of each layer is worth `worth`. `text` says it to users."""

    amount: float
    worth: tuple[float, ...]
    text: str
    total: float  # of everything that counts, pruned or not


def uniform(weights: Sequence[int], goal: Goal, block: int) -> list[int]:
    """Weights that each layer loses. Raises OptionError where that is impossible: one block of each layer stays."""
    available = sum(n * w for n, w in zip(weights, goal.worth, strict=True))
    reachable = available - sum(block * w for w in goal.worth)
    if goal.amount > reachable:
        raise _impossible(goal, max(reachable, 0.0))
    share = goal.amount / available if available > 0 else 0.0
    return [round(max(share, 0.0) * n) for n in weights]


def cheapest(rankings: Sequence[Ranking], factors: Sequence[float], goal: Goal) -> list[int]:
    """The same with the least damage in all; `factors`: what one unit of a layer's damage does to the network."""
    prices, values, owners = [], [], []
    for i, (ranking, factor, worth) in enumerate(zip(rankings, factors, goal.worth, strict=True)):
        if worth <= 0:
            continue
        prices.append(ranking.density() * (factor / worth))
        values.append(ranking.sizes.reshape(-1)[ranking.removable])
        owners.append(np.full(len(values[-1]), i))
    already = [r.already for r in rankings]
    before = sum(n * w for n, w in zip(already, goal.worth, strict=True))
    if not prices:
        if goal.amount > before:
            raise _impossible(goal, before)
        return already
    owner, size = np.concatenate(owners), np.concatenate(values)
    order = np.argsort(np.concatenate(prices), kind="stable")
    gained = before + np.cumsum(size[order] * np.asarray(goal.worth)[owner[order]])
    if goal.amount > gained[-1] * (1 + 1e-9):
        raise _impossible(goal, float(gained[-1]))
    taken = order[: int(np.searchsorted(gained, goal.amount * (1 + 1e-12), side="right"))]
    counts = np.bincount(owner[taken], weights=size[taken], minlength=len(rankings))
    return [round(float(c)) + n for c, n in zip(counts, already, strict=True)]


def _impossible(goal: Goal, reachable: float) -> OptionError:
    left = max(goal.total - reachable, 0.0)
    return OptionError(
        f"{goal.text} cannot be reached by pruning",
        where="pass 'prune'",
        expected=f"at most {reachable:.4g} of {goal.total:.4g} removed, {left / max(goal.total, 1e-30):.1%} left",
        got=f"{goal.amount:.4g} to remove",
    )
