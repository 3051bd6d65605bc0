"""Zero blocks of weights: where kernels pass over them, and that networks compute the same bytes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from in_process import glue_of, open_program, program_of
from quantized_networks import Network, conv_sums, rounded

from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.tvm.plan.make import Plan, make_plan
from irc.backends.tvm.plan.sparse_model import SparseChoice
from irc.backends.tvm.specs import LinearSpec, SparseSpec, WinogradSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.types import DType
from irc.targets.catalogue import TARGETS, runs_here
from irc.targets.target import Target

F = np.float32
NATIVE = next(t for t in TARGETS.values() if t.name == "x86-64-v4-vnni")


def blocked(w: np.ndarray, density: float, block: tuple[int, int] = (16, 4), axis: int = 0) -> np.ndarray:
    """`w` with blocks of output by input channels taken out, each position for itself. Outputs lie along `axis`."""
    turned = w.T if axis else w
    grid = [-(-turned.shape[i] // block[i]) for i in (0, 1)]
    kept = np.random.default_rng(0).random((*grid, *turned.shape[2:])) < density
    kept = kept.repeat(block[0], 0)[: turned.shape[0]].repeat(block[1], 1)[:, : turned.shape[1]]
    return w * (kept.T if axis else kept)


class Sparse(Network):
    """Quantized networks with `density` of the blocks left; wide layers have 16 channels without any."""

    density = 0.3

    def weights(self, shape: Sequence[int], axis: int, **_: object):
        w = blocked(np.maximum(self.rng.integers(-127, 127, shape, endpoint=True), -127), self.density, axis=axis)
        if len(shape) == 4 and shape[0] > 40:
            w[16:32] = 0
        w = w.astype(np.int8)
        scale = self.rng.uniform(0.002, 0.02, shape[axis]).astype(F)
        value = self.b.dequantize(w, scale, np.zeros(scale.shape, np.int8), axis=axis)
        return value, w.astype(np.int64), scale.astype(np.float64)


@functools.cache
def network() -> tuple[Model, Sparse]:
    """Borders, strides, dilation, groups, a residual, odd channels, places in one row, and matrix products."""
    b = GraphBuilder("sparse")
    n = Sparse(b, "n")
    x = n.conv(n.input((1, 20, 9, 8), "uint8", 0.02, 120), 48, (3, 3), "uint8", 0, pads=(1, 1, 1, 1), activation="relu")
    y = n.conv(x, 48, (1, 1), "uint8", 100)
    x = n.add(x, y, "uint8", 0.05, 90)
    n.output(x)
    x = n.conv(x, 37, (3, 3), "int8", -9, stride=2, pads=(0, 1, 1, 1))
    x = n.conv(x, 32, (2, 3), "uint8", 30, dilation=2, pads=(1, 2, 1, 2))
    x = n.conv(x, 36, (1, 1), "uint8", 7, group=2)
    n.output(x)
    m = n.bytes((5, 41), "uint8", 0.04, 11, "m")
    m = n.product(m, 39, "uint8", 128, gemm=True)
    n.output(n.product(m, 20, "int8", 0))
    return b.build(), n


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse kernels wherever zeros are found: the networks here are too small for most to pay."""
    monkeypatch.setattr(SparseChoice, "pays", True)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.small and t.runner], ids=lambda t: t.name)
def test_bytes_are_those_of_the_weights_that_are_left(target: Target) -> None:
    if not runs_here(target) and missing_tools(target):
        pytest.skip(f"needs {missing_tools(target)}")
    model, made = network()
    assert sum(isinstance(c.spec, SparseSpec) for c in planned(model, target).calls) >= 6
    program = program_of(clone(model), target)
    if runs_here(target):
        with open_program(program) as opened:
            found = [opened.run(made.feeds)]
            for level in program.levels:
                if runs_here(level):
                    opened.use_level(level.name)
                    found.append(opened.run(made.feeds))
    else:
        with Emulated(program, glue_of(program)) as emulated:
            found = [emulated.run(made.feeds)]
    for got in found:
        for name, wanted in made.results:
            np.testing.assert_array_equal(got[name], wanted, name)
            assert len(np.unique(wanted)) > 5, "the data say something"


def planned(model: Model, target: Target = NATIVE) -> Plan:
    return make_plan(clone(model).graph, target)


def one_conv(w: np.ndarray, *, kind: str = "int8", places: int = 14) -> Model:
    b = GraphBuilder("one")
    pad = (w.shape[2] - 1) // 2
    shape = [1, w.shape[1], places, places]
    if kind == "float32":
        b.output(b.conv(b.input("x", "float32", shape), w.astype(F), pads=[pad] * 4), name="y")
        return b.build()
    x = b.dequantize(b.input("x", "uint8", shape), F(0.02), np.array(9, np.uint8))
    scale = np.full(w.shape[0], 0.01, F)
    value = b.dequantize(w.astype(kind), scale, np.full(w.shape[0], 0 if kind == "int8" else 120).astype(kind), axis=0)
    b.output(b.quantize(b.conv(x, value, pads=[pad] * 4), F(0.3), np.array(99, np.uint8)), name="y")
    return b.build()


def kernel_of(model: Model, target: Target = NATIVE) -> tuple[type, str]:
    call = next(c for c in planned(model, target).calls if isinstance(c.spec, LinearSpec | SparseSpec | WinogradSpec))
    return type(call.spec), call.note


def integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(1, 127, shape)


def test_blocks_pay_and_scattered_zeros_do_not() -> None:
    w = integers(128, 128, 3, 3)
    kind, note = kernel_of(one_conv(blocked(w, 0.25)))
    assert kind is SparseSpec
    assert "of its 16x4 blocks" in note
    kind, note = kernel_of(one_conv(blocked(w, 0.25, (1, 1))))
    assert kind is LinearSpec
    assert note.startswith("100% of its")
    assert kernel_of(one_conv(w)) == (LinearSpec, "")


def test_weights_with_a_zero_point_stay_dense() -> None:
    """Their sums of x run over all steps."""
    w = blocked(integers(64, 64, 1, 1), 0.25)
    assert kernel_of(one_conv(w, kind="uint8"))[0] is LinearSpec


def test_weights_that_share_bytes_get_bytes_of_their_own() -> None:
    """Factors are rounded once here and in their own order there: a step in a tie."""
    w = blocked(np.random.default_rng(3).integers(-8, 8, (64, 36, 3, 3)), 0.25)
    for values in (w, np.clip(w, -2, 1)):
        model = one_conv(values)
        assert kernel_of(model)[0] is SparseSpec
        x = np.random.default_rng(0).integers(0, 255, (1, 36, 14, 14), np.uint8)
        with open_program(program_of(clone(model), NATIVE)) as opened:
            sums = conv_sums(x.astype(np.int64) - 9, values, 1, 1, (1, 1, 1, 1), 1).transpose(0, 3, 1, 2)
            wanted = rounded(sums.astype(F) * F(0.02 * float(F(0.01)) / 0.3), "uint8", 99)
            np.testing.assert_allclose(opened.run({"x": x})["y"].astype(int), wanted.astype(int), atol=1)
    assert kernel_of(one_conv(blocked(np.random.default_rng(3).integers(1, 7, (64, 36, 3, 3)), 0.6)))[0] is LinearSpec


def test_a_layer_of_zeros() -> None:
    model = one_conv(np.zeros((32, 32, 1, 1), np.int64))
    x = np.random.default_rng(0).integers(0, 255, (1, 32, 14, 14), np.uint8)
    assert kernel_of(model)[0] is SparseSpec
    with open_program(program_of(clone(model), NATIVE)) as opened:
        assert (opened.run({"x": x})["y"] == 99).all()


def test_float_convolutions_are_compared_with_winograd() -> None:
    w = weights(64, 64, 3, 3)
    assert kernel_of(one_conv(w, kind="float32"))[0] is WinogradSpec
    model = one_conv(blocked(w, 0.1), kind="float32")
    assert kernel_of(model)[0] is SparseSpec
    x = np.random.default_rng(0).standard_normal((1, 64, 14, 14)).astype(F)
    with open_program(program_of(clone(model), NATIVE)) as opened:
        np.testing.assert_allclose(opened.run({"x": x})["y"], Oracle(model).run({"x": x})["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8"])
def test_small_weights_of_real_data_stay_small(kind: str) -> None:
    w = blocked(np.rint(weights(64, 64, 3, 3) * 100).clip(-100, 100), 0.2)
    b = GraphBuilder("stored")
    x = b.input("x", "float32", [1, 64, 7, 7])
    if kind == "int8":
        stored = b.dequantize(w.astype(np.int8), np.linspace(0.5, 1.5, 64).astype(F), np.zeros(64, np.int8), axis=0)
    else:
        stored = b.op("Cast", b.constant(w.astype(DType(kind).numpy)), to=DType.FLOAT.onnx)
    b.output(b.conv(x, stored, pads=[1, 1, 1, 1]), name="y")
    model = b.build()
    spec = next(c.spec for c in planned(model).calls if isinstance(c.spec, SparseSpec))
    assert spec.linear.w_dtype == kind
    data = np.random.default_rng(0).standard_normal((1, 64, 7, 7)).astype(F)
    with open_program(program_of(clone(model), NATIVE)) as opened:
        wanted = Oracle(model).run({"x": data})["y"]
        np.testing.assert_allclose(opened.run({"x": data})["y"], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_what_is_stored_is_what_is_left() -> None:
    dense, sparse = integers(128, 128, 3, 3), blocked(integers(128, 128, 3, 3), 0.25)
    sizes = [program_of(one_conv(w), NATIVE).weights_bytes for w in (dense, sparse)]
    assert sizes[1] < 0.35 * sizes[0]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [NATIVE, TARGETS["x86-64"]], ids=lambda t: t.name)
def test_other_operators_on_linear_kernels(target: Target) -> None:
    """Transposed convolutions, whose phases have their own weights, and recurrent ones, whose inputs are products."""
    b = GraphBuilder("others")
    x = b.input("x", "float32", [1, 12, 9, 7])
    w = blocked(weights(12, 18, 3, 3).transpose(1, 0, 2, 3), 0.3, (4, 4)).transpose(1, 0, 2, 3)
    y = b.op("ConvTranspose", x, np.ascontiguousarray(w), strides=[2, 2], pads=[1, 1, 1, 1])
    b.output(y, name="y")
    grouped = blocked(weights(12, 9, 2, 2), 0.3, (3, 3))
    b.output(b.op("ConvTranspose", x, grouped, group=2, strides=[2, 1]), name="z")
    rows = b.op("Reshape", x, np.array([9, 4, 21]))
    gates = blocked(weights(1, 64, 21)[0], 0.3)[None]
    b.output(b.op("LSTM", rows, gates, weights(1, 64, 16, seed=1), hidden_size=16), name="h")
    model = b.build()
    assert any(isinstance(c.spec, SparseSpec) for c in planned(model, target).calls)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 12, 9, 7)).astype(F)}
    with open_program(program_of(clone(model), target)) as opened:
        got = opened.run(feeds)
    for name, wanted in Oracle(model).run(feeds).items():
        np.testing.assert_allclose(got[name], wanted, rtol=1e-4, atol=1e-5, err_msg=name)
