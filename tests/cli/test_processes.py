"""irc as a process of its own: signals, full disks and pipes that are closed. Nothing is left, not even processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from irc.export import save
from irc.ir.builder import GraphBuilder, weights

OF_ONNXRUNTIME = ".ses"
"""onnxruntime writes it into the temporary folder when it is imported."""


@dataclass(frozen=True)
class Place:
    """A folder to work in, one for temporary files, an empty kernel cache, and a model beside them."""

    work: Path
    temporary: Path
    cache: Path
    model: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.temporary), "XDG_CACHE_HOME": str(self.cache)}

    def left(self) -> list[str]:
        folders = (self.work, self.temporary)
        return sorted(p.name for f in folders for p in f.rglob("*") if p.name != OF_ONNXRUNTIME)

    def irc(self, *arguments: object, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
        """Runs irc in a shell, after `before` and with `after` behind the command."""
        command = f'{before}\n"$0" -m irc "$@" {after}'
        return subprocess.run(
            ["bash", "-c", command, sys.executable, *map(str, arguments)],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The model: several convolutions of different sizes, so that there is something to compile for a while."""
    folders = [tmp_path / name for name in ("work", "temporary", "cache")]
    for folder in folders:
        folder.mkdir()
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", [1, 3, 16, 16])
    for i, (before, after) in enumerate([(3, 8), (8, 16), (16, 24), (24, 32)]):
        x = b.op("Relu", b.conv(x, weights(after, before, 3, 3), weights(after), name=f"conv{i}"))
    b.output(x, name="y")
    save(b.build(), tmp_path / "tiny.onnx")
    return Place(*folders, tmp_path / "tiny.onnx")


def group(leader: int) -> Iterator[tuple[int, str]]:
    """Processes of a process group that have not ended: number and command line."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue
        if int(number) == leader and state != "Z":
            yield int(folder.name), command


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "irc: interrupted\n"), (signal.SIGTERM, 143, "irc: terminated\n")],
)
def test_interrupted_while_kernels_are_compiled(place: Place, number: signal.Signals, code: int, message: str) -> None:
    """As Ctrl-C does it: the signal reaches irc and its compiling processes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "irc", "compile", str(place.model), "--jobs", "2"],
        cwd=place.work,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that puts the tests into the background has them ignore SIGINT, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert wait_for(lambda: sum("tvm.worker" in c for _, c in group(process.pid)) == 2, 60)
        time.sleep(0.3)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (code, "", message)
        assert wait_for(lambda: not list(group(process.pid)), 5), "processes are left"
        assert place.left() == []
    finally:
        process.kill()


LIMIT = "ulimit -f 4  # blocks of 1 kB"
"""A disk that is full after 4 kB of a file: writing fails in the middle, as it does on a full disk."""

LIMITS = [("o.onnx", LIMIT), ("o.irc", "ulimit -f 0")]  # IR text is short


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, kernel_cache: Path) -> Path:
    from irc.cli import main as cli

    folder = tmp_path_factory.mktemp("made")
    b = GraphBuilder("wide")
    b.output(b.op("Relu", b.input("x", "float32", [1, 4096])), name="y")
    save(b.build(), folder / "wide.onnx")
    arguments = ["compile", folder / "wide.onnx", "-o", folder / "wide-irc", "--cache-dir", kernel_cache, "-q"]
    assert cli.main([str(a) for a in arguments]) == 0
    return folder / "wide-irc"


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a failure of the usual form."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("irc: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "defect" not in done.stderr
    return done.stderr


def test_full_disk_for_the_artifact(place: Place, artifact: Path, kernel_cache: Path) -> None:
    """Its kernel is in the cache: no temporary files are needed before the artifact is written."""
    model = artifact.parent / "wide.onnx"
    message = failed(place.irc("compile", model, "-o", "a/b", "--cache-dir", kernel_cache, before=LIMIT))
    assert "cannot write" in message
    assert place.left() == []


def test_full_disk_for_temporary_files(place: Place) -> None:
    failed(place.irc("compile", place.model, "--jobs", "1", before=LIMIT))
    assert place.left() == []


@pytest.mark.parametrize(("name", "limit"), LIMITS)
def test_full_disk_for_a_model(place: Place, name: str, limit: str) -> None:
    assert name in failed(place.irc("opt", place.model, "-o", name, before=limit))
    assert place.left() == []


@pytest.mark.parametrize(("name", "limit"), LIMITS)
def test_full_disk_keeps_the_older_model(place: Place, name: str, limit: str) -> None:
    (place.work / name).write_text("older")
    failed(place.irc("opt", place.model, "-o", name, before=limit))
    assert (place.work / name).read_text() == "older"
    assert place.left() == [name]


def test_full_disk_for_dumps(place: Place) -> None:
    """What was dumped before is whole and stays."""
    assert "00-start.onnx" in failed(place.irc("opt", place.model, "-o", "o.onnx", "--dump", "d", before=LIMIT))
    assert place.left() == ["00-start.irc", "d"]


@pytest.mark.parametrize("older", [True, False])
def test_full_disk_for_results(place: Place, artifact: Path, older: bool) -> None:
    np.savez(place.model.with_name("in.npz"), x=np.ones((1, 4096), np.float32))
    if older:
        (place.work / "out.npz").write_text("older")
    done = place.irc("run", artifact, "--inputs", place.model.with_name("in.npz"), "--outputs", "out.npz", before=LIMIT)
    assert "out.npz" in failed(done)
    assert place.left() == ["out.npz"] * older
    assert not older or (place.work / "out.npz").read_text() == "older"


def test_full_disk_for_the_cache_costs_only_the_cache(place: Place) -> None:
    """A cache in the place of which there is a file cannot be written either."""
    (place.cache / "irc").write_text("")
    done = place.irc("compile", place.model, "-q", "--jobs", "1", "--emit", "header")
    assert (done.returncode, done.stderr) == (0, "")
    assert (place.cache / "irc").read_text() == ""


@pytest.mark.parametrize("command", [["targets"], ["passes", "--json"], ["compile", "MODEL", "--stop-after", "import"]])
def test_full_disk_for_stdout(place: Place, command: list[str]) -> None:
    done = place.irc(*(place.model if a == "MODEL" else a for a in command), after="> /dev/full")
    assert "No space left" in failed(done)


@pytest.mark.parametrize("command", [["inspect", "MODEL"], ["compile", "MODEL", "--stop-after", "import"], ["passes"]])
def test_a_reader_that_stops_early_is_no_error(place: Place, command: list[str]) -> None:
    done = place.irc(*(place.model if a == "MODEL" else a for a in command), after="| head -c 1 > /dev/null")
    assert (done.returncode, done.stderr) == (0, "")
    assert place.left() == []


def test_a_script_without_a_main_guard(place: Place, kernel_cache: Path) -> None:
    script = place.model.with_name("script.py")
    script.write_text(
        "import irc\n"
        f"made = irc.compile({str(place.model)!r}, output='out', cache_dir={str(kernel_cache)!r}, workers=2)\n"
        "print(made.load().name)\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=place.work, env=place.environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny\n", "")
    assert {p.name for p in place.temporary.iterdir()} <= {OF_ONNXRUNTIME}
