"""Ways to code bytes and words. Each that fits is tried; what takes fewest bits is kept. All give back every bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from irc.backends.artifact.coder.runs import (
    SPREAD,
    SUM16,
    SUM32,
    ZIGZAG32,
    After,
    Run,
    Shape,
    byte_view,
    counts_of,
    entropy_bits,
    halves_of,
)
from irc.backends.artifact.coder.tables import fit
from irc.ir.types import Array

_PERIODS = (2, 4, 8, 16, 32, 64)
_LEAST_BLOCK = 4
_UNITS = (1, 2, 4, 8, 16, 32, 64)
_SLOW = 1 << 16
"""Bytes from which on units of less than 16 bytes, which are copied slowly, must gain more."""
_OPERATION_BITS = 20


@dataclass(frozen=True)
class Model:
    """`runs` are decoded, then `after` is done. `marks`: bits that say which units of the place are not zero, as bytes;
    they are decoded elsewhere. `owners`: offsets of the blobs that it codes, and how many symbols of each run are
    theirs, one after the other; none where it codes palettes."""

    runs: tuple[Run, ...]
    after: tuple[After, ...] = ()
    marks: Array | None = None
    owners: tuple[tuple[int, int], ...] = ()


def bytes_model(place: int, raw: Array) -> Model:
    """For weights of a byte, or parts of one."""
    halves = _alike(*_half_entropies(counts_of(raw)))
    best = Model((Run(place, Shape(0, raw.size), raw, halves),))
    least = run_bits(best.runs[0])
    for unit, kept in _marked(raw):
        model = _spread(place, raw, unit, kept, halves)
        assert model.marks is not None
        bits = model_bits(model) + run_bits(Run(0, Shape(0, model.marks.size), model.marks)) + _OPERATION_BITS
        if bits < least * (0.98 if unit < 16 and raw.size > _SLOW else 1):
            best, least = model, bits
    return best


def _marked(raw: Array) -> Iterator[tuple[int, Array]]:
    """Sizes of units, and which of them are kept: those with something else than zeros (blocks that were pruned), or
    all but those that are zeros at the same place of every period (what fills up vectors)."""
    some = raw != 0
    for unit in _UNITS:
        if raw.size % unit:
            return
        used = some.reshape(-1, unit).any(axis=1)
        if used.all() or not used.any():
            return  # larger units have something in them, too
        if unit >= _LEAST_BLOCK:
            yield unit, used
        for period in _PERIODS:
            if used.size % period or used.size < 4 * period:
                break
            regular = used.reshape(-1, period).any(axis=0)
            if not regular.all():
                yield unit, np.tile(regular, used.size // period)
                break


def _spread(place: int, raw: Array, unit: int, kept: Array, halves: bool) -> Model:
    symbols = raw.reshape(-1, unit)[kept].reshape(-1)
    run = Run(place, Shape(raw.size - symbols.size, symbols.size), symbols, halves)
    return Model((run,), (After(SPREAD, place, kept.size, unit),), np.packbits(kept, bitorder="little"))


def looks_packed(counts: Array) -> bool:
    """Whether bytes are two 4-bit numbers of the same kind: then both halves are spread alike, around a centre, and
    independent (but for what so few symbols show by chance; G. Miller, "Note on the bias of information estimates",
    1955)."""
    low, high, both = _half_entropies(counts)
    chance = 0.72 * int((counts > 0).sum()) + 32
    centred = max(low, high) < 3.85 * int(counts.sum())
    return both > 8 * chance and centred and _alike(low, high, both) and low + high < 1.03 * both + chance


def _half_entropies(counts: Array) -> tuple[float, float, float]:
    """Bits of the lower halves of bytes, of the upper halves, and of both together."""
    square = counts.reshape(16, 16)
    return entropy_bits(square.sum(0)), entropy_bits(square.sum(1)), entropy_bits(counts)


def _alike(low: float, high: float, both: float) -> bool:
    """Whether a table of halves, which is small, may be the best one."""
    return both > 0 and abs(low - high) < 0.1 * max(low, high) and low + high < 1.1 * both + 64


def words_model(place: int, data: Array) -> Model:
    """For numbers of two bytes and more: first bytes of all, second bytes of all, ..., of the numbers or of what
    changes from one to the next."""
    return min(_words_models(place, data), key=model_bits)


def _words_models(place: int, data: Array) -> Iterator[Model]:
    flat = np.ascontiguousarray(data).reshape(-1)
    size = flat.itemsize
    yield Model(planes(place, byte_view(flat), size))
    if size == 2:
        words = flat.view(np.uint16)
        change = np.diff(words, prepend=np.uint16(0))
        yield Model(planes(place, byte_view(change), 2), (After(SUM16, place, words.size),))
    if size == 4:
        words = flat.view(np.uint32)
        change = np.diff(words, prepend=np.uint32(0))
        zigzag, add = After(ZIGZAG32, place, words.size), After(SUM32, place, words.size)
        yield Model(planes(place, byte_view(_folded(words)), 4), (zigzag,))
        yield Model(planes(place, byte_view(change), 4), (add,))
        yield Model(planes(place, byte_view(_folded(change)), 4), (zigzag, add))


def _folded(words: Array) -> Array:
    """0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    n = words.view(np.int32)
    return ((n << 1) ^ (n >> 31)).view(np.uint32)


def planes(place: int, raw: Array, size: int) -> tuple[Run, ...]:
    """The first bytes of all words, their second bytes, ..."""
    columns = raw.reshape(-1, size)
    count = len(columns)
    return tuple(Run(place, Shape(i, count, size), np.ascontiguousarray(columns[:, i])) for i in range(size))


def model_bits(model: Model) -> float:
    """About what it takes, with tables of its own."""
    return sum(map(run_bits, model.runs)) + _OPERATION_BITS * len(model.after)


def run_bits(run: Run) -> float:
    counts = counts_of(run.symbols)
    table = fit(counts, nibbles=halves_of(counts) if run.halves else None, quick=True)
    return table.bits + table.cost(counts)
