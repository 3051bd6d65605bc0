"""Evaluation over data sets."""

from __future__ import annotations

import numpy as np
import pytest

from irc.calibrate.dataset import Dataset
from irc.errors import DataError
from irc.evaluation.latency import measure
from irc.evaluation.scoring import evaluate, random_feeds
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model
from irc.ir.types import Array


def model(batch: int | str) -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [batch, 3])
    b.output(b.op("Identity", x), name="y")
    return b.build()


X = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2], [3, 0, 0]])
LABELS = np.array([0, 1, 2, 0, 0])


def identity(feed: dict[str, Array]) -> dict[str, Array]:
    return {"y": feed["x"]}


def shifted(feed: dict[str, Array]) -> dict[str, Array]:
    return {"y": np.roll(feed["x"], 1, axis=1)}


@pytest.mark.parametrize("batch", [1, 5, "n"])
def test_every_sample_counts_once(batch: int | str) -> None:
    data = Dataset.of({"x": X, "labels": LABELS}, model(batch))
    found = evaluate(identity, data, "top1")
    assert (found.score, found.samples) == (0.8, 5)


def test_an_incomplete_last_batch_is_left_out() -> None:
    data = Dataset.of({"x": X, "labels": LABELS}, model(2))
    found = evaluate(identity, data, "top1")
    assert (found.score, found.samples) == (0.75, 4)


def test_drop_and_agreement() -> None:
    data = Dataset.of({"x": X, "labels": LABELS}, model(1))
    found = evaluate(shifted, data, "top1", original=identity)
    assert found.original == 0.8
    assert found.drop == pytest.approx(60.0)
    assert found.agreement == 0.0


def test_missing_labels() -> None:
    with pytest.raises(DataError, match="agreement"):
        evaluate(identity, Dataset.of({"x": X}, model(1)), "top1")


def test_agreement_without_an_original() -> None:
    with pytest.raises(DataError, match="original"):
        evaluate(identity, Dataset.of({"x": X}, model(1)), "agreement")


def test_random_feeds_repeat_and_fit() -> None:
    types = {"a": (np.dtype("float32"), (2, 3)), "b": (np.dtype("int64"), (4,)), "c": (np.dtype("int8"), (500,))}
    one, two = random_feeds(types, 2, seed=7), random_feeds(types, 2, seed=7)
    assert all(np.array_equal(x[n], y[n]) for x, y in zip(one, two, strict=True) for n in types)
    assert one[0]["a"].dtype == np.float32
    assert set(one[0]["b"]) <= {0, 1}
    assert one[0]["c"].min() < -100


def test_latency_interleaves_the_runners() -> None:
    order: list[str] = []
    rows = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.0, min_runs=3)
    assert order == ["a", "a", "b", "b", *["a", "b"] * 3]
    assert [(r.name, r.runs) for r in rows] == [("a", 3), ("b", 3)]
    assert rows[0].low <= rows[0].median <= rows[0].high
