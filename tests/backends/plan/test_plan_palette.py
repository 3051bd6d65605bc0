"""Weights of few values: whatever form they were given in, kernels read them in 4 bits and compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.build import plan_of
from irc.backends.tvm.geometry import PALETTE
from irc.backends.tvm.plan import make
from irc.backends.tvm.specs import LinearSpec
from irc.calibrate.dataset import Dataset
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.ir.palette import palette_of
from irc.ir.types import Array
from irc.pipeline import Pipeline
from irc.pipeline.contract import PassContext
from irc.targets import TARGETS, get_target, runs_here

RNG = np.random.default_rng(3)
LEVELS = [
    pytest.param(name, marks=() if runs_here(get_target(name)) else pytest.mark.skip("this CPU lacks it"))
    for name in TARGETS
    if name.startswith("x86")
]


def network() -> Model:
    b = GraphBuilder("net")
    y = b.op("Relu", b.conv(b.input("x", "float32", [1, 8, 6, 6]), weights(20, 8, 3, 3), weights(20, seed=1)))
    y = b.op("Relu", b.conv(y, weights(32, 5, 3, 3, seed=2), weights(32, seed=7), group=4))
    y = b.gemm(b.op("Flatten", y), weights(128, 37, seed=3), weights(37, seed=4))
    b.output(b.op("MatMul", y, weights(37, 40, seed=5)), name="y")
    return b.build()


def samples() -> Array:
    return RNG.normal(size=(32, 8, 6, 6)).astype(np.float32)


def clustered(passes: str) -> Model:
    model = clone(network())
    Pipeline.parse(passes).run(model, PassContext(calibration=Dataset.of({"x": samples()}, model)))
    return model


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "passes", ["cluster{bits=3 scope=group group=5}", "cluster{bits=6 scope=model}", "cluster{bits=4}"]
)
def test_a_compiled_network_reads_the_palette(passes: str, level: str) -> None:
    model = clustered(passes)
    assert sum(palette_of(n.output) is not None for n in model.graph.nodes if n.is_op("Gather")) == 4
    x = samples()[:1]
    expected = Oracle(model).run({"x": x})["y"]
    with open_program(program_of(clone(model), get_target(level))) as net:
        got = net(x)
    # float32 sums in another order
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def quantized(values: int) -> Model:
    """Integer kernels of all forms whose weights have so many values: 1x1, 3x3 with stride, dilation and an odd number
    of channels, groups, a product."""
    rng = np.random.default_rng(values)
    book = rng.choice(np.arange(1, 128), values, replace=False) * rng.choice([-1, 1], values)
    book[0] = 0  # which is needed where channels are added

    def weight(b: GraphBuilder, *shape: int) -> Value:
        data = rng.choice(book, shape).astype(np.int8)
        return b.dequantize(data, (rng.random(shape[0]) / 500 + 1e-3).astype(np.float32), axis=0)

    def step(b: GraphBuilder, y: Value) -> Value:
        return b.dequantize(b.quantize(y, 0.05, np.uint8(7)), 0.05, np.uint8(7))

    b = GraphBuilder("net")
    y = step(b, b.input("x", "float32", [1, 12, 9, 9]))
    y = step(b, b.op("Relu", b.conv(y, weight(b, 45, 12, 1, 1))))
    y = step(b, b.conv(y, weight(b, 24, 45, 3, 3), strides=[2, 1], dilations=[1, 2], pads=[1, 2, 1, 2]))
    y = step(b, b.conv(y, weight(b, 33, 8, 3, 3), group=3))
    y = b.op("Flatten", y)
    y = b.gemm(y, weight(b, 40, 33 * 3 * 7), transB=1)
    b.output(step(b, y), name="y")
    return b.build()


def palettes(model: Model, target: str) -> int:
    specs = [c.spec for c in plan_of(model, get_target(target)).calls]
    return sum(isinstance(s, LinearSpec) and s.w_dtype == PALETTE for s in specs)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("values", [2, 16])
def test_integer_results_are_those_of_whole_bytes(values: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(values)
    x = RNG.normal(size=(1, 12, 9, 9)).astype(np.float32)
    target = get_target(level)
    assert palettes(model, level) == (0 if target.vector_bytes < 32 else 4)
    with open_program(program_of(clone(model), target)) as net:
        got = net(x)
    monkeypatch.setattr(make, "keep_palettes", lambda planner: None)
    with open_program(program_of(clone(model), target)) as net:
        np.testing.assert_array_equal(got, net(x))


def test_more_values_stay_bytes() -> None:
    assert palettes(quantized(17), "x86-64-v4-vnni") == 0
    assert palettes(quantized(16), "arm") > 0
