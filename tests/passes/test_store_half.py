"""Weights in 16 bits behind a Cast: where, with which numbers, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from pass_checks import assert_refused, assert_same, ops, outputs, random_feeds, report

from irc.errors import OptionError
from irc.export import to_bytes
from irc.frontend import from_proto
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.types import DType
from irc.passes.quantize.quantize import Quantize
from irc.pipeline import Pipeline
from irc.pipeline.presets import PRESETS

HALF = "quantize{weights=%s activations=none}"
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative change of a weight; results of a few layers change by a few times as much of their largest."""

kinds = pytest.mark.parametrize("kind", ["float16", "bfloat16"])


def network() -> Model:
    b = GraphBuilder("net")
    y = b.op("Relu", b.conv(b.input("x", "float32", [1, 8, 6, 6]), weights(16, 8, 3, 3), weights(16, seed=1), name="c"))
    y = b.op("Relu", b.conv(y, weights(16, 8, 1, 1, seed=2) * 4, group=2, name="grouped"))
    y = b.op("Flatten", y)
    y = b.gemm(y, weights(256, 32, seed=3), weights(32, seed=4), name="fc")
    b.output(b.op("MatMul", y, weights(32, 20, seed=5), name="last"), name="y")
    return b.build()


@kinds
def test_weights_are_stored_and_biases_are_not(kind: str) -> None:
    model = network()
    after, found = report(model, HALF % kind, 8 * ROUNDING[kind])
    assert ops(after).count("Cast") == 3  # the grouped convolution has too few weights
    for node in after.graph.nodes:
        if node.is_op("Cast"):
            assert node.need(0).dtype is DType(kind)
            assert node.output.dtype is DType.FLOAT
            assert "quantize" in node.origin.passes
    fc = next(n for n in after.graph.nodes if n.name == "fc")
    bias = fc.input(2)
    assert bias is not None
    assert bias.dtype is DType.FLOAT
    stored = fc.need(1).producer
    assert stored is not None
    want = next(n for n in model.graph.nodes if n.name == "fc").need(1).numpy()
    # half a step of float16's subnormal numbers
    np.testing.assert_allclose(stored.need(0).numpy().astype(np.float32), want, rtol=ROUNDING[kind], atol=2.0**-25)
    layers = found.passes[0].statistics["layers"]
    assert [layer["node"] for layer in layers] == ["c", "fc", "last"]
    # rounding errors are spread evenly: 10.8 dB below the square of the largest one, which few weights have
    assert all(layer["weight_snr_db"] > -20 * np.log10(ROUNDING[kind]) for layer in layers)


@kinds
def test_the_clean_up_leaves_them(kind: str) -> None:
    model = network()
    Pipeline.parse(HALF % kind).run(model)
    before = clone(model)
    Pipeline.parse(PRESETS["none"]).run(model)
    assert ops(model).count("Cast") == 3
    # fused operators sum in another order
    assert_same(before, model, 1e-6)


@kinds
def test_files_hold_16_bits(kind: str) -> None:
    model = network()
    size = len(to_bytes(model))
    Pipeline.parse(HALF % kind).run(model)
    proto = onnx.load_from_string(to_bytes(model))
    wanted = onnx.TensorProto.FLOAT16 if kind == "float16" else onnx.TensorProto.BFLOAT16
    assert sum(t.data_type == wanted for t in proto.graph.initializer) == 3
    assert len(to_bytes(model)) < 0.62 * size  # small constants and the graph stay
    again = from_proto(proto)
    feeds = random_feeds(model)
    np.testing.assert_array_equal(outputs(again, feeds)[0], outputs(model, feeds)[0])


def test_shared_weights_are_stored_once() -> None:
    b = GraphBuilder("net")
    w = b.constant(weights(20, 20), "w")
    y = b.op("MatMul", b.op("Relu", b.op("MatMul", b.input("x", "float32", [2, 20]), w)), w)
    b.output(y, name="y")
    after, _ = report(b.build(), HALF % "float16", 8 * ROUNDING["float16"])
    assert ops(after).count("Cast") == 1
    assert len([v for v in after.graph.constants.values() if v.constant is not None]) == 1


@kinds
def test_of_a_table_the_rows_that_are_read_are_cast(kind: str) -> None:
    b = GraphBuilder("net")
    table = b.constant(weights(200, 24), "table")
    rows = b.op("Gather", table, b.input("i", "int64", [2, 3]), axis=0)
    rows = b.op("Add", rows, b.op("Gather", weights(20, 24, seed=1), np.array([0, 3, 7]), axis=0))
    # the same numbers are the weights of the last layer
    b.output(b.op("Gemm", b.op("Reshape", rows, np.array([6, 24])), table, transB=1), name="y")
    after, found = report(b.build(), HALF % kind, 8 * ROUNDING[kind])
    gather = next(n for n in after.graph.nodes if n.is_op("Gather") and not n.need(1).is_constant)
    assert gather.output.dtype is DType(kind)
    assert [u.op_type for u in gather.output.users] == ["Cast"]
    assert sum(v.constant is not None and v.tensor.dtype is DType(kind) for v in after.graph.constants.values()) == 1
    assert any("fewer than 4096" in r.reason for r in found.refusals)
    assert len(found.passes[0].statistics["layers"]) == 2


@kinds
def test_recurrent_weights_are_stored(kind: str) -> None:
    b = GraphBuilder("net")
    x = b.input("x", "float32", [4, 1, 16])
    w, r, bias = weights(1, 80, 16), weights(1, 80, 20, seed=1), weights(1, 160, seed=2)
    b.output(b.op("LSTM", x, w, r, bias, hidden_size=20), name="y")
    after, found = report(b.build(), f"{HALF % kind},fold-constants", 8 * ROUNDING[kind])
    assert ops(after) == ["Cast", "Cast", "LSTM"]
    assert len(found.passes[0].statistics["layers"]) == 2


def test_a_table_whose_rows_leave_the_network() -> None:
    b = GraphBuilder("net")
    b.output(b.op("Gather", weights(200, 24), b.input("i", "int64", [3]), axis=0), name="rows")
    after, _ = report(b.build(), HALF % "float16", ROUNDING["float16"])
    assert ops(after) == ["Gather", "Cast"]


def layer(w: np.ndarray, op: str = "MatMul", **attributes: int) -> Model:
    b = GraphBuilder("net")
    if op == "Conv":
        b.output(b.conv(b.input("x", "float32", [1, 32, 4, 4]), w, name="layer", **attributes), name="y")
    else:
        b.output(b.op(op, b.input("x", "float32", [3, 2, 16]), w, name="layer"), name="y")
    return b.build()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (layer(weights(16, 15)), "fewer than 256 weights"),
        (layer(weights(3, 16, 16)), "no matrix"),
        (layer(weights(32, 1, 3, 3), "Conv", group=32), "depthwise"),
        (layer(np.full((16, 16), 1e5, np.float32)), "beyond float16's 65504"),
    ],
)
def test_what_is_left_alone(model: Model, reason: str) -> None:
    assert_refused(model, HALF % "float16", reason)


def test_weights_that_are_not_finite_stay() -> None:
    w = weights(16, 16)
    w[0, 0] = np.inf
    model = layer(w)
    found = Pipeline.parse(HALF % "float16").run(model)
    assert not found.changed
    assert any("not finite" in r.reason for r in found.refusals)


def test_large_weights_fit_into_bfloat16() -> None:
    after, _ = report(layer(np.full((16, 16), 1e5, np.float32)), HALF % "bfloat16", 8 * ROUNDING["bfloat16"])
    assert "Cast" in ops(after)


def test_nodes_can_be_skipped() -> None:
    model = network()
    found = Pipeline([Quantize(weights="float16", activations="none", skip=("fc",))]).run(model)
    assert ops(model).count("Cast") == 2
    assert any("skip" in r.reason and "fc" in r.node for r in found.refusals)


@kinds
def test_activations_must_stay_in_floating_point(kind: str) -> None:
    with pytest.raises(OptionError, match=rf"try quantize\{{weights={kind} activations=none\}}"):
        Pipeline.parse(f"quantize{{weights={kind}}}")
