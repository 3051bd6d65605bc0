"""Least squares for weights of which some must stay zero: those that were pruned."""

from __future__ import annotations

import numpy as np

from irc.ir.types import Array

_DIRECT = 2e10  # masks x kept columns^3; above it, conjugate gradients
_ITERATIONS = 24
_TINY = 1e-30


def fit_rows(target: Array, metric: Array, kept: Array) -> Array:
    """For each row the weights on its kept columns that come closest to `target` in the metric, zero elsewhere.

    `target`: [outputs, k]; `metric`: [k, k], positive definite; `kept`: bool [outputs, k]. Rows with the same mask, as
    those of pruned blocks, are solved together. Float64.
    """
    masks, owner = np.unique(np.packbits(kept, axis=1), axis=0, return_inverse=True)
    found = np.zeros(target.shape)
    wanted = target @ metric
    largest = float(kept.sum(axis=1).max(initial=0))
    if len(masks) * largest**3 > _DIRECT:
        return _single(target, metric, kept, np.where(kept, target, 0), _ITERATIONS)
    order = np.argsort(owner.reshape(-1), kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(owner.reshape(-1)))[:-1]):
        at = np.flatnonzero(kept[rows[0]])
        if len(at):
            found[np.ix_(rows, at)] = np.linalg.solve(metric[np.ix_(at, at)], wanted[np.ix_(rows, at)].T).T
    return found


def fit_kept(
    target: Array, metric: Array, kept: Array, width: int, start: Array | None = None, iterations: int = _ITERATIONS
) -> Array:
    """The same for units [units, rows, k] that share a mask of blocks, bool [units, blocks of `width` columns].

    Solved directly, or, with `start` to begin from and where that is too much work, by so many `iterations` of
    conjugate gradients.
    """
    columns = kept.repeat(width, axis=1)
    heaviest = float(np.sum(columns.sum(axis=1, dtype=np.float64) ** 3))
    if start is not None and heaviest > _DIRECT:
        return _single(target, metric, columns[:, None, :], start, iterations)
    wanted = target @ metric
    found = np.zeros_like(target)
    for u, own in enumerate(columns):
        at = np.flatnonzero(own)
        if len(at):
            found[u][:, at] = np.linalg.solve(metric[np.ix_(at, at)], wanted[u][:, at].T).T
    return found


def _single(target: Array, metric: Array, mask: Array, start: Array, iterations: int) -> Array:
    """`conjugate` in float32, which is as good as so few steps are; the result has the type of `target`."""
    wanted, h, begin = (a.astype(np.float32, copy=False) for a in (target, metric, start))
    found: Array = conjugate(wanted, h, mask, begin, iterations).astype(target.dtype)
    return found


def conjugate(target: Array, metric: Array, mask: Array, start: Array, iterations: int) -> Array:
    """Conjugate gradients with the diagonal as preconditioner; each row [..., k] has steps of its own."""
    scale = 1 / np.maximum(np.diagonal(metric), _TINY)
    found = np.where(mask, start, 0).astype(metric.dtype)
    residual = np.where(mask, (target - found) @ metric, 0)
    direction = residual * scale
    power = np.sum(residual * direction, axis=-1, keepdims=True)
    for _ in range(iterations):
        image = np.where(mask, direction @ metric, 0)
        length = power / np.maximum(np.sum(direction * image, axis=-1, keepdims=True), _TINY)
        found += length * direction
        residual -= length * image
        ahead = residual * scale
        following = np.sum(residual * ahead, axis=-1, keepdims=True)
        direction = ahead + following / np.maximum(power, _TINY) * direction
        power = following
    return found
