"""Differences between results: relative error, steps, ratios, and values that are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest

from irc.errors import VerificationError
from irc.evaluation.compare import SNR_CAP_DB, Difference, snr_db


def difference(reference: object, got: object, *, dtype: str = "float32", step: float | None = None) -> Difference:
    found = Difference("y", step=step)
    found.add(np.asarray(reference, dtype), np.asarray(got, dtype))
    return found


def test_equal() -> None:
    found = difference([1, 2, 3], [1, 2, 3])
    assert (found.relative, found.share_within_step, found.snr_db) == (0.0, 1.0, SNR_CAP_DB)


def test_relative_to_the_largest_output() -> None:
    found = difference([0.0, -10.0], [0.1, -10.0])
    assert found.relative == pytest.approx(0.01)
    assert found.snr_db == pytest.approx(40.0, abs=1e-4)


def test_several_samples_share_one_peak() -> None:
    found = difference([1.0], [1.5])
    found.add(np.float32([100.0]), np.float32([100.0]))
    assert found.relative == pytest.approx(0.005)
    assert found.elements == 2


def test_integers_count_steps() -> None:
    found = difference([0, 10, 20, 30], [1, 10, 22, 30], dtype="uint8")
    assert found.share_within_step == 0.75
    assert found.equal == 2


def test_unsigned_integers_do_not_wrap() -> None:
    assert difference([0], [1], dtype="uint8").max_abs == 1.0


def test_floats_with_a_step() -> None:
    found = difference([0.0, 0.5, 1.0, 1.5], [0.5, 0.5, 2.0, 1.5], step=0.5)
    assert found.share_within_step == 0.75


def test_floats_without_a_step_use_the_range() -> None:
    """The range is 255, so a step is 1."""
    found = difference([0.0, 100.0, 255.0, 50.0], [0.9, 101.5, 255.0, 50.0])
    assert found.share_within_step == 0.75


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_same_odd_values_are_equal(value: float) -> None:
    assert difference([value, 1.0], [value, 1.0]).relative == 0.0


@pytest.mark.parametrize(
    ("reference", "got"), [(1.0, math.nan), (math.nan, 1.0), (math.inf, -math.inf), (math.inf, 1e30)]
)
def test_odd_values_that_differ_are_infinitely_far(reference: float, got: float) -> None:
    found = difference([reference, 1.0], [got, 1.0])
    assert found.relative == math.inf
    assert found.broken == 1
    assert found.to_json()["relative"] == "infinite"


def test_another_shape_is_an_error() -> None:
    with pytest.raises(VerificationError, match=r"float32\[3\]"):
        difference([1, 2], [1, 2]).add(np.zeros(3, np.float32), np.zeros(2, np.float32))


def test_another_type_is_an_error() -> None:
    with pytest.raises(VerificationError, match="int8"):
        Difference("y").add(np.zeros(2, np.float32), np.zeros(2, np.int8))


def test_empty_outputs_are_equal() -> None:
    assert difference([], []).share_within_step == 1.0


def test_ratio_has_no_infinities() -> None:
    assert snr_db(1.0, 0.0) == SNR_CAP_DB
    assert snr_db(0.0, 1.0) == -SNR_CAP_DB
    assert snr_db(100.0, 1.0) == pytest.approx(20.0)
