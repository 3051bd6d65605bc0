"""Weights stored in 8 or 16 bits: which kernels read them so, and that results are those of float32 weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.plan.make import Plan, make_plan
from irc.backends.tvm.plan.stored import narrowed
from irc.backends.tvm.specs import LinearSpec, RecurrentSpec, WinogradSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.ir.types import DType
from irc.targets import TARGETS, get_target
from irc.targets.target import Target

kinds = pytest.mark.parametrize("kind", ["float16", "bfloat16"])


def stored(b: GraphBuilder, data: np.ndarray, kind: str) -> Value:
    """The float32 value of constant `data` in 16 bits; "": float32 as it is, with the same numbers."""
    if not kind:
        return b.constant(data.astype(np.float16).astype(DType.BFLOAT16.numpy).astype(np.float32))
    return b.op("Cast", b.constant(rounded(data).astype(DType(kind).numpy)), to=DType.FLOAT.onnx)


def rounded(data: np.ndarray) -> np.ndarray:
    """Numbers that both kinds hold."""
    return data.astype(np.float16).astype(DType.BFLOAT16.numpy).astype(np.float32)


def network(kind: str, alpha: float = 1.0) -> Model:
    """Convolutions, a grouped and a depthwise one, products; and weights that an Add reads too."""
    b = GraphBuilder("net")
    x = b.input("x", "float32", [1, 8, 9, 9])
    y = b.op(
        "Relu",
        b.conv(x, stored(b, weights(40, 8, 3, 3), kind), weights(40, seed=1), dilations=[2, 2], pads=[2, 2, 2, 2]),
    )
    y = b.conv(y, stored(b, weights(80, 20, 1, 1, seed=2), kind), group=2)
    y = b.conv(y, stored(b, weights(80, 1, 3, 3, seed=3), kind), group=80)
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    w = stored(b, weights(80, 30, seed=4), kind)
    y = b.op("Gemm", y, w, weights(30, seed=5), alpha=alpha)
    y = b.op("MatMul", y, stored(b, weights(30, 80, seed=6), kind))
    b.output(b.op("Add", y, b.op("ReduceSum", w, np.array([1]), keepdims=0)), name="y")
    return b.build()


def plan_of(model: Model, target: Target) -> Plan:
    return make_plan(clone(model).graph, target)


def linear(plan: Plan) -> list[LinearSpec]:
    return [c.spec for c in plan.calls if isinstance(c.spec, LinearSpec)]


def weight_bytes(plan: Plan) -> int:
    used = {p.storage for c in plan.calls for p in c.args}
    return sum(data.nbytes for number, data, _ in plan.constants if number in used)


@kinds
@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small], ids=lambda t: t.name)
def test_linear_kernels_read_16_bits(target: Target, kind: str) -> None:
    plan = plan_of(network(kind), target)
    assert [spec.w_dtype for spec in linear(plan)] == [kind] * 4
    for call in plan.calls:
        if isinstance(call.spec, LinearSpec):
            data = next(d for n, d, _ in plan.constants if n == call.args[1].storage)
            assert data.dtype == np.uint16
            assert data.size == call.spec.w_size >= math.prod(call.spec.kernel) * call.spec.ic * call.spec.oc


def test_the_library_becomes_smaller() -> None:
    target = get_target("native")
    b = {kind: weight_bytes(plan_of(network(kind), target)) for kind in ("", "float16")}
    # what the Add reads, the depthwise weights and the biases are float32 in both
    assert b["float16"] < 0.75 * b[""]


@kinds
def test_results_are_those_of_float32_weights(kind: str) -> None:
    """Bit for bit: the numbers are the same, and so is the order of the sums."""
    target = get_target("native")
    x = np.random.default_rng(0).standard_normal((1, 8, 9, 9)).astype(np.float32)
    with open_program(program_of(network(""), target)) as net:
        want = net(x)
    with open_program(program_of(network(kind), target)) as net:
        np.testing.assert_array_equal(net(x), want)


def test_small_weights_are_not_transformed() -> None:
    """Winograd's transform would make float32 weights of several times the size of them."""

    def families(kind: str) -> set[type]:
        b = GraphBuilder("net")
        x = b.input("x", "float32", [1, 64, 56, 56])
        b.output(b.conv(x, stored(b, weights(64, 64, 3, 3), kind), pads=[1, 1, 1, 1]), name="y")
        return {type(c.spec) for c in plan_of(b.build(), get_target("x86-64-v4")).calls}

    assert WinogradSpec in families("")
    assert WinogradSpec not in families("float16")


@kinds
def test_factors_that_leave_numbers_exact_are_taken_in(kind: str) -> None:
    target = get_target("native")
    kept = [[s.w_dtype for s in linear(plan_of(network(kind, alpha), target))] for alpha in (2.0, 0.3)]
    assert kept == [[kind] * 4, [kind, kind, "", kind]]


def test_numbers_that_are_not_finite_stay_in_float32() -> None:
    data = rounded(weights(32, 32))
    data[3, 3] = np.inf
    b = GraphBuilder("net")
    b.output(b.op("MatMul", b.input("x", "float32", [1, 32]), stored(b, data, "float16")), name="y")
    (spec,) = linear(plan_of(b.build(), get_target("native")))
    assert spec.w_dtype == ""


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_narrowing_loses_nothing_or_is_refused(kind: str) -> None:
    data = rounded(weights(64))
    bits = narrowed(data, kind)
    assert bits is not None
    again = bits.view(np.float16).astype(np.float32) if kind == "float16" else (bits.astype(np.uint32) << 16).view("f4")
    np.testing.assert_array_equal(again, data)
    data[5] += np.float32(1e-5)
    assert narrowed(data, kind) is None
    assert narrowed(data.astype(np.float64), kind) is None
    assert narrowed(np.full(3, 1e30, np.float32), "float16") is None


def in_bytes(per_channel: bool, *, alpha: float = 1.0, zero: int = 0) -> Model:
    """A grouped convolution and both products, weights of int8 behind DequantizeLinear, data in float32."""
    b = GraphBuilder("bytes")
    rng = np.random.default_rng(0)

    def dequantized(shape: tuple[int, ...], channels: int) -> Value:
        q = rng.integers(-127, 128, shape).astype(np.int8)
        count = shape[channels] if per_channel else 1
        scale = rng.uniform(0.001, 0.01, count).astype(np.float32)
        points = b.constant(np.full(count, zero, np.int8)) if per_channel else b.constant(np.int8(zero))
        at = {"axis": channels} if per_channel else {}
        return b.dequantize(b.constant(q), b.constant(scale if per_channel else scale[0]), points, **at)

    x = b.input("x", "float32", [1, 12, 5, 5])
    y = b.conv(x, dequantized((34, 6, 3, 3), 0), weights(34, seed=1), group=2)
    y = b.op("Relu", b.op("MatMul", b.op("Reshape", y, np.array([9, 34])), dequantized((34, 21), 1)))
    w = dequantized((40, 21), 0)
    b.output(b.op("Gemm", y, w, weights(40, seed=2), transB=1, alpha=alpha), name="y")
    return b.build()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small], ids=lambda t: t.name)
def test_linear_kernels_read_bytes(target: Target, per_channel: bool) -> None:
    plan = plan_of(in_bytes(per_channel), target)
    assert [spec.w_dtype for spec in linear(plan)] == ["int8"] * 3
    for call in plan.calls:
        if isinstance(call.spec, LinearSpec):
            data = next(d for n, d, _ in plan.constants if n == call.args[1].storage)
            assert data.dtype == np.int8
            assert len(call.args) == len(call.spec.operands) + 3


@pytest.mark.parametrize("per_channel", [True, False])
def test_bytes_give_what_onnxruntime_computes(per_channel: bool) -> None:
    model = in_bytes(per_channel)
    x = np.random.default_rng(0).standard_normal((1, 12, 5, 5)).astype(np.float32)
    (want,) = Oracle(model).run({"x": x}).values()
    with open_program(program_of(model, get_target("native"))) as net:
        # sums in another order, and scaled after them
        np.testing.assert_allclose(net(x), want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"alpha": 0.3}, ["int8", "int8", ""]),  # the factor is in the weights
        ({"zero": 1}, ["int8"] * 3),  # -128 to 126
        ({"zero": -5}, [""] * 3),  # up to 132
    ],
)
def test_bytes_that_lose_something_stay_in_float32(options: dict[str, float], expected: list[str]) -> None:
    model = in_bytes(True, **options)  # type: ignore[arg-type]  # one of several types
    assert [spec.w_dtype for spec in linear(plan_of(model, get_target("native")))] == expected


@kinds
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_kernels_read_16_bits(op: str, kind: str) -> None:
    b = GraphBuilder("net")
    gates = 4 if op == "LSTM" else 3
    x = b.input("x", "float32", [5, 2, 20])
    w, r = (stored(b, weights(2, gates * 24, n, seed=n), kind) for n in (20, 24))
    linear_first = {} if op == "LSTM" else {"linear_before_reset": 1}
    b.output(b.op(op, x, w, r, hidden_size=24, direction="bidirectional", **linear_first), name="y")
    model = b.build()
    target = get_target("native")
    specs = [c.spec for c in plan_of(model, target).calls if isinstance(c.spec, LinearSpec | RecurrentSpec)]
    assert [s.w_dtype for s in specs] == [kind] * 4
    data = np.random.default_rng(0).standard_normal((5, 2, 20)).astype(np.float32)
    (want,) = Oracle(model).run({"x": data}).values()
    with open_program(program_of(model, target)) as net:
        # sums in another order, and polynomials for the activations
        np.testing.assert_allclose(net(data), want, rtol=0, atol=1e-5)


def test_recurrent_nodes_of_the_library_take_them_too() -> None:
    """A clipped LSTM has no kernel of its own: its weights become float32."""
    b = GraphBuilder("net")
    x = b.input("x", "float32", [3, 1, 20])
    w, r = (stored(b, weights(1, 96, n, seed=n), "float16") for n in (20, 24))
    b.output(b.op("LSTM", x, w, r, hidden_size=24, clip=0.5), name="y")
    model = b.build()
    data = np.random.default_rng(0).standard_normal((3, 1, 20)).astype(np.float32)
    (want,) = Oracle(model).run({"x": data}).values()
    with open_program(program_of(model, get_target("native"))) as net:
        np.testing.assert_allclose(net(data), want, rtol=0, atol=1e-5)
