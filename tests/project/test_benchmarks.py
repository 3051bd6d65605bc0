"""The benchmark scripts start and explain themselves, and the tables have what was measured. Times are not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from irc.export import save
from irc.ir.builder import GraphBuilder, weights


@pytest.mark.parametrize("script", ["latency", "compression", "compile_time", "nncf_models", "speed", "coding"])
def test_help(root: Path, script: str) -> None:
    command = [sys.executable, str(root / "benchmarks" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def test_speed_of_a_tiny_model(root: Path, tmp_path: Path) -> None:
    """Everything that needs neither OpenVINO nor data; a peer that is not installed is named as missing."""
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", ["n", 3, 8, 8])
    y = b.op("Relu", b.conv(x, weights(8, 3, 3, 3), pads=[1, 1, 1, 1], name="conv"))
    b.output(b.gemm(b.op("Flatten", y), weights(512, 5, seed=1), weights(5, seed=2)), name="y")
    save(b.build(), tmp_path / "tiny.onnx")
    command = [sys.executable, str(root / "benchmarks" / "speed.py"), "--models", str(tmp_path), "--jobs", "1"]
    command += ["--sections", "fp32,footprint", "--seconds", "0.05", "--rounds", "1", "--work", str(tmp_path / "w")]
    command += ["--json", str(tmp_path / "r.json"), "--write", str(tmp_path / "page.md")]
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    (speed,) = results["fp32"]
    assert speed["model"] == "tiny"
    assert {"irc", "onnxruntime"} <= set(speed["ms"])
    assert speed["db"]["irc"] > 80  # float32 against float32: the roundings of sums of 512
    fp32 = next(row for row in results["footprint"] if row["kind"] == "fp32")
    assert fp32["weights_bytes"] >= 4 * (8 * 27 + 512 * 5)
    assert fp32["growth_bytes"] > 0
    page = (tmp_path / "page.md").read_text()
    assert "## float32" in page
    assert "| tiny | fp32 |" in page
