"""Rounding weights so that the layer's output, not each weight, changes least.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023): columns are
rounded one after another, and each one's error is made up for by those not rounded yet, with the inverse of
H = E[x xT] telling how. Where the bias takes back the mean error (correction.py), the covariance is the metric.
"""

from __future__ import annotations

import numpy as np

from irc.ir.types import Array
from irc.passes.quantize.affine import WEIGHT_LIMIT

_BLOCK = 128


def round_least_squares(rows: Array, scales: Array, moment: Array, damping: float = 0.01) -> Array:
    """int8 weights in [-127, 127], [groups, outputs, k].

    `rows`: weights [groups, outputs, k]; `scales`: [groups, outputs]; `moment`: [groups, k, k]. `damping`, as a share
    of the mean diagonal, keeps directions that the samples did not show from being bent.
    """
    order = np.argsort(-np.diagonal(moment, axis1=1, axis2=2), axis=1, kind="stable")  # [groups, k]
    metric = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2)
    factor = inverse_factor(metric, damping)
    left = np.take_along_axis(rows.astype(np.float64), order[:, None, :], 2)
    q = np.empty(left.shape, np.int8)
    unit = scales.astype(np.float64)
    columns = left.shape[2]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((*left.shape[:2], stop - start))
        for i in range(start, stop):
            column = left[:, :, i]
            whole = np.clip(np.rint(column / unit), -WEIGHT_LIMIT, WEIGHT_LIMIT)
            q[:, :, i] = whole
            error = (column - whole * unit) / factor[:, None, i, i]
            errors[:, :, i - start] = error
            left[:, :, i + 1 : stop] -= error[:, :, None] * factor[:, None, i, i + 1 : stop]
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    back = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(q, back[:, None, :], 2)


def inverse_factor(metric: Array, damping: float) -> Array:
    """Upper U with inverse(damped metric) = UT U up to a factor per group, which rounding does not see: [groups, k, k].

    With the order of rows and columns turned round, L LT = damped metric gives U = inverse(L), turned back: half of the
    work of inverting the metric, and a quarter of inverting it and factorizing the inverse.

    A covariance of features that hardly vary may come out slightly indefinite; the damping then grows until it is not.
    """
    k = metric.shape[1]
    mean = np.trace(metric, axis1=1, axis2=2) / k
    known = mean > np.finfo(np.float64).tiny / np.finfo(np.float64).eps
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
