"""fuse-functions: each written-out form, against onnxruntime running both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from pass_checks import ROUNDING, ops, report, run

from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model, Value

# The literals of the written-out forms are rounded to float32, and erf/tanh kernels are good to a few units in the
# last place; both enter results of magnitude one.
APPROXIMATE = 3 * ROUNDING

Form = Callable[[GraphBuilder, Value], Value]


def _model(form: Form, shape: tuple[int | str, ...] = (2, 5)) -> Model:
    b = GraphBuilder()
    b.output(form(b, b.input("x", "float32", list(shape))), name="y")
    return b.build()


def _gelu(gate: Form, order: int) -> Form:
    def form(b: GraphBuilder, x: Value) -> Value:
        g = gate(b, x)
        if order == 0:
            return b.op("Mul", b.op("Mul", x, 0.5), g)
        if order == 1:
            return b.op("Mul", x, b.op("Mul", 0.5, g))
        return b.op("Div", b.op("Mul", g, x), 2.0)

    return form


def _erf_div(b: GraphBuilder, x: Value) -> Value:
    return b.op("Add", b.op("Erf", b.op("Div", x, np.float32(math.sqrt(2)))), 1.0)


def _erf_mul(b: GraphBuilder, x: Value) -> Value:
    return b.op("Add", 1.0, b.op("Erf", b.op("Mul", x, np.float32(math.sqrt(0.5)))))


def _tanh(b: GraphBuilder, x: Value) -> Value:
    inner = b.op("Add", x, b.op("Mul", b.op("Pow", x, 3.0), 0.044715))
    return b.op("Add", b.op("Tanh", b.op("Mul", inner, np.float32(math.sqrt(2 / math.pi)))), 1.0)


def _tanh_products(b: GraphBuilder, x: Value) -> Value:
    factor = b.op("Add", b.op("Mul", b.op("Mul", x, x), 0.044715), 1.0)
    inner = b.op("Mul", np.float32(0.7978846), b.op("Mul", x, factor))
    return b.op("Add", b.op("Tanh", inner), 1.0)


@pytest.mark.parametrize(("gate", "order"), itertools.product([_erf_div, _erf_mul, _tanh, _tanh_products], range(3)))
def test_gelu(gate: Form, order: int) -> None:
    after = run(_model(_gelu(gate, order)), "fuse-functions", APPROXIMATE)
    assert ops(after) == ["Gelu"]
    assert after.graph.nodes[0].get_str("approximate", "none") == ("tanh" if "tanh" in gate.__name__ else "none")


def _clip(b: GraphBuilder, x: Value) -> Value:
    return b.op("Clip", b.op("Add", x, 3.0), 0.0, 6.0)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (lambda b, x: b.op("Div", b.op("Mul", x, _clip(b, x)), 6.0), "HardSwish"),
        (lambda b, x: b.op("Mul", x, b.op("Mul", _clip(b, x), np.float32(1 / 6))), "HardSwish"),
        (lambda b, x: b.op("Mul", b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x), "HardSwish"),
        (lambda b, x: b.op("Div", _clip(b, x), 6.0), "HardSigmoid"),
        (lambda b, x: b.op("Mul", x, b.op("Tanh", b.op("Softplus", x))), "Mish"),
    ],
)
def test_other_activations(form: Form, expected: str) -> None:
    assert ops(run(_model(form), "fuse-functions", APPROXIMATE)) == [expected]


@pytest.mark.parametrize(
    "form",
    [
        lambda b, x: b.op("Mul", x, b.op("HardSigmoid", x)),
        lambda b, x: b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, 1.702))),
        lambda b, x: b.op("Div", b.op("Clip", b.op("Add", x, 3.0), 0.0, 5.0), 6.0),
        lambda b, x: b.op("Mul", b.op("Mul", x, 0.4), _erf_div(b, x)),
    ],
)
def test_other_constants_are_other_functions(form: Form) -> None:
    model = _model(form)
    assert ops(run(model, "fuse-functions")) == ops(model)


def test_a_gate_with_other_readers_stays() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4])
    gate = b.op("Tanh", b.op("Softplus", x))
    b.output(b.op("Mul", x, gate), b.op("Neg", gate))
    after, done = report(b.build(), "fuse-functions")
    assert "Mish" not in ops(after)
    assert any("is also read by" in r.reason for r in done.refusals)


def _layer_norm(
    b: GraphBuilder, x: Value, *, power: bool = True, axes: tuple[int, ...] = (-1,), eps: float = 1e-5
) -> Value:
    d = b.op("Sub", x, b.op("ReduceMean", x, list(axes)))
    square = b.op("Pow", d, 2.0) if power else b.op("Mul", d, d)
    return b.op("Div", d, b.op("Sqrt", b.op("Add", b.op("ReduceMean", square, list(axes)), eps)))


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("axes", [(-1,), (1, 2)])
def test_layer_norm(power: bool, axes: tuple[int, ...]) -> None:
    model = _model(lambda b, x: _layer_norm(b, x, power=power, axes=axes), ("n", 3, 8))
    after = run(model, "fuse-functions", APPROXIMATE)
    assert ops(after) == ["LayerNormalization"]
    assert after.graph.nodes[0].get_int("axis") == 3 - len(axes)


def test_layer_norm_takes_its_scale_and_bias() -> None:
    def form(b: GraphBuilder, x: Value) -> Value:
        scaled = b.op("Mul", _layer_norm(b, x), weights(1, 1, 8, scale=1.0))
        return b.op("Add", scaled, weights(8, seed=2))

    after = run(_model(form, ("n", 3, 8)), "fuse-functions", APPROXIMATE)
    assert ops(after) == ["LayerNormalization"]
    assert len(after.graph.nodes[0].inputs) == 3


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (lambda b, x: _layer_norm(b, x, axes=(1,)), "over the last axes"),
        (lambda b, x: _layer_norm(b, x, eps=0.0), "one positive number"),
    ],
)
def test_other_normalizations_stay(form: Form, reason: str) -> None:
    after, done = report(_model(form, (2, 3, 8)), "fuse-functions", APPROXIMATE)
    assert "LayerNormalization" not in ops(after)
    assert any(reason in r.reason for r in done.refusals)


def test_softmax() -> None:
    def form(b: GraphBuilder, x: Value) -> Value:
        e = b.op("Exp", b.op("Sub", x, b.op("ReduceMax", x, [1])))
        return b.op("Div", e, b.op("ReduceSum", e, [-2]))

    after = run(_model(form, (2, 4, 3)), "fuse-functions", APPROXIMATE)
    assert ops(after) == ["Softmax"]
    assert after.graph.nodes[0].get_int("axis") == 1
