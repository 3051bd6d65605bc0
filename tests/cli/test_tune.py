"""irc tune and --tuning: files, errors, and that records are used. What is faster here is not tested."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import irc
from irc.backends.tvm.tune import search as search_module
from irc.backends.tvm.tune.candidates import candidates
from irc.backends.tvm.tune.records import Records
from irc.backends.tvm.tune.search import Search
from irc.cli import main as cli
from irc.driver import tune as driver
from irc.export import save
from irc.ir.builder import GraphBuilder, weights
from irc.targets import TARGETS, get_target, runs_here

Call = Callable[..., tuple[str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs irc in this process, in an empty folder; gives stdout and stderr of a run with the expected exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        found = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert found == code, err
        return out, err

    return run


@pytest.fixture(scope="module", autouse=True)
def few_candidates() -> Iterator[None]:
    """Searches then end by themselves, long before their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "candidates", lambda spec, target: candidates(spec, target, 2))
        patch.setattr(search_module, "other_orders", lambda specs: [])
        patch.setattr(driver, "_CONFIRM", 0.2)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", ["batch", 3, 8, 8])
    y = b.op("Relu", b.conv(x, weights(8, 3, 3, 3), weights(8, seed=1), pads=[1, 1, 1, 1], name="conv"), name="relu")
    b.output(b.gemm(b.op("Flatten", y), weights(512, 5, seed=2), weights(5, seed=3), name="fc"), name="y")
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    save(b.build(), path)
    return path


@pytest.fixture(scope="module")
def records(model: Path, kernel_cache: Path) -> Path:
    """The tuning of `model`, with another tile in one record, so that it surely changes something."""
    path = model.parent / "records.json"
    arguments = ["tune", model, "--seconds", "30", "-o", path, "--cache-dir", kernel_cache, "--jobs", "1", "--json"]
    assert cli.main([str(a) for a in arguments]) == 0
    data = json.loads(path.read_text())
    conv = next(r for r in data["records"] if r["text"].startswith("linear 3x3"))
    conv["choice"]["tile"] = [1, 3, 1]
    path.write_text(json.dumps(data))
    return path


def tree(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


def test_records_are_written_and_shown(call: Call, model: Path, kernel_cache: Path) -> None:
    out, err = call("tune", model, "--seconds", "30", "-o", "t.json", "--cache-dir", kernel_cache, "--jobs", "1")
    assert err == ""
    assert "linear 3x3 3->8 at 8x8 float32" in out
    assert "--tuning t.json" in out
    found = Records.load(Path("t.json"))
    assert len(found) == found.current(get_target("native")) >= 1


def test_compile_uses_records_reproducibly(call: Call, model: Path, records: Path, kernel_cache: Path) -> None:
    common = (model, "--cache-dir", kernel_cache, "--jobs", "1")
    out, _ = call("compile", *common, "-o", "a", "--tuning", records)
    assert "tuning records: " in out
    call("compile", *common, "-o", "b", "--tuning", records, "-q")
    call("compile", *common, "-o", "plain", "-q")
    assert tree(Path("a")) == tree(Path("b"))
    assert tree(Path("a"))["lib/libtiny.a"] != tree(Path("plain"))["lib/libtiny.a"]
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with irc.load("a") as tuned, irc.load("plain") as plain:
        np.testing.assert_array_equal(tuned(x), plain(x))


def test_bench_takes_records(call: Call, model: Path, records: Path, kernel_cache: Path) -> None:
    out, _ = call(
        "bench", model, "--tuning", records, "--seconds", "0.05", "--cache-dir", kernel_cache, "--jobs", "1", "--json"
    )
    assert json.loads(out)["runtimes"][0]["name"] == "irc"


def test_old_records_are_named_and_not_used(call: Call, model: Path, records: Path, kernel_cache: Path) -> None:
    data = json.loads(records.read_text())
    for entry in data["records"]:
        entry["code"] = "another"
    Path("old.json").write_text(json.dumps(data))
    common = (model, "--cache-dir", kernel_cache, "--jobs", "1")
    out, _ = call("compile", *common, "-o", "a", "--tuning", "old.json")
    assert "another version of irc's code generator" in out
    call("compile", *common, "-o", "b", "-q")
    assert tree(Path("a"))["lib/libtiny.a"] == tree(Path("b"))["lib/libtiny.a"]


def test_a_file_that_exists_is_added_to(call: Call, model: Path, records: Path, kernel_cache: Path) -> None:
    data = json.loads(records.read_text())
    data["records"] = [{**data["records"][0], "target": "elsewhere"}]
    Path("t.json").write_text(json.dumps(data))
    call("tune", model, "--seconds", "30", "-o", "t.json", "--cache-dir", kernel_cache, "--jobs", "1")
    found = Records.load(Path("t.json"))
    assert any(r.target == "elsewhere" for r in found)
    assert found.current(get_target("native")) >= 1


def test_ctrl_c_writes_what_was_found(
    call: Call, model: Path, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = Search._best
    count = []

    def once(self: Search, *arguments: object) -> object:
        if count:
            raise KeyboardInterrupt
        count.append(1)
        return best(self, *arguments)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(Search, "_best", once)
    _, err = call("tune", model, "--seconds", "30", "--cache-dir", kernel_cache, "--jobs", "1", code=130)
    assert "interrupted" in err
    assert len(Records.load(Path("tuning.json"))) == 1


def test_models_that_leave_nothing_to_choose(call: Call, tmp_path: Path, kernel_cache: Path) -> None:
    b = GraphBuilder("plain")
    b.output(b.op("Relu", b.input("x", "float32", [1, 4])), name="y")
    save(b.build(), tmp_path / "plain.onnx")
    out, _ = call("tune", tmp_path / "plain.onnx", "--cache-dir", kernel_cache, "--jobs", "1")
    assert "no kernel of this model leaves anything to choose" in out
    assert not Path("tuning.json").exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_time_must_be_positive(call: Call, model: Path, seconds: str) -> None:
    _, err = call("tune", model, f"--seconds={seconds}", code=2)
    assert "--seconds must be more than 0" in err
    assert not Path("tuning.json").exists()


def test_other_machines_cannot_be_measured(call: Call, model: Path) -> None:
    foreign = next(t.name for t in TARGETS.values() if not runs_here(t))
    _, err = call("tune", model, "--target", foreign, code=2)
    assert f"kernels for target '{foreign}' cannot be measured on this machine" in err


@pytest.mark.parametrize("command", ["tune", "compile", "bench"])
def test_files_that_hold_no_records_are_refused(call: Call, model: Path, command: str) -> None:
    Path("r.json").write_text("{}")
    _, err = call(command, model, "-o" if command == "tune" else "--tuning", "r.json", code=2)
    assert "r.json: no tuning records can be read from this file" in err
    assert Path("r.json").read_text() == "{}"


def test_records_that_do_not_exist_are_named(call: Call, model: Path) -> None:
    _, err = call("compile", model, "--tuning", "none.json", code=2)
    assert "none.json: no such file" in err


def test_a_place_that_cannot_be_written_is_known_before_the_work(call: Call, model: Path) -> None:
    for path in (".", "missing/t.json"):
        _, err = call("tune", model, "-o", path, code=2)
        assert "cannot be written" in err


def test_the_same_from_python(model: Path, kernel_cache: Path, tmp_path: Path) -> None:
    done = irc.tune(model, tmp_path / "t.json", seconds=30, cache_dir=kernel_cache, workers=1)
    found = Records.load(tmp_path / "t.json")
    assert {r.kernel for r in done.records} == {r.kernel for r in found}
    made = irc.compile(
        model, output=tmp_path / "a", tuning=tmp_path / "t.json", cache_dir=kernel_cache, verify=False, workers=1
    )
    assert made.report is not None
    assert any(n.startswith("tuning records: ") for n in made.report.notes)
