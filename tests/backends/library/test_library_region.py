"""Regions: several nodes, control flow, functions, element types at the border, the object's interface."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from library_harness import HOST, Const, one_node, onnxruntime_results, run_model
from onnx import TensorProto, helper, numpy_helper, parser

from irc.backends.tvm.library.compile import compile_library
from irc.backends.tvm.library.functions import expand_function
from irc.errors import UnsupportedError

R = np.random.default_rng(5)


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model('<ir_version: 10, opset_import: ["" : 22]>\n' + text)


def same_as_onnxruntime(made: onnx.ModelProto, *feeds: np.ndarray) -> None:
    for got, wanted in zip(run_model(made, list(feeds)), onnxruntime_results(made, list(feeds)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_several_nodes_with_shapes_computed() -> None:
    made = model("""g (float[2,3,4] x) => (y, s) {
        s = Shape(x)
        m = ReduceMean<keepdims=1>(x, axis)
        d = Sub(x, m)
        flat = Constant<value_ints=[2,-1]>()
        r = Reshape(d, flat)
        y = Sigmoid(r)
    }""")
    made.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "axis"))
    same_as_onnxruntime(made, R.standard_normal((2, 3, 4)).astype(np.float32))


def test_loop_is_written_out() -> None:
    made = model("""g (float[3] x) => (float[3] y, float[4,3] rows) {
        n = Constant<value=int64 {4}>()
        go = Constant<value=bool {1}>()
        y, rows = Loop(n, go, x) <body = b (int64 i, bool c, float[3] v) => (bool c2, float[3] w, float[3] row) {
            c2 = Identity(c)
            f = Cast<to=1>(i)
            w = Mul(v, v)
            row = Add(w, f)
        }>
    }""")
    same_as_onnxruntime(made, np.array([0.5, 1.1, -0.9], np.float32))


def test_if_takes_the_branch_that_is_known() -> None:
    made = model("""g (float[3] x) => (float[3] y) {
        k = Shape(x)
        three = Constant<value_ints=[3]>()
        e = Equal(k, three)
        c = Squeeze(e)
        y = If(c) <then_branch = t () => (float[3] a) { a = Neg(x) },
                   else_branch = f () => (float[3] a) { a = Exp(x) }>
    }""")
    same_as_onnxruntime(made, np.array([0.5, 1.1, -0.9], np.float32))


def test_the_same_value_twice_and_an_input_as_output() -> None:
    made = model("""g (float[3] x) => (float[3] a, float[3] b, float[3] c) {
        a = Relu(x)
        b = Identity(a)
        c = Identity(x)
    }""")
    same_as_onnxruntime(made, np.array([0.5, 1.1, -0.9], np.float32))


def test_empty_results() -> None:
    made = one_node("Slice", [np.zeros((3, 4), np.float32), Const([2]), Const([2]), Const([0])])
    (got,) = run_model(made, [np.zeros((3, 4), np.float32)])
    assert got.shape == (0, 4)


def test_bfloat16_at_the_border() -> None:
    import ml_dtypes

    x = R.standard_normal((4, 33)).astype(ml_dtypes.bfloat16)
    x[0, :3] = [np.nan, np.inf, -np.inf]
    made = one_node("Mul", [x, x])
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("o0", TensorProto.BFLOAT16, [4, 33]))
    (got,) = run_model(made, [x, x])
    np.testing.assert_array_equal(got.astype(np.float32), (x * x).astype(np.float32))


def test_not_of_a_comparison_with_nan() -> None:
    made = model("g (float[3] x, float[3] y) => (bool[3] z) { c = Less(x, y)  z = Not(c) }")
    feeds = [np.array([1, np.nan, 3], np.float32), np.array([2, 2, np.nan], np.float32)]
    np.testing.assert_array_equal(run_model(made, feeds)[0], [False, True, True])


def test_indices_out_of_range_touch_no_foreign_memory() -> None:
    x, where = np.arange(6, dtype=np.float32), np.array([-100, 2, 100], np.int64)
    np.testing.assert_array_equal(run_model(one_node("Gather", [x, where]), [x, where])[0], [0, 2, 5])


def test_function_is_expanded_one_level() -> None:
    made = one_node("LayerNormalization", [np.zeros((2, 5), np.float32), np.ones(5, np.float32)])
    expanded = expand_function(made.SerializeToString())
    assert expanded is not None
    assert {"ReduceMean", "Sqrt"} <= {n.op_type for n in expanded.graph.node}
    assert expand_function(one_node("Exp", [np.zeros(3, np.float32)]).SerializeToString()) is None


def test_error_names_the_node_and_the_reason() -> None:
    made = one_node("NonZero", [np.zeros(3, np.float32)], name="finder")
    with pytest.raises(UnsupportedError, match=r"node 'finder' \(NonZero\).*depends on the data"):
        compile_library(made.SerializeToString(), HOST, "kernel")


def test_dynamic_shape_is_refused() -> None:
    made = one_node("Relu", [np.zeros(3, np.float32)])
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(UnsupportedError, match="not static"):
        compile_library(made.SerializeToString(), HOST, "kernel")


def test_object_has_one_global_symbol_and_only_c_library_undefined(tmp_path: Path) -> None:
    made = one_node("LSTM", [R.standard_normal(s).astype(np.float32) for s in ((4, 1, 8), (1, 32, 8), (1, 32, 8))], 3)
    made.graph.node[0].attribute.append(helper.make_attribute("hidden_size", 8))
    data, info = compile_library(made.SerializeToString(), HOST, "net_lstm")
    (tmp_path / "k.o").write_bytes(data)
    lines = subprocess.run(["nm", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [line.split()[-2:] for line in lines]
    assert [name for kind, name in symbols if kind in "TDBWV"] == ["net_lstm"]
    assert {name for kind, name in symbols if kind == "U"} <= {"memcpy", "memset", "memmove", "expf", "tanhf"}
    assert (info.n_inputs, info.n_outputs) == (3, 3)
    assert info.scratch_bytes % 64 == 0


def test_same_bytes_again() -> None:
    made = one_node("Softmax", [np.zeros((3, 40), np.float32)]).SerializeToString()
    first, _ = compile_library(made, HOST, "kernel")
    compile_library(one_node("Gelu", [np.zeros((3, 40), np.float32)]).SerializeToString(), HOST, "kernel")
    assert compile_library(made, HOST, "kernel")[0] == first
