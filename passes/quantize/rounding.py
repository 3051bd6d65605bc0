"""Rounding weights so that the layer's output, not each weight, changes least.

The change of the output is E|(W - Q) x|^2 = tr((W - Q) H (W - Q)T) with H = E[x xT]; where the bias takes back the mean
error, H is the covariance. Two ways to make it small:

- columns are rounded one after another, and each one's error is made up for by those not rounded yet, with the inverse
  of H telling how (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
  2023);
- from there, each weight in turn goes to its best level while all others stay (coordinate descent; Nair and Suggala,
  "CDQuant", 2024), a few times over all of them. Limited to the two levels next to each weight this minimises what
  AdaRound does (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020), without gradients.

Arrays are [groups, outputs, k] as `layers.to_rows` makes them; scales and offsets broadcast to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from irc.ir.types import Array
from irc.passes.quantize.levels import NAMED, Levels

_BLOCK = 128
_MOST_SHRUNK = 0.9
_NO_SIGNAL = np.finfo(np.float64).tiny / np.finfo(np.float64).eps


@dataclass(frozen=True)
class Metric:
    """H of a layer's rows with `damping` times its mean diagonal added: [groups, k, k].

    The damping keeps directions that the samples did not show from being bent. A group without any signal has the unit
    matrix. Made once for a layer, whatever is tried with it.
    """

    moment: Array
    damping: float = 0.01

    @cached_property
    def damped(self) -> Array:
        k = self.moment.shape[1]
        mean = np.trace(self.moment, axis1=1, axis2=2) / k
        known = (mean > _NO_SIGNAL)[:, None, None]
        return np.asarray(np.where(known, self.moment + (self.damping * mean)[:, None, None] * np.eye(k), np.eye(k)))

    @cached_property
    def diagonal(self) -> Array:
        """[groups, 1, k]."""
        return np.diagonal(self.damped, axis1=1, axis2=2)[:, None, :]

    @cached_property
    def order(self) -> Array:
        """Columns of the largest diagonal first, [groups, k]: what matters most is rounded while all can make up."""
        return np.argsort(-np.diagonal(self.moment, axis1=1, axis2=2), axis=1, kind="stable")

    @cached_property
    def factor(self) -> Array:
        """`inverse_factor` in that order."""
        order = self.order
        ordered = np.take_along_axis(np.take_along_axis(self.moment, order[:, :, None], 1), order[:, None, :], 2)
        return inverse_factor(ordered, self.damping)

    def error(self, rows: Array, approximate: Array) -> Array:
        """The change of each output, E|(w - w') x|^2 (damped): [groups, outputs]."""
        difference = rows - approximate
        return np.asarray(np.einsum("gok,gok->go", difference @ self.damped, difference))


def pruned_weights(rows: Array, levels: Levels) -> Array | None:
    """bool, the weights that are exactly 0 and stay so; None where there are none, or no level is 0."""
    zero = rows == 0
    return zero if levels.step == 1 and zero.any() else None


def ridge(covariance: Array, count: int, least: float = 0.01) -> float:
    """The damping, as a share of the mean diagonal, that so few rows ask for; at least `least`.

    A covariance of `count` independent rows is nearest to the true one, in expectation, when it is drawn towards a
    multiple of the unit matrix by a share s with a closed form (Chen et al., "Shrinkage Algorithms for MMSE Covariance
    Estimation", 2010: the oracle approximating estimator); s / (1 - s) is the damping. The mean over the groups.
    """
    k = covariance.shape[1]
    total = np.trace(covariance, axis1=1, axis2=2)
    squares = np.einsum("gij,gij->g", covariance, covariance)
    known = (total > _NO_SIGNAL) & (squares > 0)
    if not known.any() or k < 2:
        return least
    total, squares = total[known], squares[known]
    above = (1 - 2 / k) * squares + total**2
    below = (count + 1 - 2 / k) * np.maximum(squares - total**2 / k, 1e-12 * squares)
    share = np.minimum(above / below, _MOST_SHRUNK)
    return max(least, float(np.mean(share / (1 - share))))


def round_rows(rows: Array, scales: Array, metric: Metric, levels: Levels, offset: Array | int = 0) -> Array:
    """Levels (less `offset`) by making up for errors, float64 [groups, outputs, k]. Exact zeros stay zero."""
    order = metric.order[:, :, None]
    factor = metric.factor
    left, unit, low = (_columns(a, order, rows.shape) for a in (rows.astype(np.float64), scales, np.asarray(offset)))
    q = np.empty_like(left)
    pruned = pruned_weights(left, levels)
    count = left.shape[1]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.empty((left.shape[0], stop - start, left.shape[2]))
        for i in range(start, stop):
            whole = levels.nearest(left[:, i] / unit[:, i], low[:, i])
            if pruned is not None:
                whole[pruned[:, i]] = 0
            q[:, i] = whole
            error = (left[:, i] - whole * unit[:, i]) / factor[:, i, i, None]
            errors[:, i - start] = error
            left[:, i + 1 : stop] -= factor[:, i, i + 1 : stop, None] * error[:, None, :]
        left[:, stop:] -= factor[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    back = np.argsort(order, axis=1, kind="stable")
    return np.ascontiguousarray(np.take_along_axis(q, back, 1).transpose(0, 2, 1))


def descend(
    rows: Array,
    q: Array,
    scales: Array,
    metric: Metric,
    levels: Levels,
    offset: Array | int = 0,
    sweeps: int = 3,
    *,
    adjacent: bool = False,
) -> Array:
    """`q` after at most `sweeps` rounds of coordinate descent. Never worse than `q` in the metric.

    Where `rows` are exactly 0, `q` stays as it is. `adjacent`: each weight goes up or down to one of the two levels
    next to it, and no further.
    """
    identity = np.broadcast_to(np.arange(rows.shape[2])[None, :, None], (rows.shape[0], rows.shape[2], 1))
    now, unit, low = (_columns(a, identity, rows.shape) for a in (q, scales, np.asarray(offset)))
    now = now.astype(np.float64)
    pruned = pruned_weights(rows.transpose(0, 2, 1), levels)
    below = np.floor(rows.transpose(0, 2, 1) / unit) if adjacent else None
    h = metric.damped
    slope = h @ (rows.transpose(0, 2, 1) - now * unit)  # [groups, k, outputs]: half the slope of the error, downwards
    diagonal = metric.diagonal[:, 0, :, None]
    count = rows.shape[2]
    for _ in range(sweeps):
        still = True
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            steps = np.zeros((len(now), stop - start, now.shape[2]))
            for i in range(start, stop):
                best = levels.nearest(now[:, i] + slope[:, i] / (unit[:, i] * diagonal[:, i]), low[:, i])
                if below is not None:
                    best = levels.nearest(np.clip(best, below[:, i], below[:, i] + 1), low[:, i])
                if pruned is not None:
                    best = np.where(pruned[:, i], now[:, i], best)
                step = (best - now[:, i]) * unit[:, i]
                if not step.any():
                    continue
                now[:, i], steps[:, i - start] = best, step
                slope[:, start:stop] -= h[:, start:stop, i, None] * step[:, None, :]
            if not steps.any():
                continue
            still = False
            slope[:, :start] -= h[:, :start, start:stop] @ steps
            slope[:, stop:] -= h[:, stop:, start:stop] @ steps
        if still:
            break
    return np.ascontiguousarray(now.transpose(0, 2, 1))


def best_factor(rows: Array, q: Array, metric: Metric) -> tuple[Array, Array]:
    """(numerator, denominator) of the factor a of least error of w - a q, for each row: [groups, outputs] twice."""
    turned = q @ metric.damped
    return np.einsum("gok,gok->go", turned, rows), np.einsum("gok,gok->go", turned, q)


def _columns(a: Array, order: Array, shape: tuple[int, ...]) -> Array:
    """[groups, outputs, k], or what broadcasts to it, as [groups, k, outputs] with the columns in `order`."""
    if a.ndim < 3 or a.shape[2] == 1:  # the same for all columns: no copies
        whole = np.broadcast_to(a, (*shape[:2], 1)).transpose(0, 2, 1)
        return np.broadcast_to(whole, (shape[0], shape[2], shape[1]))
    return np.take_along_axis(np.broadcast_to(a, shape).transpose(0, 2, 1), order, 1)


def round_least_squares(rows: Array, scales: Array, moment: Array, damping: float = 0.01) -> Array:
    """int8 weights in [-127, 127], [groups, outputs, k].

    `rows`: weights [groups, outputs, k]; `scales`: [groups, outputs]; `moment`: [groups, k, k].
    """
    unit = scales.astype(np.float64)[:, :, None]
    return round_rows(rows, unit, Metric(moment, damping), NAMED["int8"]).astype(np.int8)


def inverse_factor(metric: Array, damping: float) -> Array:
    """Upper U with inverse(damped metric) = UT U up to a factor per group, which rounding does not see: [groups, k, k].

    With the order of rows and columns turned round, L LT = damped metric gives U = inverse(L), turned back: half of the
    work of inverting the metric, and a quarter of inverting it and factorizing the inverse.

    A covariance of features that hardly vary may come out slightly indefinite; the damping then grows until it is not.
    """
    k = metric.shape[1]
    mean = np.trace(metric, axis1=1, axis2=2) / k
    known = mean > _NO_SIGNAL
    scaled = np.where(known[:, None, None], metric / np.where(known, mean, 1.0)[:, None, None], np.eye(k))
    while True:
        try:
            lower = np.linalg.cholesky((scaled + damping * np.eye(k))[:, ::-1, ::-1])
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return _triangular_inverse(lower)[:, ::-1, ::-1]


def _triangular_inverse(lower: Array) -> Array:
    """Of lower triangular matrices [groups, k, k]: by halves, so that products of matrices do the work."""
    k = lower.shape[1]
    if k <= _BLOCK:
        return np.asarray(np.tril(np.linalg.inv(lower)))
    half = k // 2
    found = np.zeros_like(lower)
    top = found[:, :half, :half] = _triangular_inverse(lower[:, :half, :half])
    bottom = found[:, half:, half:] = _triangular_inverse(lower[:, half:, half:])
    found[:, half:, :half] = -bottom @ (lower[:, half:, :half] @ top)
    return found


def mean_error(rows: Array, rounded: Array, mean: Array) -> Array:
    """E[(W - Q) x] per output. [groups, outputs, k] twice and [groups, k] give [groups, outputs]."""
    found: Array = np.einsum("gok,gk->go", rows.astype(np.float64) - rounded, mean)
    return found
