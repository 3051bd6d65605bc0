"""Resize of images channels-last: the tables, bytes that are only moved, and the same numbers as onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
from in_process import open_program, program_of

from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.specs import LibrarySpec, ResizeSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import get_target

_ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric"}
_CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], list[float] | list[int]]] = {
    "doubled": (
        (1, 6, 4, 5),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [1.0, 1, 2, 2],
    ),
    "other_sizes": ((2, 19, 5, 7), {}, [2, 19, 8, 3]),
    "bilinear": ((1, 21, 4, 6), {"mode": "linear"}, [1.0, 1, 2, 2]),
    "shrunk": ((1, 5, 9, 9), {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, [1, 5, 4, 1]),
    "corners": ((1, 8, 3, 4), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [1, 8, 7, 4]),
    "cubic": ((1, 4, 5, 4), {"mode": "cubic", "exclude_outside": 1}, [1.0, 1, 1.5, 2]),
    "signal": ((1, 7, 9), {"mode": "linear"}, [1.0, 1, 3]),
}


def network() -> Model:
    b = GraphBuilder()
    for name, (shape, options, wanted) in _CASES.items():
        x = b.op("Relu", b.input(name, "float32", shape))
        floats = isinstance(wanted[0], float)
        scales = np.array(wanted, np.float32) if floats else None
        sizes = None if floats else np.array(wanted, np.int64)
        y = b.op("Resize", x, None, scales, sizes, **options)
        b.output(b.op("Mul", y, weights(*[shape[1]], *[1] * (len(shape) - 2))))
    return b.build()


def test_numbers_are_those_of_onnxruntime() -> None:
    model = network()
    plan = make_plan(clone(model).graph, get_target("arm"))
    assert sum(isinstance(c.spec, ResizeSpec) for c in plan.calls) == len(_CASES)
    assert not any(isinstance(c.spec, LibrarySpec) for c in plan.calls)
    rng = np.random.default_rng(11)
    feeds = {v.name: rng.standard_normal(v.static_shape()).astype(np.float32) for v in model.graph.inputs}
    with open_program(program_of(model, get_target("native"))) as network_:
        got = network_.run(feeds)
    for name, value in Oracle(model).run(feeds).items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=3e-6 * np.abs(value).max())


def quantized(mode: str) -> Model:
    b = GraphBuilder()
    s, z = np.float32(0.05), np.uint8(117)
    x = b.dequantize(b.quantize(b.op("Relu", b.input("x", "float32", (1, 20, 4, 4))), s, z), s, z)
    y = b.op("Resize", x, None, np.array([1, 1, 2, 2], np.float32), None, mode=mode)
    b.output(b.dequantize(b.quantize(y, s, z), s, z))
    return b.build()


def test_bytes_are_moved_by_nearest_and_weighed_by_linear() -> None:
    feed = {"x": np.random.default_rng(2).standard_normal((1, 20, 4, 4)).astype(np.float32)}
    for mode, away in (("nearest", 0.0), ("linear", 0.05)):
        model = quantized(mode)
        calls = make_plan(clone(model).graph, get_target("x86-64-v4-vnni")).calls
        resized = next(c.spec for c in calls if isinstance(c.spec, ResizeSpec))
        assert (resized.x_dtype, resized.y_dtype) == ("uint8", "uint8")
        with open_program(program_of(model, get_target("native"))) as network_:
            got = network_.run(feed)
        for name, value in Oracle(model).run(feed).items():  # a sum may lie on the middle between two steps
            np.testing.assert_allclose(got[name], value, rtol=0, atol=away + 1e-6)
