"""ConvTranspose by phases: which taps meet which inputs, and the same numbers as onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.plan.lower_transposed import phases
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.specs import LibrarySpec, LinearSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import get_target


@pytest.mark.parametrize(("size", "kernel", "stride"), list(itertools.product((1, 4, 7), (1, 2, 3, 5), (1, 2, 3))))
def test_phases_make_every_product_once(size: int, kernel: int, stride: int) -> None:
    for pad in range(min(kernel, 3)):
        out = (size - 1) * stride + kernel - 2 * pad
        if out < 1:
            continue
        wanted = {(i * stride - pad + k, i, k) for i in range(size) for k in range(kernel)}
        found = [
            (phase.first + stride * j, phase.start + j + u, k)
            for phase in phases(size, out, kernel, stride, pad)
            for j in range(phase.count)
            for u, k in enumerate(phase.taps)
        ]
        inside = [f for f in found if 0 <= f[1] < size]
        assert len(set(inside)) == len(inside)
        assert set(inside) == {w for w in wanted if 0 <= w[0] < out}


_CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("doubling", (1, 6, 5, 4), (6, 20, 2, 2), {"strides": (2, 2)}),
    ("overlapping", (2, 3, 4, 5), (3, 5, 4, 4), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ("odd", (1, 4, 5, 3), (4, 7, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}),
    ("uneven", (1, 4, 3, 6), (4, 3, 5, 3), {"strides": (3, 1), "pads": (0, 2, 1, 0)}),
    ("groups", (1, 6, 4, 4), (6, 2, 2, 3), {"strides": (2, 3), "group": 3}),
    ("signal", (1, 5, 9), (5, 4, 8), {"strides": (4,), "pads": (2, 2)}),
    ("gaps", (1, 3, 4, 4), (3, 2, 1, 1), {"strides": (2, 2)}),
]


def network() -> Model:
    b = GraphBuilder()
    for i, (name, shape, w_shape, options) in enumerate(_CASES):
        x = b.op("Relu", b.input(name, "float32", shape))
        bias = weights(w_shape[1] * options.get("group", 1), seed=i)
        b.output(b.op("LeakyRelu", b.op("ConvTranspose", x, weights(*w_shape, seed=i), bias, **options), alpha=0.2))
    return b.build()


def test_only_gaps_go_to_the_library() -> None:
    plan = make_plan(clone(network()).graph, get_target("x86-64-v4-vnni"))
    assert sum(isinstance(c.spec, LibrarySpec) for c in plan.calls) == 1
    assert sum(isinstance(c.spec, LinearSpec) for c in plan.calls) == 4 + 4 + 4 + 3 + 6 + 4


def test_numbers_are_those_of_onnxruntime() -> None:
    model = network()
    rng = np.random.default_rng(3)
    feeds = {v.name: rng.standard_normal(v.static_shape()).astype(np.float32) for v in model.graph.inputs}
    with open_program(program_of(model, get_target("native"))) as opened:
        got = opened.run(feeds)
    for name, value in Oracle(model).run(feeds).items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * np.abs(value).max())
