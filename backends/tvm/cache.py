"""Content-addressed cache of compiled kernels: one file per key, written atomically, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CODE = ("*.py", "kernels/*.py", "library/*.py", "library/**/*.py", "source/*.py", "counting/*.py", "../c/*.py")


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/irc`, or `~/.cache/irc`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "irc"


def code_digest() -> str:
    """A hash over the sources that turn specifications into objects: a changed generator never meets old objects."""
    h = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted({p for pattern in _CODE for p in here.glob(pattern)}):
        h.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


@dataclass(frozen=True)
class Compiled:
    """An object file and what its compilation found out (scratch bytes of library kernels, ...)."""

    data: bytes
    info: dict[str, Any] = field(default_factory=dict)


class Cache:
    """`folder` None keeps nothing. A broken or unreadable entry counts as absent; an unwritable folder is ignored."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else folder / "kernels"

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / key

    def get(self, key: str) -> Compiled | None:
        if self.folder is None:
            return None
        try:
            head, _, data = self._path(key).read_bytes().partition(b"\n")
            info = json.loads(head)
        except (OSError, ValueError):
            return None
        if not isinstance(info, dict) or info.pop("sha256", None) != hashlib.sha256(data).hexdigest():
            return None
        return Compiled(data, info)

    def put(self, key: str, compiled: Compiled) -> None:
        if self.folder is None:
            return
        path = self._path(key)
        head = json.dumps({**compiled.info, "sha256": hashlib.sha256(compiled.data).hexdigest()}, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(head.encode() + b"\n" + compiled.data)
                os.replace(name, path)
            except OSError:
                os.unlink(name)
        except OSError:
            return
