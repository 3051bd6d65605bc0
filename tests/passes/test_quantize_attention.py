"""Attention in 8 bits: where the pairs stand, what is left alone, how near the numbers are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pass_checks import outputs

from irc.calibrate.dataset import Dataset
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Model, Value
from irc.ir.verify import verify
from irc.passes.quantize.quantize import Quantize
from irc.passes.quantize.regions import find_regions
from irc.pipeline.contract import PassContext

RNG = np.random.default_rng(5)


def attention(
    *,
    between: Callable[[GraphBuilder, Value], Value] | None = None,
    after: Callable[[GraphBuilder, Value], Value] | None = None,
    axis: int = -1,
) -> Model:
    """One layer with heads, from [1, 12, 16]; `between` scores and softmax, `after` the softmax."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 12, 16])
    q, k, v = (
        b.op(
            "Transpose",
            b.op("Reshape", b.matmul(x, weights(16, 16, seed=i, scale=0.5)), np.array([1, 12, 2, 8])),
            perm=p,
        )
        for i, p in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    )
    s = b.op("MatMul", q, k, name="scores")
    p = b.op("Softmax", between(b, s) if between else s, axis=axis, name="softmax")
    y = b.op("MatMul", after(b, p) if after else p, v, name="values")
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), np.array([1, 12, 16]))
    b.output(b.matmul(y, weights(16, 4, seed=4)), name="y")
    return b.build()


def masked(b: GraphBuilder, s: Value) -> Value:
    return b.op("Add", b.op("Div", s, np.float32(2.8)), np.where(np.tri(12) > 0, 0, -1e9).astype(np.float32))


def guarded(b: GraphBuilder, p: Value) -> Value:
    return b.op("Where", b.op("IsNaN", p), np.float32(0), p)


def quantized(model: Model, **options: bool) -> Model:
    after = clone(model)
    data = {"x": RNG.normal(size=(24, 12, 16)).astype(np.float32)}
    Quantize(**options).run(after, PassContext(calibration=Dataset.of(data, after)))
    verify(after)
    return after


def factors(model: Model) -> dict[str, list[Value | None]]:
    """The integers that each product reads, None where it reads reals."""
    found: dict[str, list[Value | None]] = {}
    for node in model.graph.nodes:
        if node.name in ("scores", "values"):
            made = [v.producer for v in node.inputs if v is not None]
            found[node.name] = [n.need(0) if n is not None and n.is_op("DequantizeLinear") else None for n in made]
    return found


@pytest.mark.parametrize(
    ("between", "after"), [(None, None), (masked, None), (masked, guarded)], ids=["plain", "masked", "guarded"]
)
def test_both_products_read_8_bits(
    between: Callable[[GraphBuilder, Value], Value] | None, after: Callable[[GraphBuilder, Value], Value] | None
) -> None:
    model = quantized(attention(between=between, after=after))
    assert all(v is not None for values in factors(model).values() for v in values)
    zeros = []
    for values in factors(model).values():
        for value in values:
            assert value is not None
            assert value.producer is not None
            zeros.append(int(value.producer.need(2).numpy()))
    assert zeros == [0, 0, 0, 0], "factors are symmetric int8, softmax results uint8 from 0"


def test_scores_are_not_rounded() -> None:
    """The softmax reads what the first product made, scaled and masked, in floating point."""
    model = quantized(attention(between=masked))
    softmax = next(n for n in model.graph.nodes if n.name == "softmax")
    add = softmax.need(0).producer
    assert add is not None
    assert add.is_op("Add")
    div = add.need(0).producer
    assert div is not None
    assert div.need(0).producer is not None
    assert div.need(0).producer.name == "scores"


def other_reader() -> Model:
    model = attention()
    softmax = next(n for n in model.graph.nodes if n.name == "softmax")
    model.graph.set_outputs([*model.graph.outputs, softmax.output])
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: attention(axis=2),
        lambda: attention(between=lambda b, s: b.op("Sin", s)),
        lambda: attention(after=lambda b, p: b.op("Mul", p, np.float32(2))),
        other_reader,
    ],
    ids=["softmax over queries", "another function between", "scaled probabilities", "probabilities are an output"],
)
def test_what_is_no_attention_stays_in_floating_point(model: Callable[[], Model]) -> None:
    made = model()
    assert all(k.kind != "product" for k in find_regions(made.graph, attention=True).kernels)
    assert factors(quantized(made)) == {"scores": [None, None], "values": [None, None]}


def test_the_option_leaves_it_alone() -> None:
    assert factors(quantized(attention(), attention=False)) == {"scores": [None, None], "values": [None, None]}


def test_skip_names_a_product() -> None:
    model = attention()
    kernels = find_regions(model.graph, ["values"], attention=True).kernels
    assert [k.nodes[0].name for k in kernels if k.kind == "product"] == ["scores"]


def test_numbers_stay_near() -> None:
    """Five 8-bit tensors and four rounded weights, each with noise some 40 dB below it, leave 30 dB."""
    before = attention(between=masked, after=guarded)
    after = quantized(before)
    signal = noise = 0.0
    for _ in range(8):
        feeds = {"x": RNG.normal(size=(1, 12, 16)).astype(np.float32)}
        exact, got = outputs(before, feeds)[0], outputs(after, feeds)[0]
        signal, noise = signal + float(np.square(exact).sum()), noise + float(np.square(exact - got).sum())
    assert 10 * np.log10(signal / noise) > 30


def test_running_twice_changes_nothing_more() -> None:
    once = quantized(attention())
    assert difference(once, quantized(once)) is None
