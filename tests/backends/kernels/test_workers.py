"""Compiling in worker processes: a crash of LLVM costs one kernel, with a reproducer, and the next one compiles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kernel_cases as cases
import pytest

from irc.backends.tvm.cache import Cache
from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.specs import to_json
from irc.backends.tvm.workers import Compiler, Worker, kernel_error
from irc.errors import InternalError, OutputError
from irc.targets.catalogue import TARGETS

TARGET = TARGETS["x86-64"]
TRIPLE = f'target triple = "{TARGET.triple}"\n'
# LLVM ends the process: "Cannot select", an Arm instruction on x86
CRASH = {
    "kind": "assemble",
    "text": TRIPLE
    + """
declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
define <4 x i32> @f(<4 x i32> %a, <16 x i8> %b) {
  %r = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %a, <16 x i8> %b, <16 x i8> %b)
  ret <4 x i32> %r
}
""",
}
WRONG = {"kind": "assemble", "text": TRIPLE + "define void @f() {\n  not an instruction\n}\n"}
GOOD = {"kind": "assemble", "text": TRIPLE + "define void @f() {\n  ret void\n}\n"}


def quiet(what: str, done: int, total: int) -> None:
    return None


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    with Compiler(TARGET, Cache(None), 1) as made:
        yield made


def test_a_crash_costs_one_kernel(compiler: Compiler) -> None:
    spec = to_json(cases.elementwise("e", (5,), "float32", _copy(), [("float32", (1,))]).spec)
    kernel = {"kind": "kernel", "spec": spec, "symbol": "k"}
    done, failed = compiler.compile({"a": CRASH, "b": GOOD, "c": CRASH, "d": kernel}, quiet, str)
    assert set(done) == {"b", "d"}
    assert all(r.data.startswith(b"\x7fELF") for r in done.values())
    assert set(failed) == {"a", "c"}
    assert "ended with status" in failed["a"]["error"]


def _copy() -> tuple:
    b = ExpressionBuilder()
    return b.finish(b.operand(0, "float32"))


def test_an_error_is_an_answer(compiler: Compiler) -> None:
    done, failed = compiler.compile({"a": WRONG, "b": GOOD}, quiet, str)
    assert set(done) == {"b"}
    assert "LLVM rejects" in failed["a"]["error"]


def test_the_reproducer_shows_the_crash_again(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    _, failed = compiler.compile({"a": CRASH}, quiet, str)
    error = kernel_error("node 'conv1' (Conv)", CRASH, compiler.target_text, failed["a"])
    assert isinstance(error, InternalError)
    assert "node 'conv1' (Conv)" in str(error)
    folder = next(tmp_path.glob("irc-kernel-*"))
    assert str(folder) in str(error)
    assert {p.name for p in folder.iterdir()} >= {"request.json", "error.txt", "README.txt"}
    assert "Cannot select" in (folder / "error.txt").read_text()
    with (folder / "request.json").open() as request:
        again = subprocess.run([sys.executable, "-m", "irc.backends.tvm.worker"], stdin=request, capture_output=True)
    assert again.returncode != 0
    assert b"Cannot select" in again.stderr


def test_an_answer_cut_short_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it writes."""
    worker = Worker()
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(subprocess, "Popen", _half_an_answer(subprocess.Popen))
    reply = worker.ask({"kind": "kernel"})
    assert reply["ok"] is False
    assert reply["crash"] is True
    worker.close()


def _half_an_answer(real):
    def start(command: list[str], **options: object):
        return real(["/bin/sh", "-c", "read line; printf '{\"ok\": tr'; exit 9"], **options)

    return start


def test_results_go_through_the_cache(tmp_path: Path) -> None:
    with Compiler(TARGET, Cache(tmp_path), 2) as first:
        done, _ = first.compile({"ab" + "1" * 62: GOOD}, quiet, str)
    second = Compiler(TARGET, Cache(tmp_path), 2)

    def refuse(request: object) -> dict[str, object]:
        raise AssertionError("compiled again")

    for worker in second._workers:
        worker.ask = refuse  # type: ignore[method-assign]  # nothing may be asked
    again, failed = second.compile({"ab" + "1" * 62: GOOD}, quiet, str)
    assert again == done
    assert failed == {}


def test_progress_counts_to_the_end(compiler: Compiler) -> None:
    seen: list[tuple[str, int, int]] = []
    compiler.compile({"a": GOOD, "b": WRONG}, lambda *step: seen.append(step), str)
    assert seen[0] == ("kernels", 0, 2)
    assert seen[-1] == ("kernels", 2, 2)
    assert json.dumps(seen)


def test_a_full_disk_is_no_defect() -> None:
    reply = {"ok": False, "error": "the compiling process ended with status -6", "trace": "No space left on device"}
    error = kernel_error("node 'conv1' (Conv)", CRASH, "", reply)
    assert isinstance(error, OutputError)
    assert "TMPDIR" in str(error)


def test_a_reproducer_that_cannot_be_written_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_text", full)
    error = kernel_error("node 'conv1' (Conv)", CRASH, "", {"ok": False, "error": "LLVM rejects it", "trace": ""})
    assert "LLVM rejects it" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_what_a_crashed_process_left_goes_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = Worker()
    assert worker.ask({**GOOD, "target": Compiler(TARGET, Cache(None), 1).target_text})["ok"]
    (folder,) = tmp_path.iterdir()
    (folder / "m.ll").write_text("half a module")
    worker.kill()
    assert not worker.ask(GOOD)["ok"]
    worker.close()
    assert list(tmp_path.iterdir()) == []
