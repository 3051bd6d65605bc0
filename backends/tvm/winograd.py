"""Winograd's minimal filtering: the matrices, and weights transformed by them.

A tile of m x m outputs of a convolution with an r x r kernel needs (m+r-1)^2 products instead of m^2 r^2:

    y = A^T [(G g G^T) * (B^T d B)] A        (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016)

with d the (m+r-1)^2 inputs of the tile, g the kernel, * elementwise. Summed over input channels the products are
(m+r-1)^2 matrix products. The matrices come from polynomial interpolation (Toom and Cook) at m+r-2 points and infinity.
The points decide about rounding errors: these have small powers, stand far apart, and their powers are exact in binary,
so that F(4x4, 3x3) errs hardly more than a direct sum does. An axis with one tap has one point, and all matrices are 1.
"""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np

from irc.ir.types import Array

Matrix = tuple[tuple[Fraction, ...], ...]

_POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)),
}
"""Finite points by the size of the input tile."""


def input_size(outputs: int, taps: int) -> int:
    """Inputs of a tile of `outputs` neighbours under a kernel of `taps`."""
    return outputs + taps - 1


@functools.cache
def output_matrix(outputs: int, taps: int) -> Matrix:
    """A^T: outputs x inputs."""
    points = _points(outputs, taps)
    return tuple((*(p**i for p in points), Fraction(i == outputs - 1)) for i in range(outputs))


@functools.cache
def weight_matrix(outputs: int, taps: int) -> Matrix:
    """G: inputs x taps."""
    points = _points(outputs, taps)
    rows = []
    for j, p in enumerate(points):
        norm = Fraction(1)
        for other in points[:j] + points[j + 1 :]:
            norm *= p - other
        rows.append(tuple(p**k / norm for k in range(taps)))
    return (*rows, tuple(Fraction(k == taps - 1) for k in range(taps)))


@functools.cache
def input_matrix(outputs: int, taps: int) -> Matrix:
    """B^T: inputs x inputs."""
    points = _points(outputs, taps)
    rows = [(*_polynomial(points[:j] + points[j + 1 :]), Fraction(0)) for j in range(len(points))]
    return (*rows, _polynomial(points))


def _points(outputs: int, taps: int) -> tuple[Fraction, ...]:
    return _POINTS[input_size(outputs, taps)]


def _polynomial(roots: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """Coefficients of prod (x - root), lowest first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [s - root * f for s, f in zip(shifted, [*found, Fraction(0)], strict=True)]
    return tuple(found)


def transform_weights(w: Array, outputs: tuple[int, int]) -> Array:
    """[oc, kh, kw, ic] -> float32 [oc, inputs, inputs, ic]: G g G^T, computed in double precision."""
    rows, columns = (
        np.array([[float(v) for v in row] for row in weight_matrix(m, r)])
        for m, r in zip(outputs, w.shape[1:3], strict=True)
    )
    made: Array = np.einsum("ai,oijc,bj->oabc", rows, w.astype(np.float64), columns, optimize=True).astype(np.float32)
    return made
