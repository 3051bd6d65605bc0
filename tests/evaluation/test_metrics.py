"""Each metric against a value worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from irc.errors import DataError, OptionError
from irc.evaluation.metrics import area_under_curve, class_labels, make_metric


def score(
    name: str, outputs: list[list[float]], labels: object = None, original: object = None, inputs: object = None
) -> float:
    metric = make_metric(name)
    out = np.asarray(outputs, np.float32)
    given = None if labels is None else np.asarray(labels)
    other = None if original is None else {"y": np.asarray(original, np.float32)}
    data = out if inputs is None else np.asarray(inputs, np.float32)
    metric.add({"x": data}, {"y": out}, given, other, len(out))
    return metric.result(given)


def test_top1() -> None:
    assert score("top1", [[1, 2, 3], [3, 2, 1], [0, 1, 0], [0, 1, 0]], [2, 0, 1, 2]) == 0.75


def test_top1_understands_one_hot_labels() -> None:
    assert score("top1", [[1, 2, 3], [3, 2, 1]], [[0, 0, 1], [0, 1, 0]]) == 0.5


def test_top5_counts_the_five_largest() -> None:
    outputs = [[9, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9]]
    assert score("top5", outputs, [4, 0]) == 0.5


def test_top5_of_unsigned_integers() -> None:
    """Negating uint8 scores to sort them would wrap around."""
    metric = make_metric("top5")
    outputs = np.array([[0, 1, 2, 3, 4, 255]], np.uint8)
    metric.add({"x": outputs}, {"y": outputs}, np.array([0]), None, 1)
    assert metric.result(None) == 0.0


def test_agreement_needs_no_labels() -> None:
    assert score("agreement", [[1, 2], [2, 1]], original=[[0, 5], [0, 5]]) == 0.5


def test_mse_of_an_autoencoder_compares_with_the_input() -> None:
    assert score("mse", [[1, 2], [3, 4]], inputs=[[1, 2], [3, 6]]) == 1.0


def test_mse_drop_is_relative() -> None:
    assert make_metric("mse").drop(2.0, 3.0) == pytest.approx(50.0)


def test_auc_counts_pairs() -> None:
    """One of the four pairs (positive, negative) is in the wrong order, one is tied: (2 + 0.5) / 4."""
    scores, labels = np.array([1.0, 3.0, 3.0, 4.0]), np.array([0, 0, 1, 1])
    assert area_under_curve(scores, labels) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    """Its definition, with 200 samples and many ties."""
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), np.round(rng.standard_normal(200), 1)
    difference = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert area_under_curve(scores, labels) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_auc_averages_the_samples_of_a_label() -> None:
    """Two samples for each label: reconstruction errors 0 and 4 for the first, 1 and 1 for the second."""
    metric = make_metric("auc")
    data = np.zeros((4, 3), np.float32)
    outputs = np.sqrt(np.array([0, 4, 1, 1], np.float32))[:, None] * np.ones((1, 3), np.float32)
    metric.add({"x": data}, {"y": outputs}, None, None, 4)
    assert metric.result(np.array([1, 0])) == 1.0


def test_auc_of_one_class_is_an_error() -> None:
    with pytest.raises(DataError, match="both classes"):
        area_under_curve(np.arange(3.0), np.zeros(3))


def test_labels_must_be_integers() -> None:
    with pytest.raises(DataError, match="class numbers"):
        class_labels(np.array([0.5, 1.0]))


def test_outputs_that_do_not_fit_the_labels() -> None:
    with pytest.raises(DataError, match="one row of scores"):
        score("top1", [[1, 2, 3]], [0, 1])


def test_user_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_metric.py").write_text(
        "def total(outputs, labels, inputs):\n    return float(outputs['y'].sum())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert score("mine_metric:total", [[1, 2], [3, 4]]) == 10.0
    sys.modules.pop("mine_metric", None)


def test_user_metric_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_metric.py").write_text("def total(outputs, labels, inputs):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match=r"bad_metric:total.*ZeroDivisionError"):
        score("bad_metric:total", [[1, 2]])
    sys.modules.pop("bad_metric", None)


@pytest.mark.parametrize("name", ["top2", "acuracy", "nothing:there"])
def test_unknown_metric(name: str) -> None:
    with pytest.raises(OptionError, match=name.split(":")[0]):
        make_metric(name)
