"""Functions made of polynomials: largest errors against double precision; NaN and infinities as in onnxruntime."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx
import pytest
from kernel_harness import Case, native_targets, run
from onnx import helper

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.specs import ElementwiseSpec, Operand, RowsSpec
from irc.targets.target import Target

pytestmark = pytest.mark.skipif(not native_targets(), reason="no built-in target runs on this machine")
# With and without fused multiply-adds.
targets = pytest.mark.parametrize("target", [native_targets()[0], native_targets()[-1]], ids=lambda t: t.name)


def apply(target: Target, op: str, *arrays: np.ndarray, params: tuple = (), exact: bool = False) -> np.ndarray:
    """One instruction over whole arrays. `exact`: as in an expression of a quantized network."""
    size, dtype = arrays[0].size, "int8" if op == "isnan" else "float32"
    b = ExpressionBuilder()
    result = b.add(op, dtype, *(b.operand(i, "float32") for i in range(len(arrays))), params=params)
    if exact:
        result = b.add("scale", "float32", result, b.constant(1.0, "float32"))
    operands = tuple(Operand("float32", (1,), size) for _ in arrays)
    spec = ElementwiseSpec(dtype, (size,), (1,), b.finish(result), operands, size)
    return run(Case(op, spec, arrays, np.zeros(size, dtype)), target)


def ulps(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest error in units of the last place of the float32 nearest to `wanted`."""
    step = np.spacing(np.maximum(np.abs(wanted), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(got.astype(np.float64) - wanted) / step))


def points(low: float, high: float) -> np.ndarray:
    """Evenly spread, and dense near zero."""
    even = np.linspace(low, high, 12001)
    small = np.geomspace(1e-7, max(abs(low), abs(high)), 2000)
    both = np.concatenate([even, small, -small])
    return both[(both >= low) & (both <= high)].astype(np.float32)


each = np.vectorize(lambda f, v: f(v), excluded={0}, otypes=[np.float64])


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v > -700 else 0.0


def gelu(v: float) -> float:
    return 0.5 * v * math.erfc(-v / math.sqrt(2))


def gelu_tanh(v: float) -> float:
    return v * sigmoid(2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))


# (function, range, ulp of the result, absolute): the largest error, measured, and a tenth more. gelu cancels for
# negative numbers, so its error is absolute: |x| / 2 times that of erf or tanh.
ACCURACY = {
    "exp": (math.exp, (-87.3, 88.7), 1.01, None),
    "sigmoid": (sigmoid, (-80.0, 90.0), 2.2, None),
    "tanh": (math.tanh, (-12.0, 12.0), 5.0, None),
    "erf": (math.erf, (-6.0, 6.0), 5.9, None),
    "gelu": (gelu, (-8.0, 8.0), None, 1.12e-6),
    "gelu_tanh": (gelu_tanh, (-8.0, 8.0), None, 1.05e-6),
}


@targets
@pytest.mark.parametrize("exact", [False, True], ids=["float", "in integer kernels"])
@pytest.mark.parametrize("op", ACCURACY)
def test_accuracy(op: str, exact: bool, target: Target) -> None:
    function, (low, high), relative, absolute = ACCURACY[op]
    x = points(low, high)
    got, wanted = apply(target, op, x, exact=exact), each(function, x.astype(np.float64))
    error, away = ulps(got, wanted), float(np.max(np.abs(got - wanted)))
    if relative is not None:
        assert error <= relative
    if absolute is not None:
        assert away <= absolute


# NaN, infinities and other ends of the scale
SPECIAL = np.array(
    [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        1e-40,
        -1e-40,
        3.4e38,
        -3.4e38,
        88.5,
        88.73,
        120.0,
        -87.2,
        -120.0,
        1.5,
        -1.5,
        9.0,
    ],
    np.float32,
)


@functools.cache
def session(op: str, inputs: int, shape: tuple[int, ...], constants: tuple[float, ...] = ()):
    import onnxruntime

    values = [helper.make_tensor_value_info(f"i{i}", onnx.TensorProto.FLOAT, shape) for i in range(inputs)]
    bounds = [onnx.numpy_helper.from_array(np.float32(c), f"c{i}") for i, c in enumerate(constants)]
    node = helper.make_node(op, [v.name for v in (*values, *bounds)], ["o"])
    graph = helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name="o")], bounds)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def onnxruntime_gives(op: str, *arrays: np.ndarray, constants: tuple[float, ...] = ()) -> np.ndarray:
    made = session(op, len(arrays), arrays[0].shape, constants)
    return made.run(None, {f"i{i}": a for i, a in enumerate(arrays)})[0]


FUNCTIONS = {
    "relu": "Relu", "exp": "Exp", "sigmoid": "Sigmoid", "tanh": "Tanh", "erf": "Erf", "gelu": "Gelu", "abs": "Abs",
    "neg": "Neg", "sign": "Sign", "sqrt": "Sqrt", "floor": "Floor", "ceil": "Ceil", "round": "Round",
    "reciprocal": "Reciprocal", "isnan": "IsNaN",
}  # fmt: skip


@targets
@pytest.mark.parametrize("op", FUNCTIONS)
def test_special_values_as_onnxruntime(op: str, target: Target) -> None:
    """NaN where onnxruntime gives NaN, infinities where it gives infinities. 4e-7: polynomials on either side; what is
    below the smallest normal number may be 0. onnxruntime's sigmoid ends at 1.5e-8; gelu cancels for negatives."""
    if op in ("floor", "ceil", "round") and target.vector_bytes == 16 and target.arch == "x86-64":
        target = native_targets()[-1]  # x86-64 calls libm for these
    atol = 1e-7 if op in ("sigmoid", "gelu") else 1.2e-38
    got, wanted = apply(target, op, SPECIAL), onnxruntime_gives(FUNCTIONS[op], SPECIAL)
    np.testing.assert_allclose(got.astype(np.float32), wanted.astype(np.float32), rtol=4e-7, atol=atol)


@targets
def test_bounds_and_nan(target: Target) -> None:
    got = apply(target, "clip", SPECIAL, params=(-1.0, 2.0))
    np.testing.assert_array_equal(got, onnxruntime_gives("Clip", SPECIAL, constants=(-1.0, 2.0)))


@targets
@pytest.mark.parametrize("op", ["max", "min"])
def test_nan_on_either_side(op: str, target: Target) -> None:
    for other in (np.roll(SPECIAL, 1), np.roll(SPECIAL, -1), np.full_like(SPECIAL, np.nan), np.zeros_like(SPECIAL)):
        wanted = onnxruntime_gives(op.capitalize(), SPECIAL, other)
        np.testing.assert_array_equal(apply(target, op, SPECIAL, other), wanted)
        np.testing.assert_array_equal(apply(target, op, other, SPECIAL), wanted)


ROWS = {
    "masked": [-np.inf, 1.0, 2.0],
    "all masked": [-np.inf, -np.inf, -np.inf],
    "nan": [1.0, np.nan, 2.0],
    "inf": [1.0, np.inf, 2.0],
    "far apart": [0.0, -90.0, -3e38],
    "large": [3e38, 3e38, 2.9e38],
}


@targets
@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
@pytest.mark.parametrize("name", ROWS)
def test_softmax_of_special_rows(name: str, kind: str, target: Target) -> None:
    """Masked entries are exactly 0; a row of nothing but masks is NaN, as in onnxruntime."""
    x = np.resize(np.array(ROWS[name], np.float32), 19)
    spec = RowsSpec(kind, "float32", "float32", (1,), 19, (19,), (19,), x_size=19, y_size=19)
    got = run(Case(kind, spec, (x,), np.zeros(19, np.float32)), target)
    wanted = onnxruntime_gives({"softmax": "Softmax", "log_softmax": "LogSoftmax"}[kind], x[None])[0]
    # below exp(-87.3) a probability is 0 here, and less than 1.2e-38 there
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1.2e-38)
    if name == "masked" and kind == "softmax":
        assert (got[x == -np.inf] == 0).all()


@targets
def test_a_requantized_nan_is_the_lowest_value(target: Target) -> None:
    """Integers have no NaN: ONNX leaves the result open, irc defines it."""
    b = ExpressionBuilder()
    q = b.finish(b.requantize(b.operand(0, "float32"), "uint8", 0, 255, 10, 2.0))
    spec = ElementwiseSpec("uint8", (17,), (1,), q, (Operand("float32", (1,), 17),), 17)
    got = run(Case("q", spec, (SPECIAL,), np.zeros(17, np.uint8)), target)
    assert got[0] == 0
    assert got[1] == 255
    assert got[2] == 0
    np.testing.assert_array_equal(got[3:7], 10)
    assert got[14] == 13


@targets
@pytest.mark.parametrize("step", [5e-4, 1.1e-3, 6.4e-3, 7e-3, 0.03])
@pytest.mark.parametrize("op", ["gelu", "gelu_tanh"])
def test_functions_before_a_requantization(op: str, step: float, target: Target) -> None:
    """Cheaper forms where 8 bits follow: a step is missed by at most 1/32 of it (and the rounding's own half)."""
    x = points(-200 * step, 200 * step)
    b = ExpressionBuilder()
    q = b.requantize(b.add(op, "float32", b.operand(0, "float32")), "int8", -128, 127, -28, 1.0 / step)
    spec = ElementwiseSpec("int8", (x.size,), (1,), b.finish(q), (Operand("float32", (1,), x.size),), x.size)
    got = run(Case(op, spec, (x,), np.zeros(x.size, np.int8)), target).astype(np.float64)
    exact = each(ACCURACY[op][0], x.astype(np.float64)) / step
    inside = exact < 155  # beyond, it saturates
    assert np.abs(got[inside] + 28 - exact[inside]).max() <= 0.5 + 1 / 32
    assert (got[exact > 155.6] == 127).all()
