"""Elementwise operators rise above views, factors sink below products: what then is one kernel, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from irc.backends.tvm.plan.normalize import normalize
from irc.backends.tvm.plan.regions import find_regions
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Value
from irc.targets.catalogue import TARGETS

F = np.float32


def regions(b: GraphBuilder, *outputs: Value) -> list[str]:
    b.output(*outputs)
    graph = b.build().graph
    normalize(graph, TARGETS["x86-64-v3"])
    return sorted(r.label for r in find_regions(graph))


def start() -> tuple[GraphBuilder, Value]:
    """(builder, a product [6, 8])"""
    b = GraphBuilder()
    return b, b.matmul(b.input("x", "float32", [6, 4]), weights(4, 8))


def reshaped(b: GraphBuilder, x: Value, *shape: int) -> Value:
    return b.op("Reshape", x, np.array(shape, np.int64))


def test_functions_and_quantizations_join_the_product_before_the_views() -> None:
    b, y = start()
    y = b.op("Transpose", reshaped(b, y, 1, 6, 2, 4), perm=[0, 2, 1, 3])
    y = b.op("Mul", b.op("Tanh", y), F(0.5))
    y = b.dequantize(b.quantize(y, F(0.1), np.uint8(3)), F(0.1), np.uint8(3))
    assert regions(b, b.op("MaxPool", y, kernel_shape=[1, 1])) == ["MatMul+Tanh+Mul+QuantizeLinear", "MaxPool"]


def test_a_residual_of_the_same_shape_joins_through_a_reshape() -> None:
    b, y = start()
    z = b.op("Add", b.input("z", "float32", [1, 6, 8]), reshaped(b, y, 1, 6, 8))
    assert regions(b, b.op("Transpose", z, perm=[0, 2, 1])) == ["MatMul+Add"]


def broadcast(b: GraphBuilder, y: Value) -> Value:
    return b.op("Add", reshaped(b, y, 1, 6, 8), b.input("z", "float32", [3, 6, 8]))


def turned(b: GraphBuilder, y: Value) -> Value:
    return b.op("Add", b.op("Transpose", y, perm=[1, 0]), b.input("z", "float32", [8, 6]))


@pytest.mark.parametrize("make", [broadcast, turned])
def test_sums_that_do_not_fit_stay(make: object) -> None:
    b, y = start()
    assert callable(make)
    assert regions(b, b.op("Transpose", make(b, y))) == ["Add", "MatMul"]


def test_a_view_with_another_reader_stays() -> None:
    b, y = start()
    y = reshaped(b, y, 2, 3, 8)
    both = (b.op("Transpose", b.op("Tanh", y)), b.op("Transpose", y, perm=[1, 0, 2]))
    assert regions(b, *both) == ["MatMul", "Tanh"]


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_factors_of_computed_products_sink(op: str) -> None:
    b = GraphBuilder()
    x, y = b.input("x", "float32", [2, 5, 4]), b.input("y", "float32", [2, 7, 4])
    z = b.op("Transpose", b.op(op, y, F(0.25)), perm=[0, 2, 1])
    assert regions(b, b.op("Transpose", b.op("MatMul", x, z))) == [f"MatMul+{op}"]


def test_factors_of_constant_products_stay() -> None:
    b = GraphBuilder()
    x = b.op("Mul", b.input("x", "float32", [5, 4]), F(0.3))
    assert regions(b, b.op("Transpose", b.matmul(x, weights(4, 6)))) == ["MatMul", "Mul"]
