"""K-means of numbers on a line, each with a weight, and rounding weights to a codebook. Arrays only.

On a line, clusters are intervals: with the numbers sorted, sums over a cluster are differences of running sums, and a
round of Lloyd's algorithm (1982) costs a few binary searches.
"""

from __future__ import annotations

import numpy as np

from irc.ir.types import Array

_ROUNDS = 200
_BLOCK = 128
_SMALLEST_SHARE = 1e-4  # of the mean weight: numbers that hardly count still have a place


def kmeans(values: Array, weights: Array, k: int, *, zero: bool = False) -> Array:
    """At most `k` centres, float64, rising, of least sum of weights * (value - centre)^2 (a local minimum).

    `values`, `weights`: of equal shape, weights not negative. `zero`: 0 is a centre. The start spreads centres by the
    cube root of the density, which is optimal for many centres (Panter and Dite, "Quantization Distortion in
    Pulse-Count Modulation with Nonuniform Spacing of Levels", 1951). Deterministic.
    """
    found, place = np.unique(values.reshape(-1).astype(np.float64), return_inverse=True)
    mass = np.bincount(place.reshape(-1), weights.reshape(-1).astype(np.float64), len(found))
    mass = np.maximum(mass, _SMALLEST_SHARE * mass.mean()) if mass.any() else np.ones_like(mass)
    if len(found) <= k:
        return found if not zero or 0.0 in found else np.sort(np.append(found[np.argsort(-mass)][: k - 1], 0.0))
    total = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * found)])
    centres = _start(found, mass, k)
    for _ in range(_ROUNDS):
        if zero:
            centres[np.argmin(np.abs(centres))] = 0.0
        edges = np.searchsorted(found, (centres[1:] + centres[:-1]) / 2)
        low, high = np.concatenate([[0], edges]), np.concatenate([edges, [len(found)]])
        inside = total[high] - total[low]
        moved = np.where(inside > 0, (moment[high] - moment[low]) / np.where(inside > 0, inside, 1.0), centres)
        if np.array_equal(moved, centres):
            break
        centres = np.sort(moved)
    if zero:
        centres[np.argmin(np.abs(centres))] = 0.0
    return np.unique(centres)


def _start(found: Array, mass: Array, k: int) -> Array:
    """Centres at equal steps of the integral of density^(1/3), the density taken over bins of equal width."""
    bins = min(max(4 * k, 64), 2048)
    counts, edges = np.histogram(found, bins, weights=mass)
    grown = np.concatenate([[0.0], np.cumsum(np.cbrt(counts) + 1e-12)])
    wanted = (np.arange(k) + 0.5) / k * grown[-1]
    return np.asarray(np.interp(wanted, grown, edges))


def nearest(values: Array, centres: Array) -> Array:
    """Index of the nearest centre (rising) of each value."""
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)


def assign(rows: Array, scales: Array, centres: Array, factor: Array, order: Array, keep: Array | None = None) -> Array:
    """Indices into `centres` for each weight, so that the layer's output changes least: [groups, outputs, k].

    `rows` [groups, outputs, k] are about scales * centres, scales [groups, outputs]. Columns go in `order` [groups, k],
    and the error of each is made up for by those that follow, as in GPTQ; `factor` [groups, k, k] is the upper factor
    of the inverse metric in that order. Where `keep` is True a weight becomes the centre nearest to 0.
    """
    left = np.take_along_axis(rows.astype(np.float64), order[:, None, :], 2)
    fixed = None if keep is None else np.take_along_axis(keep, order[:, None, :], 2)
    unit = scales.astype(np.float64)
    nothing = int(np.argmin(np.abs(centres)))
    found = np.empty(left.shape, np.int64)
    columns = left.shape[2]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((*left.shape[:2], stop - start))
        for i in range(start, stop):
            column = left[:, :, i]
            at = nearest(column / unit, centres)
            if fixed is not None:
                at = np.where(fixed[:, :, i], nothing, at)
            found[:, :, i] = at
            error = (column - centres[at] * unit) / factor[:, None, i, i]
            errors[:, :, i - start] = error
            left[:, :, i + 1 : stop] -= error[:, :, None] * factor[:, None, i, i + 1 : stop]
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    back = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(found, back[:, None, :], 2)


def fit(rows: Array, scales: Array, indices: Array, centres: Array, metric: Array, pinned: int | None = None) -> Array:
    """The centres that are best in `metric` [groups, k, k] for an assignment: [entries], float64.

    With A the 0-1 matrix of an output's indices, the least squares of (w - s A c) in the metric is a system of as many
    unknowns as entries. `pinned` is an entry that stays as it is. Entries that nobody uses stay too.
    """
    entries = len(centres)
    normal, right = np.zeros((entries, entries)), np.zeros(entries)
    for g, o in np.ndindex(*scales.shape):
        chosen = np.eye(entries)[indices[g, o]] * float(scales[g, o])  # s A, [k, entries]
        felt = metric[g] @ chosen
        normal += chosen.T @ felt
        right += felt.T @ rows[g, o]
    free = (np.bincount(indices.reshape(-1), minlength=entries) > 0) & (np.arange(entries) != pinned)
    if not free.any():
        return centres
    right = right - normal[:, ~free] @ centres[~free]
    system = normal[np.ix_(free, free)]
    ridge = 1e-6 * np.trace(system) / len(system) + np.finfo(np.float64).tiny
    found = centres.copy()
    # The ridge pulls towards the old centres: directions that no sample shows stay as they were.
    change = np.linalg.solve(system + ridge * np.eye(len(system)), right[free] - system @ centres[free])
    found[free] += change
    return found
