"""Reading the arrays of an .npz file front to back, a few rows at a time, in bounded memory.

An .npz file is a zip of .npy files (NumPy Enhancement Proposal 1). Rows are decompressed as they are asked for, so a
set of samples may be larger than memory. Pickled objects are never read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from irc.errors import DataError
from irc.ir.types import Array


@dataclass(frozen=True)
class Column:
    """One array whose first axis counts samples. `blocks(rows)` yields it in pieces of at most `rows` rows."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Callable[[int], Iterator[Array]]

    @staticmethod
    def of(name: str, array: Array) -> Column:
        """A column over an array that is in memory already."""

        def blocks(rows: int) -> Iterator[Array]:
            for start in range(0, len(array), rows):
                yield array[start : start + rows]

        return Column(name, array.dtype, tuple(array.shape), blocks)

    def whole(self) -> Array:
        """All of it. For small columns such as labels."""
        parts = list(self.blocks(4096))
        return np.concatenate(parts) if parts else np.empty(self.shape, self.dtype)


def open_npz(path: Path) -> dict[str, Column]:
    """The arrays of `path` by name. Raises DataError where the file is missing, no npz, or holds objects."""
    where = str(path)
    if not path.is_file():
        raise DataError("no such file", where=where, expected="an .npz file of samples", hint="numpy.savez(path, ...)")
    if not zipfile.is_zipfile(path):
        raise DataError("this is not an .npz file", where=where, expected="a file made by numpy.savez")
    columns: dict[str, Column] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".npy"):
                    column = _column(path, archive, member)
                    columns[column.name] = column
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise DataError(f"the file is damaged ({error})", where=where, expected="a file made by numpy.savez") from error
    if not columns:
        raise DataError("there is no array in it", where=where, expected="a file made by numpy.savez")
    return columns


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype), with `file` left at the first byte of data."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"npy version {version} is not known")


def _column(path: Path, archive: zipfile.ZipFile, member: str) -> Column:
    name = member.removesuffix(".npy")
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
    if dtype.hasobject:
        raise DataError(
            f"array '{name}' holds Python objects",
            where=str(path),
            expected="a plain numeric array",
            got=f"dtype {dtype}",
            hint="numpy.stack on the samples before numpy.savez",
        )
    if fortran and len(shape) > 1:
        with np.load(path, allow_pickle=False) as file:  # rows are not contiguous: it cannot be read in pieces
            return Column.of(name, file[name])

    def blocks(rows: int) -> Iterator[Array]:
        row = int(np.prod(shape[1:], dtype=np.int64))
        with zipfile.ZipFile(path) as again, again.open(member) as data:
            _header(data)
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                raw = data.read(count * row * dtype.itemsize)
                if len(raw) != count * row * dtype.itemsize:
                    raise DataError(f"array '{name}' ends too early", where=str(path), expected=f"{shape[0]} rows")
                yield np.frombuffer(raw, dtype).reshape(count, *shape[1:])

    return Column(name, dtype, shape, blocks)
