"""Sets of samples: what is accepted, how it is fed, and what is said about the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from irc.calibrate.dataset import Dataset
from irc.errors import DataError
from irc.ir.graph import Graph, Model
from irc.ir.types import DType, Shape, TensorType


def model(**inputs: tuple[DType, Sequence[int | str]]) -> Model:
    graph = Graph("g")
    for name, (dtype, dims) in inputs.items():
        graph.add_input(name, TensorType(dtype, Shape(tuple(dims))))
    return Model(graph)


IMAGE = model(image=(DType.FLOAT, (1, 2, 2)))
X = np.arange(5 * 4, dtype=np.float32).reshape(5, 2, 2)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_streams_samples_in_order(tmp_path: Path, save) -> None:
    save(tmp_path / "d.npz", image=X, labels=np.arange(5))
    data = Dataset.load(tmp_path / "d.npz", IMAGE)
    assert len(data) == 5
    fed = [f["image"] for f in data.feeds()]
    assert [f.shape for f in fed] == [(1, 2, 2)] * 5
    np.testing.assert_array_equal(np.concatenate(fed), X)
    np.testing.assert_array_equal(data.labels, np.arange(5))
    assert len(list(data.feeds())) == 5  # a second run starts again


def test_fortran_order_and_only_input_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(X))
    data = Dataset.load(tmp_path / "d.npz", IMAGE)
    np.testing.assert_array_equal(np.concatenate([f["image"] for f in data.feeds()]), X)


def test_symbolic_batch_takes_the_size_asked_for() -> None:
    data = Dataset.of({"image": X}, model(image=(DType.FLOAT, ("n", 2, 2))))
    assert [len(f["image"]) for f in data.feeds(2)] == [2, 2, 1]
    assert [len(f["image"]) for f in data.feeds()] == [5]


def test_fixed_batch_leaves_out_an_incomplete_one() -> None:
    data = Dataset.of({"image": X}, model(image=(DType.FLOAT, (2, 2, 2))))
    assert len(data) == 4
    assert [len(f["image"]) for f in data.feeds()] == [2, 2]


def test_inputs_without_a_batch_dimension_get_whole_samples() -> None:
    net = model(sound=(DType.FLOAT, (1, 3)), state=(DType.FLOAT, (2, 1, 4)), rate=(DType.INT64, ()))
    arrays = {
        "sound": np.zeros((6, 3), np.float32),
        "state": np.ones((6, 2, 1, 4), np.float32),
        "rate": np.full(6, 16000, np.int64),
    }
    feeds = list(Dataset.of(arrays, net).feeds())
    assert len(feeds) == 6
    assert {k: v.shape for k, v in feeds[0].items()} == {"sound": (1, 3), "state": (2, 1, 4), "rate": ()}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"imag": X}, ["no input 'imag'", "did you mean 'image'"]),
        ({"labels": X}, ["no array for input 'image'"]),
        ({"image": X, "other": X}, ["no input 'other'"]),
        ({"image": X.astype(np.float64)}, ["wrong type", "float32", "float64", "astype"]),
        ({"image": X.reshape(5, 4)}, ["wrong shape", "[samples,2,2]", "[5,4]"]),
        ({"image": np.float32(1)}, ["wrong shape"]),
        ({"image": X[:0]}, ["no samples"]),
        ({"image": X, "labels": np.arange(4)}, ["differ in their number", "'labels' 4"]),
        ({"image": np.where(X == 9, np.nan, X).astype(np.float32)}, ["NaN", "sample 2"]),
        ({"image": np.array([None, 1], dtype=object)}, ["Python objects"]),
    ],
)
def test_says_what_does_not_fit(tmp_path: Path, arrays, words) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    for attempt in (lambda: Dataset.load(path, IMAGE), lambda: Dataset.of(arrays, IMAGE, str(path))):
        with pytest.raises(DataError) as caught:
            attempt()
        for word in (*words, str(path)):
            assert word in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Dataset.load(tmp_path / "none.npz", IMAGE)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not an \.npz"):
        Dataset.load(tmp_path / "text.npz", IMAGE)
    np.savez(tmp_path / "d.npz", image=np.zeros((500, 2, 2), np.float32))
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        Dataset.load(tmp_path / "cut.npz", IMAGE)


def test_inputs_of_different_fixed_batches_are_refused() -> None:
    net = model(a=(DType.FLOAT, (1, 3)), b=(DType.FLOAT, (2, 3)))
    arrays = {"a": np.zeros((4, 3), np.float32), "b": np.zeros((4, 3), np.float32)}
    with pytest.raises(DataError, match="differ in their first dimension"):
        Dataset.of(arrays, net)
