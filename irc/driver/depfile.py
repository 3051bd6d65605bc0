"""What a compilation read, as a rule for make: build systems then know when to compile again.

The syntax is that of `gcc -MD -MP`, which make, Ninja, CMake and Meson read: `target: prerequisites`, and an empty
rule for each prerequisite, so that a file which is gone later leads to a new compilation and to no error.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, entry_points, files
from pathlib import Path
from typing import TYPE_CHECKING

import irc
from irc.errors import OptionError
from irc.pipeline.table import GROUP
from irc.targets.catalogue import ENTRY_POINTS

if TYPE_CHECKING:
    from irc.driver.compilation import Compilation

_CODE = (".py", ".c", ".cmake")


def depfile(targets: Iterable[Path], inputs: Iterable[Path]) -> str:
    """The text. Raises OptionError for a path that make cannot write."""
    names = [_escaped(path) for path in inputs]
    rule = f"{' '.join(map(_escaped, targets))}:" + "".join(f" \\\n  {name}" for name in names)
    return "\n\n".join([rule, *(f"{name}:" for name in names)]) + "\n"


def files_read(done: Compilation, more: Iterable[Path] = ()) -> list[Path]:
    """Model, external data, samples, statistics, records, the metric's module, `more`, and irc's own sources.

    Files that were named are given as they were named, all others by their full path. Sorted, each once.
    """
    options = done.options
    named = [options.calibration, options.evaluation, options.statistics, options.tuning]
    files = [*done.original.files, *(path for path in named if isinstance(path, Path)), *more]
    module = sys.modules.get(options.metric.partition(":")[0]) if ":" in options.metric else None
    if module is not None and module.__file__:
        files.append(Path(module.__file__))
    return sorted({*files, *own_sources()})


@functools.cache
def own_sources() -> tuple[Path, ...]:
    """The files irc itself consists of, with those of packages that add passes or targets: another version compiles
    differently.
    """
    folder = Path(irc.__file__).resolve().parent
    roots = [folder, *(folder / name for name in ("passes", "backends"))]  # these may be links, which rglob passes by
    found = {path for root in roots for path in root.rglob("*") if path.suffix in _CODE}
    for point in (*entry_points(group=GROUP), *entry_points(group=ENTRY_POINTS)):
        module = sys.modules.get(point.module)
        if module is not None and module.__file__:
            found.add(Path(module.__file__))
    return tuple(sorted({*found, *_installation()}))


def _installation() -> list[Path]:
    """A file with the version in its path, which goes with an upgrade: installers that link files from a cache (uv)
    give sources the times that they had there."""
    try:
        installed = files("irc-compiler") or []
    except PackageNotFoundError:  # run from its sources
        return []
    return [Path(str(path.locate())).resolve() for path in installed if path.name == "METADATA"]


def _escaped(path: Path) -> str:
    text = str(path)
    if "\n" in text:
        raise OptionError("a path with a line break cannot stand in a depfile", where=repr(text))
    return text.replace("$", "$$").replace("#", r"\#").replace(" ", r"\ ")
