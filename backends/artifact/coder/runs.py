"""What is coded, before tables are chosen: runs of bytes at places of the memory, and what is made of them then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from irc.backends.program import Blob
from irc.errors import InternalError
from irc.ir.types import Array

END, TABLE, AID, COPY, ZIGZAG32, SUM16, SUM32, PALETTE, SPREAD = range(9)
BLOCK = 64
"""Blobs begin at multiples of this many bytes."""


def check_places(blobs: Sequence[Blob]) -> None:
    """Raises InternalError where a coder could not name the place of a blob."""
    if any(blob.offset % BLOCK for blob in blobs):
        raise InternalError(f"a weight does not begin at a multiple of {BLOCK} bytes")


@dataclass(frozen=True)
class Shape:
    """Bytes `first`, `first + step`, ... (`run` of them) of a place."""

    first: int
    run: int
    step: int = 1

    @property
    def end(self) -> int:
        """The byte behind the last one."""
        return self.first + 1 + self.step * (self.run - 1)


@dataclass(frozen=True)
class Run:
    """Symbols (bytes, in the order in which they are decoded) that share a table. `place`: a block. `halves`: bytes are
    two 4-bit numbers."""

    place: int
    shape: Shape
    symbols: Array
    halves: bool = False


@dataclass(frozen=True)
class After:
    """What is done after decoding: an operation on `count` words or units from block `place` on. `size`: bytes of a
    unit, or colours of a palette."""

    operation: int
    place: int
    count: int = 0
    size: int = 0

    @property
    def bytes(self) -> int:
        """Bytes that it makes."""
        return self.count * (2 if self.operation == SUM16 else self.size if self.operation == SPREAD else 4)


@dataclass
class Counts:
    """How often each symbol occurs in the runs that share a table."""

    bytes: Array
    halves: Array | None
    runs: list[int] = field(default_factory=list)


def counts_of(symbols: Array) -> Array:
    return np.bincount(symbols, minlength=256)[:256].astype(np.int64)


def halves_of(counts: Array) -> Array:
    """How often each 4-bit number occurs, [16], from counts of bytes."""
    square = counts.reshape(16, 16)
    total: Array = square.sum(0) + square.sum(1)
    return total


def entropy_bits(counts: Array) -> float:
    """Order-0 entropy of what occurs `counts` times, in bits for all together. C. E. Shannon, 1948."""
    n = counts[counts > 0].astype(np.float64)
    total = float(n.sum())
    return float(total * np.log2(total) - (n * np.log2(n)).sum()) if total else 0.0


def byte_view(data: Array) -> Array:
    """The bytes of an array, as they lie in memory."""
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
