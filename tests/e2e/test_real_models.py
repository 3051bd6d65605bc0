"""Real models, from ONNX to an artifact that is loaded and run, natively and for Arm."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from e2e_models import FLOAT, QDQ, RealModel, feeds, relative_error, session, within_one_step

import irc

TOLERANCE = 1e-4
"""Of the largest output: float32 sums of a few thousand terms in another order than onnxruntime's."""


@pytest.mark.parametrize("model", FLOAT, ids=lambda m: m.name)
def test_float_model_native(model: RealModel, data_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    path = data_dir / "models" / model.file
    irc.compile(path, output=tmp_path / "out", shapes=model.shapes, cache_dir=kernel_cache)
    net, ort = irc.load(tmp_path / "out"), session(path)
    for feed in feeds(model, ort, 3):
        wanted = ort.run(None, feed)
        got = net.run(feed)
        for entry, value in zip(ort.get_outputs(), wanted, strict=True):
            assert got[entry.name].shape == value.shape
            assert relative_error(got[entry.name], value, model.magnitude) <= TOLERANCE


@pytest.mark.parametrize("model", QDQ, ids=lambda m: m.name)
def test_quantized_model_native(model: RealModel, data_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    path = data_dir / "models" / model.file
    irc.compile(path, output=tmp_path / "out", cache_dir=kernel_cache)
    net, ort = irc.load(tmp_path / "out"), session(path)
    got, wanted = [], []
    for feed in feeds(model, ort, 64 if path.stat().st_size < 1e6 else 4):
        wanted.append(ort.run(None, feed)[0])
        got.append(net.run(feed)[ort.get_outputs()[0].name])
    assert got[0].dtype == wanted[0].dtype
    assert within_one_step(np.stack(got), np.stack(wanted)) >= model.share


@pytest.mark.parametrize("model", FLOAT + QDQ, ids=lambda m: m.name)
def test_arm_under_emulation(
    model: RealModel, data_dir: Path, tmp_path: Path, kernel_cache: Path, need_tool: Callable[..., str]
) -> None:
    """The compiler runs the Arm library itself under qemu and compares it with onnxruntime: here its figures count."""
    need_tool("qemu-aarch64")
    need_tool("aarch64-linux-gnu-gcc")
    path = data_dir / "models" / model.file
    irc.compile(path, target="arm", output=tmp_path / "out", shapes=model.shapes, cache_dir=kernel_cache)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["verification"]["where"] == "target"
    assert "qemu" in manifest["verification"]["how"]
    assert manifest["verification"]["samples"] >= 1
    assert list((tmp_path / "out" / "lib").glob("*.a"))


@pytest.mark.parametrize("task", ["ic", "kws", "vww", "ad", "cifar", "mnist"])
def test_scores(task: str, data_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    """On up to 500 samples of the evaluation split the compiled network scores as onnxruntime does."""
    spec = importlib.util.spec_from_file_location("irc_data_load", data_dir / "load.py")
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    x, y = data.load(task)
    labels = len(y) if task == "ad" else min(len(y), 500)  # its clips, half of them anomalous, stand in order
    x, y = x[: len(x) // len(y) * labels], y[:labels]
    path = data_dir / "models" / data.TASKS[task][0]
    irc.compile(path, output=tmp_path / "out", cache_dir=kernel_cache)
    net, ort = irc.load(tmp_path / "out"), session(path)
    name = ort.get_inputs()[0].name
    got = np.concatenate([np.asarray(net(sample)) for sample in x[:, None]])
    wanted = np.concatenate([ort.run(None, {name: sample})[0] for sample in x[:, None]])
    assert abs(data.score(task, got, x, y) - data.score(task, wanted, x, y)) <= 0.0025
