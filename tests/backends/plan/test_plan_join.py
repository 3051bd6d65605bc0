"""Concatenations whose parts are computed in place: no copies, and the same numbers as onnxruntime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.plan import planner
from irc.backends.tvm.plan.make import make_plan
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.ir.infer import infer_node
from irc.targets.catalogue import get_target

_COPIES = {"Concat", "pad", "reorder", "output"}


def channels(b: GraphBuilder, x: Value) -> int:
    for node in b.graph.nodes:
        if node.outputs[0].type is None:
            infer_node(node)
    return x.static_shape()[1]


def conv(b: GraphBuilder, x: Value, oc: int, k: int = 1, seed: int = 0) -> Value:
    ic = channels(b, x)
    return b.op("Relu", b.conv(x, weights(oc, ic, k, k, seed=seed), pads=[k // 2] * 4))


def byte_conv(b: GraphBuilder, x: Value, oc: int, k: int, seed: int) -> Value:
    q = np.random.default_rng(seed).integers(-127, 128, (oc, channels(b, x), k, k)).astype(np.int8)
    y = b.op("Relu", b.conv(x, b.dequantize(q, np.float32(0.003)), pads=[k // 2] * 4))
    s, z = np.float32(0.05), np.uint8(0)
    return b.dequantize(b.quantize(y, s, z), s, z)


def skip_of_a_unet(b: GraphBuilder) -> None:
    x = conv(b, b.input("x", "float32", (1, 4, 6, 6)), 8)
    deep = conv(b, b.op("MaxPool", x, kernel_shape=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1)), 12, seed=1)
    b.output(conv(b, b.op("Concat", x, deep, axis=1), 5, 3, seed=2))


def dense_block(b: GraphBuilder) -> None:
    parts = [conv(b, b.input("x", "float32", (1, 4, 5, 5)), 8)]
    for i in range(3):
        joined = parts[0] if i == 0 else b.op("Concat", *parts, axis=1)
        parts.append(conv(b, conv(b, joined, 12, seed=i), 8, 3, seed=i))
    b.output(conv(b, b.op("Concat", *parts, axis=1), 4, seed=9))


def halves_go_on_and_are_joined_again(b: GraphBuilder) -> None:
    x = conv(b, b.input("x", "float32", (1, 4, 5, 5)), 16)
    left, right = b.op("Split", x, outputs=2, axis=1, num_outputs=2)
    deep = conv(b, conv(b, right, 8, 3, seed=1), 8, 3, seed=2)
    b.output(conv(b, b.op("Concat", left, right, deep, axis=1), 4, seed=3))


def quantized_skip(b: GraphBuilder) -> None:
    x = b.input("x", "float32", (1, 4, 6, 6))
    x = b.dequantize(b.quantize(x, np.float32(0.05), np.uint8(117)), np.float32(0.05), np.uint8(117))
    first = byte_conv(b, x, 16, 3, 1)
    second = byte_conv(b, first, 8, 3, 2)
    b.output(byte_conv(b, b.op("Concat", first, second, axis=1), 8, 3, 3))


def heads_of_a_detector(b: GraphBuilder) -> None:
    x = conv(b, b.input("x", "float32", (1, 4, 6, 6)), 8)
    small = b.op("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    heads = []
    for i, v in enumerate((x, small)):
        joined = b.op("Concat", conv(b, v, 4, seed=i), conv(b, v, 3, seed=i + 5), axis=1)
        heads.append(b.op("Reshape", joined, np.array([1, 7, -1])))
    b.output(b.op("Sigmoid", b.op("Concat", *heads, axis=2)))


_JOINED = [skip_of_a_unet, dense_block, halves_go_on_and_are_joined_again, quantized_skip, heads_of_a_detector]


def one_part_twice(b: GraphBuilder) -> None:
    x = conv(b, b.input("x", "float32", (1, 4, 3, 3)), 8)
    b.output(conv(b, b.op("Concat", x, x, axis=1), 4))


def a_part_is_an_output(b: GraphBuilder) -> None:
    x = conv(b, b.input("x", "float32", (1, 4, 3, 3)), 8)
    b.output(b.op("Concat", x, conv(b, x, 4), axis=1))
    b.output(x)


def parts_in_another_order_elsewhere(b: GraphBuilder) -> None:
    x = b.input("x", "float32", (1, 4, 3, 3))
    p, q = conv(b, x, 8), conv(b, x, 4, 3, seed=1)
    b.output(conv(b, b.op("Concat", p, q, axis=1), 4))
    b.output(conv(b, b.op("Concat", q, p, axis=1), 4, 3))
    b.output(b.op("Concat", p, p, axis=2))


def rows_of_a_matrix(b: GraphBuilder) -> None:
    x = b.input("x", "float32", (3, 8))
    y, z = b.matmul(x, weights(8, 6)), b.op("Transpose", b.matmul(x, weights(8, 3)), perm=(1, 0))
    b.output(b.op("Relu", b.op("Concat", y, b.op("Concat", z, z, axis=1), axis=0)))


_COPIED = [one_part_twice, a_part_is_an_output, parts_in_another_order_elsewhere, rows_of_a_matrix]


def built(build: Callable[[GraphBuilder], None]) -> Model:
    b = GraphBuilder()
    build(b)
    return b.build()


@pytest.mark.parametrize("build", _JOINED, ids=lambda f: f.__name__)
def test_nothing_is_copied(build: Callable[[GraphBuilder], None]) -> None:
    for name in ("x86-64-v4-vnni", "arm"):
        plan = make_plan(clone(built(build)).graph, get_target(name))
        copies = [c.label for c in plan.calls if c.label in _COPIES]
        inputs = sum(c == "pad" or c == "reorder" for c in copies)
        assert inputs <= 1, f"only the network's input may be moved: {copies}"
        assert "Concat" not in copies


def outputs(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_program(program_of(model, get_target("native"))) as network:
        return network.run(feeds)


@pytest.mark.parametrize("build", [*_JOINED, *_COPIED], ids=lambda f: f.__name__)
def test_results_are_right(build: Callable[[GraphBuilder], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(build)
    rng = np.random.default_rng(7)
    feeds = {v.name: rng.standard_normal(v.static_shape()).astype(np.float32) for v in model.graph.inputs}
    got = outputs(model, feeds)
    if build is quantized_skip:  # the bytes of the plan that copies; what they are is tested with the other networks
        monkeypatch.setattr(planner, "slot_of", lambda *_: None)
        for name, value in outputs(model, feeds).items():
            np.testing.assert_array_equal(got[name], value)
        return
    for name, value in Oracle(model).run(feeds).items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * np.abs(value).max())
