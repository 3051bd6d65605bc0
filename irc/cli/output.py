"""Where output goes: results to stdout, everything else to stderr. rich is imported only when something is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]


def console() -> Console:
    """Results for people. Plain text of any width where stdout is no terminal."""
    from rich.console import Console

    return _console(Console, sys.stdout)


def errors() -> Console:
    """Notes, tables of errors and progress."""
    from rich.console import Console

    return _console(Console, sys.stderr)


def _console(make: type[Console], file: Any) -> Console:
    if file.isatty():
        return make(file=file, highlight=False, emoji=False, markup=False)
    # Without a terminal rich would fold everything at 80 columns, and spoil it for grep.
    trimmed = cast(IO[str], _Trimmed(file))
    return make(file=trimmed, highlight=False, emoji=False, markup=False, width=200)


class _Trimmed:
    """A text file that gets lines without the blanks that tables are filled with."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """`text`: whole lines, as rich writes them."""
        self._file.write("\n".join(line.rstrip(" ") for line in text.split("\n")))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def print_json(data: Mapping[str, Any]) -> None:
    """One document on stdout. NaN and infinities become text: JSON has none."""
    from irc.driver.options import json_safe

    json.dump(json_safe(data), sys.stdout, indent=2, allow_nan=False)
    print()


def note(text: str) -> None:
    """One line of information on stderr."""
    print(f"irc: note: {text}", file=sys.stderr)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """A progress callback; it draws a bar on stderr where that is a terminal and `quiet` is not asked for."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=errors(), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield update
