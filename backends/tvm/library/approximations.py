"""exp, tanh, erf and the logistic function of float32 as polynomials, so that LLVM can vectorize them.

Calls of libm keep a loop scalar and cost ten times as much. Errors are at most 3 units in the last place for exp and
5e-7 absolute for the others (a test measures both). Sources of the coefficients: Cephes expf (Moshier), and the
rational fits of tanh and erf in Eigen (MPL 2.0), the same that onnxruntime uses. NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from irc.backends.tvm.library.op import fresh

Expr = Any

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_TANH_ODD = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_ODD = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_EVEN = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip


def f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def rounded(x: Expr) -> Expr:
    """Half to even as int32, for |x| < 2**22: adding 1.5 * 2**23 leaves the integer in the low bits.

    `nearbyint` is a call on baseline x86, and TVM would simplify adding and subtracting to nothing.
    """
    return tirx.reinterpret("int32", x + f32(12582912.0)) - tirx.const(0x4B400000, "int32")


def bound(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of a variable that holds `value`: it is computed once however often it is used."""
    variable = tirx.Var(fresh("v"), str(value.ty.dtype))
    return tirx.Let(variable, value, body(variable))


def polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule, the highest power first."""
    total = f32(coefficients[0])
    for c in coefficients[1:]:
        total = total * x + f32(c)
    return total


def exp(x: Expr) -> Expr:
    """2**n * exp(r) with |r| <= ln(2) / 2; 2**n as two factors, so that results below 2**-126 are right too."""

    def scaled(r: Expr, n: Expr) -> Expr:
        value = polynomial(r, _EXP) * r * r + r + f32(1)
        half = tirx.shift_right(n, tirx.const(1, "int32"))
        return bound(half, lambda h: value * power_of_two(h) * power_of_two(n - h))

    def reduced(v: Expr) -> Expr:
        def rest(n: Expr) -> Expr:
            return bound(
                tirx.Cast("float32", n),
                lambda w: bound(v - w * f32(0.693359375) - w * f32(-2.12194440e-4), lambda r: scaled(r, n)),
            )

        return bound(rounded(v * f32(math.log2(math.e))), rest)

    def guarded(v: Expr) -> Expr:
        inside = tirx.max(tirx.min(v, f32(89.0)), f32(-104.0))
        made = bound(inside, reduced)
        return tirx.Select(tirx.isnan(v), v, made)

    return bound(x, guarded)


def power_of_two(n: Expr) -> Expr:
    """For -126 <= n <= 127."""
    return tirx.reinterpret("float32", tirx.shift_left(n + tirx.const(127, "int32"), tirx.const(23, "int32")))


def _rational(x: Expr, limit: float, odd: Sequence[float], even: Sequence[float]) -> Expr:
    """x * P(x^2) / Q(x^2) inside of [-limit, limit]; outside, its value at the limit."""

    def quotient(v: Expr) -> Expr:
        return bound(v * v, lambda s: v * polynomial(s, odd) / polynomial(s, even))

    def guarded(v: Expr) -> Expr:
        inside = tirx.max(tirx.min(v, f32(limit)), f32(-limit))
        return tirx.Select(tirx.isnan(v), v, bound(inside, quotient))

    return bound(x, guarded)


def tanh(x: Expr) -> Expr:
    return _rational(x, 9.0, _TANH_ODD, _TANH_EVEN)


def erf(x: Expr) -> Expr:
    return _rational(x, 4.0, _ERF_ODD, _ERF_EVEN)


def sigmoid(x: Expr) -> Expr:
    return f32(1) / (f32(1) + exp(f32(0) - x))
