"""Peak memory of this process while something runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

_EVERY = 0.1  # seconds


class Peak:
    """`bytes`: the largest resident size of this process and its children inside the `with`, looked at ten times a
    second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self.bytes = max(self.bytes, resident(os.getpid()))


def resident(process: int) -> int:
    """Resident bytes of a process and all its children (Linux)."""
    total = 0
    for status in Path(f"/proc/{process}/task").glob("*/children"):
        total += sum(resident(int(child)) for child in status.read_text().split())
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:  # it has ended
        return total
    return total + pages * os.sysconf("SC_PAGE_SIZE")
