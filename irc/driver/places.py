"""Where a rule of a build system wants things: single files beside, or in place of, the artifact's folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irc.backends.artifact.layouts import layout_of
from irc.driver.depfile import depfile, files_read
from irc.driver.options import check_parent
from irc.errors import OptionError

if TYPE_CHECKING:
    from irc.driver.compilation import Compilation
    from irc.driver.options import CompileOptions


@dataclass(frozen=True)
class Places:
    """Files that are wanted besides the folder: copies of the library and of the header, and the depfile.

    `folder` False: no folder is wanted, only these. `files`: what was read besides what the options name.
    """

    library: Path | None = None
    header: Path | None = None
    depfile: Path | None = None
    folder: bool = True
    files: tuple[Path, ...] = ()

    def check(self, options: CompileOptions) -> None:
        """Before the work, not after it. Raises OptionError."""
        wanted = {"--library": self.library, "--header": self.header, "--depfile": self.depfile}
        for name, path in wanted.items():
            if path is None:
                continue
            if options.stop_after is not None:
                raise OptionError(f"{name} is for whole compilations", hint="leaving out --stop-after")
            if path.is_dir():
                raise OptionError(f"{name} is a folder", where=str(path), expected="the name of a file")
            check_parent(path, f"another path with {name}")
        if self.library is not None and not _is_emitted(("archive", "object"), options):
            raise OptionError("there is no library to put anywhere", where="--library", hint="--emit with archive")
        if self.header is not None and not _is_emitted(("header",), options):
            raise OptionError("there is no header to put anywhere", where="--header", hint="--emit with header")
        if self.header is not None and self.header.name != f"{options.name}.h":
            raise OptionError(
                "the header is included by its name", where=str(self.header), expected=f"a file named {options.name}.h"
            )

    @contextmanager
    def options(self, options: CompileOptions) -> Iterator[CompileOptions]:
        """The options to compile with: a folder that goes at the end of the block, where none is wanted."""
        if self.folder:
            yield options
            return
        with tempfile.TemporaryDirectory(prefix="irc-") as folder:
            yield replace(options, output=Path(folder) / options.name)

    def write(self, done: Compilation) -> None:
        """Puts the files where they are wanted. Raises OutputError."""
        folder = done.options.directory
        main = folder / main_file(done.manifest)
        if self.library is not None:
            _copy(main, self.library)
        if self.header is not None:
            _copy(folder / str(_named(done.manifest, f"{done.manifest['name']}.h")), self.header)
        if self.depfile is not None:
            target = self.library or (main if self.folder else self.header) or main
            _write(self.depfile, depfile([target], files_read(done, self.files)).encode())


def main_file(manifest: dict[str, Any]) -> str:
    """What programs are linked with: the library, else the object, else the C source; without these the manifest.

    This is the target of the rule in the depfile, too.
    """
    name = manifest["name"]
    for wanted in (f"lib{name}.a", f"{name}.o", f"{name}.c"):
        found = _named(manifest, wanted)
        if found is not None:
            return found
    return "manifest.json"


def _named(manifest: dict[str, Any], name: str) -> str | None:
    """The path of a file in the artifact; the first where a layout holds several copies."""
    return min((path for path in manifest["files"] if Path(path).name == name), default=None)


def _is_emitted(parts: Sequence[str], options: CompileOptions) -> bool:
    """Whether one of these parts will be there. Layouts hold what programs are built with."""
    return bool(layout_of(options.emit)) or any(part in options.emit for part in parts)


def _copy(source: Path, place: Path) -> None:
    _write(place, source.read_bytes())


def _write(place: Path, data: bytes) -> None:
    from irc.backends.artifact.write import write_file

    write_file(Path(os.path.realpath(place)), [data])


def read_besides(paths: Iterable[str]) -> tuple[Path, ...]:
    """Those of these option values that name files (a target's description, for example)."""
    return tuple(Path(path) for path in paths if path.endswith(".toml") and Path(path).is_file())
