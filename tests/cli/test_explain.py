"""What irc explain says of kernels: choices, predictions, what bounds them, what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from irc.backends.tvm.cache import code_digest
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.specs import LinearSpec
from irc.backends.tvm.tune.classes import choice_of, class_key, measured_on
from irc.backends.tvm.tune.records import Record, Records
from irc.cli import main as cli
from irc.driver.opt import optimize
from irc.export import save
from irc.ir.builder import GraphBuilder, weights
from irc.targets import TARGETS, get_target

Call = Callable[..., str]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> str:
        found = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert found == code, err
        return err if code else out

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A 5x5 convolution, the same 1x1 twice, a depthwise one, and a softmax that leaves nothing to choose."""
    b = GraphBuilder("net")
    y = b.op("Relu", b.conv(b.input("x", "float32", ["n", 8, 16, 16]), weights(32, 8, 5, 5), name="first"))
    for i in range(2):
        y = b.op("Relu", b.conv(y, weights(32, 32, 1, 1, seed=i), weights(32, seed=9 + i), name=f"twin{i}"))
    y = b.conv(y, weights(32, 1, 3, 3, seed=3), group=32, name="depth")
    b.output(b.op("Softmax", y, axis=1), name="y")
    path = tmp_path / "net.onnx"
    save(b.build(), path)
    return path


def test_each_kernel_has_its_choice_and_what_bounds_it(call: Call, model: Path) -> None:
    out = call("explain", model)
    line = next(x for x in out.splitlines() if "linear 5x5 8->32 at 12x12" in x)
    assert "multiply-adds" in line
    assert "first" in line
    assert "depthwise 3x3 32 at 10x10" in out
    assert "leave nothing to choose" in out


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "c"])  # C: nothing to choose
def test_json_has_all_of_it(call: Call, model: Path, target: str) -> None:
    rows = json.loads(call("explain", model, "--target", target, "--json"))["kernels"]
    by_text = {row["kernel"]: row for row in rows}
    assert len(by_text) == 3
    twin = next(row for text, row in by_text.items() if text.startswith("linear 32->32"))
    assert twin["calls"] == 2
    assert twin["nodes"][0] == "twin0"
    assert twin["cycles"] > 0
    assert max(twin["bound"].values()) <= twin["cycles"] * 1.001
    assert all(cycles["cycles"] > 0 and cycles["choice"] != twin["choice"] for cycles in twin["others"])
    assert by_text["depthwise 3x3 32 at 10x10 float32"]["cycles"] is None


def test_measured_times_are_shown(call: Call, model: Path) -> None:
    native = get_target("native")
    graph = optimize(model, "none", dims={"n": 1}).model.graph
    spec = next(c.spec for c in make_plan(graph, native).calls if isinstance(c.spec, LinearSpec))
    choice = {**choice_of(spec), "tile": [1, 2, 1]}
    found = Record(
        class_key(spec, native), measured_on(spec, native), code_digest(), choice, choice_of(spec), 3.1e-6, 3.6e-6
    )
    Records([found]).save(Path("r.json"))
    out = call("explain", model, "--tuning", "r.json")
    line = next(x for x in out.splitlines() if "linear 5x5" in x)
    assert "1x2x1" in line
    assert "tuned: 3.1 us instead of 3.6" in line


def test_models_that_cannot_be_planned_say_why(call: Call, tmp_path: Path) -> None:
    b = GraphBuilder("open")
    b.output(b.op("Relu", b.input("x", "float32", [1, "length"])), name="y")
    save(b.build(), tmp_path / "open.onnx")
    assert "no kernels: " in call("explain", tmp_path / "open.onnx")
    found = json.loads(call("explain", tmp_path / "open.onnx", "--json"))
    assert found["kernels"] == []
    assert "length" in found["kernels_note"]


def test_a_broken_record_file_is_refused(call: Call, model: Path) -> None:
    Path("r.json").write_text("[]")
    assert "no tuning records can be read" in call("explain", model, "--tuning", "r.json", code=2)
    assert "no such file" in call("explain", model, "--tuning", "none.json", code=2)


def test_zero_blocks_that_are_passed_over_and_those_that_are_not(call: Call, tmp_path: Path) -> None:
    b = GraphBuilder("net")
    few, some = weights(64, 64, 1, 1), weights(64, 64, 1, 1, seed=1)
    few[:, 8:] = 0
    some[:, 36:] = 0
    some[::2] *= some[::2] > 0
    y = b.conv(b.input("x", "float32", [1, 64, 16, 16]), few, name="few")
    b.output(b.conv(y, some[:16], name="scattered"), name="y")
    path = tmp_path / "zeros.onnx"
    save(b.build(), path)
    found = {k["nodes"][0]: k for k in json.loads(call("explain", path, "--target", "x86-64-v4", "--json"))["kernels"]}
    assert found["few"]["kernel"].startswith("sparse linear 64->64 at 1x256 float32; 12% of its ")
    assert found["few"]["choice"]["near"].endswith("columns near")
    assert "blocks are not zero" in found["scattered"]["kernel"]
    assert "columns near" in call("explain", path, "--target", "x86-64-v4")
