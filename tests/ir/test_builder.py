"""The builder makes what it is told."""

from __future__ import annotations

import numpy as np
import pytest

from irc.errors import ModelError, ShapeError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.types import Constant, DType, SequenceType, Shape, TensorType


def test_operands_become_constants_of_the_usual_types() -> None:
    b = GraphBuilder()
    cases = [(1, "int64"), (0.5, "float32"), ([1, 2], "int64"), ([1.0], "float32"), (True, "bool")]
    for operand, dtype in cases:
        assert b.constant(operand).dtype is DType(dtype)  # type: ignore[arg-type]  # a list of mixed test cases
    assert b.constant(np.float64(1)).dtype is DType.DOUBLE
    shared = Constant.of(np.ones(3))
    assert b.constant(shared).constant is shared


def test_attributes_are_normalized() -> None:
    b = GraphBuilder()
    x = b.input("x", TensorType(DType.FLOAT, Shape.of(1, 1, 4, 4)))
    node = b.node("MaxPool", x, kernel_shape=[2, 2], ceil_mode=True, pads=None)
    assert node.attributes == {"kernel_shape": (2, 2), "ceil_mode": 1}
    assert type(node.attributes["ceil_mode"]) is int


def test_several_outputs_and_types() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4, 2])
    first, second = b.op("Split", x, outputs=["a", "b"], num_outputs=2)
    items = b.op("SequenceConstruct", first, second)
    b.output(items)
    model = b.build()
    assert (first.name, second.name) == ("a", "b")
    assert model.graph.outputs[0].type == SequenceType(TensorType(DType.FLOAT, Shape.of(2, 2)))


def test_build_checks() -> None:
    b = GraphBuilder()
    b.output(b.op("Relu", b.input("x", "float32", [2]), slope=1.0, name="r"))
    with pytest.raises(ModelError, match=r"node 'r' \(Relu\): has no attribute slope"):
        b.build()
    c = GraphBuilder()
    c.output(c.matmul(c.input("x", "float32", [2, 3]), weights(4, 5)))
    with pytest.raises(ShapeError, match="Incompatible dimensions"):
        c.build()


def test_weights_are_reproducible() -> None:
    assert np.array_equal(weights(3, 2, seed=1), weights(3, 2, seed=1))
    assert not np.array_equal(weights(3, 2, seed=1), weights(3, 2, seed=2))
