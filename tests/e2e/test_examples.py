"""The example programs do what they say. (The C program has tests of its own.)"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from irc.frontend import load_model
from irc.ir.compare import difference
from irc.pipeline import PassContext, Pipeline


def test_quickstart(root: Path, tmp_path: Path, kernel_cache: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(kernel_cache)}
    command = [sys.executable, str(root / "examples" / "quickstart.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "int8 decides as the original does on" in done.stdout
    assert (tmp_path / "int8" / "manifest.json").is_file()


@pytest.fixture(scope="module")
def round_weights(root: Path) -> Any:
    """The class RoundWeights of the example."""
    path = root / "examples" / "custom_pass" / "round_weights.py"
    spec = importlib.util.spec_from_file_location("round_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["round_weights"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module.RoundWeights


def test_custom_pass_rounds_once(round_weights: Any, digits_dir: Path) -> None:
    model = load_model(digits_dir / "digits.onnx")
    pipeline = Pipeline([round_weights(bits=4)])
    assert str(pipeline) == "round-weights{bits=4}"
    first = pipeline.run(model, PassContext())
    assert first.passes[0].statistics["rounded"] == 5
    again = load_model(digits_dir / "digits.onnx")
    pipeline.run(again, PassContext())
    assert difference(model, again) is None
    assert not pipeline.run(model, PassContext()).passes[0].changed
