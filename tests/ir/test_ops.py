"""Operator facts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from irc.ir import ops
from irc.ir.builder import GraphBuilder
from irc.ir.graph import CANONICAL_OPSET, Node
from irc.ir.types import Constant, DType, Shape, TensorType


def node(op_type: str, *inputs: object, **attrs: object) -> Node:
    b = GraphBuilder()
    given = [b.input(f"x{i}", "float32", [2, 2]) if v == "x" else v for i, v in enumerate(inputs)]
    return b.node(op_type, *given, **attrs)  # type: ignore[arg-type]  # "x" stands for an input


def test_schemas_are_those_of_the_canonical_opset() -> None:
    conv = ops.schema("Conv")
    assert conv is not None
    assert conv.since_version <= CANONICAL_OPSET
    assert ops.schema("Conv") is conv
    assert ops.schema("Conv", "ai.onnx") is not None
    assert ops.schema("NoSuchThing") is None
    assert ops.schema("Gelu", "com.microsoft") is None
    assert ops.schema("LinearRegressor", "ai.onnx.ml") is not None
    old = ops.schema("Squeeze", "", 11)
    assert old is not None
    assert "axes" in old.attributes


def test_attributes_fall_back_to_the_schema() -> None:
    conv = node("Conv", "x", "x", group=4)
    assert ops.attribute(conv, "group") == 4
    assert ops.default_attribute(conv, "group") == 1
    assert ops.attribute(conv, "auto_pad") == "NOTSET"
    assert ops.attribute(conv, "pads") is None
    assert ops.attribute(node("LSTM", "x"), "direction") == "forward"
    assert ops.attribute(node("Custom", "x", domain="d"), "pads") is None


def test_attribute_kinds() -> None:
    conv = node("Conv", "x", "x")
    assert ops.attribute_kind(conv, "pads") == "INTS"
    assert ops.attribute_kind(conv, "nothing") is None
    kinds = [ops.value_kind(v) for v in (1, 1.0, "a", b"a", (1,), (1, 0.5), ("a",), (), Constant.of(np.zeros(1)))]
    assert kinds == ["INT", "FLOAT", "STRING", "STRING", "INTS", "FLOATS", "STRINGS", "INTS", "TENSOR"]
    assert ops.value_kind((TensorType(DType.FLOAT, Shape.of(1)),)) == "TYPE_PROTOS"


def test_determinism() -> None:
    assert ops.is_deterministic(node("Conv", "x", "x"))
    assert not ops.is_deterministic(node("RandomNormalLike", "x", seed=1.0))
    assert ops.is_deterministic(node("Dropout", "x", 0.5))
    assert ops.is_deterministic(node("Dropout", "x", 0.5, False))
    assert not ops.is_deterministic(node("Dropout", "x", 0.5, True))
    assert not ops.is_deterministic(node("Dropout", "x", 0.5, "x"))  # not known before running
    assert not ops.is_deterministic(node("Custom", "x", domain="d"))


@pytest.mark.parametrize(("op", "expected"), [("Relu", True), ("RandomUniformLike", False)])
def test_control_flow_is_as_deterministic_as_its_body(op: str, expected: bool) -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [2]), b.input("c", "bool", [])
    bodies = [b.subgraph(lambda s, o=o: s.output(s.op(o, x))) for o in ("Neg", op)]  # type: ignore[misc]  # o is a str
    made = b.node("If", c, then_branch=bodies[0], else_branch=bodies[1])
    assert ops.is_deterministic(made) is expected


def test_the_lists_name_operators_that_exist() -> None:
    for name in ops._COMMUTATIVE | ops._UNARY_ELEMENTWISE | ops._BROADCAST_ELEMENTWISE | ops._RANDOM:
        assert ops.schema(name) is not None, name


def test_random_operators_agree_with_onnx() -> None:
    """What onnx calls non-deterministic is in our list, or is decided by the node (bodies, Dropout's mode)."""
    decided = {
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
        "Dropout",
        "AffineGrid",
    }  # AffineGrid: onnx counts its function body
    theirs = {
        s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and s.node_determinism.name == "NonDeterministic"
    }
    assert theirs - decided == set(ops._RANDOM)


def test_elementwise_and_commutative() -> None:
    assert ops.is_commutative(node("Add", "x", "x"))
    assert not ops.is_commutative(node("Sub", "x", "x"))
    assert ops.is_elementwise(node("Where", "x", "x", "x"))
    assert ops.is_unary_elementwise(node("Relu", "x"))
    assert not ops.is_elementwise(node("Softmax", "x"))
    assert not ops.is_elementwise(node("Relu", "x", domain="other"))
