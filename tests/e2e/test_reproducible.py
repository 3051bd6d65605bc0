"""The same input gives the same bytes: in another folder, with another hash seed, from the text in the manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def compile_digits(
    digits_dir: Path, output: Path, cache: Path, hash_seed: str, target: str, pipeline: str, *more: str
) -> None:
    """In a process of its own, from a folder of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "XDG_CACHE_HOME": str(cache)}
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "irc.cli.main", "compile", str(digits_dir / "digits.onnx"), "-o", output.name]
    command += ["--target", target, "--passes", pipeline, *more]
    command += ["--calibration", str(digits_dir / "digits_calibration.npz")]
    done = subprocess.run(command, cwd=output.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("target", "preset"), [("native", "none"), ("native", "size"), ("arm", "speed")])
def test_same_bytes(target: str, preset: str, digits_dir: Path, tmp_path: Path) -> None:
    """The first two share nothing but the input; the third takes its pipeline from the manifest and warm kernels."""
    first, second, third = tmp_path / "a" / "digits-irc", tmp_path / "b" / "c" / "other", tmp_path / "d" / "again"
    compile_digits(digits_dir, first, tmp_path / "cache1", "1", target, preset)
    compile_digits(digits_dir, second, tmp_path / "cache2", "2", target, preset)
    manifest = json.loads((first / "manifest.json").read_text())
    again = manifest["pipeline"], "--weights", manifest["weights"]
    compile_digits(digits_dir, third, tmp_path / "cache1", "3", target, *again)
    wanted = tree(first)
    assert len(wanted) > 5
    for other in (second, third):
        found = tree(other)
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if wanted[name] != found[name]] == []
