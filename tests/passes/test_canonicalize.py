"""canonicalize: each normal form, with the numbers unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_checks import EXACT, ROUNDING, assert_refused, ops, outputs, run

from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model, Node
from irc.pipeline import PassContext, Pipeline
from irc.rewrite.facts import ints


def _single(op_type: str, shape: list[int | str], *inputs: Any, **attributes: Any) -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", shape)
    b.output(b.op(op_type, x, *inputs, **attributes), name="y")
    return b.build()


def _only(model: Model) -> Node:
    (node,) = model.graph.nodes
    return node


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
def test_axis_counts_from_the_front(op_type: str) -> None:
    after = run(_single(op_type, [2, 3, 4]), "canonicalize")
    assert _only(after).attributes == {"axis": 2}


def test_axes_input_counts_from_the_front() -> None:
    after = run(_single("ReduceMax", [2, 3, 4], [-1, 0], keepdims=0), "canonicalize")
    assert ints(_only(after).input(1)) == (2, 0)


def test_transpose_has_its_perm() -> None:
    assert _only(run(_single("Transpose", [2, 3, 4]), "canonicalize")).attributes == {"perm": (2, 1, 0)}


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("extent", "kernel", "stride", "dilation"), [(7, 3, 2, 1), (8, 4, 3, 1), (9, 2, 1, 1)])
def test_auto_pad_of_conv(mode: str, extent: int, kernel: int, stride: int, dilation: int) -> None:
    model = _single(
        "Conv",
        [1, 2, extent, extent + 1],
        weights(3, 2, kernel, kernel),
        auto_pad=mode,
        strides=[stride, stride],
        dilations=[dilation, dilation],
    )
    node = _only(run(model, "canonicalize", ROUNDING))
    assert "auto_pad" not in node.attributes
    assert {"kernel_shape", "strides", "dilations", "pads"} <= set(node.attributes)


@pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool"])
def test_auto_pad_of_pools(op_type: str) -> None:
    model = _single(op_type, [1, 2, 7, 7], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    assert _only(run(model, "canonicalize", ROUNDING)).get_ints("pads") == (1, 1, 1, 1)


@pytest.mark.parametrize("mode", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("output_shape", [None, [9], [10]])
def test_pads_of_conv_transpose(mode: str, output_shape: list[int] | None) -> None:
    model = _single("ConvTranspose", [1, 2, 5], weights(2, 3, 4), auto_pad=mode, strides=[2], output_shape=output_shape)
    node = _only(run(model, "canonicalize", ROUNDING))
    assert "auto_pad" not in node.attributes
    assert "output_shape" not in node.attributes


def test_auto_pad_of_unknown_extents_stays() -> None:
    model = _single("Conv", [1, 2, "h", "w"], weights(3, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    assert _only(run(model, "canonicalize", ROUNDING)).get_str("auto_pad") == "SAME_UPPER"


def test_defaults_are_left_out() -> None:
    node = _only(run(_single("LeakyRelu", [4], alpha=0.01), "canonicalize"))
    assert node.attributes == {}


def test_gemm_constants() -> None:
    model = _single("Gemm", [2, 4], weights(3, 4), weights(3), alpha=0.3, beta=2.0, transB=1)
    node = _only(run(model, "canonicalize", ROUNDING))
    assert node.attributes == {}
    assert node.need(1).static_shape() == (4, 3)


def test_gemm_keeps_a_shared_weight() -> None:
    b = GraphBuilder()
    x, w = b.input("x", "float32", [2, 4]), b.constant(weights(4, 4))
    b.output(b.op("Add", b.op("Gemm", x, w, transB=1), b.op("Gemm", x, w)), name="y")
    assert_refused(b.build(), "canonicalize", "is shared")


def test_constant_stands_right_and_sub_and_div_are_gone() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [3])
    y = b.op("Sub", b.op("Add", 1.5, x), np.float32([1, 2, 3]))
    b.output(b.op("Div", y, 8.0), name="y")
    after = run(b.build(), "canonicalize", EXACT)
    assert ops(after) == ["Add", "Add", "Mul"]
    assert all(n.need(1).is_constant for n in after.graph.nodes)


def test_div_by_other_numbers_stays() -> None:
    assert ops(run(_single("Div", [3], 3.0), "canonicalize")) == ["Div"]


@pytest.mark.parametrize(
    ("op_type", "shape", "inputs", "attributes", "expected"),
    [
        ("Flatten", [2, 3, 4], (), {"axis": 2}, (6, 4)),
        ("Flatten", ["n", 3, 4], (), {}, (-1, 12)),
        ("Squeeze", [2, 1, 4], ([1],), {}, (2, 4)),
        ("Unsqueeze", [2, 4], ([0, -1],), {}, (1, 2, 4, 1)),
        ("Reshape", [2, 3, 4], ([0, -1],), {}, (2, 12)),
    ],
)
def test_reshape_is_the_one_form(
    op_type: str, shape: list[int | str], inputs: tuple[Any, ...], attributes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    after = run(_single(op_type, shape, *inputs, **attributes), "canonicalize")
    assert ops(after) == ["Reshape"]
    assert ints(_only(after).input(1)) == expected


def test_reshape_with_two_unknown_extents_stays() -> None:
    assert_refused(_single("Unsqueeze", ["n", "m"], [0]), "canonicalize", "more than one extent")


@pytest.mark.parametrize("keepdims", [0, 1])
def test_spatial_mean_is_a_global_pool(keepdims: int) -> None:
    after = run(_single("ReduceMean", [2, 3, 4, 5], [-1, -2], keepdims=keepdims), "canonicalize", ROUNDING)
    assert ops(after) == ["GlobalAveragePool", "Reshape"][: 2 - keepdims]


def test_other_means_stay() -> None:
    assert ops(run(_single("ReduceMean", [2, 3, 4, 5], [1, 2]), "canonicalize")) == ["ReduceMean"]
    assert ops(run(_single("ReduceMean", [2, 3, 4], [2]), "canonicalize")) == ["ReduceMean"]


def test_whole_pools_are_global() -> None:
    model = _single("AveragePool", ["n", 3, 4, 5], kernel_shape=[4, 5], strides=[2, 2])
    assert ops(run(model, "canonicalize", ROUNDING)) == ["GlobalAveragePool"]
    padded = _single("AveragePool", [1, 3, 4, 5], kernel_shape=[4, 5], pads=[1, 1, 1, 1])
    assert ops(run(padded, "canonicalize", ROUNDING)) == ["AveragePool"]


@pytest.mark.parametrize(
    ("op_type", "inputs", "expected"),
    [
        ("Clip", (0.0,), ["Relu"]),
        ("Clip", (None, np.float32(np.inf)), ["Identity"]),
        ("Clip", (0.0, 6.0), ["Clip"]),
        ("Max", (0.0,), ["Relu"]),
        ("Min", (np.float32([6]),), ["Clip"]),
        ("Sum", (1.0, 2.0), ["Add", "Add"]),
        ("Sum", (), ["Identity"]),
        ("Dropout", (), ["Identity"]),
        ("Pow", (2.0,), ["Mul"]),
        ("Pow", (3.0,), ["Pow"]),
    ],
)
def test_arithmetic_forms(op_type: str, inputs: tuple[Any, ...], expected: list[str]) -> None:
    assert ops(run(_single(op_type, [2, 3], *inputs), "canonicalize")) == expected


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, ["Sigmoid", "Mul"]), (1.7, ["Mul", "Sigmoid", "Mul"])])
def test_swish_is_a_product(alpha: float, expected: list[str]) -> None:
    """onnxruntime cannot run Swish, so the numbers are compared with its definition."""
    model = _single("Swish", [4], alpha=alpha)
    Pipeline.parse("canonicalize").run(model)
    assert ops(model) == expected
    x = np.float32([-2, -0.5, 0, 3])
    np.testing.assert_allclose(outputs(model, {"x": x})[0], x / (1 + np.exp(-alpha * x)), rtol=ROUNDING)


def test_dropout_in_training_stays() -> None:
    model = _single("Dropout", [4], 0.5, np.array(True))
    Pipeline.parse("canonicalize").run(model, PassContext())
    assert ops(model) == ["Dropout"]


def test_max_of_a_wider_constant_stays() -> None:
    assert ops(run(_single("Max", [3], np.zeros((1, 1), np.float32)), "canonicalize")) == ["Max"]


def test_constant_nodes_become_constants() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    b.output(b.op("Add", x, b.op("Constant", value_floats=[1.0, 2.0])), name="y")
    after = run(b.build(), "canonicalize")
    assert ops(after) == ["Add"]
    assert after.graph.nodes[0].need(1).is_constant
