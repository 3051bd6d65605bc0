"""The benchmark scripts start and explain themselves. What they measure is not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("script", ["latency", "presets", "compile_time", "nncf_models", "speed"])
def test_help(root: Path, script: str) -> None:
    command = [sys.executable, str(root / "benchmarks" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
