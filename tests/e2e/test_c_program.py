"""The C program of the example around real networks, natively and for Arm: it prints what onnxruntime computes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from e2e_models import relative_error, session

import irc

TOLERANCE = 1e-4
"""Of the largest output: float32 sums in another order."""


def build_and_run(
    compiler: list[str], emulator: list[str], root: Path, artifact: Path, name: str, sample: np.ndarray, folder: Path
) -> str:
    program = folder / "program"
    flags = ["-std=c89", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-DNETWORK={name}", f"-I{artifact / 'include'}"]
    source = str(root / "examples" / "c" / "main.c")
    libraries = [f"-L{artifact / 'lib'}", f"-l{name}", "-lm", "-o", str(program)]
    subprocess.run([*compiler, *flags, source, *libraries], check=True, capture_output=True, text=True)
    sample.tofile(folder / "input.bin")
    done = subprocess.run(
        [*emulator, str(program), str(folder / "input.bin")], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


def numbers(text: str, count: int) -> np.ndarray:
    """The last `count` numbers that the program prints."""
    found = re.findall(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?", text)
    return np.array(found[-count:], np.float64)


@pytest.mark.parametrize("target", ["native", "arm"])
def test_digits(
    target: str, root: Path, digits_dir: Path, tmp_path: Path, kernel_cache: Path, need_tool: Callable[..., str]
) -> None:
    sample = np.load(digits_dir / "digits_eval.npz")["image"][:1]
    check(target, digits_dir / "digits.onnx", "digits", sample, root, tmp_path, kernel_cache, need_tool)


@pytest.mark.parametrize("target", ["native", "arm"])
def test_resnet8(
    target: str, root: Path, data_dir: Path, tmp_path: Path, kernel_cache: Path, need_tool: Callable[..., str]
) -> None:
    sample = np.load(data_dir / "cifar10_eval.npz")["x"][:1].astype(np.float32)
    path = data_dir / "models" / "ic_resnet8_fp32.onnx"
    check(target, path, "resnet8", sample, root, tmp_path, kernel_cache, need_tool)


def check(
    target: str,
    model: Path,
    name: str,
    sample: np.ndarray,
    root: Path,
    folder: Path,
    cache: Path,
    need_tool: Callable[..., str],
) -> None:
    if target == "arm":
        compiler = [need_tool("aarch64-linux-gnu-gcc"), "-static"]
        emulator = [need_tool("qemu-aarch64"), "-cpu", "max"]
    else:
        compiler, emulator = [need_tool("cc", "gcc")], []
    irc.compile(model, target=target, output=folder / "out", name=name, cache_dir=cache)
    text = build_and_run(compiler, emulator, root, folder / "out", name, sample, folder)
    ort = session(model)
    (wanted,) = ort.run(None, {ort.get_inputs()[0].name: sample})
    assert relative_error(numbers(text, wanted.size), wanted.reshape(-1)) <= TOLERANCE
