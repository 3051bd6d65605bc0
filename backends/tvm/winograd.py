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
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from irc.ir.types import Array

Matrix = tuple[tuple[Fraction, ...], ...]
Term = Any
"""What can be added and subtracted: an expression of a kernel."""
Let = Callable[[Term], Term]
"""Names a term, so that it is computed once."""
Times = Callable[[Term, Fraction], Term]

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


def product(matrix: Matrix, values: Sequence[Term], let: Let, times: Times) -> list[Term]:
    """The product of a constant matrix and a column of terms.

    Interpolation points come in pairs of opposite sign, so rows (or columns) of the matrix come in pairs that differ in
    the sign of some entries: what the two share is computed once.
    """
    matrix, values = _pair_columns(matrix, values, let)
    found: list[Term] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if found[i] is not None:
            continue
        partner = next((j for j in range(i + 1, len(matrix)) if _are_opposite(row, matrix[j])), None)
        if partner is None:
            found[i] = _combine(row, values, let, times)
            continue
        other = matrix[partner]
        even = tuple(a if a == b else Fraction(0) for a, b in zip(row, other, strict=True))
        odd = tuple(a if a != b else Fraction(0) for a, b in zip(row, other, strict=True))
        scale = next(c for c in reversed(odd) if c)
        shared = _combine(even, values, let, times)
        rest = _combine(tuple(c / scale for c in odd), values, let, times)
        found[i] = let(_add(shared, rest, scale, times))
        found[partner] = let(_add(shared, rest, -scale, times))
    return found


def _are_opposite(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    """Equal up to signs, some entries with the same sign and some with the other, at least three in all."""
    same = sum(1 for x, y in zip(a, b, strict=True) if x == y != 0)
    opposite = sum(1 for x, y in zip(a, b, strict=True) if x == -y != 0)
    used = sum(1 for x, y in zip(a, b, strict=True) if x or y)
    return same > 0 and opposite > 0 and same + opposite == used > 2


def _pair_columns(matrix: Matrix, values: Sequence[Term], let: Let) -> tuple[Matrix, list[Term]]:
    """Columns i and j that agree up to signs: sum and difference of the two values take their places."""
    columns = list(zip(*matrix, strict=True))
    values = list(values)
    for i in range(len(columns)):
        for j in range(i + 1, len(columns)):
            if not _are_opposite(columns[i], columns[j]):
                continue
            same = tuple(a if a == b else Fraction(0) for a, b in zip(columns[i], columns[j], strict=True))
            other = tuple(a if a != b else Fraction(0) for a, b in zip(columns[i], columns[j], strict=True))
            values[i], values[j] = let(values[i] + values[j]), let(values[i] - values[j])
            columns[i], columns[j] = same, other
            break
    return tuple(zip(*columns, strict=True)), values


def _combine(row: Sequence[Fraction], values: Sequence[Term], let: Let, times: Times) -> Term:
    """Sum of coefficient * value, those with coefficient 1 first."""
    terms = sorted(((c, v) for c, v in zip(row, values, strict=True) if c), key=lambda t: abs(t[0]) != 1)
    (c, v), *rest = terms
    total = v if c == 1 else let(times(v, c))
    for c, v in rest:
        total = let(_add(total, v, c, times))
    return total


def _add(total: Term, value: Term, coefficient: Fraction, times: Times) -> Term:
    if coefficient == 1:
        return total + value
    if coefficient == -1:
        return total - value
    return total + times(value, coefficient)
