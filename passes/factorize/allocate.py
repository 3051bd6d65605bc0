"""Ranks for a whole network: the least loss within a number of multiply-adds or bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """One way to compute a layer: what it costs and what it loses. Way 0 of a layer is the layer as it is."""

    cost: float
    loss: float


def allocate(layers: Sequence[Sequence[Way]], budget: float) -> list[int] | None:
    """For each layer the number of its way, so that costs stay within `budget` at the least sum of losses.

    Lagrange: each layer takes the way of least loss + price * cost, and the lowest price that keeps the budget is found
    by halving; what is then left of the budget goes to those that gain most. None where no price is high enough.
    """
    if sum(min(w.cost for w in ways) for ways in layers) > budget * (1 + 1e-12):
        return None
    low, high = 0.0, 1.0
    while _cost(layers, _at(layers, high)) > budget and high < 1e300:
        high *= 4
    chosen = _at(layers, high)
    if _cost(layers, chosen) > budget:
        chosen = [min(range(len(w)), key=lambda i: (w[i].cost, w[i].loss)) for w in layers]
    for _ in range(200):
        middle = (low + high) / 2
        tried = _at(layers, middle)
        if _cost(layers, tried) > budget:
            low = middle
        else:
            high, chosen = middle, tried
    return _spend(layers, chosen, budget)


def _at(layers: Sequence[Sequence[Way]], price: float) -> list[int]:
    return [min(range(len(w)), key=lambda i: (w[i].loss + price * w[i].cost, w[i].cost)) for w in layers]


def _cost(layers: Sequence[Sequence[Way]], chosen: Sequence[int]) -> float:
    return math.fsum(ways[i].cost for ways, i in zip(layers, chosen, strict=True))


def _spend(layers: Sequence[Sequence[Way]], chosen: list[int], budget: float) -> list[int]:
    """Better ways for what the budget leaves, the one of most gain for its cost first."""
    while True:
        left = budget - _cost(layers, chosen)
        best, gain = None, 0.0
        for number, ways in enumerate(layers):
            now = ways[chosen[number]]
            for i, way in enumerate(ways):
                more = way.cost - now.cost
                if way.loss < now.loss and 0 < more <= left and (now.loss - way.loss) / more > gain:
                    best, gain = (number, i), (now.loss - way.loss) / more
        if best is None:
            return chosen
        chosen[best[0]] = best[1]
