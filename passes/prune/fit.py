"""Least squares for layers that lose inputs: which to lose, and the best weights for the rest. Arrays only.

A layer gives t = W0 x0 + b0 in the original network. In the smaller one its input is x, of which some columns are gone.
The weights min E||t - W x - b||^2 + d ||W - W0||^2 over the columns that stay are C H^-1, with H = E[x xT] + d and
C = E[t xT] + d W0 (both centred; the bias takes the means). A set of columns costs tr(w_S ([H^-1]_SS)^-1 w_ST) more
error when it goes, and H^-1 of the others is a downdate (Hassibi and Stork, "Second Order Derivatives for Network
Pruning", 1993); one group of channels after the other goes so, each time the cheapest in all layers that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from irc.calibrate.observers import Window, chosen
from irc.ir.types import Array

_AT_ONCE = 32  # of the units left, one in so many goes at once
_ROWS = 32  # for each column: with fewer the old weights count for more, because rows of one sample are alike
_MANY = 256  # units: above, four times as many go at once


class Sums:
    """E[x xT], E[t xT] and the means of x and t, over rows that stream by: float64 [groups, ...]."""

    def __init__(self, groups: int, window: Window | None, most: int) -> None:
        self.groups, self.window, self.most = groups, window, most
        self.count = 0
        self._sums: list[Array] = []

    def update(self, x: Array, t: Array) -> None:
        """A batch of inputs and of wanted outputs, as the layer has them; at most `most` positions of each sample."""
        rows, wanted = self._rows(x, t)
        self.count += len(rows)
        a = np.ascontiguousarray(rows.reshape(len(rows), self.groups, -1).transpose(1, 0, 2), np.float32)
        b = np.ascontiguousarray(wanted.reshape(len(wanted), self.groups, -1).transpose(1, 0, 2), np.float32)
        found = [
            (a.transpose(0, 2, 1) @ a).astype(np.float64),
            (b.transpose(0, 2, 1) @ a).astype(np.float64),
            a.sum(axis=1, dtype=np.float64),
            b.sum(axis=1, dtype=np.float64),
            np.square(b, dtype=np.float64).sum(axis=1),
        ]
        if not self._sums:
            self._sums = found
        else:
            for total, new in zip(self._sums, found, strict=True):
                total += new

    def _rows(self, x: Array, t: Array) -> tuple[Array, Array]:
        if self.window is None:
            rows, wanted = x.reshape(-1, x.shape[-1]), t.reshape(-1, t.shape[-1])
            picked = chosen(len(rows), self.most * x.shape[0], self.count)
            return rows[picked], wanted[picked]
        flat = t.reshape(*t.shape[:2], -1)
        places = chosen(flat.shape[2], self.most, self.count)
        wanted = flat[:, :, places].transpose(0, 2, 1).reshape(-1, t.shape[1])
        return self.window.rows(x, self.most, self.count), wanted

    def problem(self, rows: Array, damping: float, *, bias: bool) -> Problem:
        """The least squares problem of a layer with weights `rows` [groups, outputs, k]."""
        h, c, x, t, power = (s / max(self.count, 1) for s in self._sums)
        if bias:
            h = h - x[:, :, None] * x[:, None, :]
            c = c - t[:, :, None] * x[:, None, :]
            power = power - np.square(t)
        k = h.shape[1]
        damping *= max(1.0, _ROWS * k / max(self.count, 1))
        ridge = damping * np.maximum(np.trace(h, axis1=1, axis2=2) / k, 0.0)
        ridge = np.where(ridge > 1e-30, ridge, 1.0)  # nothing but zeros goes in: the weights stay
        h = h + ridge[:, None, None] * np.eye(k)
        c = c + ridge[:, None, None] * rows
        return Problem(h, c, x, t, float(np.maximum(power, 0).sum()), bias)


@dataclass(frozen=True)
class Problem:
    """min E||t - W x - b||^2: `metric` H [groups, k, k] and `cross` C [groups, outputs, k], damped and (with `bias`)
    centred; means `x` [groups, k] and `t` [groups, outputs]; `power`: E||t||^2."""

    metric: Array
    cross: Array
    x: Array
    t: Array
    power: float
    bias: bool

    def solve(self, stays: Array) -> tuple[Array, Array]:
        """Weights [groups, outputs, k], zero in the columns that go (bool [groups, k]: those that stay), and biases."""
        found = np.zeros(self.cross.shape)
        for g, columns in enumerate(stays):
            index = np.flatnonzero(columns)
            if index.size:
                found[g][:, index] = _solve(self.metric[g][np.ix_(index, index)], self.cross[g][:, index].T).T
        if not self.bias:
            return found, np.zeros(self.t.shape)
        return found, self.t - np.einsum("gok,gk->go", found, self.x)


def _solve(matrix: Array, right: Array) -> Array:
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:  # columns that repeat each other, and next to no damping
        return np.linalg.lstsq(matrix, right, rcond=None)[0]


class Elimination:
    """One layer whose columns go unit by unit. `units` [groups, k]: the unit of each column, -1 for those that stay."""

    def __init__(self, problem: Problem, units: Array) -> None:
        self.weight = problem.power if problem.power > 1e-30 else 1.0
        self.parts: list[_Part] = []
        for g in range(len(units)):
            inverse = np.linalg.inv(problem.metric[g])
            self.parts.append(_Part(inverse, problem.cross[g] @ inverse, units[g]))

    def cost(self, units: int) -> Array:
        """What it costs to remove each unit now, as a share of the layer's output power: [units]."""
        total = np.zeros(units)
        for part in self.parts:
            part.add_costs(total)
        return total / self.weight

    def remove(self, units: Sequence[int]) -> None:
        for part in self.parts:
            part.remove(units)


class _Part:
    """The columns of one group of a layer: H^-1 and the weights of those that are left."""

    def __init__(self, inverse: Array, weights: Array, units: Array) -> None:
        self.inverse, self.weights = inverse, weights
        order = np.argsort(units, kind="stable")
        names, starts = np.unique(units[order], return_index=True)
        self.columns = {int(n): c for n, c in zip(names, np.split(order, starts[1:]), strict=True) if n >= 0}

    def add_costs(self, total: Array) -> None:
        sizes: dict[int, list[int]] = {}
        for unit, columns in self.columns.items():
            sizes.setdefault(len(columns), []).append(unit)
        for units in sizes.values():
            index = np.stack([self.columns[u] for u in units])
            blocks = self.inverse[index[:, :, None], index[:, None, :]]
            w = self.weights[:, index].transpose(1, 2, 0)  # [units, columns, outputs]
            total[units] += np.einsum("uco,uco->u", w, np.linalg.solve(blocks, w))

    def remove(self, units: Sequence[int]) -> None:
        found = [self.columns.pop(u) for u in units if u in self.columns]
        if not found:
            return
        gone = np.concatenate(found)
        stays = np.ones(len(self.inverse), bool)
        stays[gone] = False
        left = np.flatnonzero(stays)
        share = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[np.ix_(gone, left)])
        self.weights = self.weights[:, left] - self.weights[:, gone] @ share
        self.inverse = self.inverse[np.ix_(left, left)] - self.inverse[np.ix_(left, gone)] @ share
        place = np.cumsum(stays) - 1
        self.columns = {unit: place[columns] for unit, columns in self.columns.items()}


def eliminate(
    layers: Sequence[Elimination], units: Sequence[int], count: int, allowed: Callable[[int], bool]
) -> tuple[list[int], list[float]]:
    """Up to `count` of `units` (numbered from 0) in the order in which they go, and the error after each.

    `allowed` is asked before each and counts what it allows: a unit may be the last of some tensor.
    """
    left = sorted(units)
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    size = max(left, default=-1) + 1
    while left and len(order) < count:
        costs = sum((layer.cost(size) for layer in layers), np.zeros(size))
        step = min(max(1, len(left) // (_AT_ONCE if len(left) <= _MANY else _AT_ONCE // 4)), count - len(order))
        going: list[int] = []
        for unit in sorted(left, key=lambda u: (costs[u], u)):
            if len(going) == step:
                break
            if allowed(unit):
                going.append(unit)
        if not going:
            break
        for layer in layers:
            layer.remove(going)
        for unit in going:
            total += max(float(costs[unit]), 0.0)
            order.append(unit)
            errors.append(total)
            left.remove(unit)
    return order, errors
