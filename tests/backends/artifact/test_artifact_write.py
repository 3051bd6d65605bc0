"""The artifact directory: complete, the same bytes each time, all or nothing."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from irc.backends.artifact import write
from irc.backends.artifact.ar import Member, archive
from irc.backends.artifact.elf import joined
from irc.backends.artifact.write import write_artifact, write_directory, write_file
from irc.errors import OutputError


def _write(directory, program=None, **options):
    program = program or toy.toy()
    return write_artifact(
        program,
        directory,
        manifest={"pipeline": "none"},
        model_proto_bytes=b"model",
        report_html="<p>r\u00e9port</p>",
        glue_object=toy.assembled(program),
        **options,
    )


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everything_is_there_and_the_manifest_says_so(tmp_path):
    manifest = _write(tmp_path / "a")
    tree = _tree(tmp_path / "a")
    assert set(tree) == {
        *("include/toy.h", "include/toy.hpp", "lib/libtoy.a", "lib/shared/libtoy.so", "lib/cmake/toy/toy-config.cmake"),
        *("lib/pkgconfig/toy.pc", "toy.onnx", "report.html", "manifest.json"),
    }
    assert json.loads(tree["manifest.json"]) == manifest
    assert manifest["pipeline"] == "none"
    assert manifest["interface"]["workspace_bytes"] == 512
    assert manifest["interface"]["outputs"][1]["scale"] == 0.5
    for name, facts in manifest["files"].items():
        assert facts["bytes"] == len(tree[name])
        assert facts["sha256"] == hashlib.sha256(tree[name]).hexdigest()
        assert ("code" in facts) == name.endswith(".so")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_parts_can_be_chosen(tmp_path):
    _write(tmp_path / "a", emit={"object", "header"})
    assert set(_tree(tmp_path / "a")) == {"include/toy.h", "lib/toy.o", "manifest.json"}


def test_same_bytes_in_another_process_and_folder(tmp_path):
    _write(tmp_path / "a")
    saved = tmp_path / "program"
    program = toy.toy()
    saved.write_bytes(pickle.dumps((program, toy.assembled(program))))
    code = (
        "import pickle, sys\n"
        "from irc.backends.artifact.write import write_artifact\n"
        "program, glue = pickle.load(open(sys.argv[1], 'rb'))\n"
        "write_artifact(program, sys.argv[2], manifest={'pipeline': 'none'}, model_proto_bytes=b'model',\n"
        "               report_html='<p>r\\u00e9port</p>', glue_object=glue)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, saved, tmp_path / "deep" / "b"], check=True, env=env)
    assert _tree(tmp_path / "a") == _tree(tmp_path / "deep" / "b")


def test_an_artifact_is_replaced_whole(tmp_path):
    _write(tmp_path / "a", emit={"object", "header"})
    (tmp_path / "a" / "stray").write_text("left from before")
    _write(tmp_path / "a", emit={"archive"})
    assert "lib/toy.o" not in _tree(tmp_path / "a")
    assert "stray" not in _tree(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    _write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").is_file()


def test_what_is_not_ours_is_left_alone(tmp_path):
    for name, text in (("notes.txt", "mine"), ("manifest.json", '{"name": "a web app"}'), ("manifest.json", "junk")):
        folder = tmp_path / "f"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        with pytest.raises(OutputError, match="did not write"):
            _write(folder)
        assert _tree(folder)[name] == text.encode()
        (folder / name).unlink()
    _write(tmp_path / "f")  # empty now
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="not a folder"):
        _write(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        _write(tmp_path / "file" / "below")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "file"]


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, before):
    if before:
        _write(tmp_path / "deep" / "a")
    old = _tree(tmp_path)
    written = []
    complete = write._write

    def full(path, chunks):
        written.append(path)
        if len(written) == 4:
            path.write_bytes(b"some of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        complete(path, chunks)

    monkeypatch.setattr(write, "_write", full)
    with pytest.raises(OutputError, match="No space left on device"):
        _write(tmp_path / "deep" / "a")
    assert _tree(tmp_path) == old
    assert [p.name for p in tmp_path.iterdir()] == (["deep"] if before else [])


def test_a_failed_exchange_brings_the_old_one_back(tmp_path, monkeypatch):
    _write(tmp_path / "a")
    old = _tree(tmp_path)
    rename = Path.rename

    def failing(self, target):
        if Path(target).name == "a" and self.name != "old":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        _write(tmp_path / "a")
    assert _tree(tmp_path) == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_read_only_parent(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            _write(tmp_path / "a")
    finally:
        tmp_path.chmod(0o755)


def test_a_place_where_nothing_can_be_made():
    with pytest.raises(OutputError, match="/proc/irc"):
        write_directory(Path("/proc/irc/a"), {"x": [b""]})
    with pytest.raises(OutputError, match="/proc/irc"):
        write_file(Path("/proc/irc"), [b""])


def test_write_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.o"
    write_file(path, [b"one", b"two"])
    assert path.read_bytes() == b"onetwo"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def full(path, chunks):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(write, "_write", full)
    with pytest.raises(OutputError, match="No space"):
        write_file(path, [b"three"])
    assert path.read_bytes() == b"onetwo"
    assert [p.name for p in path.parent.iterdir()] == ["x.o"]
    with pytest.raises(OutputError, match="folder"):
        write_file(tmp_path / "deep", [b""])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_archives_are_what_ar_makes_of_them(tmp_path, tool):
    long = "a_name_longer_than_fifteen_letters.o"
    members = [Member("short.o", [b"odd"], ("f", "g")), Member(long, [b"ev", b"en"], ("h",))]
    path = tmp_path / "x.a"
    path.write_bytes(joined(archive(members)))
    assert tool("ar", "t", path).split() == ["short.o", long]
    assert tool("ar", "p", path, "short.o") == "odd"
    assert tool("ar", "p", path, long) == "even"


NAMES = ("init", "init_checked", "deinit", "set_parallel", "run", "info", "inputs", "outputs")


@pytest.mark.parametrize("arch", toy.TARGETS)
def test_nm_shows_only_the_interface(arch, tmp_path, tool):
    program = toy.toy(arch)
    _write(tmp_path / "a", program)
    text = tool("nm", "-g", "--print-armap", tmp_path / "a" / "lib" / "libtoy.a")
    rows = [line.split() for line in text.splitlines()]
    defined = {r[2] for r in rows if len(r) == 3 and r[1] in "TDR"}
    undefined = {r[1] for r in rows if len(r) == 2 and r[0] == "U"}
    assert undefined == {"expf", "sinf", "cosf"}
    assert defined == {f"toy_{x}" for x in NAMES}
    assert "toy_run in toy.o" in text


def test_a_program_without_weights(tmp_path):
    program = toy.chain("copy")
    assert dataclasses.replace(program).weights_bytes == 0
    manifest = _write(tmp_path / "a", program)
    assert manifest["interface"]["weights_bytes"] == 0
