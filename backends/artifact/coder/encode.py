"""Weights of a program -> coded bytes: each blob by the model that takes least, tables shared where that pays.

Memory while decoding: the weights at their places, behind them what is decoded only to make other things.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.artifact.coder.bits import Bits
from irc.backends.artifact.coder.cluster import shared
from irc.backends.artifact.coder.models import Model, bytes_model, words_model
from irc.backends.artifact.coder.rans import LANES, encode_rounds
from irc.backends.artifact.coder.runs import (
    AID,
    BLOCK,
    END,
    PALETTE,
    SPREAD,
    TABLE,
    After,
    Run,
    Shape,
    byte_view,
    check_places,
    counts_of,
)
from irc.backends.artifact.coder.tables import ONE, Table, fit
from irc.backends.artifact.coder.words import POOLED, copies, palette_afters, palette_models, pool_model, pools
from irc.backends.program import Blob, Coded
from irc.ir.types import Array

SCRATCH = ONE + 4 * 256
"""Bytes that the decoder works with: symbols of the slots, ranges of the symbols."""
_SHAPES = 4
_PIECE = 1 << 22
"""Symbols at a time: what the encoder works on takes several bytes for each."""


def encode(blobs: Sequence[Blob], weights_bytes: int) -> Coded:
    """The coded section of `blobs`, which begin at multiples of 64 bytes of `weights_bytes`."""
    check_places(blobs)
    plan = _Plan(-(-weights_bytes // BLOCK))
    plan.add(sorted((b for b in blobs if b.data.nbytes), key=lambda b: b.offset))
    writer = _Writer()
    prices = writer.runs([run for model in plan.models for run in model.runs])
    for after in plan.afters:
        writer.after(after)
    meta, words = writer.finish()
    owned, palettes = _shares(plan.models, prices)
    tables = writer.table_bits / 8
    ends = len(words) - sum(owned.values()) - palettes
    others = (("tables", tables), ("operations", len(meta) - tables), ("palettes", palettes), ("ends", ends))
    return Coded(
        meta + words,
        len(meta),
        plan.blocks * BLOCK,
        SCRATCH,
        tuple(sorted(owned.items())),
        others,
        tuple(sorted({after.operation for after in plan.afters})),
    )


def _shares(models: Sequence[Model], prices: Sequence[Array]) -> tuple[dict[int, float], float]:
    """Bytes of words for each blob, by offset, and for palettes. `prices`: bits of each symbol, for all runs in
    order."""
    shares: dict[int, float] = {}
    palettes = 0.0
    in_order = iter(prices)
    for model in models:
        for run in model.runs:
            price, at = next(in_order), 0
            if not model.owners:
                palettes += float(price[run.symbols].sum()) / 8
            for offset, count in model.owners:
                counts = counts_of(run.symbols[at : at + count])
                shares[offset] = shares.get(offset, 0.0) + float(counts @ price) / 8
                at += count
    return shares, palettes


class _Plan:
    """What is decoded where, and what is made of it, in order. `blocks`: of memory."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.models: list[Model] = []
        self.afters: list[After] = []

    def _aid(self, size: int) -> int:
        """A new place behind everything, for `size` bytes."""
        place = self.blocks
        self.blocks += -(-size // BLOCK)
        return place

    def add(self, blobs: Sequence[Blob]) -> None:
        small = [b for b in blobs if b.data.itemsize > 1 and b.data.nbytes <= POOLED]
        self._large([b for b in blobs if not any(b is s for s in small)])
        palettes, found = pools(small)
        if palettes is not None:
            colours, numbers = self._aid(4 * palettes.colours.size), self._aid(palettes.numbers.size)
            models = palette_models(palettes, colours, numbers)
            self.models += models
            self.afters += [*models[0].after, After(AID, colours), After(AID, numbers), *palette_afters(palettes)]
        for pool in found:
            place = self._aid(pool.words.nbytes)
            model = pool_model(pool, place)
            self.models.append(model)
            self.afters += [*model.after, After(AID, place), *copies(pool)]

    def _large(self, blobs: Sequence[Blob]) -> None:
        """What is decoded to where it belongs."""
        marked: list[Model] = []
        for blob in blobs:
            place = blob.offset // BLOCK
            model = (
                bytes_model(place, byte_view(blob.data)) if blob.data.itemsize == 1 else words_model(place, blob.data)
            )
            model = replace(model, owners=((blob.offset, blob.data.nbytes),))
            self.models.append(model)
            if model.marks is None:
                self.afters += model.after
            else:
                marked.append(model)
        if marked:
            marks = [(m.marks, m.owners) for m in marked if m.marks is not None]
            place = self._aid(sum(m.size for m, _ in marks))
            at = 0
            for m, owners in marks:
                self.models.append(Model((Run(place, Shape(at, m.size), m),), owners=owners))
                at += m.size
            self.afters += [After(AID, place), *(after for model in marked for after in model.after)]


@dataclass
class _Part:
    """Symbols and the table that codes them."""

    symbols: Array
    table: Table


class _Writer:
    """Writes operations; keeps what the decoder keeps (place, block behind it, last shapes and count)."""

    def __init__(self) -> None:
        self._meta = Bits()
        self._parts: list[_Part] = []
        self._place = self._next = self._count = 0
        self._shapes: list[Shape | None] = [None] * _SHAPES
        self._newest = 0
        self.table_bits = 0

    def runs(self, runs: Sequence[Run]) -> list[Array]:
        """Codes them, those with a common table together. Gives the bits of each symbol there."""
        prices: list[Array] = [np.zeros(0)] * len(runs)
        groups = shared(runs)
        groups.sort(key=lambda g: min(runs[i].place for i in g.runs))
        for group in groups:
            table = fit(group.bytes, nibbles=group.halves)
            start = len(self._meta)
            self._meta.bits(TABLE, 5)
            table.write(self._meta)
            self.table_bits += len(self._meta) - start
            price = 14 - np.log2(np.maximum(table.frequencies, 1))
            for i in sorted(group.runs, key=lambda i: (runs[i].place, runs[i].shape.first)):
                self._run(runs[i], table)
                prices[i] = price
        return prices

    def _run(self, run: Run, table: Table) -> None:
        shape = run.shape
        self._meta.bits(1, 1)
        self._go(run.place)
        if shape in self._shapes:
            back = min(k for k in range(_SHAPES) if self._shapes[(self._newest - k) % _SHAPES] == shape)
            self._meta.bits(0, 2)
            self._meta.bits(back, 2)
        else:
            form = 2 if shape.step > 1 or shape.first else 1
            self._meta.bits(form, 2)
            if form > 1:
                self._meta.number(shape.first, 1)
            self._meta.number(shape.run, 6)
            if form > 1:
                self._meta.number(shape.step, 1)
            self._newest += 1
            self._shapes[self._newest % _SHAPES] = shape
        self._behind(shape.end)
        self._parts.append(_Part(run.symbols, table))

    def _go(self, place: int) -> None:
        if place == self._next:
            self._meta.bits(0, 1)
        elif place == self._place:
            self._meta.bits(0b10, 2)
        else:
            self._meta.bits(0b11, 2)
            self._meta.difference(place - self._next, 4)
        self._place = place

    def _behind(self, size: int) -> None:
        self._next = -(-(self._place * BLOCK + size) // BLOCK)

    def after(self, after: After) -> None:
        """An operation on what was decoded."""
        self._meta.bits(after.operation, 5)
        self._go(after.place)
        if after.operation == AID:
            return
        self._meta.bits(int(after.count != self._count), 1)
        if after.count != self._count:
            self._meta.number(after.count, 6)
            self._count = after.count
        if after.operation == SPREAD:
            self._meta.number(after.size, 4)
        self._behind(after.bytes)
        if after.operation == PALETTE:
            self._meta.number(after.size - 1, 1)

    def finish(self) -> tuple[bytes, bytes]:
        """The bits that say what to do, and the words."""
        self._meta.bits(END, 5)
        return self._meta.data(), encode_rounds(self._rounds())

    def _rounds(self) -> Iterator[tuple[Array, Array]]:
        """Frequency and first slot of every symbol, [rounds, LANES], in pieces. Runs fill whole rounds."""
        known: dict[Table, tuple[Array, Array]] = {}
        for part in self._parts:
            if part.table not in known:
                f = part.table.frequencies
                known[part.table] = f.astype(np.uint16), part.table.starts.astype(np.uint16)
            f, s = known[part.table]
            for begin in range(0, part.symbols.size, _PIECE):
                symbols = part.symbols[begin : begin + _PIECE]
                rest = -symbols.size % LANES
                frequency = np.pad(f[symbols], (0, rest), constant_values=ONE)
                yield frequency.reshape(-1, LANES), np.pad(s[symbols], (0, rest)).reshape(-1, LANES)
