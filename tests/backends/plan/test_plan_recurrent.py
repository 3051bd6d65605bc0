"""LSTM and GRU as a matrix product and a walk over the steps, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from in_process import glue_of, open_program, program_of

from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.specs import LibrarySpec, LinearSpec, RecurrentSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import get_target

_CASES: dict[str, tuple[str, tuple[int, int, int], int, dict[str, Any]]] = {
    "lstm": ("LSTM", (5, 1, 7), 16, {}),
    "odd": ("LSTM", (4, 3, 6), 21, {"direction": "reverse"}),
    "both": ("LSTM", (3, 2, 5), 5, {"direction": "bidirectional"}),
    "gru": ("GRU", (5, 1, 9), 35, {"linear_before_reset": 1}),
    "pair": ("GRU", (4, 2, 4), 18, {"linear_before_reset": 1, "direction": "bidirectional"}),
    "one": ("GRU", (1, 2, 3), 1, {"linear_before_reset": 1}),
}


def network() -> Model:
    b = GraphBuilder()
    for i, (name, (op, shape, hidden, options)) in enumerate(_CASES.items()):
        directions = 2 if options.get("direction") == "bidirectional" else 1
        gates = 4 if op == "LSTM" else 3
        x = b.input(name, "float32", shape)
        w = weights(directions, gates * hidden, shape[2], seed=i, scale=0.5)
        r = weights(directions, gates * hidden, hidden, seed=i + 9, scale=0.3)
        states = []
        if name in ("odd", "pair"):
            count = 2 if op == "LSTM" else 1
            states = [None, *(b.input(f"{name}{n}", "float32", (directions, shape[1], hidden)) for n in range(count))]
        bias = None if name == "one" else weights(directions, 2 * gates * hidden, seed=i + 5)
        outs = b.op(op, x, w, r, bias, *states, outputs=3 if op == "LSTM" else 2, hidden_size=hidden, **options)
        b.output(b.op("Relu", outs[0]) if name == "both" else outs[0])
        for out in outs[1:]:
            b.output(out)
    return b.build()


def test_nothing_goes_to_the_library() -> None:
    calls = make_plan(clone(network()).graph, get_target("x86-64-v4-vnni")).calls
    assert not any(isinstance(c.spec, LibrarySpec) for c in calls)
    assert sum(isinstance(c.spec, RecurrentSpec) for c in calls) == 8
    assert sum(isinstance(c.spec, LinearSpec) for c in calls) == 8
    assert not any(c.parallel for c in calls if isinstance(c.spec, RecurrentSpec))


def test_other_cells_go_to_the_library() -> None:
    b = GraphBuilder()
    x, w, r = b.input("x", "float32", (3, 1, 4)), weights(1, 12, 4), weights(1, 12, 4)
    b.output(b.op("GRU", x, w, r, outputs=2, hidden_size=4)[0])  # the reset comes before the product
    b.output(b.op("GRU", x, w, r, outputs=2, hidden_size=4, linear_before_reset=1, clip=0.5)[0])
    calls = make_plan(clone(b.build()).graph, get_target("x86-64")).calls
    assert sum(isinstance(c.spec, LibrarySpec) for c in calls) == 2


@pytest.mark.parametrize("name", ["native", "arm"])
def test_numbers_are_those_of_onnxruntime(name: str) -> None:
    target = get_target(name)
    if name == "arm" and missing_tools(target):
        pytest.skip(f"needs {missing_tools(target)}")
    model = network()
    rng = np.random.default_rng(5)
    feeds = {v.name: rng.standard_normal(v.static_shape()).astype(np.float32) for v in model.graph.inputs}
    program = program_of(model, target)
    with Emulated(program, glue_of(program)) if name == "arm" else open_program(program) as opened:
        got = opened.run(feeds)
    for key, value in Oracle(model).run(feeds).items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=2e-6)  # values of size one, sums of 40 terms
