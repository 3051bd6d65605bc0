"""The example model through every pipeline, and the command line from end to end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from e2e_models import relative_error, session

import irc
from irc.errors import BudgetError

PIPELINES = {
    "float": ("none", 1e-4),  # sums in another order
    "factorized": ("none,factorize{energy=0.999}", None),
    "pruned": ("none,prune{sparsity=0.5}", None),
    "int8": ("speed", None),
    "int8 weights": ("none,quantize{activations=none}", None),
}


@pytest.fixture(scope="module")
def evaluation(digits_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(digits_dir / "digits_eval.npz") as file:
        return file["image"], file["labels"]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pipelines(
    pipeline: str, digits_dir: Path, evaluation: tuple[np.ndarray, np.ndarray], tmp_path: Path, kernel_cache: Path
) -> None:
    """Every pipeline keeps the accuracy of the float model (0.9815) within 1.5 points: 8 of 540 digits."""
    text, tolerance = PIPELINES[pipeline]
    calibration = digits_dir / "digits_calibration.npz"
    irc.compile(
        digits_dir / "digits.onnx",
        output=tmp_path / "out",
        passes=text,
        calibration=calibration,
        cache_dir=kernel_cache,
    )
    net, ort = irc.load(tmp_path / "out"), session(digits_dir / "digits.onnx")
    images, labels = evaluation
    got = np.concatenate([np.asarray(net(image)) for image in images[:, None]])
    (wanted,) = ort.run(None, {"image": images})
    assert (wanted.argmax(1) == labels).mean() - (got.argmax(1) == labels).mean() <= 0.015
    if tolerance is not None:
        assert relative_error(got, wanted) <= tolerance


def test_exported_model_is_what_was_compiled(digits_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    """The ONNX in the artifact gives in onnxruntime what the library gives: at most one step off on 99 %."""
    irc.compile(
        digits_dir / "digits.onnx",
        output=tmp_path / "out",
        passes="speed",
        calibration=digits_dir / "digits_calibration.npz",
        cache_dir=kernel_cache,
    )
    net, ort = irc.load(tmp_path / "out"), session(tmp_path / "out" / "digits.onnx")
    images = np.load(digits_dir / "digits_eval.npz")["image"][:100, None]
    got = np.concatenate([np.asarray(net(image)) for image in images])
    wanted = np.concatenate([ort.run(None, {"image": image})[0] for image in images])
    step = np.ptp(wanted) / 255
    assert (np.abs(got - wanted) <= step * 1.01).mean() >= 0.99


def test_budget_refuses_and_writes_nothing(digits_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    with pytest.raises(BudgetError):
        irc.compile(
            digits_dir / "digits.onnx",
            output=tmp_path / "out",
            passes="none,prune{sparsity=0.97 criterion=magnitude}",
            evaluation=digits_dir / "digits_eval.npz",
            metric="top1",
            max_drop=1.0,
            cache_dir=kernel_cache,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "aarch64", "arm"])
@pytest.mark.parametrize("passes", ["none", "speed"])
def test_every_target(target: str, passes: str, digits_dir: Path, tmp_path: Path, kernel_cache: Path) -> None:
    """It compiles and verifies somewhere; what was run where is in the manifest."""
    irc.compile(
        digits_dir / "digits.onnx",
        target=target,
        output=tmp_path / "out",
        passes=passes,
        calibration=digits_dir / "digits_calibration.npz",
        cache_dir=kernel_cache,
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["target"]["name"] == target
    assert manifest["verification"]["where"] in ("target", "host-equivalent")


def test_library_needs_only_libm(
    digits_dir: Path, tmp_path: Path, kernel_cache: Path, need_tool: Callable[..., str]
) -> None:
    nm = need_tool("aarch64-linux-gnu-nm")
    irc.compile(digits_dir / "digits.onnx", target="arm", output=tmp_path / "out", cache_dir=kernel_cache)
    (library,) = (tmp_path / "out" / "lib").glob("*.a")
    listed = subprocess.run([nm, "-u", str(library)], capture_output=True, text=True, check=True).stdout
    undefined = {line.split()[-1] for line in listed.splitlines() if " U " in line}
    libm = {"expf", "exp", "logf", "tanhf", "powf", "erff", "sqrtf", "floorf", "ceilf", "roundf", "nearbyintf"}
    assert undefined <= libm | {"memcpy", "memset"}
