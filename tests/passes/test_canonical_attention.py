"""The Attention operator becomes its products, with the numbers of its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from pass_checks import ops, outputs, random_feeds

from irc.export import to_proto
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.verify import verify
from irc.passes.clean.canonicalize import Canonicalize
from irc.pipeline import PassContext, Pipeline


def attention(
    q: list[int],
    k: list[int],
    v: list[int],
    mask: tuple[str, list[int]] | None = None,
    past: int = 0,
    **attributes: Any,
) -> Model:
    b = GraphBuilder()
    inputs: list[Any] = [b.input(n, "float32", s) for n, s in (("q", q), ("k", k), ("v", v))]
    inputs.append(b.input("mask", *mask) if mask else None)
    if past:
        heads = attributes.get("kv_num_heads") or k[1]
        sizes = [s[3] if len(s) == 4 else s[2] // heads for s in (k, v)]
        inputs += [b.input(f"past{i}", "float32", [q[0], heads, past, sizes[i]]) for i in range(2)]
    node = b.node("Attention", *inputs, outputs=3 if past else 1, **attributes)
    b.output(node.outputs[0], name="y")
    for i, value in enumerate(node.outputs[1:]):
        b.output(value, name=f"present{i}")
    return b.build()


CASES = {
    "plain": lambda: attention([2, 3, 5, 4], [2, 3, 7, 4], [2, 3, 7, 6]),
    "scaled": lambda: attention([1, 2, 5, 4], [1, 2, 5, 4], [1, 2, 5, 4], scale=0.25),
    "causal": lambda: attention([1, 2, 5, 4], [1, 2, 7, 4], [1, 2, 7, 4], is_causal=1),
    "real mask": lambda: attention([1, 2, 5, 4], [1, 2, 5, 4], [1, 2, 5, 4], ("float32", [5, 5])),
    "mask of heads": lambda: attention([2, 2, 5, 4], [2, 2, 5, 4], [2, 2, 5, 4], ("bool", [2, 2, 5, 5])),
    "causal mask": lambda: attention([2, 2, 5, 4], [2, 2, 5, 4], [2, 2, 5, 4], ("bool", [2, 1, 5, 5]), is_causal=1),
    "three dimensions": lambda: attention([2, 5, 12], [2, 7, 12], [2, 7, 18], q_num_heads=3, kv_num_heads=3),
    "shared heads": lambda: attention([2, 6, 5, 4], [2, 2, 7, 4], [2, 2, 7, 4]),
    "shared heads, mask": lambda: attention(
        [1, 5, 16], [1, 5, 8], [1, 5, 8], ("float32", [1, 4, 5, 5]), q_num_heads=4, kv_num_heads=2
    ),
    "past": lambda: attention([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], past=6, is_causal=1),
    "past, mask": lambda: attention(
        [1, 3, 12], [1, 3, 6], [1, 3, 6], ("float32", [3, 8]), past=5, q_num_heads=4, kv_num_heads=2
    ),
}


def canonical(model: Model) -> Model:
    after = clone(model)
    Pipeline.parse("canonicalize").run(after, PassContext())
    verify(after)
    return after


@pytest.mark.parametrize("name", CASES)
def test_as_the_reference_of_the_standard(name: str) -> None:
    """1e-6: products of a few terms, scaled once instead of by two square roots."""
    before = CASES[name]()
    after = canonical(before)
    assert "Attention" not in ops(after)
    assert ops(after).count("MatMul") == 2
    feeds = random_feeds(before, 3)
    wanted = ReferenceEvaluator(to_proto(before)).run(None, feeds)
    for got, expected in zip(outputs(after, feeds), wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_a_row_of_masks_is_zero() -> None:
    model = attention([1, 1, 3, 4], [1, 1, 3, 4], [1, 1, 3, 4], ("bool", [3, 3]))
    feeds = {**random_feeds(model), "mask": np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)}
    (got,) = outputs(canonical(model), feeds)
    assert (got[0, 0, 1] == 0).all()
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: attention([1, 2, 5, 4], [1, 2, 5, 4], [1, 2, 5, 4], softcap=2.0), "caps its scores"),
        (lambda: attention([1, 2, 5, 4], [1, 2, 7, 4], [1, 2, 7, 4], ("float32", [5, 3])), "does not cover all keys"),
        (lambda: attention([1, 2, "n", 4], [1, 2, 7, 4], [1, 2, 7, 4]), "known shape"),  # type: ignore[list-item]  # a symbolic extent
    ],
    ids=["softcap", "short mask", "unknown shape"],
)
def test_refuses(model: Any, reason: str) -> None:
    after = model()
    result = Canonicalize().run(after, PassContext())
    assert ops(after) == ["Attention"]
    assert any(reason in r.reason for r in result.refusals)
