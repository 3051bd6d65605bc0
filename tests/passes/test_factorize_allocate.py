"""Ranks for a whole network: within the budget, and near the best of all ways."""

from __future__ import annotations

import itertools

import numpy as np

from irc.passes.factorize.allocate import Way, allocate


def layers(rng: np.random.Generator, count: int = 4, ways: int = 5) -> list[list[Way]]:
    found = []
    for _ in range(count):
        cost = float(rng.integers(50, 100))
        shares = np.sort(rng.random(ways))
        losses = np.sort(rng.random(ways))[::-1] * float(rng.random())
        found.append([Way(cost, 0.0), *(Way(cost * s, x) for s, x in zip(shares, losses, strict=True))])
    return found


def test_within_the_budget_and_near_the_best() -> None:
    rng = np.random.default_rng(0)
    worse = []
    for _ in range(20):
        given = layers(rng)
        budget = 0.6 * sum(ways[0].cost for ways in given)
        chosen = allocate(given, budget)
        assert chosen is not None
        assert sum(ways[i].cost for ways, i in zip(given, chosen, strict=True)) <= budget
        loss = sum(ways[i].loss for ways, i in zip(given, chosen, strict=True))
        best = min(
            sum(ways[i].loss for ways, i in zip(given, tried, strict=True))
            for tried in itertools.product(*(range(len(ways)) for ways in given))
            if sum(ways[i].cost for ways, i in zip(given, tried, strict=True)) <= budget
        )
        worse.append(loss - best)
    # Lagrange's ways lie on the convex hull of what is possible: between two of its corners a little is lost.
    assert min(worse) >= -1e-12
    assert float(np.mean(worse)) < 0.05


def test_everything_stays_where_the_budget_allows_it() -> None:
    given = layers(np.random.default_rng(1))
    assert allocate(given, sum(ways[0].cost for ways in given)) == [0] * len(given)


def test_an_impossible_budget() -> None:
    given = layers(np.random.default_rng(2))
    least = sum(min(w.cost for w in ways) for ways in given)
    assert allocate(given, least * 0.99) is None
    assert allocate(given, least) is not None
