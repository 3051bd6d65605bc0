"""onnxruntime as the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from irc.errors import DataError, ModelError
from irc.evaluation import oracle
from irc.evaluation.oracle import Oracle
from irc.export import to_bytes
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model


def small() -> Model:
    b = GraphBuilder("small")
    x = b.input("x", "float32", [2, 3])
    b.output(b.op("Relu", b.op("Mul", x, 2.0, outputs=["double"])[0]), name="y")
    return b.build()


X = np.float32([[1, -2, 3], [-4, 5, -6]])


def test_runs_a_model() -> None:
    assert np.array_equal(Oracle(small()).run({"x": X})["y"], np.maximum(2 * X, 0))


def test_runs_bytes_and_files(tmp_path: Path) -> None:
    data = to_bytes(small())
    path = tmp_path / "small.onnx"
    path.write_bytes(data)
    for source in (data, path):
        assert np.array_equal(Oracle(source).run({"x": X})["y"], np.maximum(2 * X, 0))


def test_gives_intermediate_values() -> None:
    found = Oracle(small(), extra=["double", "y"]).run({"x": X})
    assert list(found) == ["y", "double"]
    assert np.array_equal(found["double"], 2 * X)


def test_large_models_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "_PROTO_LIMIT", 0)
    model = small()
    found = Oracle(model, extra=["double"]).run({"x": X})
    assert np.array_equal(found["double"], 2 * X)
    assert [v.name for v in model.graph.outputs] == ["y"]


def test_wrong_input_is_one_line() -> None:
    with pytest.raises(DataError) as caught:
        Oracle(small()).run({"x": X[:1, :1]})
    assert "\n" not in str(caught.value)


def test_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is no model")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        Oracle(path)


def test_quantized_values_are_rounded_as_onnx_says() -> None:
    """Half to even, saturating: 0.05 / 0.1 is half a step and goes to 0."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 4])
    q = b.quantize(x, np.float32(0.1), np.int8(0))
    b.output(b.op("Add", b.dequantize(q, np.float32(0.1), np.int8(0)), 0.0), name="y")
    found = Oracle(b.build()).run({"x": np.float32([[0.05, 0.149, -0.05, 100]])})["y"]
    assert np.array_equal(found, np.float32([[0.0, 0.1, -0.0, 12.7]]))
