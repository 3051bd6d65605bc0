"""fold-batchnorm and fold-affine: into every linear operator, with its groups, and not where the meaning changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_checks import ROUNDING, assert_refused, count, ops, run

from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Value
from irc.pipeline import Pipeline

# Rounding the folded weights adds one relative error of 2^-24 per product; sums of up to 36 products here.
FOLDED = 2 * ROUNDING


def _parameters(channels: int) -> list[Any]:
    rng = np.random.default_rng(channels)
    shift, mean = rng.standard_normal((2, channels)).astype(np.float32)
    scale = (0.5 + rng.random(channels)).astype(np.float32) * np.float32([1, -1])[np.arange(channels) % 2]
    return [scale, shift, mean, (0.1 + rng.random(channels)).astype(np.float32)]


def _normalized(x: Value, b: GraphBuilder, channels: int, **attributes: Any) -> Value:
    y: Value = b.op("BatchNormalization", x, *_parameters(channels), **attributes)
    return y


def _after(kind: str, bias: bool) -> tuple[GraphBuilder, Value, int]:
    """A graph builder, the output of a linear operator, and its number of channels."""
    b = GraphBuilder()
    if kind in ("gemm", "matmul"):
        x = b.input("x", "float32", ["n", 5])
        if kind == "gemm":
            return b, b.gemm(x, weights(5, 6), weights(6, seed=1) if bias else None), 6
        y = b.matmul(x, weights(5, 6))
        return b, b.op("Add", y, weights(6, seed=1)) if bias else y, 6
    x = b.input("x", "float32", [2, 4, 5, 5])
    shape, op_type, group = {
        "conv": ((6, 4, 3, 3), "Conv", 1),
        "grouped": ((6, 2, 3, 3), "Conv", 2),
        "depthwise": ((4, 1, 3, 3), "Conv", 4),
        "transposed": ((4, 6, 3, 3), "ConvTranspose", 1),
        "grouped-transposed": ((4, 3, 3, 3), "ConvTranspose", 2),
    }[kind]
    channels = shape[0] if op_type == "Conv" else shape[1] * group
    inputs = [weights(*shape), *([weights(channels, seed=1)] if bias else [])]
    y = b.op(op_type, x, *inputs, group=group, pads=[1, 1, 1, 1], strides=[2, 2])
    return b, y, channels


KINDS = ["conv", "grouped", "depthwise", "transposed", "grouped-transposed", "gemm", "matmul"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_into_linear(kind: str, bias: bool) -> None:
    b, y, channels = _after(kind, bias)
    b.output(_normalized(y, b, channels), name="y")
    after = run(b.build(), "fold-batchnorm", FOLDED)
    assert "BatchNormalization" not in ops(after)
    assert len(after.graph) == (2 if kind == "matmul" else 1)


@pytest.mark.parametrize("op_type", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("kind", KINDS)
def test_affine_into_linear(kind: str, op_type: str) -> None:
    b, y, channels = _after(kind, bias=True)
    shape = (channels,) if kind in ("gemm", "matmul") else (channels, 1, 1)
    b.output(b.op(op_type, y, (0.5 + np.random.default_rng(3).random(shape)).astype(np.float32)), name="y")
    after = run(b.build(), "fold-affine", FOLDED)
    assert len(after.graph) == (2 if kind == "matmul" else 1)


def test_scalar_scale_without_bias_needs_no_bias() -> None:
    b, y, _ = _after("conv", bias=False)
    b.output(b.op("Mul", y, 0.3), name="y")
    after = run(b.build(), "fold-affine", FOLDED)
    assert len(after.graph.nodes[0].inputs) == 2


def test_chain_of_the_autoencoder() -> None:
    """MatMul, Add, Mul, Add (a Dense layer with an unfused normalization) becomes MatMul, Add."""
    b, y, _ = _after("matmul", bias=True)
    for i, op_type in enumerate(("Mul", "Add")):
        y = b.op(op_type, y, weights(6, seed=5 + i, scale=1.0))
    b.output(b.op("Relu", y), name="y")
    assert ops(run(b.build(), "fold-affine", FOLDED)) == ["MatMul", "Add", "Relu"]


@pytest.mark.parametrize("op_type", ["Mul", "Div"])
def test_scale_behind_the_split_into_heads(op_type: str) -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [3, 5])
    y = b.op("Add", b.matmul(x, weights(5, 6)), weights(6, seed=1))
    heads = b.op("Transpose", b.op("Reshape", y, [3, 2, 3]), perm=[1, 0, 2])
    b.output(b.op(op_type, heads, np.float32([0.3])), name="y")
    assert ops(run(b.build(), "fold-affine", FOLDED)) == ["MatMul", "Add", "Reshape", "Transpose"]


def test_scale_behind_other_things_stays() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [3, 6])
    b.output(b.op("Mul", b.op("Transpose", b.op("Relu", x)), 0.3), name="y")
    assert ops(run(b.build(), "fold-affine")) == ["Relu", "Transpose", "Mul"]


def test_elsewhere_it_is_mul_and_add() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 3, "h", "w"])
    b.output(b.op("Relu", _normalized(x, b, 3)), name="y")
    assert ops(run(b.build(), "fold-batchnorm", ROUNDING)) == ["Mul", "Add", "Relu"]


def test_a_shared_convolution_is_left_alone() -> None:
    b, y, channels = _after("conv", bias=False)
    b.output(_normalized(y, b, channels), b.op("Relu", y))
    model = b.build()
    after = run(model, "fold-batchnorm", FOLDED)
    assert count(after) == {"Conv": 1, "Mul": 1, "Add": 1, "Relu": 1}
    refused = Pipeline.parse("fold-batchnorm").run(model).refusals
    assert any("has other readers" in r.reason for r in refused)


def test_a_convolution_that_is_an_output_is_left_alone() -> None:
    b, y, _ = _after("conv", bias=False)
    b.output(y, b.op("Mul", y, 2.0))
    assert_refused(b.build(), "fold-affine", "is an output of the model")


def test_channels_that_are_not_the_matmuls() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 4, 5])
    b.output(_normalized(b.matmul(x, weights(5, 6)), b, 4), name="y")
    assert ops(run(b.build(), "fold-batchnorm", ROUNDING)) == ["MatMul", "Mul", "Add"]


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        (np.ones((5, 1), np.float32), "is not one number per channel"),
        (np.full((6, 1, 1), 1e38, np.float32), "are not finite"),
        (np.full((1, 1, 1, 1, 1), 2.0, np.float32), "is not one number per channel"),
    ],
)
def test_constants_that_do_not_fit(scale: Any, reason: str) -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 4, 7, 7])
    y = b.conv(x, weights(6, 4, 3, 3, scale=10.0))
    b.output(b.op("Mul", y, scale), name="y")
    assert_refused(b.build(), "fold-affine", reason)


def test_quantized_weights_are_left_alone() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 2, 4, 4])
    w = b.dequantize(np.arange(18, dtype=np.int8).reshape(1, 2, 3, 3), np.float32(0.1), np.int8(0))
    b.output(b.op("Mul", b.conv(x, w), 2.0), name="y")
    assert_refused(b.build(), "fold-affine", "is quantized")


def test_weights_that_are_computed_are_left_alone() -> None:
    b = GraphBuilder()
    x, w = b.input("x", "float32", [2, 3]), b.input("w", "float32", [3, 4])
    b.output(b.op("Mul", b.gemm(x, w), 2.0), name="y")
    assert_refused(b.build(), "fold-affine", "is not a floating-point constant")


def test_training_mode_is_left_alone() -> None:
    b, y, channels = _after("conv", bias=False)
    out = b.op("BatchNormalization", y, *_parameters(channels), outputs=3, training_mode=1)
    b.output(*out)
    model = b.build()
    done = Pipeline.parse("fold-batchnorm").run(model)
    assert not done.changed
    assert any("training mode" in r.reason for r in done.refusals)


def test_origins_name_the_parts_and_the_pass() -> None:
    b, y, channels = _after("conv", bias=False)
    b.output(_normalized(y, b, channels), name="y")
    model = b.build()
    Pipeline.parse("fold-batchnorm").run(model)
    (node,) = model.graph.nodes
    assert set(node.origin.nodes) == {"Conv", "BatchNormalization"}
    assert node.origin.passes == ("fold-batchnorm",)
