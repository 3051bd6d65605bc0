"""--save-statistics and --statistics: the samples are needed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from irc.cli.main import main
from irc.export import save
from irc.ir.builder import GraphBuilder, weights

RNG = np.random.default_rng(9)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    b = GraphBuilder()
    y = b.op("Relu", b.conv(b.input("x", "float32", ["n", 3, 6, 6]), weights(4, 3, 3, 3), weights(4)))
    b.output(b.conv(y, weights(5, 4, 1, 1), weights(5)), name="out")
    save(b.build(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=RNG.normal(size=(16, 3, 6, 6)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opt(*arguments: str) -> int:
    return main(["opt", "m.onnx", "--passes", "none,quantize", *arguments])


def test_opt_from_a_file_gives_the_same_bytes(folder: Path) -> None:
    assert opt("--calibration", "c.npz", "--save-statistics", "s.npz", "-o", "a.onnx") == 0
    assert opt("--statistics", "s.npz", "-o", "b.onnx") == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_compile_takes_the_file(folder: Path) -> None:
    common = ["compile", "m.onnx", "--passes", "none,quantize", "-q", "--stop-after", "passes"]
    assert main([*common, "--calibration", "c.npz", "--save-statistics", "s.npz", "-o", "a.onnx"]) == 0
    assert main([*common, "--statistics", "s.npz", "-o", "b.onnx"]) == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_mistakes_are_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert opt("--save-statistics", "s.npz", "-o", "a.onnx") == 2
    assert "--calibration" in capsys.readouterr().err
    assert opt("--calibration", "c.npz", "--save-statistics", "no/such/s.npz", "-o", "a.onnx") == 2
    assert "no such folder" in capsys.readouterr().err
    assert opt("--statistics", "c.npz", "-o", "a.onnx") == 2
    assert "no statistics file" in capsys.readouterr().err
    assert not (folder / "a.onnx").exists()
