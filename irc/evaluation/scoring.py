"""Evaluation: a model or a compiled network against data, streaming, with the original beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from irc.errors import DataError
from irc.evaluation.metrics import Metric, make_metric
from irc.ir.types import Array

Runner = Callable[[dict[str, Array]], Mapping[str, Array]]
"""Runs one feed: {input name: array} to {output name: array}, first output first."""

Progress = Callable[[str, int, int], None]


class Labelled(Protocol):
    """Samples with labels (`irc.calibrate.dataset.Dataset`). `labels`: [samples, ...], or one for several samples."""

    @property
    def labels(self) -> Array | None: ...

    @property
    def batch(self) -> int | None: ...

    def feeds(self) -> Iterator[dict[str, Array]]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Score:
    """`score` and `original` as the metric gives them (`original` None where it was not run); `drop` in points."""

    metric: str
    score: float
    samples: int
    original: float | None = None
    drop: float | None = None
    agreement: float | None = None
    shown: str = ""
    shown_original: str = ""

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"metric": self.metric, "score": round(self.score, 6), "samples": self.samples}
        if self.original is not None and self.drop is not None:
            data |= {"original": round(self.original, 6), "drop": round(self.drop, 4)}
        if self.agreement is not None:
            data["agreement"] = round(self.agreement, 6)
        return data


def check_metric(metric: str, data: Labelled) -> None:
    """Raises OptionError for an unknown metric, DataError where it needs labels that `data` does not have."""
    if make_metric(metric).needs_labels and data.labels is None:
        raise DataError(
            f"metric {metric} needs labels, and the data has none",
            expected="an array 'labels', 'label' or 'y'",
            hint="--metric agreement, which compares with the original model",
        )


def evaluate(
    runner: Runner,
    data: Labelled,
    metric: str,
    *,
    original: Runner | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Score:
    """Score `runner` on `data`; with `original`, its score, the drop in points and the agreement as well.

    Raises DataError where labels are missing or do not fit.
    """
    check_metric(metric, data)
    ours, theirs = make_metric(metric), make_metric(metric)
    if ours.needs_original and original is None:
        raise DataError(f"metric {metric} needs the original model to compare with", hint="--original MODEL.onnx")
    decides = metric not in ("auc", "mse")  # others compare values: their largest output decides nothing
    agreement: Metric | None = make_metric("agreement") if original is not None and decides else None
    per_sample = data.labels is not None and len(data.labels) >= len(data)
    done, total = 0, len(data)
    for feed in data.feeds():
        count = data.batch or len(next(iter(feed.values())))
        labels = data.labels[done : done + count] if per_sample and data.labels is not None else None
        outputs = runner(feed)
        reference = original(feed) if original is not None else None
        ours.add(feed, outputs, labels, reference, count)
        if reference is not None:
            theirs.add(feed, reference, labels, reference, count)
            agreement = _add_agreement(agreement, feed, outputs, reference, count)
        done += count
        progress("evaluate", done, total)
    all_labels = None if data.labels is None else data.labels[:done] if per_sample else data.labels
    return _score(ours, theirs if original is not None else None, agreement, all_labels, done)


def _add_agreement(
    agreement: Metric | None,
    feed: Mapping[str, Array],
    outputs: Mapping[str, Array],
    reference: Mapping[str, Array],
    count: int,
) -> Metric | None:
    """Outputs without one row per sample have no agreement: it is left out then."""
    if agreement is None:
        return None
    try:
        agreement.add(feed, outputs, None, reference, count)
    except DataError:
        return None
    return agreement


def _score(ours: Metric, theirs: Metric | None, agreement: Metric | None, labels: Array | None, samples: int) -> Score:
    score = ours.result(labels)
    if theirs is None:
        return Score(ours.name, score, samples, shown=ours.show(score))
    original = theirs.result(labels)
    return Score(
        ours.name,
        score,
        samples,
        original,
        ours.drop(original, score),
        agreement.result(None) if agreement is not None else None,
        ours.show(score),
        ours.show(original),
    )


def random_feeds(
    types: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], count: int, seed: int
) -> list[dict[str, Array]]:
    """`count` feeds of random values of these types: floats are N(0, 1), 8-bit integers cover their range, wider ones
    are small and not negative (they are mostly indices and lengths), booleans are fair.
    """
    rng = np.random.default_rng(seed)
    return [{name: _random(rng, dtype, shape) for name, (dtype, shape) in types.items()} for _ in range(count)]


def _random(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        low, high = (info.min, info.max + 1) if dtype.itemsize == 1 else (0, 2)
        return rng.integers(low, high, shape).astype(dtype)
    if dtype.kind == "O":
        raise DataError("there are no random strings to verify with", hint="--calibration FILE.npz")
    return np.asarray(rng.standard_normal(shape)).astype(dtype)
