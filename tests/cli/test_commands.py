"""Commands that need no compiler: their output for people and for machines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from irc.cli import main as cli
from irc.export import save
from irc.ir.builder import GraphBuilder, weights

Call = Callable[..., str]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs irc in this process; gives stdout of a run that ended well."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> str:
        found = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert found == code, err
        return out

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """conv with BatchNormalization, relu, gemm."""
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", ["batch", 3, 4, 4])
    y = b.conv(x, weights(8, 3, 1, 1), name="conv")
    y = b.op("BatchNormalization", y, *(np.ones(8, np.float32) for _ in range(4)), name="bn")
    y = b.op("Flatten", b.op("Relu", y, name="relu"))
    b.output(b.gemm(y, weights(128, 5), weights(5), name="fc"), name="y")
    path = tmp_path / "tiny.onnx"
    save(b.build(), path)
    return path


def test_help_lists_every_command(call: Call) -> None:
    found = call("--help")
    assert all(f"\n  {name}" in found for name in cli.COMMANDS)


def test_no_arguments_shows_the_help(call: Call) -> None:
    assert call(code=2).startswith("usage: irc COMMAND")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help(call: Call, command: str) -> None:
    found = call(command, "--help")
    assert found.startswith(f"usage: irc {command}")
    assert call("help", command) == found


def test_version(call: Call) -> None:
    import irc

    assert call("--version") == f"irc {irc.__version__}\n"


@pytest.mark.parametrize("command", ["--help", "targets --help", "compile --help"])
def test_start_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from irc.cli.main import main; main(sys.argv[1:]);"
        "print(','.join(m for m in ('numpy','onnx','onnxruntime','tvm','rich','networkx') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == ""


def test_targets(call: Call) -> None:
    assert "native" in call("targets")
    found = json.loads(call("targets", "--json"))
    assert found["native"] in found["targets"]
    assert {"x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "arm", "aarch64"} <= set(found["targets"])


def test_passes(call: Call) -> None:
    assert "preset none" in call("passes")
    found = json.loads(call("passes", "--json"))
    assert "sparsity" in found["passes"]["prune"]["options"]
    assert set(found["presets"]) >= {"none", "speed", "balanced", "size"}
    assert list(json.loads(call("passes", "quantize", "--json"))["passes"]) == ["quantize"]


def test_doctor(call: Call) -> None:
    found = json.loads(call("doctor", "--json"))
    assert found["good"]
    states = {f["what"]: f["state"] for f in found["findings"]}
    assert states["code generator"] == "good"


def test_inspect_a_model(call: Call, model: Path) -> None:
    assert "BatchNormalization" in call("inspect", model)
    found = json.loads(call("inspect", model, "--dim", "batch=2", "--json"))
    assert found["operators"]["Conv"] == 1
    conv = next(layer for layer in found["layers"] if layer["name"] == "conv")
    assert (conv["parameters"], conv["macs"]) == (24, 2 * 8 * 3 * 16)


def test_opt_writes_a_model_that_gives_the_same(call: Call, model: Path, tmp_path: Path) -> None:
    from irc.evaluation.oracle import Oracle

    out = tmp_path / "out.onnx"
    found = json.loads(call("opt", model, "-o", out, "--json"))
    assert found["after"]["nodes"] < found["before"]["nodes"]
    onnx.checker.check_model(str(out), full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    before, after = (Oracle(p).run({"x": x})["y"] for p in (model, out))
    # Folding the normalization rounds the weights once more: a few units in the last place of float32.
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_opt_prints_the_ir_on_stderr(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["opt", str(model), "-o", str(tmp_path / "o.irc"), "--print-ir-after", "fold-batchnorm"]) == 0
    assert "Conv" in capfd.readouterr().err
    assert "Conv" in (tmp_path / "o.irc").read_text()


def test_explain_says_what_fired(call: Call, model: Path) -> None:
    assert "fold-batchnorm" in call("explain", model)
    found = json.loads(call("explain", model, "--json"))
    assert any(p["pass"] == "fold-batchnorm" and p["changed"] for p in found["passes"])


def test_evaluate_a_model(call: Call, model: Path, tmp_path: Path) -> None:
    from irc.evaluation.oracle import Oracle

    x = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)
    labels = Oracle(model).run({"x": x})["y"].argmax(1)
    labels[0] = (labels[0] + 1) % 5
    data = tmp_path / "data.npz"
    np.savez(data, x=x, labels=labels)
    assert "top1 90.00 %" in call("evaluate", model, "--data", data)
    found: dict[str, Any] = json.loads(call("evaluate", model, "--data", data, "--original", model, "--json"))
    assert (found["score"], found["drop"], found["agreement"], found["samples"]) == (0.9, 0.0, 1.0, 10)


def test_stopping_after_the_passes_prints_the_ir(call: Call, model: Path, tmp_path: Path) -> None:
    found = call("compile", model, "--stop-after", "passes")
    assert "BatchNormalization" not in found
    assert "BatchNormalization" in call("compile", model, "--stop-after", "import")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.onnx"]
    json.loads(call("compile", model, "--stop-after", "passes", "-o", "out.onnx", "--json"))
    assert (tmp_path / "out.onnx").is_file()


def test_lines_end_without_blanks(call: Call, model: Path) -> None:
    """Where stdout is no terminal: what is compared or searched in has no padding."""
    for command in (["passes"], ["targets"], ["inspect", model], ["explain", model]):
        lines = call(*command).splitlines()
        assert len(lines) > 3
        assert [line for line in lines if line != line.rstrip()] == []
