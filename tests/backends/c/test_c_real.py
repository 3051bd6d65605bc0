"""Convolutions and products of real numbers in C source, against onnxruntime: all shapes and ends of kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_sources import COMPILERS, run_compiled
from in_process import program_of

from irc.backends.program import Program
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.small import is_real
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.targets.catalogue import TARGETS

Layer = Callable[[GraphBuilder, Value], Value]


def conv(oc: int, ic: int, *kernel: int, group: int = 1, **attributes: object) -> Layer:
    def add(b: GraphBuilder, x: Value) -> Value:
        pads = [k // 2 for k in kernel] * 2
        return b.conv(x, weights(oc, ic, *kernel), weights(oc, seed=1), **{"pads": pads, "group": group, **attributes})

    return add


def depthwise(channels: int, *kernel: int, **attributes: object) -> Layer:
    return conv(channels, 1, *kernel, group=channels, **attributes)


def then(layer: Layer, *operators: str) -> Layer:
    def add(b: GraphBuilder, x: Value) -> Value:
        y = layer(b, x)
        for op in operators:
            y = b.op(op, y)
        return y

    return add


def residual(layer: Layer, *operators: str) -> Layer:
    def add(b: GraphBuilder, x: Value) -> Value:
        return then(lambda b, x: b.op("Add", x, layer(b, x)), *operators)(b, x)

    return add


def bytes_of(layer: Layer) -> Layer:
    """The result as int8: sums and results have different types."""

    def add(b: GraphBuilder, x: Value) -> Value:
        scale, zero = b.constant(np.float32(0.05)), b.constant(np.int8(3))
        return b.op("QuantizeLinear", layer(b, x), scale, zero)

    return add


def product(columns: int, rows: int) -> Layer:
    return lambda b, x: b.gemm(x, weights(rows, columns), weights(columns, seed=1))


LAYERS: dict[str, tuple[tuple[int, ...], Layer]] = {
    "odd": ((1, 5, 9, 7), then(conv(12, 5, 3, 3), "Relu")),
    "two images": ((2, 6, 7, 9), then(conv(9, 6, 3, 3, strides=[2, 2]), "Relu")),
    "dilated": ((1, 4, 11, 10), conv(8, 4, 3, 3, dilations=[2, 2], pads=[2, 2, 2, 2])),
    "points": ((1, 8, 5, 5), conv(16, 8, 1, 1)),
    "strided points": ((1, 8, 6, 7), conv(8, 8, 1, 1, strides=[2, 2])),
    "groups": ((1, 8, 6, 6), then(conv(16, 4, 3, 3, group=2), "Relu")),
    "added": ((1, 12, 6, 5), residual(conv(12, 12, 3, 3))),
    "added, clamped": ((1, 8, 6, 5), residual(conv(8, 8, 1, 1), "Relu")),
    "added to two": ((2, 8, 4, 5), residual(conv(8, 8, 1, 1), "Relu")),
    "other end": ((1, 6, 6, 6), then(conv(11, 6, 3, 3), "Sigmoid")),
    "other end, added": ((2, 6, 4, 5), residual(conv(6, 6, 3, 3), "Tanh")),
    "bytes": ((1, 6, 6, 6), bytes_of(conv(11, 6, 3, 3))),
    "one place": ((1, 6, 5, 5), conv(10, 6, 5, 5, pads=[0, 0, 0, 0])),
    "one place, bytes": ((1, 6, 5, 5), bytes_of(conv(8, 6, 5, 5, pads=[0, 0, 0, 0]))),
    "line": ((1, 6, 31), conv(8, 6, 5)),
    "row": ((1, 40), product(19, 40)),
    "long row": ((1, 300), product(24, 300)),
    "rows": ((7, 20), product(16, 20)),
    "depthwise": ((1, 20, 9, 8), then(depthwise(20, 3, 3), "Relu")),
    "depthwise, odd": ((1, 7, 6, 9), depthwise(7, 3, 3)),
    "depthwise, strided": ((1, 16, 11, 12), then(depthwise(16, 3, 3, strides=[2, 2]), "Relu")),
    "depthwise, dilated": ((1, 8, 11, 9), depthwise(8, 3, 3, dilations=[2, 2], pads=[2, 2, 2, 2])),
    "depthwise, large": ((2, 12, 7, 7), residual(depthwise(12, 5, 5), "Relu")),
    "depthwise, other end": ((1, 8, 6, 6), then(depthwise(8, 3, 3), "HardSwish")),
    "depthwise, bytes": ((1, 8, 6, 6), bytes_of(depthwise(8, 3, 3))),
    "depthwise, narrow": ((1, 8, 6, 1), depthwise(8, 3, 3)),
}


@functools.cache
def model() -> Model:
    b = GraphBuilder("real")
    for name, (shape, layer) in LAYERS.items():
        b.output(layer(b, b.input(name, "float32", list(shape))), name=f"{name} y")
    return b.build()


@functools.cache
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, (shape, _) in LAYERS.items()}


@functools.cache
def wanted() -> dict[str, np.ndarray]:
    return dict(Oracle(model()).run(feeds()))


@functools.cache
def program() -> Program:
    return program_of(clone(model()), TARGETS["c"], name="net")


def test_every_layer_has_a_kernel_written_in_c() -> None:
    calls = make_plan(clone(model()).graph, TARGETS["c"]).calls
    found = [c.spec for c in calls if isinstance(c.spec, SmallConvSpec | SmallDepthwiseSpec)]
    assert len(found) == len(LAYERS) + 1, "one of them in two groups"
    assert all(is_real(spec) for spec in found)


@pytest.mark.parametrize("way", COMPILERS)
def test_as_onnxruntime(way: str, tmp_path: Path, need_tool: Callable[..., str]) -> None:
    """Sums of at most 300 products in another order; of bytes, a tie may fall to the other side."""
    got = run_compiled(program(), way, feeds(), tmp_path, need_tool)
    for name, result in wanted().items():
        if result.dtype == np.int8:
            assert np.abs(got[name].astype(int) - result.astype(int)).max() <= 1, name
        else:
            assert np.abs(got[name] - result).max() < 1e-5 * np.abs(result).max(), name
