"""irc compress: standard ONNX that onnxruntime runs as irc means it, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from irc.cli.main import main
from irc.driver.compress import compress
from irc.errors import BudgetError, DataError, OptionError
from irc.evaluation.kinds import by_kind
from irc.evaluation.oracle import Oracle
from irc.export import make_portable, save, to_bytes
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model
from irc.ir.types import Array, Constant, DType

RNG = np.random.default_rng(11)
X = RNG.normal(size=(48, 3, 8, 8)).astype(np.float32)


def scaled(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network() -> Model:
    b = GraphBuilder()
    y = b.op("Relu", b.conv(b.input("x", "float32", ["n", 3, 8, 8]), scaled(16, 3, 3, 3), scaled(16)))
    y = b.op("Relu", b.conv(y, scaled(16, 1, 3, 3), scaled(16), group=16))
    y = b.op("GlobalAveragePool", b.op("Relu", b.conv(y, scaled(24, 16, 1, 1), scaled(24))))
    b.output(b.gemm(b.op("Flatten", y), scaled(24, 10)), name="out")
    return b.build()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    model = network()
    save(model, tmp_path / "m.onnx")
    labels = Oracle(model).run({"x": X})["out"].argmax(axis=1)
    np.savez(tmp_path / "c.npz", x=X)
    np.savez(tmp_path / "e.npz", x=X, labels=labels)
    return tmp_path


def optimized(path: Path) -> Array:
    """What onnxruntime makes of a file with all its optimizers."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": X})[0]
    return found


@pytest.mark.parametrize(
    ("passes", "opset"),
    [("speed", 18), ("none,quantize{weights=int4}", 21), ("none,quantize{weights=ternary}", 21), ("none", 18)],
)
def test_what_is_written_runs_in_onnxruntime_as_it_is_meant(passes: str, opset: int, place: Path) -> None:
    made = compress(place / "m.onnx", place / "o.onnx", passes, calibration=place / "c.npz")
    assert made.opset == opset == onnx.load(place / "o.onnx").opset_import[0].version
    meant = Oracle(made.model).run({"x": X})["out"]
    step = np.abs(meant).max() / 127  # of the last activation in 8 bits, where kernels may round another way
    assert np.abs(optimized(place / "o.onnx") - meant).max() <= 1.01 * step
    kinds = {k.kind for k in made.kinds[0]}
    assert kinds == {"Conv", "depthwise Conv", "Gemm and MatMul"} | (kinds & {"other"})
    assert all(k.macs is not None for rows in made.kinds for k in rows)


def test_the_command_says_what_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["compress", str(place / "m.onnx"), "--calibration", str(place / "c.npz"), "-o", str(place / "o.onnx")]
    assert main([*files, "--evaluation", str(place / "e.npz")]) == 0
    shown = capsys.readouterr().out
    assert "depthwise Conv" in shown
    assert "agreement" in shown
    assert "opset 18" in shown
    assert main([*files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    before, after = ({row["kind"]: row for row in found["kinds"][side]} for side in ("before", "after"))
    assert after["Conv"]["bytes"] < 0.5 * before["Conv"]["bytes"]
    assert found["after"]["macs"] == found["before"]["macs"] > 0


def test_over_the_budget_nothing_is_written(place: Path) -> None:
    with pytest.raises(BudgetError, match="at most -1"):  # it would have to get better by a point
        compress(place / "m.onnx", place / "o.onnx", "none", evaluation=place / "e.npz", max_drop=-1)
    assert not (place / "o.onnx").exists()


def test_mistakes(place: Path) -> None:
    with pytest.raises(OptionError, match=r"ends in \.onnx"):
        compress(place / "m.onnx", place / "o.irc")
    with pytest.raises(OptionError, match="no such folder"):
        compress(place / "m.onnx", place / "no" / "o.onnx")
    with pytest.raises(OptionError, match="--max-drop needs data"):
        compress(place / "m.onnx", place / "o.onnx", max_drop=1)
    with pytest.raises(DataError, match="calibration"):
        compress(place / "m.onnx", place / "o.onnx")
    assert not (place / "o.onnx").exists()


def test_numbers_of_two_bits_are_stored_in_four() -> None:
    b = GraphBuilder()
    q = Constant.of(RNG.integers(-1, 2, (6, 4)).astype(DType.INT2.numpy), DType.INT2)
    b.output(b.matmul(b.input("x", "float32", [2, 6]), b.dequantize(q, 0.5)), name="out")
    model = b.build()
    x = RNG.normal(size=(2, 6)).astype(np.float32)
    meant = x @ (q.numpy().astype(np.float32) * 0.5)
    assert make_portable(model) == 1
    assert make_portable(model) == 0
    assert b"INT2" not in str(onnx.load_from_string(to_bytes(model)).graph).encode()
    np.testing.assert_allclose(Oracle(model).run({"x": x})["out"], meant, atol=1e-6)


def test_packed_weights_count_for_the_layer_that_uses_them() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 8])
    indices = Constant.of(RNG.integers(0, 4, (8, 8)).astype(DType.UINT4.numpy), DType.UINT4)
    palette = b.op(
        "Gather", np.arange(4, dtype=np.float32), b.op("Cast", b.constant(indices), to=int(onnx.TensorProto.INT32))
    )
    q = Constant.of(np.zeros((8, 8), DType.INT4.numpy), DType.INT4)
    b.output(b.matmul(b.matmul(x, palette), b.dequantize(q, 0.5)))
    (row,) = by_kind(b.build())
    assert (row.kind, row.layers, row.macs) == ("Gemm and MatMul", 2, 128)
    assert row.bytes == 32 + 16 + 32 + 4
