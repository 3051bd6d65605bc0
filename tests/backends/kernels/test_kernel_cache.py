"""The cache of compiled kernels: broken entries count as absent, a folder that cannot be written is ignored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from irc.backends.tvm.cache import Cache, Compiled, code_digest, default_cache_dir

KEY = "ab" + "0" * 62


def entry(folder: Path) -> Path:
    return folder / "kernels" / "ab" / KEY


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    kept = Compiled(b"object\n\x00\xff\ntwo", {"scratch": 128})
    Cache(tmp_path).put(KEY, kept)
    assert Cache(tmp_path).get(KEY) == kept
    assert Cache(tmp_path).get("cd" + KEY[2:]) is None
    assert [p.name for p in entry(tmp_path).parent.iterdir()] == [KEY], "no temporary files stay"


def test_no_folder_keeps_nothing() -> None:
    Cache(None).put(KEY, Compiled(b"x"))
    assert Cache(None).get(KEY) is None


BROKEN = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "no header": lambda data: b"\n" + data.partition(b"\n")[2],
    "header is no object": lambda data: b"[1, 2]\n" + data.partition(b"\n")[2],
    "header is a number": lambda data: b"7\n" + data.partition(b"\n")[2],
    "no hash": lambda data: b'{"scratch": 1}\n' + data.partition(b"\n")[2],
    "not utf-8": lambda data: b"\xff\xfe\n" + data,
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_entries_count_as_absent_and_are_replaced(how: str, tmp_path: Path) -> None:
    cache, kept = Cache(tmp_path), Compiled(b"an object", {"scratch": 1})
    cache.put(KEY, kept)
    entry(tmp_path).write_bytes(BROKEN[how](entry(tmp_path).read_bytes()))
    assert cache.get(KEY) is None
    cache.put(KEY, kept)
    assert cache.get(KEY) == kept


def test_a_folder_in_the_place_of_an_entry(tmp_path: Path) -> None:
    entry(tmp_path).mkdir(parents=True)
    cache = Cache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, Compiled(b"x"))
    assert cache.get(KEY) is None
    assert [p.name for p in entry(tmp_path).parent.iterdir()] == [KEY]


def test_a_folder_that_cannot_be_made_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    cache = Cache(file)
    cache.put(KEY, Compiled(b"x"))
    assert cache.get(KEY) is None
    assert file.read_text() == "not a folder"


def test_an_interrupted_write_leaves_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries appear by one rename: whoever reads sees the old or the new one."""
    cache = Cache(tmp_path)
    cache.put(KEY, Compiled(b"old"))

    def fail(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    cache.put(KEY, Compiled(b"new"))
    monkeypatch.undo()
    assert cache.get(KEY) == Compiled(b"old")
    assert [p.name for p in entry(tmp_path).parent.iterdir()] == [KEY]


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "irc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "irc"


def test_the_digest_covers_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another byte in a kernel's source, or in the library's, is another digest."""
    before = code_digest()
    assert code_digest() == before
    read = Path.read_bytes
    for name in ("emit.py", "codegen.py", "recurrent.py", "specs.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda p, n=name: read(p) + (b"#" if p.name == n else b""))
        assert code_digest() != before, name
        monkeypatch.undo()
