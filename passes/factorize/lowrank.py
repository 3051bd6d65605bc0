"""Low-rank factors of a matrix, plain or in the metric of the layer's inputs. Arrays only.

Whitening: ||(W - W') X||^2 = n ||(W - W') L||^2 with L LT = H = E[x xT], so the best W' of rank r is the truncated SVD
of W L, times the inverse of L (Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", 2021).
QR with column pivoting (Businger and Golub, 1965) of W L is a cheaper approximation of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from irc.ir.types import Array

Method = Literal["svd", "qr"]


@dataclass(frozen=True)
class Decomposition:
    """W ~ left[:, :r] @ right[:r]. `singular`: what each term adds to the norm (singular values of W L, or norms of the
    rows of R), in falling order."""

    left: Array  # [outputs, n]
    right: Array  # [n, inputs]
    singular: Array  # [n]

    def rank(self, energy: float) -> int:
        """The least rank that keeps this share of the squared singular values."""
        power = np.square(self.singular)
        total = power.sum()
        if total <= 0:
            return 1
        return int(np.searchsorted(np.cumsum(power) / total, energy - 1e-12)) + 1

    def kept(self, rank: int) -> float:
        """The share that `rank` keeps."""
        power = np.square(self.singular)
        return float(power[:rank].sum() / power.sum()) if power.sum() > 0 else 1.0

    def factors(self, rank: int) -> tuple[Array, Array]:
        """float32 [outputs, rank] and [rank, inputs]."""
        return self.left[:, :rank].astype(np.float32), self.right[:rank].astype(np.float32)


def decompose(
    matrix: Array, moment: Array | None = None, damping: float = 1e-3, method: Method = "svd"
) -> Decomposition:
    """`matrix` [outputs, inputs]; `moment` [groups, k, k] (blocks on the diagonal of H) whitens it.

    `damping`, as a share of the mean diagonal, makes H definite where samples did not show every direction.
    """
    exact = matrix.astype(np.float64)
    split = _svd if method == "svd" else _pivoted_qr
    if moment is None:
        return _balanced(*split(exact))
    lower = whitener(moment, damping)
    groups, k = lower.shape[:2]
    parts = exact.reshape(len(exact), groups, k).transpose(1, 0, 2)
    whitened = (parts @ lower).transpose(1, 0, 2).reshape(exact.shape)
    u, s, v = split(whitened)
    rows = v.reshape(len(v), groups, k).transpose(1, 2, 0)  # [groups, k, n]
    back = np.linalg.solve(np.swapaxes(lower, 1, 2), rows)  # (v L^-1)T = L^-T vT
    return _balanced(u, s, back.transpose(2, 0, 1).reshape(v.shape))


def _svd(matrix: Array) -> tuple[Array, Array, Array]:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u, s, v


def _pivoted_qr(matrix: Array) -> tuple[Array, Array, Array]:
    """Q, the norms of R's rows, and R with rows of length 1: each step takes the column with most left of it."""
    left = matrix.copy()
    n = min(matrix.shape)
    q, r, norms = np.zeros((len(matrix), n)), np.zeros((n, matrix.shape[1])), np.zeros(n)
    for i in range(n):
        column = left[:, int(np.argmax(np.square(left).sum(axis=0)))]
        column = column - q[:, :i] @ (q[:, :i].T @ column)  # once more, against rounding
        length = float(np.linalg.norm(column))
        if length <= np.finfo(np.float64).eps * float(np.linalg.norm(matrix)):
            break
        q[:, i] = column / length
        row = q[:, i] @ left
        left -= np.outer(q[:, i], row)
        norms[i] = float(np.linalg.norm(row))
        r[i] = row / norms[i] if norms[i] > 0 else row
    order = np.argsort(-norms, kind="stable")  # they fall but for chance
    return q[:, order], norms[order], r[order]


def _balanced(u: Array, s: Array, v: Array) -> Decomposition:
    """Both factors take the root of each value, so that neither needs a wider range than the other."""
    root = np.sqrt(s)
    return Decomposition(u * root, root[:, None] * v, s)


def whitener(moment: Array, damping: float = 1e-3) -> Array:
    """Lower triangular L with L LT = H, damped: [groups, k, k]."""
    mean = np.trace(moment, axis1=1, axis2=2) / moment.shape[1]
    ridge: Array = np.where(mean > 0, mean * damping, 1.0)
    while True:
        try:
            lower: Array = np.linalg.cholesky(moment + ridge[:, None, None] * np.eye(moment.shape[1]))
        except np.linalg.LinAlgError:  # rounding made a covariance of constant features slightly indefinite
            ridge = ridge * 10
            continue
        return lower
