"""Weights of 4 and 2 bits in the library: what is stored so, in how many bytes, and what it computes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.geometry import fields_of, shared_axis, stored_counts
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.plan.pack import share_bytes, small_type
from irc.backends.tvm.specs import DepthwiseSpec, LinearSpec
from irc.export import to_bytes
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.targets import TARGETS
from irc.targets.catalogue import runs_here
from irc.targets.target import Target

F = np.float32
native = pytest.mark.parametrize("target", [t for t in TARGETS.values() if runs_here(t)], ids=lambda t: t.name)


def random(dtype: str, *shape: int) -> np.ndarray:
    info = ml_dtypes.iinfo(dtype)
    rng = np.random.default_rng(math.prod(shape))
    return rng.integers(int(info.min), int(info.max), shape, np.int16, endpoint=True).astype(dtype)


# Bytes
@pytest.mark.parametrize("dtype", ["int4", "int2"])
@pytest.mark.parametrize("counts", [(1, 1, 4), (3, 3, 5), (1, 4, 1), (5, 1, 1), (3, 2, 3), (1, 1, 1)])
def test_every_weight_is_found_again(counts: tuple[int, int, int], dtype: str) -> None:
    fields, step = fields_of(dtype), 2
    w = random(dtype, 3, *counts[:2], counts[2] * step).astype(np.int8)
    shared = share_bytes(w, step, dtype)
    rows, columns, steps = stored_counts(counts, fields)
    assert shared.shape == (3, rows, columns, steps * step)
    axis, bits = shared_axis(counts, fields), 8 // fields
    packed = shared.view(np.uint8).reshape(3, rows, columns, steps, step)
    for at in np.ndindex(counts):
        place = [n // fields if i == axis else n for i, n in enumerate(at)]
        field = packed[:, *place] >> (bits * (at[axis] % fields)) & ((1 << bits) - 1)
        signed = (field.astype(np.int8) ^ (1 << (bits - 1))) - (1 << (bits - 1))
        np.testing.assert_array_equal(signed, w[:, at[0], at[1], at[2] * step : (at[2] + 1) * step])


@pytest.mark.parametrize(
    ("low", "high", "steps", "scale", "wanted"),
    [
        (-8, 7, 4, 1.0, "int4"),
        (-8, 8, 4, 1.0, ""),
        (-9, 7, 4, 1.0, ""),
        (-2, 1, 4, 1.0, "int2"),
        (-1, 1, 2, 1.0, "int4"),  # two bits would leave half of them empty
        (-8, 7, 1, 1.0, ""),  # nothing to share a byte with
        (-8, 7, 4, 1e-25, ""),
    ],
)
def test_what_fits_is_stored_small(low: int, high: int, steps: int, scale: float, wanted: str) -> None:
    w = np.full((2, 1, 1, 4 * steps), low, np.int8)
    w[0, 0, 0, 0] = high
    assert small_type(w, 4, np.array([scale])) == wanted


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small], ids=lambda t: t.name)
def test_libraries_have_half_the_weights(target: Target) -> None:
    def plan_bytes(dtype: str) -> int:
        b = GraphBuilder("net")
        x = b.dequantize(b.input("x", "uint8", [1, 32, 8, 8]), F(0.1), np.uint8(3))
        w = b.dequantize(np.maximum(random(dtype, 64, 32, 3, 3).astype(np.int8), -127).astype(dtype), F(0.1))
        b.output(b.quantize(b.conv(x, w), F(9), np.uint8(9)), name="y")
        plan = make_plan(b.build().graph, target)
        (call,) = [c for c in plan.calls if isinstance(c.spec, LinearSpec)]
        assert call.spec.w_dtype == ("" if dtype == "int8" else dtype)
        return plan.planner.storages[call.args[1].storage].nbytes

    assert plan_bytes("int4") * 2 == plan_bytes("int2") * 4 == plan_bytes("int8") == 64 * 32 * 9


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small], ids=lambda t: t.name)
def test_columns_of_depthwise_kernels_share_bytes(target: Target) -> None:
    def stored(dtype: str, columns: int) -> tuple[str, int]:
        b = GraphBuilder("net")
        x = b.dequantize(b.input("x", "uint8", [1, 32, 8, 8]), F(0.1), np.uint8(3))
        w = b.dequantize(random(dtype, 32, 1, 3, columns), F(0.1))
        b.output(b.quantize(b.conv(x, w, group=32), F(9), np.uint8(9)), name="y")
        plan = make_plan(b.build().graph, target)
        (call,) = [c for c in plan.calls if isinstance(c.spec, DepthwiseSpec)]
        return call.spec.w_dtype, plan.planner.storages[call.args[1].storage].nbytes

    kind, size = stored("int8", 3)
    assert kind == "int8"
    assert stored("int4", 3) == ("int4", size * 2 // 3)
    assert stored("int4", 1) == ("int8", size // 3)


# Float data
def _weights(b: GraphBuilder, dtype: str, shape: tuple[int, ...], out: int, inner: int, block: int) -> Value:
    q = random(dtype, *shape)
    rng = np.random.default_rng(5)
    if not block:
        return b.dequantize(q, rng.uniform(0.01, 0.1, shape[out]).astype(F), axis=out)
    sizes = [d // block if i == inner else d for i, d in enumerate(shape)]
    scale = rng.uniform(0.01, 0.1, sizes).astype(F)
    return b.op("DequantizeLinear", b.constant(q), b.constant(scale), axis=inner, block_size=block)


def float_network(dtype: str, block: int) -> Model:
    b = GraphBuilder("net")
    x = b.input("x", "float32", [1, 32, 9, 9])
    w = _weights(b, dtype, (48, 32, 3, 3), 0, 1, block)
    y = b.op("Relu", b.conv(x, w, np.linspace(-1, 1, 48, dtype=F), strides=[2, 2], dilations=[2, 2]))
    b.output(b.conv(y, _weights(b, dtype, (33, 48, 1, 1), 0, 1, block)), name="y")
    v = b.input("v", "float32", [3, 96])
    b.output(b.gemm(v, _weights(b, dtype, (70, 96), 0, 1, block), np.linspace(-1, 1, 70, dtype=F), transB=1), name="z")
    one = b.input("one", "float32", [1, 96])
    b.output(b.op("MatMul", one, _weights(b, dtype, (96, 64), 1, 0, block)), name="u")
    return b.build()


@native
@pytest.mark.parametrize(("dtype", "block"), [("int4", 0), ("int4", 16), ("int8", 16)])
def test_float_data_with_few_bits(dtype: str, block: int, target: Target) -> None:
    """float32 sums in another order: within 1e-5 of the largest."""
    model = float_network(dtype, block)
    plan = make_plan(clone(model).graph, target)
    linear = [c.spec for c in plan.calls if isinstance(c.spec, LinearSpec)]
    assert [(s.w_dtype, s.scaled) for s in linear] == [(dtype, block)] * 4
    rng = np.random.default_rng(1)
    feeds = {v.name: rng.standard_normal(v.static_shape()).astype(F) for v in model.graph.inputs}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    with open_program(program_of(model, target)) as network:
        for name, wanted in zip(names, session.run(names, feeds), strict=True):
            assert np.abs(network.run(feeds)[name] - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_blocks_along_the_output_channels_are_real_weights() -> None:
    b = GraphBuilder("net")
    q, scale = random("int4", 32, 48), np.ones((32, 3), F)
    w = b.op("DequantizeLinear", b.constant(q), b.constant(scale), axis=1, block_size=16)
    b.output(b.op("MatMul", b.input("x", "float32", [2, 32]), w), name="y")
    plan = make_plan(b.build().graph, TARGETS["arm"])
    assert [c.spec.w_dtype for c in plan.calls if isinstance(c.spec, LinearSpec)] == [""]
