"""The whole way through the command line: compile, run, verify, evaluate, bench, inspect, with the real backend."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import irc
from irc.cli import main as cli
from irc.evaluation.oracle import Oracle
from irc.export import save
from irc.ir.builder import GraphBuilder, weights

Call = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx (conv, relu, gemm; x [batch,3,8,8] -> y [batch,5]), data.npz and wrong.npz."""
    folder = tmp_path_factory.mktemp("work")
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", ["batch", 3, 8, 8])
    y = b.op("Relu", b.conv(x, weights(8, 3, 3, 3), weights(8, seed=1), pads=[1, 1, 1, 1], name="conv"), name="relu")
    b.output(b.gemm(b.op("Flatten", y), weights(512, 5, seed=2), weights(5, seed=3), name="fc"), name="y")
    save(b.build(), folder / "tiny.onnx")
    data = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    labels = Oracle(folder / "tiny.onnx").run({"x": data})["y"].argmax(1)
    np.savez(folder / "data.npz", x=data, labels=labels)
    return folder


@pytest.fixture(scope="module")
def artifact(work: Path, kernel_cache: Path) -> Path:
    out = work / "tiny-irc"
    arguments = ["compile", work / "tiny.onnx", "-o", out, "--cache-dir", kernel_cache, "--jobs", "1", "-q"]
    assert cli.main([str(a) for a in arguments]) == 0
    return out


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        found = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert found == code, err
        return out, err

    return run


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file below."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


def test_threads_are_compiled_in(call: Call, work: Path, kernel_cache: Path, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "pooled"
    text, _ = call("compile", work / "tiny.onnx", "-o", out, "--threads", 2, "--cache-dir", kernel_cache, "--jobs", 1)
    assert "a pool of 2" in text
    assert json.loads((out / "manifest.json").read_text())["interface"]["threads"] == 2
    assert "a pool of 2" in call("inspect", out)[0]
    x = np.load(work / "data.npz")["x"][:1]
    processors = len(os.sched_getaffinity(0))
    with irc.load(artifact) as alone, irc.load(out) as pooled, irc.load(out, threads=1) as one:
        assert (alone.threads, pooled.threads, one.threads) == (1, min(2, processors), 1)
        for network in (pooled, one):
            np.testing.assert_array_equal(network(x), alone(x))
        alone.use_threads(2)
        np.testing.assert_array_equal(alone(x), pooled(x))
    np.savez(tmp_path / "x.npz", x=x)
    for threads in ((), ("--threads", 2)):
        call("run", out, "--inputs", tmp_path / "x.npz", "--outputs", tmp_path / "y.npz", *threads)
    _, error = call("run", out, "--inputs", tmp_path / "x.npz", "--threads", 0, code=2)
    assert "threads must be at least 1" in error


def test_bare_compile_writes_beside_you(
    call: Call, work: Path, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernel_cache.parent))
    out, err = call("compile", work / "tiny.onnx", "--cache-dir", kernel_cache)
    assert err == ""
    assert "tiny-irc" in out
    assert "verified" in out
    assert (tmp_path / "tiny-irc" / "lib" / "libtiny.a").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-irc"]


def test_json_is_alone_on_stdout(call: Call, work: Path, kernel_cache: Path, tmp_path: Path) -> None:
    arguments = ("compile", work / "tiny.onnx", "-o", tmp_path / "o", "--cache-dir", kernel_cache, "--json")
    out, err = call(*arguments, "--name", "other", "--evaluation", work / "data.npz", "--max-drop", "0")
    found = json.loads(out)
    assert err == ""
    assert found["verification"]["where"] == "target"
    assert found["accuracy"]["score"] == 1.0
    assert found["directory"] == str(tmp_path / "o")
    assert (tmp_path / "o" / "include" / "other.h").is_file()


def test_manifest(artifact: Path, work: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    source = (work / "tiny.onnx").read_bytes()
    assert manifest["irc"] == irc.__version__
    assert manifest["model"] == {"file": "tiny.onnx", "sha256": hashlib.sha256(source).hexdigest()}
    assert manifest["verification"]["against"]["onnxruntime on the original"][0]["relative"] < 1e-4
    assert manifest["interface"]["inputs"][0]["shape"] == [1, 3, 8, 8]
    assert set(manifest["files"]) == set(tree(artifact)) - {"manifest.json"}
    assert str(work) not in "".join(p.read_text(errors="replace") for p in artifact.rglob("*") if p.is_file())


def test_same_bytes_in_another_process_and_folder(
    artifact: Path, kernel_cache: Path, work: Path, tmp_path: Path
) -> None:
    """From the pass text of the manifest, with another hash seed."""
    text = json.loads((artifact / "manifest.json").read_text())["pipeline"]
    command = ["compile", work / "tiny.onnx", "--passes", text, "--cache-dir", kernel_cache, "-o", "deep/er", "-q"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-m", "irc", *map(str, command)], cwd=tmp_path, check=True, env=environment)
    assert tree(tmp_path / "deep" / "er") == tree(artifact)


def test_an_artifact_is_replaced(call: Call, artifact: Path, work: Path, kernel_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    base = ("compile", work / "tiny.onnx", "-o", out, "--cache-dir", kernel_cache, "-q")
    call(*base, "--name", "first")
    call(*base, "--name", "second", "--emit", "header,object")
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["manifest.json", "second.h", "second.o"]


@pytest.mark.parametrize("phase", ["plan", "kernels"])
def test_stopping_early_shows_the_kernels(
    call: Call, work: Path, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out, _ = call("compile", work / "tiny.onnx", "--stop-after", phase, "--cache-dir", kernel_cache)
    assert "conv, relu" in out
    assert list(tmp_path.iterdir()) == []


def test_run(call: Call, artifact: Path, work: Path, tmp_path: Path) -> None:
    call("run", artifact, "--inputs", _inputs(work, tmp_path), "--outputs", tmp_path / "out.npz")
    with np.load(work / "data.npz") as data, np.load(tmp_path / "out.npz") as got:
        expected = Oracle(work / "tiny.onnx").run({"x": data["x"]})["y"]
        assert got["y"].shape == (20, 5)
        # Sums of 512 products in another order.
        np.testing.assert_allclose(got["y"], expected, atol=1e-5 * np.abs(expected).max())


def _inputs(work: Path, folder: Path) -> Path:
    path = folder / "in.npz"
    with np.load(work / "data.npz") as data:
        np.savez(path, x=data["x"])
    return path


def test_run_with_the_wrong_type(call: Call, artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, x=np.zeros((1, 3, 8, 8)))
    assert "float64" in call("run", artifact, "--inputs", path, code=2)[1]


def test_run_onto_a_full_disk(
    call: Call, artifact: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    inputs = _inputs(work, tmp_path)
    monkeypatch.setattr("numpy.savez", full)
    assert "No space left" in call("run", artifact, "--inputs", inputs, "--outputs", tmp_path / "out.npz", code=2)[1]
    assert not (tmp_path / "out.npz").exists()


def test_compile_onto_a_full_disk(
    call: Call, work: Path, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the very end, when everything lies beside the final place."""

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    out, err = call("compile", work / "tiny.onnx", "-o", tmp_path / "a" / "b", "--cache-dir", kernel_cache, code=2)
    assert out == ""
    assert "No space left" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_verify(call: Call, artifact: Path, work: Path) -> None:
    out, _ = call("verify", artifact, "--original", work / "tiny.onnx", "--json")
    assert set(json.loads(out)["against"]) == {"the exported IR", "the original"}


def test_verify_sees_a_changed_file(call: Call, artifact: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    header = copy / "include" / "tiny.h"
    header.write_text(header.read_text() + "\n")
    assert "tiny.h: a file of the artifact has been changed" in call("verify", copy, code=2)[1]
    header.unlink()
    assert "missing" in call("verify", copy, code=2)[1]


def test_evaluate(call: Call, artifact: Path, work: Path) -> None:
    out, _ = call("evaluate", artifact, "--data", work / "data.npz", "--original", work / "tiny.onnx", "--json")
    found = json.loads(out)
    assert (found["score"], found["drop"], found["agreement"]) == (1.0, 0.0, 1.0)


def test_inspect(call: Call, artifact: Path) -> None:
    assert "pipeline" in call("inspect", artifact)[0]
    assert json.loads(call("inspect", artifact, "--json")[0])["name"] == "tiny"


def test_bench(call: Call, artifact: Path, work: Path, kernel_cache: Path) -> None:
    quick = ("--seconds", "0.05", "--against", "onnxruntime")
    rows = json.loads(call("bench", artifact, *quick, "--json")[0])["runtimes"]
    assert [r["name"] for r in rows] == ["irc", "onnxruntime"]
    assert rows[0]["median_ms"] > 0
    assert "onnxruntime" in call("bench", work / "tiny.onnx", *quick, "--cache-dir", kernel_cache)[0]
    assert "compiled already" in call("bench", artifact, "--tuning", "records.json", "--preset", "none", code=2)[1]


def test_bench_layers(call: Call, artifact: Path, work: Path, kernel_cache: Path) -> None:
    quick = ["--layers", "--seconds", "0.02", "--cache-dir", kernel_cache, "--jobs", "1"]
    whole = json.loads(call("bench", work / "tiny.onnx", *quick, "--json")[0])
    rows = whole["layers"]
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert {name for row in rows for name in row["nodes"]} >= {"conv", "relu", "fc"}
    # conv: 8 x 8 places, 8 channels of 3 x 3 x 3; fc: 512 x 5
    assert whole["macs"] == sum(row["macs"] for row in rows) == 64 * 8 * 27 + 512 * 5
    assert abs(sum(row["us"] for row in rows) - whole["kernels_us"]) < 0.01 * len(rows)
    fc = next(row for row in rows if row["macs"] == 512 * 5)
    assert fc["written_bytes"] == 5 * 4
    assert fc["weights_bytes"] >= 513 * 5 * 4
    assert fc["bound"] in ("arithmetic", "memory", "neither")
    assert abs(fc["fraction"] - fc["gops"] / whole["peak"]["float32"]) < 0.01
    assert whole["weighted_fraction_by_type"].keys() == {"float32"}
    assert 0 < whole["weighted_fraction"] < 4  # Winograd's counts are those of the direct convolution

    text = call("bench", artifact, *quick, "--sort")[0]
    assert "linear 512->5" in text
    assert "weighted by multiply-adds" in text
    times = [row["us"] for row in json.loads(call("bench", artifact, *quick, "--sort", "--json")[0])["layers"]]
    assert times == sorted(times, reverse=True)
    assert "without --threads" in call("bench", artifact, "--layers", "--threads", "2", code=2)[1]
    assert "target aarch64" in call("bench", work / "tiny.onnx", "--layers", "--target", "aarch64", code=2)[1]


def test_over_budget(call: Call, work: Path, kernel_cache: Path, tmp_path: Path) -> None:
    """Half of the labels are wrong, but equally so for the original: no drop. A budget below zero is exceeded."""
    base = ("compile", work / "tiny.onnx", "-o", tmp_path / "o", "--cache-dir", kernel_cache)
    out, err = call(*base, "--evaluation", work / "data.npz", "--max-drop", "-1", code=3)
    assert out == ""
    assert "top1 drops by 0.00" in err
    assert "damage by layer" in err
    assert not (tmp_path / "o").exists()


def test_unsupported_operators_are_listed(call: Call, tmp_path: Path, kernel_cache: Path) -> None:
    b = GraphBuilder("odd")
    x = b.input("x", "float32", [4])
    y = b.op("Frobnicate", x, name="odd1", domain="my.own")
    z = b.op("Frobnicate", y, name="odd2", domain="my.own")
    b.output(z)
    z.type = y.type = x.type
    model = b.build(check=False)
    model.opsets["my.own"] = 1
    save(model, tmp_path / "odd.onnx")
    _, err = call("compile", tmp_path / "odd.onnx", "--cache-dir", kernel_cache, "-o", tmp_path / "o", code=2)
    assert "odd1" in err
    assert "odd2" in err


def test_python_interface(work: Path, kernel_cache: Path, tmp_path: Path) -> None:
    with np.load(work / "data.npz") as data:
        x, labels = data["x"], data["labels"]
    made = irc.compile(
        work / "tiny.onnx",
        output=tmp_path / "o",
        passes=irc.Pipeline.parse("none"),
        evaluation={"x": x, "labels": labels},
        cache_dir=kernel_cache,
        workers=1,
    )
    assert made.header.is_file()
    assert made.library.is_file()
    assert made.report is not None
    assert made.report.accuracy is not None
    net = irc.load(tmp_path / "o")
    expected = Oracle(work / "tiny.onnx").run({"x": x[:1]})["y"]
    np.testing.assert_allclose(net(x[:1]), expected, atol=1e-5)
    np.testing.assert_array_equal(net.run({"x": x[:1]})["y"], net(x[:1]))
    score = irc.evaluate(made, {"x": x, "labels": labels}, original=work / "tiny.onnx")
    assert (score.score, score.drop) == (1.0, 0.0)
    model = irc.load_model(work / "tiny.onnx")
    again = irc.compile(model, output=tmp_path / "again", cache_dir=kernel_cache, workers=1)
    np.testing.assert_array_equal(again.load()(x[:1]), net(x[:1]))
    assert model.graph.inputs[0].shape is not None
    assert not model.graph.inputs[0].shape.is_static, "the caller's model must stay as it was"


def test_python_interface_takes_texts_in_lists(work: Path, kernel_cache: Path, tmp_path: Path) -> None:
    from irc.passes.prune.prune import Prune

    made = irc.compile(
        work / "tiny.onnx",
        output=tmp_path / "o",
        passes=["fold-constants", Prune(sparsity=0.25, criterion="magnitude")],
        emit="header",
        cache_dir=kernel_cache,
        workers=1,
    )
    assert made.manifest["pipeline"] == "fold-constants,prune{sparsity=0.25 criterion=magnitude}"
    assert list(made.manifest["files"]) == ["include/tiny.h"]


def test_names_of_the_package() -> None:
    for name in irc.__all__:
        assert getattr(irc, name) is not None
        assert name in dir(irc)
    with pytest.raises(AttributeError, match="nothing"):
        irc.nothing  # noqa: B018
