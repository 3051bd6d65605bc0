"""Low-rank factors of a matrix, plain or in the metric of the layer's inputs. Arrays only.

Whitening: ||(W - W') X||^2 = n ||(W - W') L||^2 with L LT = H = E[x xT], so the best W' of rank r is the truncated SVD
of W L, times the inverse of L (Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irc.ir.types import Array


@dataclass(frozen=True)
class Decomposition:
    """W ~ left[:, :r] @ right[:r], with the singular values (of W L where whitened) in falling order."""

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


def decompose(matrix: Array, moment: Array | None = None, damping: float = 1e-3) -> Decomposition:
    """The SVD of `matrix` [outputs, inputs]; `moment` [groups, k, k] (blocks on the diagonal of H) whitens it.

    `damping`, as a share of the mean diagonal, makes H definite where samples did not show every direction.
    """
    exact = matrix.astype(np.float64)
    if moment is None:
        u, s, v = np.linalg.svd(exact, full_matrices=False)
        return Decomposition(u * np.sqrt(s), np.sqrt(s)[:, None] * v, s)
    lower = _factor(moment, damping)
    groups, k = lower.shape[:2]
    parts = exact.reshape(len(exact), groups, k).transpose(1, 0, 2)
    whitened = (parts @ lower).transpose(1, 0, 2).reshape(exact.shape)
    u, s, v = np.linalg.svd(whitened, full_matrices=False)
    rows = v.reshape(len(v), groups, k).transpose(1, 2, 0)  # [groups, k, n]
    back = np.linalg.solve(np.swapaxes(lower, 1, 2), rows)  # (v L^-1)T = L^-T vT
    right = back.transpose(2, 0, 1).reshape(v.shape)
    return Decomposition(u * np.sqrt(s), np.sqrt(s)[:, None] * right, s)


def _factor(moment: Array, damping: float) -> Array:
    mean = np.trace(moment, axis1=1, axis2=2) / moment.shape[1]
    ridge: Array = np.where(mean > 0, mean * damping, 1.0)
    while True:
        try:
            lower: Array = np.linalg.cholesky(moment + ridge[:, None, None] * np.eye(moment.shape[1]))
        except np.linalg.LinAlgError:  # rounding made a covariance of constant features slightly indefinite
            ridge = ridge * 10
            continue
        return lower
