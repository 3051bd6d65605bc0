"""Scores of a model on labelled data, fed one batch of outputs at a time.

| metric    | score                                                                     | needs             |
| top1      | share of samples whose largest output is the label                        | labels            |
| top5      | share whose label is among the five largest                               | labels            |
| auc       | area under the ROC curve (Mann-Whitney U, ties count half)                 | labels 0 and 1    |
| mse       | mean squared error against the labels, else against the input (autoencoders) | labels or equal shapes |
| agreement | share of samples whose largest output is that of the original model        | the original      |
| mod:fn    | `fn(outputs, labels, inputs) -> float` of all samples, higher is better     | what fn needs     |

`auc` ranks samples by the output for class 1 (two outputs), by the only output, or, where input and output have one
shape, by the reconstruction error of each sample. Where there are fewer labels than samples, every label stands for
a run of consecutive samples, whose scores are averaged (all windows of one recording).

Shares and areas are in 0..1. Budgets are in points, hundredths of these; for `mse`, per cent of the original's.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from irc.errors import DataError, IrcError, OptionError, suggest
from irc.ir.types import Array

METRICS = ("top1", "top5", "auc", "mse", "agreement")


class Metric(ABC):
    """Takes batches, gives one number. `needs_original`: `add` wants the original model's outputs too."""

    name: str
    needs_labels: ClassVar[bool] = False
    needs_original: ClassVar[bool] = False

    @abstractmethod
    def add(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        labels: Array | None,
        original: Mapping[str, Array] | None,
        samples: int,
    ) -> None:
        """One batch of `samples` samples. `labels`: theirs, or None where labels are not one for each sample."""

    @abstractmethod
    def result(self, labels: Array | None) -> float:
        """The score. `labels`: all labels of the set. Raises DataError where it is undefined."""

    def drop(self, original: float, compressed: float) -> float:
        """Loss from `original` to `compressed`; positive is worse. In points."""
        return (original - compressed) * 100

    def show(self, score: float) -> str:
        return f"{score * 100:.2f} %"


class TopK(Metric):
    """Sequence outputs [N, T, C] count every position; other outputs are flattened to [N, C]."""

    needs_labels = True

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"top{k}"
        self._hits = self._seen = 0

    def add(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        labels: Array | None,
        original: Mapping[str, Array] | None,
        samples: int,
    ) -> None:
        if labels is None:
            raise DataError(f"metric {self.name} needs one label for each sample")
        wanted = class_labels(labels)
        scores = class_scores(first_output(outputs), len(wanted))
        classes = scores.shape[1]
        strange = wanted[(wanted < 0) | (wanted >= classes)]
        if strange.size:
            raise DataError(
                "a label names a class that the output has no score for",
                expected=f"0 to {classes - 1}",
                got=str(strange[0]),
            )
        k = min(self.k, classes)
        # Ties go to the lower class, as argmax does: sort stably by descending score.
        best = (
            np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k] if k > 1 else scores.argmax(1)[:, None]
        )
        self._hits += int((best == wanted[:, None]).any(1).sum())
        self._seen += len(wanted)

    def result(self, labels: Array | None) -> float:
        return self._hits / self._seen if self._seen else 0.0


class Agreement(Metric):
    """Needs no labels: how often the compressed model decides as the original does."""

    name = "agreement"
    needs_original = True

    def __init__(self) -> None:
        self._hits = self._seen = 0

    def add(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        labels: Array | None,
        original: Mapping[str, Array] | None,
        samples: int,
    ) -> None:
        if original is None:
            raise DataError("metric agreement needs the original model", hint="--original MODEL")
        ours = class_scores(first_output(outputs), samples)
        theirs = class_scores(first_output(original), samples)
        if ours.shape != theirs.shape:
            raise DataError(
                "the outputs have another shape than the original's",
                expected=str(list(theirs.shape)),
                got=str(list(ours.shape)),
            )
        self._hits += int((ours.argmax(1) == theirs.argmax(1)).sum())
        self._seen += len(ours)

    def result(self, labels: Array | None) -> float:
        return self._hits / self._seen if self._seen else 0.0


class Auc(Metric):
    name = "auc"
    needs_labels = True

    def __init__(self) -> None:
        self._scores: list[Array] = []

    def add(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        labels: Array | None,
        original: Mapping[str, Array] | None,
        samples: int,
    ) -> None:
        output = first_output(outputs).reshape(samples, -1).astype(np.float64)
        data = first_output(inputs)
        if output.shape[1] == 1:
            self._scores.append(output[:, 0])
        elif output.shape[1] == 2:
            self._scores.append(output[:, 1] - output[:, 0])
        elif data.size == output.size:
            self._scores.append(np.asarray(((output - data.reshape(output.shape)) ** 2).mean(1)))
        else:
            raise DataError(
                "metric auc cannot rank these outputs",
                expected="one or two values for each sample, or as many as the input has",
                got=f"{output.shape[1]} values",
                hint="--metric module:function with a score of your own",
            )

    def result(self, labels: Array | None) -> float:
        if labels is None:
            raise DataError("metric auc needs labels")
        scores = np.concatenate(self._scores)
        if len(scores) % len(labels):
            raise DataError("samples are no multiple of the labels", got=f"{len(scores)} and {len(labels)}")
        return area_under_curve(scores.reshape(len(labels), -1).mean(1), np.asarray(labels).reshape(-1))


class Mse(Metric):
    name = "mse"

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        labels: Array | None,
        original: Mapping[str, Array] | None,
        samples: int,
    ) -> None:
        output = first_output(outputs).astype(np.float64)
        wanted = labels if labels is not None else first_output(inputs)
        if wanted.size != output.size:
            raise DataError(
                "metric mse compares the output with labels of its shape, or with the input",
                expected=f"{output.size} values in a batch",
                got=f"{wanted.size}",
            )
        self._sum += float(((output.reshape(-1) - wanted.reshape(-1)) ** 2).sum())
        self._count += output.size

    def result(self, labels: Array | None) -> float:
        return self._sum / self._count if self._count else 0.0

    def drop(self, original: float, compressed: float) -> float:
        if original == 0.0:
            return 0.0 if compressed == 0.0 else float("inf")
        return (compressed - original) / original * 100

    def show(self, score: float) -> str:
        return f"{score:.6g}"


class UserMetric(Metric):
    """`module:function`, called once with everything concatenated. The module may stand in the current folder."""

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, function = name.partition(":")
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            self._function = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise OptionError(f"metric '{name}' cannot be imported", got=str(error)) from error
        self._inputs: dict[str, list[Array]] = {}
        self._outputs: dict[str, list[Array]] = {}

    def add(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        labels: Array | None,
        original: Mapping[str, Array] | None,
        samples: int,
    ) -> None:
        for store, given in ((self._inputs, inputs), (self._outputs, outputs)):
            for name, array in given.items():
                store.setdefault(name, []).append(np.asarray(array))

    def result(self, labels: Array | None) -> float:
        outputs = {n: np.concatenate(a) for n, a in self._outputs.items()}
        inputs = {n: np.concatenate(a) for n, a in self._inputs.items()}
        try:
            return float(self._function(outputs, labels, inputs))
        except IrcError:
            raise
        except Exception as error:
            raise DataError(f"metric '{self.name}' failed", got=f"{type(error).__name__}: {error}") from error

    def show(self, score: float) -> str:
        return f"{score:.6g}"


def make_metric(name: str) -> Metric:
    """A fresh metric. Raises OptionError for a name that is none."""
    if ":" in name:
        return UserMetric(name)
    if name in ("top1", "top5"):
        return TopK(int(name[3:]))
    simple: dict[str, type[Metric]] = {"auc": Auc, "mse": Mse, "agreement": Agreement}
    if name not in simple:
        raise OptionError(f"there is no metric '{name}'", hint=suggest(name, METRICS) + " or module:function")
    return simple[name]()


def first_output(values: Mapping[str, Array]) -> Array:
    return np.asarray(next(iter(values.values())))


def class_labels(labels: Array) -> Array:
    """Class numbers, flat. One-hot rows are understood. Raises DataError for labels that are no integers."""
    if labels.dtype.kind not in "iufb":
        raise DataError("labels are no class numbers", expected="integers", got=str(labels.dtype))
    if labels.ndim == 2 and labels.shape[1] > 1 and (np.sort(labels, axis=1)[:, -2] == 0).all():
        labels = labels.argmax(1)
    if labels.dtype.kind not in "iub" and not (labels == np.floor(labels)).all():
        raise DataError("labels are no class numbers", expected="integers", got=str(labels.dtype))
    return labels.reshape(-1).astype(np.int64)


def class_scores(output: Array, rows: int) -> Array:
    """Scores [rows, classes]. Raises DataError where the output does not divide into rows."""
    if rows == 0 or output.size % rows:
        raise DataError(
            "the output does not have one row of scores for each label", expected=f"{rows} rows", got=str(output.shape)
        )
    return output.reshape(rows, -1)


def area_under_curve(scores: Array, labels: Array) -> float:
    """Area under the ROC curve; `labels` 1 for positive. Raises DataError where one class is empty."""
    positive = labels.astype(bool)
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        raise DataError("auc needs samples of both classes", expected="labels 0 and 1", got=f"{n0} zeros, {n1} ones")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    rank = (first + (counts + 1) / 2)[inverse]  # ranks from 1; ties share their mean
    return float((rank[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
