"""Larger architectures with random weights (IRC_ZOO): compiled natively, in float and after quantization."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from e2e_models import relative_error, session

import irc

NAMES = ("mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50", "vit_small", "minilm6")
TOLERANCE = 1e-4
"""Of the largest output: float32 sums in another order."""


def feed(ort: object, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for entry in ort.get_inputs():  # type: ignore[attr-defined]  # onnxruntime has no annotations
        integer = "int" in entry.type
        found[entry.name] = rng.integers(0, 2, entry.shape) if integer else rng.standard_normal(entry.shape, np.float32)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_float(name: str, zoo_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    path = zoo_dir / f"{name}.onnx"
    irc.compile(path, output=tmp_path / "out", cache_dir=kernel_cache)
    net, ort = irc.load(tmp_path / "out"), session(path)
    sample = feed(ort, 1)
    (wanted,) = ort.run(None, sample)
    (got,) = net.run(sample).values()
    assert relative_error(got, wanted) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_int8(name: str, zoo_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    """The compiler compares with onnxruntime on the quantized model before it writes; weights shrink by 3 at least."""
    path = zoo_dir / f"{name}.onnx"
    feeds = [feed(session(path), seed) for seed in range(4)]
    calibration = {key: np.concatenate([f[key] for f in feeds]) for key in feeds[0]}
    irc.compile(path, output=tmp_path / "out", passes="speed", calibration=calibration, cache_dir=kernel_cache)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["verification"]["where"] == "target"
    embedding = 0.5 if name == "minilm6" else 1.0  # its word embeddings stay float: half of all weights
    assert manifest["after"]["weight_bytes"] <= manifest["before"]["weight_bytes"] / (3 * embedding)
