"""Weights -> canonical Huffman codes, for small networks: more bits than rANS, and a decoder of some hundred bytes.

A group of blobs shares tables: one for all bytes, for the first, second, ... bytes of words, or for lower and upper
halves of bytes that hold two 4-bit numbers. A table is a symbol and how many codes each length has. Codes belong to the
symbols around the first one, 0, -1, 1, -2, 2, ... away from it: lengths never fall with the distance. Blocks of zeros
are passed over, and a symbol that is alone takes no bits.

`meta` names the groups and their places, the rest holds tables and codes; the last word makes the sum over all words 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from irc.backends.artifact.coder.models import looks_packed
from irc.backends.artifact.coder.runs import BLOCK, byte_view, check_places, counts_of, entropy_bits
from irc.backends.program import Blob, Coded
from irc.ir.types import Array

LONGEST = 11
"""Bits of a code, at most."""
SCRATCH = 2 << LONGEST
"""Bytes that the decoder works with: a symbol and a length for each word of LONGEST bits."""
_PIECE = 1023 * BLOCK  # elements of a region: counts have 16 bits
_TABLE_BITS = 70  # about
_RANKS = np.arange(256)
_AROUND = np.where(_RANKS & 1, -(_RANKS >> 1) - 1, _RANKS >> 1)
"""How far the symbol of each rank is from the first one."""


@dataclass
class _Region:
    """`data`, [elements, bytes], at a block. `owner`: offset of the blob."""

    place: int
    data: Array
    owner: int


@dataclass
class _Group:
    """`step`: bytes of an element. `planes`: [planes, 256], how often each symbol occurs."""

    step: int
    halves: bool
    regions: list[_Region]
    planes: Array


class _Stream:
    """Bits as arrays of values and of how many bits each has; the highest bit comes first."""

    def __init__(self) -> None:
        self._values: list[Array] = []
        self._counts: list[Array] = []
        self.size = 0

    def add(self, values: Array, counts: Array) -> None:
        self._values.append(values.astype(np.uint32))
        self._counts.append(counts.astype(np.int64))
        self.size += int(counts.sum())

    def number(self, value: int) -> None:
        """0 to 65534: four bits say how many follow."""
        count = (value + 1).bit_length() - 1
        self.add(np.array([count, value + 1 - (1 << count)]), np.array([4, count]))

    def data(self) -> bytes:
        parts = []
        for values, counts in zip(self._values, self._counts, strict=True):
            for at in range(0, values.size, 1 << 20):
                v, n = values[at : at + (1 << 20)], counts[at : at + (1 << 20)]
                bit = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
                parts.append((np.repeat(v, n) >> (np.repeat(n, n) - 1 - bit) & 1).astype(np.uint8))
        return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def encode_huffman(blobs: Sequence[Blob], weights_bytes: int) -> Coded:
    """The coded section of `blobs`, which begin at multiples of 64 bytes of `weights_bytes`."""
    check_places(blobs)
    groups = _merged([_group(blob) for blob in sorted(blobs, key=lambda b: b.offset) if blob.data.any()])
    meta, codes = _Stream(), _Stream()
    owned = {blob.offset: 0.0 for blob in blobs if blob.data.nbytes}
    tables = 0
    for group in groups:
        meta.number(2 * group.step + group.halves)
        place = 0
        for region in group.regions:
            meta.number(len(region.data))
            meta.number(region.place - place)
            place = region.place
        meta.number(0)
        for plane, counts in enumerate(group.planes):
            first, lengths = fit(counts, 16 if group.halves else 256)
            before = codes.size
            _write_table(codes, first, lengths)
            tables += codes.size - before
            words, sizes = _codes(first, lengths, 16 if group.halves else 256)
            for region in group.regions:
                symbols = _plane(region.data, plane, halves=group.halves)
                before = codes.size
                codes.add(words[symbols], sizes[symbols])
                owned[region.owner] += (codes.size - before) / 8
    meta.number(0)
    head = meta.data()
    body = head + codes.data()
    body += bytes(4 + -len(body) % 4)  # with the sum: eight bytes may be read wherever there is a bit
    data = body + _sum_of(body).to_bytes(4, "little")
    others = {"tables": tables / 8, "operations": float(len(head))}
    others["ends"] = len(data) - sum(others.values()) - sum(owned.values())
    return Coded(
        data,
        len(head),
        -(-weights_bytes // BLOCK) * BLOCK,
        SCRATCH,
        tuple(sorted(owned.items())),
        tuple(others.items()),
        coding="huffman",
    )


def _sum_of(data: bytes) -> int:
    """What the decoder's sum over `data` and this word makes 0."""
    total = 0
    for word in np.frombuffer(data, "<u4").tolist():
        total = (total << 5 | total >> 27) & 0xFFFFFFFF ^ word
    return (total << 5 | total >> 27) & 0xFFFFFFFF


# Groups


def _group(blob: Blob) -> _Group:
    step = blob.data.itemsize
    raw = byte_view(blob.data)
    halves = step == 1 and looks_packed(counts_of(raw))
    regions = list(_regions(blob.offset, raw, step))
    return _Group(step, halves, regions, _counts(regions, step, halves=halves))


def _regions(offset: int, raw: Array, step: int) -> Iterator[_Region]:
    """All but blocks of zeros; gaps have to be worth what a region takes."""
    padded = np.pad(raw, (0, -raw.size % BLOCK))
    used = np.flatnonzero(padded.reshape(-1, BLOCK).any(axis=1))
    for part in np.split(used, np.flatnonzero(np.diff(used) > 2) + 1):
        end = min(raw.size, (int(part[-1]) + 1) * BLOCK)
        for at in range(int(part[0]) * BLOCK, end, _PIECE * step):
            piece = raw[at : min(end, at + _PIECE * step)]
            yield _Region((offset + at) // BLOCK, piece.reshape(-1, step), offset)


def _plane(data: Array, plane: int, *, halves: bool) -> Array:
    if halves:
        half: Array = data[:, 0] >> 4 if plane else data[:, 0] & 15
        return half
    column: Array = data[:, plane]
    return column


def _counts(regions: Sequence[_Region], step: int, *, halves: bool) -> Array:
    return np.array(
        [sum(counts_of(_plane(r.data, i, halves=halves)) for r in regions) for i in range(2 if halves else step)]
    )


def _merged(groups: list[_Group]) -> list[_Group]:
    """Groups whose joint tables cost less than their own ones, the best pair first."""

    def bits(planes: Array) -> float:
        return sum(entropy_bits(counts) + _TABLE_BITS for counts in planes)

    own = [bits(g.planes) for g in groups]
    gains: dict[tuple[int, int], float] = {}

    def compare(i: int, j: int) -> None:
        a, b = groups[i], groups[j]
        if (a.step, a.halves) == (b.step, b.halves):
            gains[min(i, j), max(i, j)] = own[i] + own[j] - bits(a.planes + b.planes)

    live = set(range(len(groups)))
    for i in live:
        for j in range(i):
            compare(i, j)
    while gains:
        i, j = max(gains, key=lambda pair: gains[pair])
        if gains[i, j] <= 0:
            break
        a, b = groups[i], groups[j]
        regions = sorted(a.regions + b.regions, key=lambda r: r.place)
        groups[i] = _Group(a.step, a.halves, regions, a.planes + b.planes)
        own[i] = bits(groups[i].planes)
        live.discard(j)
        gains = {pair: gain for pair, gain in gains.items() if not {i, j} & set(pair)}
        for k in live - {i}:
            compare(i, k)
    return [groups[i] for i in sorted(live)]


# Tables


def fit(counts: Array, symbols: int) -> tuple[int, list[int]]:
    """The first symbol and the lengths of codes by rank, for symbols that occur `counts` times."""
    used = counts[:symbols]
    mean = float(np.angle((used * np.exp(2j * np.pi * np.arange(symbols) / symbols)).sum())) * symbols / (2 * np.pi)
    firsts = {0, int(used.argmax()), round(mean) % symbols, symbols // 2}
    found = []
    for first in sorted(firsts):
        ranked = used[(first + _AROUND[:symbols]) % symbols]
        ranked = ranked[: int(np.flatnonzero(ranked)[-1]) + 1].astype(np.float64)
        lengths = code_lengths(_falling(ranked))
        found.append((float(ranked @ np.array(lengths)), first, lengths))
    _, first, lengths = min(found)
    return first, lengths


def _falling(counts: Array) -> list[float]:
    """The nearest counts that never rise: neighbours that do are replaced by their mean (isotonic regression by pooling
    adjacent violators; M. Ayer et al., 1955)."""
    pools: list[tuple[float, int]] = []
    for count in counts.tolist():
        total, size = count, 1
        while pools and pools[-1][0] * size <= total * pools[-1][1]:
            before, many = pools.pop()
            total, size = total + before, size + many
        pools.append((total, size))
    return [total / size for total, size in pools for _ in range(size)]


def code_lengths(weights: Sequence[float]) -> list[int]:
    """Lengths of at most LONGEST bits of the best code for falling `weights`; 0 for a single one. Package-merge:
    L. Larmore and D. Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", 1990."""
    if len(weights) == 1:
        return [0]
    leaves = [(weight, (i,)) for i, weight in reversed(list(enumerate(weights)))]
    row: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(LONGEST):
        pairs = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(row[::2], row[1::2], strict=False)]
        row = sorted(leaves + pairs, key=lambda item: item[0])
    chosen = [i for _, package in row[: 2 * len(weights) - 2] for i in package]
    return sorted(np.bincount(chosen, minlength=len(weights)).tolist())


def _write_table(out: _Stream, first: int, lengths: Sequence[int]) -> None:
    out.number(first)
    for length in range(lengths[-1] + 1):
        out.number(lengths.count(length))


def _codes(first: int, lengths: Sequence[int], symbols: int) -> tuple[Array, Array]:
    """Code and length of each symbol, [256]; codes are numbers in order of their lengths."""
    sizes = np.zeros(256, np.int64)
    words = np.zeros(256, np.int64)
    n = np.array(lengths)
    slots = 1 << (LONGEST - n)
    where = (first + _AROUND[: n.size]) % symbols
    sizes[where] = n
    words[where] = (np.cumsum(slots) - slots) >> (LONGEST - n)
    return words, sizes
