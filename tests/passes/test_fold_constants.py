"""fold-constants, eliminate-dead, eliminate-common."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import EXACT, ROUNDING, assert_refused, ops, report, run

from irc.errors import OptionError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model
from irc.ir.types import DType
from irc.pipeline import Pipeline


def test_constant_chain_is_computed() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [3])
    c = b.op("Exp", b.op("Add", np.float32([1, 2, 3]), 1.0))
    b.output(b.op("Mul", x, c), name="y")
    after, done = report(b.build(), "fold-constants", EXACT)
    assert ops(after) == ["Mul"]
    assert done.passes[0].statistics["nodes"] == 2


def test_constant_output_keeps_its_name() -> None:
    b = GraphBuilder()
    b.input("x", "float32", [3])
    b.output(b.op("Neg", np.float32([1, 2])), name="y")
    after = run(b.build(), "fold-constants", EXACT)
    assert ops(after) == ["Identity"]
    assert after.graph.outputs[0].name == "y"


def test_shape_arithmetic_of_a_partly_known_shape() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 3, 4])
    shape = b.op("Shape", x)
    rows = b.op("Gather", shape, np.array(1))
    last = b.op("Slice", shape, [2], [3])
    target = b.op("Concat", np.array([-1]), b.op("Mul", b.op("Unsqueeze", rows, [0]), last), axis=0)
    b.output(b.op("Reshape", x, target), name="y")
    after = run(b.build(), "fold-constants,eliminate-dead", EXACT)
    assert ops(after) == ["Reshape"]


def test_size_and_static_shape() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 5])
    b.output(b.op("Add", b.op("Size", x), b.op("Shape", x, start=1)), name="y")
    assert ops(run(b.build(), "fold-constants,eliminate-dead", EXACT)) == ["Identity"]


def test_unknown_extents_stay() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 3])
    b.output(b.op("Gather", b.op("Shape", x), np.array(0)), name="y")
    assert ops(run(b.build(), "fold-constants", EXACT)) == ["Shape", "Gather"]


def _if(condition: bool | None) -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [3])
    chosen = b.input("c", "bool", []) if condition is None else b.constant(np.array(condition))

    def then(inner: GraphBuilder) -> None:
        inner.output(inner.op("Mul", inner.op("Add", x, np.float32([1, 2, 3])), 2.0))

    def otherwise(inner: GraphBuilder) -> None:
        inner.output(inner.op("Neg", x))

    y = b.op("If", chosen, then_branch=b.subgraph(then, "then"), else_branch=b.subgraph(otherwise, "else"))
    b.output(y, name="y")
    return b.build()


@pytest.mark.parametrize(("condition", "expected"), [(True, ["Add", "Mul"]), (False, ["Neg"])])
def test_constant_if_is_its_branch(condition: bool, expected: list[str]) -> None:
    assert ops(run(_if(condition), "fold-constants", EXACT)) == expected


def test_if_with_a_real_condition_stays() -> None:
    assert_refused(_if(None), "fold-constants", "its condition is not constant")


def test_inside_a_branch() -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [2]), b.input("c", "bool", [])

    def then(inner: GraphBuilder) -> None:
        inner.output(inner.op("Add", x, inner.op("Exp", 1.0)))

    def otherwise(inner: GraphBuilder) -> None:
        inner.output(inner.op("Identity", x))

    b.output(b.op("If", c, then_branch=b.subgraph(then, "t"), else_branch=b.subgraph(otherwise, "e")), name="y")
    assert ops(run(b.build(), "fold-constants", EXACT)) == ["If", "Add", "Identity"]


def test_random_numbers_stay() -> None:
    b = GraphBuilder()
    b.input("x", "float32", [2])
    b.output(b.op("RandomNormalLike", np.zeros(2, np.float32)), name="y")
    model = b.build()
    done = Pipeline.parse("fold-constants").run(model)
    assert ops(model) == ["RandomNormalLike"]
    assert "not determined" in done.refusals[0].reason


def test_quantized_weights_stay_small() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4])
    w = b.dequantize(np.int8([[1, 2], [3, 4], [5, 6], [7, 8]]), np.float32(0.5), np.int8(0))
    b.output(b.matmul(x, w), name="y")
    assert_refused(b.build(), "fold-constants", "a quantized weight stays")


def _ramp() -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [])
    b.output(b.op("Mul", x, b.op("Expand", 1.0, [64, 64])), name="y")
    return b.build()


def test_large_results_stay() -> None:
    assert_refused(_ramp(), "fold-constants{max-bytes=1000}", "more than max-bytes=1000")
    assert ops(run(_ramp(), "fold-constants", EXACT)) == ["Mul"]


def test_a_result_no_larger_than_its_inputs_is_always_made() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 64])
    b.output(b.matmul(x, b.op("Transpose", weights(64, 64), perm=[1, 0])), name="y")
    assert ops(run(b.build(), "fold-constants{max-bytes=0}", ROUNDING)) == ["MatMul"]


def test_bad_limit() -> None:
    with pytest.raises(OptionError, match="must not be negative"):
        Pipeline.parse("fold-constants{max-bytes=-1}")


def test_types_that_onnxruntime_does_not_return() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    c = b.op("Cast", b.op("Cast", np.float32([1, 3.14]), to=DType.BFLOAT16.onnx), to=DType.FLOAT.onnx)
    b.output(b.op("Add", x, c), name="y")
    assert ops(run(b.build(), "fold-constants", EXACT)) == ["Add"]


def test_dead_nodes_and_constants_go_and_inputs_stay() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    b.input("unused", "float32", [2])
    b.op("Exp", b.op("Add", x, 1.0))
    b.constant(weights(3), "lonely")
    b.output(b.op("Relu", x), name="y")
    after = run(b.build(), "eliminate-dead", EXACT)
    assert ops(after) == ["Relu"]
    assert not after.graph.constants
    assert [v.name for v in after.graph.inputs] == ["x", "unused"]


def test_what_a_branch_reads_is_alive() -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [2]), b.input("c", "bool", [])
    read = b.op("Exp", x)

    def body(inner: GraphBuilder) -> None:
        inner.op("Abs", x)
        inner.output(inner.op("Neg", read))

    b.output(b.op("If", c, then_branch=b.subgraph(body, "t"), else_branch=b.subgraph(body, "e")), name="y")
    assert ops(run(b.build(), "eliminate-dead", EXACT)) == ["Exp", "If", "Neg", "Neg"]


def test_unread_optional_outputs_go() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 1, 4, 4])
    y, _ = b.op("MaxPool", x, outputs=2, kernel_shape=[2, 2])
    b.output(y, name="y")
    after = run(b.build(), "eliminate-dead", EXACT)
    assert len(after.graph.nodes[0].outputs) == 1


def test_equal_nodes_and_constants_become_one() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 3])
    halves = [b.op("Relu", b.op("Add", x, np.float32([1, 2, 3]))) for _ in range(2)]
    b.output(b.op("Mul", *halves), name="y")
    after = run(b.build(), "eliminate-common", EXACT)
    assert ops(after) == ["Add", "Relu", "Mul"]
    assert len(after.graph.constants) == 1


def test_different_attributes_stay_apart() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [2, 3])
    b.output(b.op("Add", b.op("Softmax", x, axis=0), b.op("Softmax", x, axis=1)), name="y")
    assert ops(run(b.build(), "eliminate-common", EXACT)) == ["Softmax", "Softmax", "Add"]


def test_minus_zero_is_not_zero() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1])
    b.output(b.op("Div", x, np.float32([0.0])), b.op("Div", x, np.float32([-0.0])))
    assert len(run(b.build(), "eliminate-common", EXACT, {"x": np.float32([1])}).graph.constants) == 2


def test_random_nodes_stay_apart() -> None:
    b = GraphBuilder()
    b.input("x", "float32", [1])
    b.output(b.op("Sub", *[b.op("RandomNormal", shape=[4]) for _ in range(2)]), name="y")
    model = b.build()
    assert not Pipeline.parse("eliminate-common").run(model).changed


def test_branches_do_not_share_nodes_but_constants() -> None:
    b = GraphBuilder()
    x, c = b.input("x", "float32", [3]), b.input("c", "bool", [])

    def body(inner: GraphBuilder) -> None:
        inner.output(inner.op("Add", inner.op("Exp", x), np.float32([1, 2, 3])))

    y = b.op("If", c, then_branch=b.subgraph(body, "t"), else_branch=b.subgraph(body, "e"))
    b.output(b.op("Add", b.op("Add", y, np.float32([1, 2, 3])), b.op("Exp", x)), name="y")
    after = run(b.build(), "eliminate-common", EXACT)
    assert ops(after).count("Exp") == 3
    assert len(after.graph.constants) == 1
    assert not any(sub.constants for n in after.graph.nodes for sub in n.subgraphs)
