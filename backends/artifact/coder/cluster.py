"""Which runs share a table: a table costs bits, and so does one that fits less well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irc.backends.artifact.coder.runs import Counts, Run, counts_of, entropy_bits, halves_of
from irc.backends.artifact.coder.tables import fit

_MOST_MERGED = 400  # groups that are compared pairwise


def shared(runs: Sequence[Run]) -> list[Counts]:
    """Groups of runs whose joint table costs less than their own ones. Greedy, the best pair first."""
    groups = []
    for i, run in enumerate(runs):
        counts = counts_of(run.symbols)
        groups.append(Counts(counts, halves_of(counts) if run.halves else None, [i]))
    if len(groups) > _MOST_MERGED:
        groups = _neighbours(groups)
    return _merged(groups)


def _neighbours(groups: list[Counts]) -> list[Counts]:
    """Small groups join, so that few enough are left to compare all of them."""
    order = sorted(range(len(groups)), key=lambda i: (groups[i].halves is None, -int(groups[i].bytes.sum())))
    kept = [groups[i] for i in order[:_MOST_MERGED]]
    for i in order[_MOST_MERGED:]:
        alike = [g for g in kept if (g.halves is None) == (groups[i].halves is None)] or kept
        best = min(alike, key=lambda g: _loss(g, groups[i]))
        _join(best, groups[i])
    return kept


def _loss(a: Counts, b: Counts) -> float:
    """Bits that a common table costs more than two ideal ones."""
    return entropy_bits(a.bytes + b.bytes) - entropy_bits(a.bytes) - entropy_bits(b.bytes)


def _join(a: Counts, b: Counts) -> None:
    a.bytes = a.bytes + b.bytes
    a.halves = None if a.halves is None or b.halves is None else a.halves + b.halves
    a.runs += b.runs


def _merged(groups: list[Counts]) -> list[Counts]:
    cost = [_cost(g) for g in groups]
    n = len(groups)
    gain = np.full((n, n), -np.inf)
    entropy = [entropy_bits(g.bytes) for g in groups]

    def compare(i: int, j: int) -> None:
        a, b = min(i, j), max(i, j)
        loss = entropy_bits(groups[a].bytes + groups[b].bytes) - entropy[a] - entropy[b]
        gain[a, b] = min(cost[a] - entropy[a], cost[b] - entropy[b]) - loss

    for i in range(n):
        for j in range(i):
            compare(i, j)
    live = set(range(n))
    while len(live) > 1:
        a, b = (int(k) for k in np.unravel_index(int(np.argmax(gain)), gain.shape))
        if gain[a, b] <= 0:
            break
        gain[a, b] = -np.inf
        made = Counts(groups[a].bytes.copy(), groups[a].halves, list(groups[a].runs))
        _join(made, groups[b])
        bits = _cost(made)
        if bits >= cost[a] + cost[b]:
            continue
        groups[a], cost[a], entropy[a] = made, bits, entropy_bits(made.bytes)
        live.discard(b)
        gain[b, :], gain[:, b] = -np.inf, -np.inf
        for j in live - {a}:
            compare(a, j)
    return [groups[i] for i in sorted(live)]


def _cost(group: Counts) -> float:
    table = fit(group.bytes, nibbles=group.halves, quick=True)
    return table.bits + table.cost(group.bytes)
