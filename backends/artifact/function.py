"""One kernel as a function of this process: for measuring it alone."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from types import TracebackType

from irc.backends.artifact import elf
from irc.backends.artifact.shared import shared_chunks
from irc.targets.target import Target


class Function:
    """`symbol` of a kernel's object, ready to be called with addresses. Linux only, as the loader of networks."""

    def __init__(self, data: bytes, symbol: str, target: Target) -> None:
        chunks = shared_chunks(elf.read_object(data), target)
        # The loader knows libraries by path, so that the file stays open as long as the function.
        self._fd = os.memfd_create("irc-kernel") if hasattr(os, "memfd_create") else _unnamed_file()
        try:
            with os.fdopen(self._fd, "wb", closefd=False) as file:
                file.writelines(chunks)
            self._library: ctypes.CDLL | None = ctypes.CDLL(f"/proc/self/fd/{self._fd}")
            self._call = self._library[symbol]
            self._call.restype = None
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def address(self) -> int:
        """Of its code: for functions that take functions."""
        return ctypes.cast(self._call, ctypes.c_void_p).value or 0

    def bind(self, addresses: Sequence[int]) -> list[ctypes.c_void_p | ctypes.c_int]:
        """Arguments for `__call__`: the whole of the work as part 0 of 1."""
        return [*(ctypes.c_void_p(a) for a in addresses), ctypes.c_int(0), ctypes.c_int(1)]

    def __call__(self, arguments: Sequence[ctypes.c_void_p | ctypes.c_int]) -> None:
        self._call(*arguments)

    def close(self) -> None:
        if self._library is None:
            return
        dlclose = ctypes.CDLL(None).dlclose
        dlclose.argtypes = [ctypes.c_void_p]
        handle, self._library = self._library._handle, None
        dlclose(handle)
        os.close(self._fd)

    def __enter__(self) -> Function:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
