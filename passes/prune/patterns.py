"""Which weights to zero: scores of blocks, and the masks that keep the best of them. Arrays only."""

from __future__ import annotations

import numpy as np

from irc.ir.types import Array


def block_scores(weight: Array, block: tuple[int, int]) -> Array:
    """Mean square of each block, float64 [block rows, block columns, positions].

    `weight`: [outputs, inputs, positions]; blocks lie over outputs x inputs, each kernel position for itself. Blocks at
    the edge may be smaller.
    """
    summed = _per_block(np.square(weight.astype(np.float64)), block)
    count = _per_block(np.ones_like(weight, dtype=np.float64), block)
    return summed / count


def block_sizes(weight: Array, block: tuple[int, int]) -> Array:
    """Number of weights of each block, laid out as `block_scores`."""
    return _per_block(np.ones(weight.shape, np.int64), block)


def _per_block(values: Array, block: tuple[int, int]) -> Array:
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], block[0]), axis=0)
    return np.add.reduceat(rows, np.arange(0, values.shape[1], block[1]), axis=1)


def random_scores(weight: Array, block: tuple[int, int], seed: tuple[int, ...]) -> Array:
    """Scores from a generator with this seed, instead; blocks that are zero already come first."""
    found = block_scores(weight, block)
    drawn = np.random.default_rng(seed).random(found.shape)
    return np.where(found == 0, 0.0, drawn + 1e-9)


def lowest(scores: list[Array], sizes: list[Array], share: float) -> list[Array]:
    """For each array of scores, which blocks to drop (bool): the lowest of all until `share` of the weights is gone.

    Of every array at least the best block stays. Equal scores go in order.
    """
    flat = np.concatenate([s.reshape(-1) for s in scores])
    weights = np.concatenate([s.reshape(-1) for s in sizes])
    start, best = 0, []
    for s in scores:
        best.append(start + int(np.argmax(s)))
        start += s.size
    free = np.ones(len(flat), bool)
    free[best] = False
    order = np.argsort(flat, kind="stable")
    order = order[free[order]]
    gone = np.cumsum(weights[order])
    dropped = np.zeros(len(flat), bool)
    dropped[order[: int(np.searchsorted(gone, round(share * weights.sum()), side="right"))]] = True
    parts = np.split(dropped, np.cumsum([s.size for s in scores])[:-1])
    return [p.reshape(s.shape) for p, s in zip(parts, scores, strict=True)]


def apply(weight: Array, dropped: Array, block: tuple[int, int]) -> Array:
    """`weight` [outputs, inputs, positions] with exact zeros in the dropped blocks."""
    spread = dropped.repeat(block[0], axis=0)[: weight.shape[0]].repeat(block[1], axis=1)[:, : weight.shape[1]]
    return np.where(spread, np.zeros((), weight.dtype), weight)
