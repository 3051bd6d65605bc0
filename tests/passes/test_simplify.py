"""simplify: what goes, what must stay, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_checks import EXACT, ROUNDING, Arrays, assert_refused, ops, report, run

from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model, Value
from irc.ir.types import DType


def _chain(shape: list[int | str], *steps: tuple[Any, ...], dtype: str = "float32") -> Model:
    """x -> steps, each (op type, further inputs..., {attributes})."""
    b = GraphBuilder()
    x: Value = b.input("x", dtype, shape)
    for op_type, *rest in steps:
        attributes = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        x = b.op(op_type, x, *rest, **attributes)
    b.output(x, name="y")
    return b.build()


CONV_3X3 = ("Conv", weights(2, 2, 3, 3), {"kernel_shape": [3, 3], "pads": [0, 1, 0, 1], "strides": [1, 1]})


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        pytest.param([2], [("Identity",), ("Relu",), ("Identity",)], ["Relu"], id="identity"),
        pytest.param([2], [("Cast", {"to": 1}), ("Relu",)], ["Relu"], id="cast to itself"),
        pytest.param([2, 3], [("Reshape", [2, -1]), ("Relu",)], ["Relu"], id="reshape to itself"),
        pytest.param([2, 3], [("Expand", [1, 3]), ("Relu",)], ["Relu"], id="expand to itself"),
        pytest.param([2, 3], [("Transpose", {"perm": [0, 1]}), ("Relu",)], ["Relu"], id="transpose nothing"),
        pytest.param([2, 3], [("Pad", [0, 0, 0, 0]), ("Relu",)], ["Relu"], id="pad nothing"),
        pytest.param([2, 3], [("Slice", [0], [9], [1]), ("Relu",)], ["Relu"], id="slice everything"),
        pytest.param(["n", 3], [("Slice", [0], [2**40], [0]), ("Relu",)], ["Relu"], id="slice an unknown extent"),
        pytest.param([2, 3], [("Tile", [1, 1]), ("Relu",)], ["Relu"], id="tile once"),
        pytest.param([1, 3, 1, 1], [("GlobalAveragePool",), ("Relu",)], ["Relu"], id="pool nothing"),
        pytest.param([4, 3], [("Gather", [0, 1, 2], {"axis": 1}), ("Relu",)], ["Relu"], id="gather everything"),
        pytest.param(["n"], [("Add", 0.0), ("Mul", 1.0), ("Sub", 0.0), ("Div", 1.0)], ["Identity"], id="neutral"),
        pytest.param([2], [("Neg",), ("Neg",), ("Exp",)], ["Exp"], id="neg neg"),
        pytest.param([2], [("Relu",), ("Relu",)], ["Relu"], id="relu relu"),
        pytest.param([2], [("Sigmoid",), ("Relu",)], ["Sigmoid"], id="relu of non-negative"),
        pytest.param([2], [("Relu",), ("Clip", None, 6.0)], ["Clip"], id="clip of relu"),
        pytest.param([2], [("Clip", -1.0, 2.0), ("Clip", 0.0, 6.0)], ["Clip"], id="clip of clip"),
        pytest.param([2], [("Clip", -1.0, None), ("Relu",)], ["Relu"], id="relu of clip"),
        pytest.param([2], [("Cast", {"to": 11}), ("Cast", {"to": 6})], ["Cast"], id="lossless cast"),
        pytest.param(
            [2, 3, 4],
            [("Transpose", {"perm": [1, 2, 0]}), ("Transpose", {"perm": [0, 2, 1]})],
            ["Transpose"],
            id="transpose transpose",
        ),
        pytest.param(
            [2, 3, 4],
            [("Transpose", {"perm": [0, 2, 1]}), ("Relu",), ("Tanh",), ("Transpose", {"perm": [0, 2, 1]})],
            ["Relu", "Tanh"],
            id="transposes cancel past activations",
        ),
        pytest.param(
            [2, 3],
            [
                ("Transpose", {"perm": [1, 0]}),
                ("Add", weights(3, 2)),
                ("Clip", 0.0, 1.0),
                ("Transpose", {"perm": [1, 0]}),
            ],
            ["Add", "Clip"],
            id="transposes cancel past constants",
        ),
        pytest.param([1, 3, 1, 4], [("Transpose", {"perm": [0, 2, 3, 1]})], ["Transpose"], id="a real transpose"),
        pytest.param([2, 3, 1, 1], [("Transpose", {"perm": [0, 2, 3, 1]})], ["Reshape"], id="transpose of units"),
        pytest.param([2, 3, 4], [("Reshape", [6, 4]), ("Reshape", [2, 12])], ["Reshape"], id="reshape reshape"),
        pytest.param(
            [4, 6],
            [("Slice", [1], [4], [0], [2]), ("Slice", [-1], [-4], [1], [-1])],
            ["Slice"],
            id="slices of different axes",
        ),
    ],
)
def test_goes(shape: list[int | str], steps: list[tuple[Any, ...]], expected: list[str]) -> None:
    assert ops(run(_chain(shape, *steps), "simplify", EXACT)) == expected


@pytest.mark.parametrize("op_type", ["Add", "Mul"])
def test_constants_of_a_chain_merge(op_type: str) -> None:
    model = _chain([2, 3], (op_type, weights(3)), (op_type, weights(2, 1)), (op_type, 3.0))
    # (2, 1) with (3,) would make 6 numbers of 5, so only the last two merge.
    assert len(ops(run(model, "simplify", ROUNDING))) == 2


@pytest.mark.parametrize(
    ("shape", "steps", "reason"),
    [
        pytest.param([3], [("Add", np.zeros((1, 1), np.float32))], "may widen the shape", id="wider zero"),
        pytest.param([3], [("Mul", 1e30), ("Mul", 1e30)], "overflows", id="overflow"),
        pytest.param([3], [("Cast", {"to": 10}), ("Cast", {"to": 1})], "does not hold every", id="lossy cast"),
        pytest.param([3], [("Clip", 0.0, 1.0), ("Clip", 2.0, 3.0)], "do not overlap", id="clips apart"),
        pytest.param([9], [("Slice", [1], [8]), ("Slice", [1], [4])], "both cut the same axis", id="same axis"),
        pytest.param(["n", 4], [("Reshape", [2, -1]), ("Reshape", [0, -1, 1])], "copies an extent", id="copied extent"),
    ],
)
def test_stays(shape: list[int | str], steps: list[tuple[Any, ...]], reason: str) -> None:
    assert_refused(_chain(shape, *steps), "simplify", reason)


def test_integer_division_is_no_rounding_matter() -> None:
    model = _chain([4], ("Cast", {"to": DType.INT32.onnx}), ("Cast", {"to": DType.INT64.onnx}), dtype="int8")
    assert ops(run(model, "simplify", EXACT)) == ["Cast"]


def test_inner_values_with_other_readers_stay() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [3])
    inner = b.op("Mul", x, 2.0)
    b.output(b.op("Mul", inner, 3.0), b.op("Exp", inner))
    assert_refused(b.build(), "simplify", "is also read by")


def test_model_outputs_keep_their_names() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [3])
    b.output(b.op("Identity", x), b.op("Identity", b.op("Identity", x)))
    assert ops(run(b.build(), "simplify", EXACT)) == ["Identity", "Identity"]


def test_operands_with_the_same_transpose() -> None:
    b = GraphBuilder()
    x, z = b.input("x", "float32", [2, 3]), b.input("z", "float32", [2, 3])
    left, right = (b.op("Transpose", v, perm=[1, 0]) for v in (x, z))
    b.output(b.op("Sub", left, right), name="y")
    assert ops(run(b.build(), "simplify", EXACT)) == ["Sub", "Transpose"]


def test_residual_between_transposes() -> None:
    """NHWC islands in an NCHW model: all Transposes go, past the residual Add."""
    b = GraphBuilder()
    x, z = b.input("x", "float32", [1, 2, 3, 4]), b.input("z", "float32", [1, 2, 3, 4])
    left, right = (b.op("Relu", b.op("Transpose", v, perm=[0, 2, 3, 1])) for v in (x, z))
    b.output(b.op("Transpose", b.op("Add", left, right), perm=[0, 3, 1, 2]), name="y")
    assert ops(run(b.build(), "simplify", EXACT)) == ["Relu", "Relu", "Add"]


def test_transpose_of_a_quantized_weight() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 3])
    w = b.dequantize(np.arange(6, dtype=np.int8).reshape(2, 3), np.float32([0.5, 0.25]), np.int8([0, 0]), axis=0)
    b.output(b.matmul(x, b.op("Transpose", w, perm=[1, 0])), name="y")
    after = run(b.build(), "simplify", EXACT)
    assert ops(after) == ["DequantizeLinear", "MatMul"]
    assert after.graph.nodes[0].get_int("axis") == 1


def test_a_long_chain_comes_to_an_end() -> None:
    """Hundreds of rewrites that each enable the next must not be taken for rules that undo each other."""
    steps: list[tuple[Any, ...]] = [("Transpose", {"perm": [1, 0]}), ("Relu",), ("Tanh",)] * 150
    after = run(_chain([3, 4], *steps), "simplify", EXACT)
    assert "Transpose" not in ops(after)


def test_keys_that_attention_transposes_twice() -> None:
    model = _chain(
        [1, 5, 2, 3],
        ("Transpose", {"perm": [0, 2, 1, 3]}),
        ("Reshape", [2, 5, 3]),
        ("Transpose", {"perm": [0, 2, 1]}),
        ("Reshape", [1, 2, 3, 5]),
    )
    after = run(model, "simplify", EXACT)
    assert ops(after) == ["Transpose"]
    assert after.graph.nodes[0].get_ints("perm") == (0, 2, 3, 1)


def test_a_reshape_that_merges_axes_stops_a_transpose() -> None:
    steps = [("Transpose", {"perm": [1, 0, 2]}), ("Reshape", [6, 4]), ("Transpose", {"perm": [1, 0]})]
    assert ops(run(_chain([2, 3, 4], *steps), "simplify", EXACT)) == ["Transpose", "Reshape", "Transpose"]


@pytest.mark.parametrize(("condition", "expected"), [(True, ["Relu"]), (False, ["Exp"])])
def test_where_with_a_constant_condition(condition: bool, expected: list[str]) -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [3])
    b.output(b.op("Where", np.array(condition), b.op("Relu", x), b.op("Exp", x)), name="y")
    assert ops(run(b.build(), "simplify,eliminate-dead", EXACT)) == expected


def test_concat_of_concat() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 3])
    inner = b.op("Concat", x, b.op("Relu", x), axis=1)
    b.output(b.op("Concat", x, inner, axis=1), b.op("Concat", inner, inner, axis=0))
    assert ops(run(b.build(), "simplify", EXACT)).count("Concat") == 3  # the inner one has two readers
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 3])
    b.output(b.op("Concat", x, b.op("Concat", x, b.op("Relu", x), axis=1), axis=1), name="y")
    assert ops(run(b.build(), "simplify", EXACT)) == ["Relu", "Concat"]


# Pads


PAD = ("Pad", [0, 0, 1, 0, 0, 0, 1, 2])


def test_pad_into_conv() -> None:
    after = run(_chain([1, 2, 5, 6], PAD, CONV_3X3), "simplify", ROUNDING)
    assert ops(after) == ["Conv"]
    assert after.graph.nodes[0].get_ints("pads") == (1, 1, 1, 3)


def _pool(op_type: str, **attributes: Any) -> tuple[Any, ...]:
    return op_type, {"kernel_shape": [3, 3], "pads": [0] * 4, "strides": [2, 2], **attributes}


def test_pad_into_average_pool_counts_the_padding() -> None:
    after = run(_chain([1, 2, 7, 7], PAD, _pool("AveragePool")), "simplify", ROUNDING)
    assert ops(after) == ["AveragePool"]
    assert after.graph.nodes[0].get_int("count_include_pad") == 1


def test_pad_into_max_pool() -> None:
    positive = _chain([1, 2, 7, 7], ("Relu",), PAD, _pool("MaxPool"))
    assert ops(run(positive, "simplify", EXACT)) == ["Relu", "MaxPool"]
    lowest = _chain([1, 2, 7, 7], (*PAD, np.float32(-np.inf)), _pool("MaxPool"))
    assert ops(run(lowest, "simplify", EXACT)) == ["MaxPool"]


@pytest.mark.parametrize(
    ("pad", "consumer", "reason"),
    [
        pytest.param((*PAD, 1.0), CONV_3X3, "does not pad with zeros", id="ones"),
        pytest.param((*PAD, {"mode": "reflect"}), CONV_3X3, "mode reflect", id="reflect"),
        pytest.param(("Pad", [0, 0, -1, 0, 0, 0, 0, 0]), CONV_3X3, "negative", id="crop"),
        pytest.param(PAD, _pool("MaxPool"), "may win over the data", id="max of negative numbers"),
        pytest.param(PAD, _pool("AveragePool", pads=[1, 1, 1, 1]), "without its own pads", id="two kinds of pads"),
        pytest.param(PAD, _pool("AveragePool", ceil_mode=1), "ceil_mode", id="ceil_mode"),
        pytest.param(
            ("Pad", [0, 0, 3, 0, 0, 0, 0, 0]), _pool("AveragePool"), "entirely in the padding", id="window of padding"
        ),
    ],
)
def test_pad_that_must_stay(pad: tuple[Any, ...], consumer: tuple[Any, ...], reason: str) -> None:
    assert_refused(_chain([1, 2, 7, 7], pad, consumer), "simplify", reason)


# The guard after attention's Softmax


def _guarded(mask: Any, extra: Any = None) -> Model:
    b = GraphBuilder()
    q, k = b.input("q", "float32", [1, 4, 8]), b.input("k", "float32", [1, 8, 4])
    scores = b.op("Mul", b.matmul(q, k), 0.25)
    if mask is not None:
        keep = b.input("keep", "bool", [1, 1, 4])
        scores = b.op("Add", scores, b.op("Where", keep, 0.0, mask))
    if extra is not None:
        scores = b.op("Add", scores, extra)
    s = b.op("Softmax", scores, axis=2)
    b.output(b.op("Where", b.op("IsNaN", s), 0.0, s), name="y")
    return b.build()


NO_KEY: Arrays = {
    "q": np.ones((1, 4, 8), np.float32),
    "k": np.ones((1, 8, 4), np.float32),
    "keep": np.zeros((1, 1, 4), bool),
}


def test_guard_without_infinities_goes() -> None:
    assert "IsNaN" not in ops(run(_guarded(None), "simplify", EXACT))


def test_guard_goes_where_the_mask_is_finite() -> None:
    after = run(_guarded(np.float32(np.finfo(np.float32).min)), "simplify", EXACT, NO_KEY)
    assert "IsNaN" not in ops(after)


def test_guard_stays_where_a_row_may_be_masked_out() -> None:
    model = _guarded(np.float32(-np.inf))
    after, done = report(model, "simplify", EXACT, NO_KEY)
    assert "IsNaN" in ops(after)
    assert any("holds an infinity" in r.reason for r in done.refusals)


def test_guard_stays_where_two_masks_may_overflow() -> None:
    lowest = np.float32(np.finfo(np.float32).min)
    assert_refused(_guarded(lowest, np.full((1, 1, 4), lowest)), "simplify", "several huge constants")


def test_guard_stays_on_demand() -> None:
    assert "IsNaN" in ops(run(_guarded(None), "simplify{finite=false}", EXACT))
