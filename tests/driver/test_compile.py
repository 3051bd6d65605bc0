"""What the driver decides: when to write, when not, and what the manifest says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irc.driver.checks import is_lossless
from irc.driver.compilation import Compilation
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions, default_name
from irc.errors import BudgetError, OptionError, VerificationError
from irc.ir.graph import Model
from irc.pipeline import PassContext, PassResult, Pipeline
from irc.targets import get_target


def compiled(model: Path, **options: Any) -> Compilation:
    options.setdefault("target", get_target("native"))
    options.setdefault("output", model.parent / "out")
    return compile_model(CompileOptions(model, **options))


def test_verified_on_the_ir_and_on_the_original(backend: Any, model_file: Path) -> None:
    done = compiled(model_file)
    verification = done.manifest["verification"]
    assert verification["where"] == "target"
    assert list(verification["against"]) == ["onnxruntime on the exported IR", "onnxruntime on the original"]
    for found in verification["against"].values():
        assert found[0]["name"] == "y"
        assert found[0]["relative"] <= 1e-5
    assert done.directory == model_file.parent / "out"


def test_default_batch_is_noted(backend: Any, model_file: Path) -> None:
    done = compiled(model_file)
    assert backend.built[0].graph.inputs[0].static_shape() == (1, 3, 8, 8)
    assert any("'n'" in note or "batch" in note for note in done.manifest["notes"])


def test_bound_batch(backend: Any, model_file: Path) -> None:
    compiled(model_file, dims={"n": 4})
    assert backend.built[0].graph.inputs[0].static_shape() == (4, 3, 8, 8)


def test_manifest_has_no_paths_and_no_times(backend: Any, model_file: Path) -> None:
    text = json.dumps(compiled(model_file).manifest)
    assert str(model_file.parent) not in text
    assert "seconds" not in text


def test_manifest_is_the_same_for_another_folder(backend: Any, model_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "tiny.onnx"
    other.parent.mkdir()
    other.write_bytes(model_file.read_bytes())
    assert json.dumps(compiled(model_file).manifest) == json.dumps(compiled(other).manifest)


def test_written_pipeline_text_is_the_one_that_ran(backend: Any, model_file: Path) -> None:
    text = compiled(model_file, passes="none").manifest["pipeline"]
    assert text == str(Pipeline.parse("none"))
    assert str(Pipeline.parse(text)) == text


@pytest.mark.parametrize("node", ["conv1", "conv2", "fc"])
def test_wrong_result_names_the_node_and_writes_nothing(backend: Any, model_file: Path, node: str) -> None:
    backend.spoil = node
    with pytest.raises(VerificationError) as caught:
        compiled(model_file)
    assert f"first node that diverges: node '{node}'" in str(caught.value)
    assert "exported IR" in str(caught.value)
    assert not (model_file.parent / "out").exists()


def test_wrong_only_as_a_whole(backend: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled second, for the search, is right: no node can be blamed."""
    backend.spoil = "conv1"
    build = backend.build

    def once(*args: Any, **kwargs: Any) -> Any:
        program = build(*args, **kwargs)
        backend.spoil = ""
        return program

    monkeypatch.setattr("irc.driver.lower.build_program", once)
    with pytest.raises(VerificationError, match="how the whole is fused or placed in memory"):
        compiled(model_file)


def test_wrong_pass_is_named(backend: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from irc.passes.clean.simplify import Simplify

    def wrong(self: Simplify, model: Model, ctx: PassContext) -> PassResult:
        fc = next(n for n in model.graph.nodes if n.is_op("Gemm"))
        bias = fc.need(2).numpy()
        if bias[0] == 7.0:
            return PassResult(False)
        model.graph.set_input(fc, 2, model.graph.add_constant(np.full_like(bias, 7.0), "bias"))
        return PassResult(True)

    monkeypatch.setattr(Simplify, "run", wrong)
    with pytest.raises(VerificationError, match="first pass that changes results: simplify") as caught:
        compiled(model_file)
    assert "original" in str(caught.value)


def test_unverified_only_when_asked(backend: Any, model_file: Path) -> None:
    backend.spoil = "conv1"
    done = compiled(model_file, verify=False)
    assert done.manifest["verification"] == {"where": "none", "reason": "the user refused (--no-verify)"}


def test_foreign_target_without_tools_is_checked_by_a_twin(
    backend: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = "arm" if get_target("native").arch == "x86-64" else "x86-64"
    target = replace(get_target(foreign), qemu="", linker="")
    verification = compiled(model_file, target=target).manifest["verification"]
    assert verification["where"] == "host-equivalent"
    assert "names no emulator" in verification["how"]


def test_calibration_samples_are_what_is_verified_on(
    backend: Any, model_file: Path, labelled: Callable[[int], Path]
) -> None:
    verification = compiled(model_file, calibration=labelled(5)).manifest["verification"]
    assert verification["data"] == "calibration"
    assert verification["samples"] == 3


def test_accuracy_goes_to_the_manifest(backend: Any, model_file: Path, labelled: Callable[[int], Path]) -> None:
    accuracy = compiled(model_file, evaluation=labelled(20), max_drop=0.0).manifest["accuracy"]
    assert (accuracy["metric"], accuracy["score"], accuracy["drop"], accuracy["agreement"]) == ("top1", 1.0, 0.0, 1.0)
    assert accuracy["data"]["file"] == "data.npz"


def test_lossy_pipelines_report_the_damage_by_layer(
    backend: Any, model_file: Path, labelled: Callable[[int], Path]
) -> None:
    assert compiled(model_file, evaluation=labelled(8), output=model_file.parent / "a").report.damage == []
    done = compiled(model_file, passes="none,quantize", calibration=labelled(8))
    assert {row["name"] for row in done.report.damage} >= {"conv1", "conv2", "fc"}
    assert all(row["snr_db"] > 15 for row in done.report.damage)  # 8 bits on a few layers


def test_over_budget_writes_nothing_and_shows_the_damage(
    backend: Any, model_file: Path, labelled: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that ruins the last layer, compiled faithfully: verified against the IR, and far from the original."""
    monkeypatch.setattr("irc.driver.checks.is_lossless", lambda pipeline: False)
    from irc.passes.clean.simplify import Simplify

    def ruin(self: Simplify, model: Model, ctx: PassContext) -> PassResult:
        fc = next(n for n in model.graph.nodes if n.is_op("Gemm"))
        if not fc.need(1).numpy().any():
            return PassResult(False)
        model.graph.set_input(fc, 1, model.graph.add_constant(np.zeros_like(fc.need(1).numpy()), "zero"))
        return PassResult(True)

    monkeypatch.setattr(Simplify, "run", ruin)
    with pytest.raises(BudgetError) as caught:
        compiled(model_file, passes="simplify", evaluation=labelled(50), max_drop=1.0)
    assert caught.value.exit_code == 3
    worst = max(caught.value.table, key=lambda row: row["share"])
    assert worst["name"] == "fc"
    assert "milder" in str(caught.value)
    assert not (model_file.parent / "out").exists()


@pytest.mark.parametrize("phase", ["import", "passes", "kernels"])
def test_stopping_writes_nothing(backend: Any, model_file: Path, phase: Any) -> None:
    done = compiled(model_file, stop_after=phase)
    assert done.directory is None
    assert (done.program is not None) == (phase == "kernels")
    assert not (model_file.parent / "out").exists()


def test_unknown_dimension_names_the_option(backend: Any, model_file: Path) -> None:
    with pytest.raises(OptionError, match="no dimension 'N'; try one of n"):
        compiled(model_file, dims={"N": 1})


def test_lossless_pipelines() -> None:
    assert is_lossless(Pipeline.parse("none"))
    assert is_lossless(Pipeline.parse(""))
    assert not is_lossless(Pipeline.parse("none,quantize"))


@pytest.mark.parametrize(("file", "name"), [("mobilenet-v2.1.onnx", "mobilenet_v2_1"), ("2d.onnx", "net_2d")])
def test_name_from_the_file(file: str, name: str) -> None:
    assert default_name(Path(file)) == name
