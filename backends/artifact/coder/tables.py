"""Tables of frequencies: compact descriptions, and the numbers that encoder and decoder make of them.

A description holds logarithms of the frequencies: eighths of an octave, or coarser. Consecutive ones differ little and
are coded as differences. Weights of networks are spread smoothly around a centre, so a description may be mirrored, and
may hold only some points (knots at 0, 1, 2, 3, 4, 6, 8, 12, ...) of a curve of straight lines. For bytes of two 4-bit
numbers it describes the numbers, which are taken as independent.

All arithmetic is that of the decoder, in integers: both ends see the same frequencies on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from irc.backends.artifact.coder.bits import Bits, number_bits
from irc.ir.types import Array

ONE = 1 << 14
"""Sum of the frequencies of a table."""
OCTAVE = (32768, 35734, 38968, 42495, 46341, 50535, 55109, 60097)
LEVELS = 120
_WEIGHTS = np.array([*(OCTAVE[i & 7] << (i >> 3) >> 15 for i in range(LEVELS)), 0], np.int64)
_NUMBER_BITS = np.array([[number_bits(n, order) for n in range(2 * LEVELS + 2)] for order in range(4)])
_SCALES = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Table:
    """`codes` None: all symbols are equally frequent. Otherwise symbol `first + j` has code number j, or the line
    between the knots around j; `mirrored`: so has `first - j`. Code 0 is a symbol that does not occur, code c the level
    (c - 1) << scale."""

    codes: tuple[int, ...] | None = None
    first: int = 0
    size: int = 0
    mirrored: bool = False
    sparse: bool = False
    pairs: bool = False
    scale: int = 0

    @cached_property
    def frequencies(self) -> Array:
        """[256] integers with the sum ONE; 0 for symbols that do not occur."""
        return _normalized(self._weights())

    @property
    def starts(self) -> Array:
        """[256] first slot of each symbol. The most frequent one has the last slots."""
        f, most = self.frequencies, int(np.argmax(self._weights()))
        first: Array = np.cumsum(f) - f
        first[most + 1 :] -= f[most]
        first[most] = ONE - f[most]
        return first

    def _weights(self) -> Array:
        if self.codes is None:
            return np.ones(256, np.int64)
        codes = np.array(self.codes)
        levels = np.where(codes > 0, (codes - 1) << self.scale, LEVELS)
        if self.sparse:
            levels = _lines(levels, self.size)
        weights = _WEIGHTS[np.clip(levels, 0, LEVELS)]
        w = np.zeros(256, np.int64)
        mask = 15 if self.pairs else 255
        j = np.arange(self.size + 1)
        if self.mirrored:
            w[(self.first - j) & mask] = weights
        w[(self.first + j) & mask] = weights
        if not self.pairs:
            return w
        product = np.outer(w[:16], w[:16]).reshape(-1)
        return np.where((product > 0) & (product < 8192), 1, product >> 13)

    def write(self, out: Bits) -> None:
        """What the decoder's `table` reads."""
        if self.codes is None:
            out.bits(0, 1)
            return
        order = self._order()
        out.bits(1, 1)
        for flag in (self.mirrored, self.sparse, self.pairs):
            out.bits(int(flag), 1)
        out.bits(self.scale, 3)
        out.bits(order, 2)
        out.bits(int(self.first > 0), 1)
        if self.first:
            out.bits(self.first, 8)
        out.number(self.size, 4)
        out.number(self._top() - self.codes[0], 0)
        for before, code in zip(self.codes, self.codes[1:], strict=False):
            out.difference(code - before, order)

    @property
    def bits(self) -> int:
        """Length of the description."""
        if self.codes is None:
            return 1
        below = number_bits(self._top() - self.codes[0], 0)
        return 10 + 8 * (self.first > 0) + number_bits(self.size, 4) + below + self._cost(self._order())

    def _top(self) -> int:
        """The largest code."""
        return ((LEVELS - 1) >> self.scale) + 1

    def _order(self) -> int:
        return min(range(4), key=self._cost)

    def _cost(self, order: int) -> int:
        assert self.codes is not None
        steps = np.diff(np.array(self.codes))
        return int(_NUMBER_BITS[order, np.where(steps >= 0, 2 * steps, -2 * steps - 1)].sum())

    def cost(self, counts: Array) -> float:
        """Bits of symbols that occur `counts` [256] times; infinite where one of them has no frequency."""
        f = self.frequencies
        used = counts > 0
        if (f[used] == 0).any():
            return float("inf")
        return float((counts[used] * (14 - np.log2(f[used]))).sum())


UNIFORM = Table()


def _normalized(w: Array) -> Array:
    count = int((w > 0).sum())
    f = np.where(w > 0, 1 + w * (ONE - count) // int(w.sum()), 0)
    f[int(np.argmax(w))] += ONE - int(f.sum())
    return f


def _lines(levels: Array, size: int) -> Array:
    """Levels at the knots -> at all symbols. Quotients are rounded as in C, towards zero."""
    j, left, far = _between(size)
    rise = (levels[left + 1] - levels[left]) * j
    steps = np.where(rise >= 0, rise // far, -(-rise // far))
    return np.concatenate([levels[:1], levels[left] + steps])


@cache
def _between(size: int) -> tuple[Array, Array, Array]:
    """Of each symbol from 1 on: how far it is from the knot before it, that knot's number, and its distance to the
    next."""
    places = np.array(_knots(size))
    symbols = np.arange(1, size + 1)
    left = np.searchsorted(places, symbols) - 1
    return symbols - places[left], left, places[left + 1] - places[left]


def _knots(size: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16, ... below `size`, then `size`."""
    places, i = [0], 1
    while places[-1] < size:
        places.append(min(size, i if i < 2 else (2 + (i & 1)) << ((i >> 1) - 1)))
        i += 1
    return places


def fit(counts: Array, *, nibbles: Array | None = None, quick: bool = False) -> Table:
    """The table for symbols that occur `counts` [256] times with the fewest bits for itself and them together.

    `nibbles`: how often each half [16] of a byte occurs, where bytes are two 4-bit numbers. `quick`: tries few, for
    estimates.
    """
    best, least = UNIFORM, UNIFORM.bits + UNIFORM.cost(counts)
    for table in _candidates(counts, nibbles, (2,) if quick else _SCALES):
        bits = table.bits + table.cost(counts)
        if bits < least:
            best, least = table, bits
    return best


def _candidates(counts: Array, nibbles: Array | None, scales: Sequence[int]) -> Iterator[Table]:
    yield from _fits(counts, 256, scales)
    if nibbles is not None:
        for table in _fits(nibbles, 16, scales):
            yield replace(table, pairs=True)


def _fits(counts: Array, symbols: int, scales: Sequence[int]) -> Iterator[Table]:
    if not counts.any():
        return
    for first in (0, symbols // 2):
        around = np.roll(counts, -first)
        sides = around.copy()
        sides[1:] += around[:0:-1]
        mirrored = sides[: symbols // 2 + 1].astype(np.float64)
        mirrored[1 : symbols // 2] /= 2
        yield from _shapes(Table((), first, mirrored=True), mirrored, scales)
    # From the smallest symbol to the largest, as unsigned and as signed numbers.
    for start in (0, symbols // 2):
        line = np.roll(counts, -start)
        used = np.flatnonzero(line)
        low, high = int(used[0]), int(used[-1])
        yield from _shapes(Table((), (low + start) % symbols), line[low : high + 1].astype(np.float64), scales)


def _shapes(table: Table, counts: Array, scales: Sequence[int]) -> Iterator[Table]:
    """Descriptions of frequencies that fall off from symbol 0 of `counts`."""
    size = int(np.flatnonzero(counts)[-1])
    counts = counts[: size + 1]
    for width in (1, 3, 7):
        smooth = _smoothed(counts, width)
        with np.errstate(divide="ignore"):
            level = np.where(smooth > 0, 8 * np.log2(smooth / smooth.max()) + LEVELS - 1, -1.0)
        for scale in scales:
            coarse = np.clip(np.rint(level / (1 << scale)), 0, (LEVELS - 1) >> scale).astype(np.int64)
            codes = np.where(smooth > 0, coarse + 1, 0)
            yield replace(table, codes=tuple(map(int, codes)), size=size, scale=scale)
    if size < 6:
        return
    places = _knots(size)
    level = _at_knots(counts, places)
    for scale in scales:
        codes = np.clip(np.rint(level / (1 << scale)), 0, (LEVELS - 1) >> scale).astype(np.int64) + 1
        yield replace(table, codes=tuple(map(int, codes)), size=size, scale=scale, sparse=True)


def _smoothed(counts: Array, width: int) -> Array:
    """Means of `width` neighbours; the first and the last symbol stay as they are."""
    if width == 1 or counts.size < width + 2:
        return counts
    inner = counts[1:-1]
    half = width // 2
    padded = np.pad(inner, half, mode="edge")
    total = np.concatenate([[0.0], np.cumsum(padded)])
    out = counts.copy()
    out[1:-1] = (total[width:] - total[:-width]) / width
    return out


def _at_knots(counts: Array, places: list[int]) -> Array:
    """Levels at the knots: logarithms of the mean count around each."""
    means = []
    for i, place in enumerate(places):
        low = place if i == 0 else (places[i - 1] + place + 1) // 2
        high = place if i + 1 == len(places) else (place + places[i + 1]) // 2
        if i + 2 == len(places):
            high = max(place, min(high, places[-1] - 1))
        if i + 1 == len(places):
            low = place
        means.append(float(counts[low : high + 1].mean()))
    m = np.maximum(np.array(means), max(means) * 2.0 ** (-(LEVELS - 1) / 8))
    levels: Array = 8 * np.log2(m / m.max()) + LEVELS - 1
    return levels
