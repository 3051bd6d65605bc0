"""What rules of build systems use: --depfile, --library, --header, paths as they were given, silence."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from irc.cli import main as cli
from irc.driver.depfile import depfile, own_sources
from irc.errors import OptionError
from irc.export import save
from irc.ir.builder import GraphBuilder, weights

Call = Callable[..., str]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs irc in tmp_path and this process. Gives what it says: nothing on stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> str:
        found = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert found == code, err
        assert out == ""
        return err

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """models/net.onnx with external data, and models/x.npz."""
    folder = tmp_path / "models"
    folder.mkdir()
    b = GraphBuilder("net")
    x = b.input("x", "float32", [1, 64])
    b.output(b.gemm(x, weights(64, 32), weights(32, seed=1), name="fc"), name="y")
    save(b.build(), folder / "net.onnx", external=True)
    np.savez(folder / "x.npz", x=np.zeros((2, 64), np.float32))
    return folder / "net.onnx"


def rules(text: str) -> dict[str, list[str]]:
    """Target -> prerequisites, of a depfile whose names have no blanks."""
    lines = (line.partition(":") for line in text.replace("\\\n", "").splitlines() if line)
    return {target: after.split() for target, _, after in lines}


def test_compile_for_a_rule(call: Call, model: Path, kernel_cache: Path, tmp_path: Path) -> None:
    arguments = ("models/net.onnx", "--calibration", "models/x.npz", "--cache-dir", kernel_cache, "-q")
    assert call("compile", *arguments, "-o", "build/net", "--depfile", "build/net.d") == ""
    found = rules((tmp_path / "build" / "net.d").read_text())
    read = found.pop("build/net/lib/libnet.a")
    assert {"models/net.onnx", "models/x.npz"} < set(read)  # as they were given
    assert str((tmp_path / "models" / "net.onnx.data").resolve()) in read
    assert {str(path) for path in own_sources()} < set(read)
    assert found == {name: [] for name in read}  # so that a file which has gone is no error
    times = {path.stat().st_mtime_ns for path in (tmp_path / "build" / "net").rglob("*") if path.is_file()}
    assert len(times) == 1  # whichever file a rule names, none is older than another

    # Single files in place of the folder: the same bytes, and nothing else appears.
    assert call("compile", *arguments, "--library", "out/libnet.a", "--header", "out/net.h", "--depfile", "out/d") == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["d", "libnet.a", "net.h"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "models", "out"]
    folder = tmp_path / "build" / "net"
    assert (tmp_path / "out" / "libnet.a").read_bytes() == (folder / "lib" / "libnet.a").read_bytes()
    assert (tmp_path / "out" / "net.h").read_bytes() == (folder / "include" / "net.h").read_bytes()
    assert next(iter(rules((tmp_path / "out" / "d").read_text()))) == "out/libnet.a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--header", "other.h"), "expected a file named net.h"),
        (("--library", "models"), "--library is a folder"),
        (("--depfile", "d", "--stop-after", "plan"), "--depfile is for whole compilations"),
        (("--depfile", "models/net.onnx/d"), "is no folder"),
        (("--header", "net.h", "--emit", "archive"), "--emit with header"),
        (("--emit", "arduino,shared", "--target", "cortex-m4"), "no place for it; got shared"),
        (("--emit", "archive,shared", "--target", "wasm32"), "there are no shared libraries for target wasm32"),
    ],
)
def test_places_that_cannot_be(options: tuple[str, ...], message: str, call: Call, model: Path) -> None:
    assert message in call("compile", model, *options, code=2)


def test_a_library_that_is_not_emitted(call: Call, model: Path, kernel_cache: Path, tmp_path: Path) -> None:
    arguments = ("compile", model, "--cache-dir", kernel_cache, "-q", "--library", "l.a", "--emit", "header")
    assert "--emit with archive" in call(*arguments, code=2)
    assert not (tmp_path / "l.a").exists()


def test_empty_folders_are_no_obstacle(call: Call, model: Path, kernel_cache: Path, tmp_path: Path) -> None:
    """CMake makes the folder of the header before there is one. A file in it is somebody's."""
    (tmp_path / "o" / "include").mkdir(parents=True)
    call("compile", model, "--cache-dir", kernel_cache, "-q", "-o", "o")
    (tmp_path / "p" / "include").mkdir(parents=True)
    (tmp_path / "p" / "include" / "mine.h").touch()
    assert "files that irc did not write" in call("compile", model, "-q", "-o", "p", code=2)


def test_names_are_escaped_for_make(tmp_path: Path, need_tool: Callable[..., str]) -> None:
    make = need_tool("make")
    names = [Path("plain"), Path("two words"), Path("a$b"), Path("a#b")]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "d").write_text(depfile([Path("a target")], names))
    (tmp_path / "Makefile").write_text("all: a\\ target\n\ninclude d\n\na\\ target:\n\t@echo made; touch '$@'\n")

    def made() -> bool:
        done = subprocess.run([make, "-s"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout == "made\n"

    assert made()
    assert not made()
    for name in names:
        newer = (tmp_path / "a target").stat().st_mtime_ns + 10**9
        os.utime(tmp_path / name, ns=(newer, newer))
        assert made(), name
        os.utime(tmp_path / name, ns=(0, 0))
        assert not made()
    (tmp_path / "plain").unlink()  # gone: made again, not refused
    assert made()


def test_an_upgrade_is_seen_by_the_path_of_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not by times alone: installers may keep those that the files had in a cache."""
    folder = tmp_path / "irc_compiler-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: irc-compiler\nVersion: 0.1.0\n")
    (folder / "RECORD").write_text("irc/__init__.py,,\nirc_compiler-0.1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert folder / "METADATA" in own_sources.__wrapped__()


def test_line_breaks_are_refused() -> None:
    with pytest.raises(OptionError, match="line break"):
        depfile([Path("a\nb")], [])
