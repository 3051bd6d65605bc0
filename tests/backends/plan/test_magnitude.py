"""Limits of magnitude are limits: no value of an expression exceeds them."""

from __future__ import annotations

import math

import numpy as np

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.magnitude import limit_of, magnitudes, sum_limit
from irc.backends.tvm.reference import evaluate


def test_classes_of_constants() -> None:
    assert limit_of(np.array([0.01, -0.03], np.float32)) == 2.0**-5
    assert limit_of(np.array([0.01, -0.04], np.float32)) == math.inf
    assert limit_of(np.array([-(2**24)], np.int32)) == 2.0**24
    assert limit_of(np.array([2**24 + 1], np.int32)) == math.inf
    assert limit_of(np.array([np.nan], np.float32)) == math.inf
    assert limit_of(np.array([1], np.uint8)) == math.inf


def test_sums() -> None:
    assert sum_limit("uint8", 9) == 9 * 255 * 128
    assert sum_limit("int8", 10**9) == 2.0**31
    assert sum_limit("float32", 1) == math.inf


def test_every_instruction_stays_below_its_limit() -> None:
    b = ExpressionBuilder()
    f = "float32"
    acc = b.add("add", "int32", b.add("accumulator", "int32"), b.operand(0, "int32"))
    real = b.add("scale", f, b.add("cast", f, acc), b.operand(1, f))
    other = b.dequantize(b.operand(2, "uint8"), 0.3, 100)
    total = b.add("sub", f, b.add("add", f, real, other), b.constant(-7.0, f))
    clipped = b.add("clip", f, b.add("relu", f, total), params=(-3.0, math.inf))
    product = b.add("mul", f, clipped, b.add("sigmoid", f, b.add("neg", f, total)))
    expression = b.finish(b.add("max", f, product, b.add("min", f, total, other)))
    limits = magnitudes(expression, sum_limit("uint8", 4), [2.0**24, 2.0**-5, math.inf])
    assert all(math.isfinite(v) for v in limits)

    edges = np.array([4 * 255 * 128, -4 * 255 * 128, 0], np.int32)
    operands = [
        np.array([2**24, -(2**24), 5], np.int32),
        np.array([2.0**-5, -(2.0**-5), 0.01], np.float32),
        np.array([255, 0, 9], np.uint8),
    ]
    for end in range(1, len(expression) + 1):
        value = np.asarray(evaluate(expression[:end], operands, edges), np.float64)
        assert np.abs(value).max() <= limits[end - 1] * (1 + 2.0**-20)


def test_nothing_is_known_of_reals_from_memory() -> None:
    b = ExpressionBuilder()
    x = b.operand(0, "float32")
    expression = b.finish(b.add("clip", "float32", x, params=(0.0, 6.0)))
    assert magnitudes(expression, math.inf, [math.inf]) == [math.inf, math.inf], "a NaN stays one"
