"""Weights in 16 bits from ONNX to an artifact: scores, sizes, and the same on Arm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import irc
from irc.cli import main as cli

HALF = "none,quantize{weights=%s activations=none}"

kinds = pytest.mark.parametrize("kind", ["float16", "bfloat16"])


@kinds
def test_half_the_bytes_and_the_same_score(kind: str, digits_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    data = digits_dir / "digits_eval.npz"
    made = irc.compile(
        digits_dir / "digits.onnx",
        output=tmp_path / "half",
        passes=HALF % kind,
        evaluation=data,
        max_drop=0.5,  # a point is a sample in a hundred
        cache_dir=kernel_cache,
    )
    stored = sum(len(i.raw_data) for i in onnx.load(tmp_path / "half" / "digits.onnx").graph.initializer)
    original = sum(len(i.raw_data) for i in onnx.load(digits_dir / "digits.onnx").graph.initializer)
    # biases, and what stands between 16-bit and 64-byte alignment
    assert stored < 0.55 * original
    assert made.manifest["interface"]["weights_bytes"] < 0.6 * original
    assert made.manifest["accuracy"]["agreement"] > 0.99
    assert made.manifest["verification"]["where"] == "target"


def test_arm_widens_them_too(
    digits_dir: Path, tmp_path: Path, kernel_cache: Path, need_tool: Callable[..., str]
) -> None:
    """Compared with onnxruntime under the emulator."""
    need_tool("qemu-aarch64")
    need_tool("aarch64-linux-gnu-gcc")
    made = irc.compile(
        digits_dir / "digits.onnx",
        "aarch64",
        output=tmp_path / "out",
        passes=HALF % "float16",
        cache_dir=kernel_cache,
    )
    assert made.manifest["verification"]["where"] == "target"
    assert "qemu" in made.manifest["verification"]["how"]


def test_a_compressed_model_comes_in_again(
    digits_dir: Path, tmp_path: Path, kernel_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What irc opt writes, and other tools alike, keeps its 16 bits through the lossless passes and in the library."""
    small = tmp_path / "small.onnx"
    arguments = ["opt", digits_dir / "digits.onnx", "--passes", HALF % "float16", "-o", small]
    assert cli.main([str(a) for a in arguments]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(small), "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert inspected["bytes"] < 0.55 * 4 * inspected["parameters"]
    made = irc.compile(small, output=tmp_path / "out", cache_dir=kernel_cache)
    assert made.manifest["interface"]["weights_bytes"] < 0.6 * 4 * inspected["parameters"]
