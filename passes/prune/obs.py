"""Optimal Brain Surgeon for one layer: which blocks of weights to remove, in which order, and what each one costs.

With H = E[x xT] of a layer's input, removing the block B of weights w of an output and moving the others to the best
place raises the squared error of the output by w_B ([H^-1]_BB)^-1 w_BT, and the inverse for what is left is a downdate
of H^-1 by B's columns (Hassibi and Stork, 1993; Frantar and Alistarh, "Optimal Brain Compression", 2022). A *unit* is
the rows that share a mask: one row for single weights, 16 for blocks of 16 output channels. Each unit has an inverse of
its own, so everything is batched over units. Where that is too much work, a ladder of growing sparsity scores with
H^-1 of all columns and fits what is left at each rung. Arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irc.calibrate.masked import fit_kept
from irc.ir.types import Array

_MEMORY = 384 << 20  # of the inverses of the units that are worked on together
_EXACT = 5e10  # units x columns^3, a few seconds of one core; above it, the ladder
_PARTS = 24  # about one in so many of the blocks that are left goes between two updates of the whole inverse
_RUNGS = 10
_STEPS = 6  # of conjugate gradients at each rung: more of either gain one or two percent
_TINY = 1e-30


@dataclass(frozen=True)
class Grid:
    """Blocks of `width` neighbouring columns; with `run`, at most `loose` of each `run` neighbouring ones may go."""

    width: int = 1
    run: int = 0
    loose: int = 0


@dataclass(frozen=True)
class Removal:
    """Blocks in the order in which to remove them, and how much the squared error grows with each.

    `blocks`: unit * (blocks of a unit) + block; `growth`: float64, not negative and not falling.
    """

    blocks: Array
    growth: Array


def damped(metric: Array, damping: float, rows: int) -> Array:
    """`metric` [k, k] plus `damping` times its mean diagonal, more where fewer `rows` than columns were seen."""
    k = len(metric)
    mean = float(np.trace(metric)) / max(k, 1)
    if not mean > np.finfo(np.float64).tiny / np.finfo(np.float64).eps:
        return np.eye(k)
    added: Array = metric + (damping * max(1.0, k / max(rows, 1)) * mean) * np.eye(k)
    return added


def eliminate(weights: Array, metric: Array, grid: Grid, gone: Array, share: float) -> Removal:
    """The removal of about `share` of the free blocks, and of some more, so that units may differ.

    `weights`: [units, rows, k], least squares weights of all columns; `metric`: [k, k], positive definite, the same for
    all units. `gone`: bool [units, blocks], blocks that are zero already: they stay zero and are not listed. With
    `grid.run` all that may go is listed.
    """
    units, _, k = weights.shape
    most = 1.0 if grid.run else min(1.0, share + 0.6 * (1 - share))
    if units * float(k) ** 3 > _EXACT:
        return _ladder(weights, metric, grid, gone, most)
    inverse = np.linalg.inv(metric).astype(np.float32)
    step = max(1, _MEMORY // (4 * k * k))
    blocks, growth = [], []
    for start in range(0, units, step):
        part = slice(start, start + step)
        found = _Exact(weights[part], inverse, grid, gone[part]).run(most)
        blocks.append(found.blocks + start * gone.shape[1])
        growth.append(found.growth)
    return _in_order(np.concatenate(blocks), np.concatenate(growth))


def _in_order(blocks: Array, growth: Array) -> Removal:
    order = np.argsort(growth, kind="stable")
    return Removal(blocks[order], growth[order])


class _Exact:
    """Greedy removal with a downdated inverse per unit.

    The whole inverses are updated for a few blocks at a time; among the candidates for those, each removal is exact.
    Columns that are gone are dropped from the arrays now and then.
    """

    def __init__(self, weights: Array, inverse: Array, grid: Grid, gone: Array) -> None:
        self.grid = grid
        units, blocks = gone.shape
        self.left = weights.astype(np.float32)
        self.inverse = np.repeat(inverse[None], units, axis=0)
        self.names = np.repeat(np.arange(blocks)[None], units, axis=0)  # [units, blocks still held]
        self.forced = gone.copy()
        self.out = np.zeros_like(gone)  # removed, but still held
        self.blocks = blocks
        if grid.run:
            self.room = np.full((units, -(-blocks // grid.run)), grid.loose)

    def run(self, most: float) -> Removal:
        units = len(self.names)
        free = self.blocks - self.forced.sum(axis=1)
        steps = int((self.blocks - free + np.ceil(most * free)).max())
        highest = np.zeros(units)
        listed, growth = [], []
        while steps > 0:
            held = self.names.shape[1]
            several = min(steps, max(1, held // _PARTS))
            for names, cost, forced in self._remove(several):
                highest = np.maximum(highest, np.where(np.isfinite(cost), cost, 0))
                free_one = np.isfinite(cost) & ~forced
                listed.append((np.arange(units) * self.blocks + names)[free_one])
                growth.append(highest[free_one])
            steps -= several
            if self.out[0].sum() > held // 4:
                self._drop()
        if not listed:
            return Removal(np.zeros(0, np.int64), np.zeros(0))
        return _in_order(np.concatenate(listed), np.concatenate(growth))

    def _remove(self, several: int) -> list[tuple[Array, Array, Array]]:
        """Remove so many blocks of each unit: (name, cost, forced) of each step, [units] each; cost inf: none was."""
        units, held = self.names.shape
        width, every = self.grid.width, np.arange(units)
        scores = self._scores(self.left, self.inverse, self.forced, self.out, self.names)
        count = min(held, 2 * several + 4)
        near = np.sort(np.argpartition(scores, count - 1, axis=1)[:, :count], axis=1)
        columns = _columns(near, width)
        inner = self.inverse[every[:, None, None], columns[:, :, None], columns[:, None, :]]
        left = np.take_along_axis(self.left, columns[:, None, :], axis=2)
        forced, out = np.take_along_axis(self.forced, near, 1), np.take_along_axis(self.out, near, 1)
        names = np.take_along_axis(self.names, near, 1)
        steps, chosen, valid = [], [], []
        for _ in range(several):
            found = self._scores(left, inner, forced, out, names)
            pick = found.argmin(axis=1)
            cost = found[every, pick]
            valid.append(np.isfinite(cost))
            self._downdate(left, inner, _columns(pick[:, None], width), valid[-1][:, None])
            steps.append((names[every, pick], np.where(cost < 0, 0.0, cost), forced[every, pick]))
            out[every[valid[-1]], pick[valid[-1]]] = True
            if self.grid.run:
                run = names[every, pick] // self.grid.run
                np.subtract.at(self.room, (every[valid[-1]], run[valid[-1]]), 1)
            chosen.append(near[every, pick])
        gone, done = np.stack(chosen, axis=1), np.stack(valid, axis=1)
        self._downdate(self.left, self.inverse, _columns(gone, width), done.repeat(width, axis=1))
        where = np.nonzero(done)
        self.out[where[0], gone[where]] = True
        return steps

    def _scores(self, left: Array, inverse: Array, forced: Array, out: Array, names: Array) -> Array:
        """What removing each block costs, [units, blocks]; -1 for forced ones, inf where it must not go."""
        units, blocks = names.shape
        width = self.grid.width
        if width == 1:
            diagonal = np.diagonal(inverse, axis1=1, axis2=2)
            with np.errstate(over="ignore"):  # what is beyond all numbers stays
                cost = np.square(left).sum(axis=1) / np.maximum(diagonal, _TINY)
        else:
            own = _diagonal_blocks(inverse, width)
            own[out] = np.eye(width)
            parts = left.reshape(units, -1, blocks, width).transpose(0, 2, 1, 3)
            cost = np.einsum("ubgw,ubwg->ub", parts, np.linalg.solve(own, parts.transpose(0, 1, 3, 2)), optimize=True)
        cost = np.maximum(cost.astype(np.float64), 0)
        if self.grid.run:
            cost[np.take_along_axis(self.room, names // self.grid.run, 1) <= 0] = np.inf
        cost[forced] = -1
        cost[out] = np.inf
        return np.asarray(cost)

    def _downdate(self, left: Array, inverse: Array, columns: Array, valid: Array) -> None:
        """Remove `columns` [units, n] (where `valid`) from weights and inverses, in place."""
        rows = np.take_along_axis(inverse, columns[:, :, None], axis=1)  # [units, n, k]
        core = np.take_along_axis(rows, columns[:, None, :], axis=2)
        n = core.shape[1]
        core = np.where(valid[:, :, None] & valid[:, None, :], core, np.eye(n, dtype=core.dtype))
        solved = np.linalg.solve(core, rows * valid[:, :, None])
        left -= np.take_along_axis(left, columns[:, None, :], axis=2) @ solved
        inverse -= rows.transpose(0, 2, 1) @ solved

    def _drop(self) -> None:
        """Forget removed blocks; every unit keeps as many columns as the one with most."""
        units = len(self.names)
        keep = int((~self.out).sum(axis=1).max())
        order = np.sort(np.argsort(self.out, axis=1, kind="stable")[:, :keep], axis=1)
        columns = _columns(order, self.grid.width)
        size = columns.shape[1]
        smaller = np.empty((units, size, size), self.inverse.dtype)
        for i in range(units):
            smaller[i] = self.inverse[i][columns[i][:, None], columns[i]]
        self.inverse = smaller
        self.left = np.take_along_axis(self.left, columns[:, None, :], axis=2)
        self.names, self.forced, self.out = (
            np.take_along_axis(a, order, axis=1) for a in (self.names, self.forced, self.out)
        )


def _columns(blocks: Array, width: int) -> Array:
    """The columns of blocks: [units, n] gives [units, n * width]."""
    found: Array = (blocks[:, :, None] * width + np.arange(width)).reshape(len(blocks), -1)
    return found


def _diagonal_blocks(matrices: Array, width: int) -> Array:
    """[..., blocks * width, blocks * width] gives [..., blocks, width, width] of those on the diagonal."""
    count = matrices.shape[-1] // width
    columns = np.arange(count * width).reshape(count, width)
    found: Array = matrices[..., columns[:, :, None], columns[:, None, :]]
    return found


def _ladder(weights: Array, metric: Array, grid: Grid, gone: Array, most: float) -> Removal:
    """Removal in rungs: the blocks of least cost by the inverse of the whole metric, then a fit of what is left."""
    units, rows, k = weights.shape
    blocks, width = gone.shape[1], grid.width
    single = metric.astype(np.float32)
    strength = np.linalg.inv(_diagonal_blocks(np.linalg.inv(single), width))  # [blocks, width, width]
    target = weights.astype(np.float32)
    out = gone.copy()
    left = fit_kept(target, single, ~out, width, target, _STEPS) if gone.any() else target
    free = int((~gone).sum())
    listed: list[Array] = []
    growth: list[Array] = []
    highest, so_far = 0.0, 0
    for rung in range(1, _RUNGS + 1):
        parts = left.reshape(units, rows, blocks, width)
        cost = np.einsum("urbw,bwv,urbv->ub", parts, strength, parts, optimize=True).astype(np.float64)
        cost[out] = np.inf
        if grid.run:
            cost[~_loosest(cost, out, grid)] = np.inf
        wanted = int(np.ceil(most * free * (1 - (1 - rung / _RUNGS) ** 2))) - so_far
        flat = cost.reshape(-1)
        order = np.argsort(flat, kind="stable")[: max(wanted, 0)]
        order = order[np.isfinite(flat[order])]
        listed.append(order)
        so_far += len(order)
        growth.append(np.maximum(flat[order], highest))
        highest = float(growth[-1][-1]) if len(order) else highest
        out[np.unravel_index(order, out.shape)] = True
        left = fit_kept(target, single, ~out, width, left, _STEPS)
    total = np.concatenate(growth)
    # what the rungs added up by a stale inverse, brought to what it really costs in the end
    off = (left - target).reshape(-1, k)
    real = float(np.sum((off @ single) * off, dtype=np.float64))
    scale = real / total.sum() if total.sum() > 0 else 1.0
    return Removal(np.concatenate(listed), total * scale)


def _loosest(cost: Array, out: Array, grid: Grid) -> Array:
    """Which blocks are among the cheapest that may still go of their run, bool [units, blocks]."""
    units, blocks = cost.shape
    ragged = -blocks % grid.run
    padded = np.pad(cost, ((0, 0), (0, ragged)), constant_values=np.inf).reshape(units, -1, grid.run)
    used = np.pad(out, ((0, 0), (0, ragged))).reshape(units, -1, grid.run).sum(axis=2)
    rank = np.argsort(np.argsort(padded, axis=2, kind="stable"), axis=2, kind="stable")
    found: Array = (rank < (grid.loose - used)[:, :, None]).reshape(units, -1)[:, :blocks]
    return found
