"""Products of integers that a model writes out run in linear kernels, with onnxruntime's bits."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.specs import LibrarySpec, LinearSpec
from irc.export import to_bytes
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.ir.types import DType
from irc.targets import TARGETS
from irc.targets.catalogue import runs_here

F = np.float32
native = pytest.mark.parametrize("target", [t for t in TARGETS.values() if runs_here(t)][::2], ids=lambda t: t.name)


def integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).integers(-127, 128, shape).astype(np.int8)


def as_float(b: GraphBuilder, sums: Value) -> Value:
    return b.op("Cast", sums, to=DType.FLOAT.onnx)


def network() -> Model:
    """A product and a padded convolution with ranges taken at run time, and a product of bytes with a zero point."""
    b = GraphBuilder("net")
    x, scale, zero = b.op("DynamicQuantizeLinear", b.input("x", "float32", [3, 37]), outputs=3)
    y = as_float(b, b.op("MatMulInteger", x, b.constant(integers(37, 21)), zero))
    y = b.op("Mul", y, b.op("Mul", scale, b.constant(np.linspace(0.01, 0.1, 21, dtype=F))))
    b.output(b.op("Relu", b.op("Add", y, b.constant(np.linspace(-9, 9, 21, dtype=F)))), name="y")
    v, scale, zero = b.op("DynamicQuantizeLinear", b.input("v", "float32", [1, 6, 9, 8]), outputs=3)
    z = b.op("ConvInteger", v, b.constant(integers(10, 6, 3, 3)), zero, pads=[1, 1, 1, 1], strides=[2, 1])
    b.output(b.op("Mul", as_float(b, z), scale), name="z")
    q = b.input("q", "uint8", [4, 10])
    w = b.constant(np.maximum(integers(10, 5), -100))
    u = b.op("MatMulInteger", q, w, b.constant(np.uint8(99)), b.constant(np.int8(3)))
    b.output(as_float(b, u), name="u")
    return b.build()


def feeds(size: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "x": (rng.standard_normal((3, 37)) * size).astype(F),
        "v": ((rng.standard_normal((1, 6, 9, 8)) + 0.5) * size).astype(F),
        "q": rng.integers(0, 256, (4, 10)).astype(np.uint8),
    }


@native
def test_bits_are_those_of_onnxruntime(target) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_bytes(network()), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    with open_program(program_of(network(), target)) as compiled:
        for size in (1.0, 0.0):  # all zeros have a range of nothing
            wanted = dict(zip(names, session.run(names, feeds(size)), strict=True))
            got = compiled.run(feeds(size))
            for name in names:
                np.testing.assert_array_equal(got[name], wanted[name], name)


def test_no_product_is_left_to_the_library() -> None:
    plan = make_plan(clone(network()).graph, TARGETS["arm"])
    assert [c.spec.x_dtype for c in plan.calls if isinstance(c.spec, LinearSpec)] == ["int16", "int16", "int8"]
    assert not any(isinstance(c.spec, LibrarySpec) for c in plan.calls)


def test_sums_that_somebody_reads_as_integers_stay() -> None:
    b = GraphBuilder("net")
    q = b.input("q", "uint8", [4, 10])
    b.output(b.op("MatMulInteger", q, b.constant(integers(10, 5))), name="y")
    plan = make_plan(b.build().graph, TARGETS["x86-64"])
    assert any(isinstance(c.spec, LibrarySpec) for c in plan.calls)


def test_computed_weights_stay() -> None:
    b = GraphBuilder("net")
    q, w = b.input("q", "uint8", [4, 10]), b.input("w", "int8", [10, 5])
    b.output(as_float(b, b.op("MatMulInteger", q, w)), name="y")
    plan = make_plan(b.build().graph, TARGETS["x86-64"])
    assert any(isinstance(c.spec, LibrarySpec) for c in plan.calls)
