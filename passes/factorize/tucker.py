"""Tucker-2 factors of a convolution, in the metric of its inputs. Arrays only.

A kh x kw convolution becomes 1 x 1 to fewer channels, kh x kw between few channels, and 1 x 1 to all (Kim et al.,
"Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", 2016). Input channels
are projected to those directions that the outputs feel most; given these, the other two factors are the best there are:
the least squares weights on what is left of the inputs, cut to a rank as a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irc.ir.types import Array
from irc.passes.factorize.lowrank import Decomposition, decompose, whitener


@dataclass(frozen=True)
class Tucker:
    """`projection` [entry, inputs]; `rest`: the weights [outputs, entry * kh * kw] that read the projected channels.
    `lost`: share of the squared output that the projection alone costs."""

    projection: Array
    rest: Decomposition
    lost: float

    def kept(self, rank: int) -> float:
        """The share of the squared output that is kept with `rank` channels between the second and third factor."""
        return (1.0 - self.lost) * self.rest.kept(rank)


class TuckerSplit:
    """All Tucker-2 factors of one convolution: `weight` [outputs, inputs, kh, kw], `moment` [inputs * kh * kw] squared,
    or None for the plain norm of the weights."""

    def __init__(self, weight: Array, moment: Array | None) -> None:
        outputs, inputs, *kernel = weight.shape
        self.taps = int(np.prod(kernel))
        self.weight = weight.reshape(outputs, inputs, self.taps).astype(np.float64)
        self.moment = None if moment is None else moment.reshape(inputs, self.taps, inputs, self.taps)
        # E[x xT] of channels, summed over the taps
        channels = np.eye(inputs) if self.moment is None else np.einsum("itjt->ij", self.moment)
        self.lower = whitener(channels[None])[0]
        unfolded = self.weight.transpose(1, 0, 2).reshape(inputs, -1)
        u, _, _ = np.linalg.svd(self.lower.T @ unfolded, full_matrices=False)
        self.directions = np.linalg.solve(self.lower.T, u).T  # rows: u^T L^-1
        self.total = self._power(self.weight.reshape(outputs, -1), moment)

    def at(self, entry: int) -> Tucker:
        """With `entry` projected channels."""
        outputs, inputs, taps = self.weight.shape
        projection = self.directions[:entry]
        flat, left = self.weight.reshape(outputs, -1), None
        # without a metric, and in directions that samples did not show: the weights seen through the projection alone
        reduced = np.einsum("oit,ie->oet", self.weight, np.linalg.pinv(projection)).reshape(outputs, -1)
        if self.moment is not None:
            half = np.einsum("itju,ej->iteu", self.moment, projection)  # H PT
            left = np.einsum("ei,itfu->etfu", projection, half).reshape(entry * taps, entry * taps)
            right = flat @ half.reshape(inputs * taps, -1)
            ridge = 1e-3 * np.trace(left) / len(left) + np.finfo(np.float64).tiny
            reduced = np.linalg.solve(left + ridge * np.eye(len(left)), (right + ridge * reduced).T).T
        rest = decompose(reduced, None if left is None else left[None])
        kept = self._power(reduced, left)
        lost = 1.0 - kept / self.total if self.total > 0 else 0.0
        return Tucker(projection, rest, float(np.clip(lost, 0.0, 1.0)))

    @staticmethod
    def _power(rows: Array, moment: Array | None) -> float:
        if moment is None:
            return float(np.square(rows).sum())
        return float(np.einsum("oi,ij,oj->", rows, moment.reshape(rows.shape[1], -1), rows, optimize=True))
