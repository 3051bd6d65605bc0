"""Weights of a program -> coded bytes: each blob by the model that takes least, tables shared where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.artifact.coder.bits import Bits
from irc.backends.artifact.coder.cluster import shared
from irc.backends.artifact.coder.models import choose
from irc.backends.artifact.coder.rans import LANES, encode_rounds, starts
from irc.backends.artifact.coder.runs import BLOCK, CODED, END, PALETTE, SPREAD, TABLE, After, Model, Run, Shape
from irc.backends.artifact.coder.tables import ONE, Table, fit
from irc.backends.program import Blob, Coded, Program
from irc.ir.types import Array

SCRATCH = ONE + 4 * 256
"""Bytes that the decoder works with: symbols of the slots, ranges of the symbols."""
_SHAPES = 4


def coded_program(program: Program) -> Program:
    """`program` with its weights coded; as it is where it has none."""
    if not program.weights_bytes:
        return program
    return replace(program, coded=encode(program.weights, program.weights_bytes))


def encode(blobs: Sequence[Blob], weights_bytes: int) -> Coded:
    """The coded section of `blobs`, which begin at multiples of 64 bytes of `weights_bytes`."""
    blocks = -(-weights_bytes // BLOCK)
    models, aid = [], 0
    for blob in sorted(blobs, key=lambda b: b.offset):
        if not blob.data.nbytes:
            continue
        model = choose(blob, blocks + aid)
        models.append(model)
        aid += model.aid_blocks
    writer = _Writer()
    writer.models(models)
    meta, words = writer.finish()
    return Coded(meta + words, len(meta), (blocks + aid) * BLOCK, SCRATCH)


@dataclass
class _Part:
    """Symbols and the table that codes them."""

    symbols: Array
    rows: int
    table: Table


class _Writer:
    """Writes operations; keeps what the decoder keeps (place, block behind it, last shapes)."""

    def __init__(self) -> None:
        self._meta = Bits()
        self._parts: list[_Part] = []
        self._place = self._next = 0
        self._shapes: list[Shape | None] = [None] * _SHAPES
        self._newest = 0

    def models(self, models: Sequence[Model]) -> None:
        runs = [run for model in models for run in model.runs]
        groups = shared(runs)
        groups.sort(key=lambda g: min(runs[i].place for i in g.runs))
        for group in groups:
            table = fit(group.bytes, nibbles=group.halves)
            self._meta.bits(TABLE, 3)
            table.write(self._meta)
            for i in sorted(group.runs, key=lambda i: (runs[i].place, runs[i].shape.first)):
                self._run(runs[i], table)
        for model in models:
            for after in model.after:
                self._after(after)
        self._meta.bits(END, 3)

    def _run(self, run: Run, table: Table) -> None:
        shape = run.shape
        self._meta.bits(CODED, 3)
        self._go(run.place)
        if shape in self._shapes:
            back = min(k for k in range(_SHAPES) if self._shapes[(self._newest - k) % _SHAPES] == shape)
            self._meta.bits(0, 2)
            self._meta.bits(back, 2)
        else:
            form = 3 if shape.rows > 1 else 2 if shape.step > 1 or shape.first else 1
            self._meta.bits(form, 2)
            if form > 1:
                self._meta.number(shape.first, 1)
            self._meta.number(shape.run, 6)
            if form > 1:
                self._meta.number(shape.step, 1)
            if form > 2:
                self._meta.number(shape.rows, 4)
                self._meta.number(shape.stride, 4)
            self._newest += 1
            self._shapes[self._newest % _SHAPES] = shape
        self._next = -(-(run.place * BLOCK + shape.end) // BLOCK)
        self._parts.append(_Part(run.symbols, shape.rows, table))

    def _go(self, place: int) -> None:
        if place == self._next:
            self._meta.bits(0, 1)
        elif place == self._place:
            self._meta.bits(0b10, 2)
        else:
            self._meta.bits(0b11, 2)
            self._meta.difference(place - self._next, 4)
        self._place = place

    def _after(self, after: After) -> None:
        self._meta.bits(after.operation, 3)
        self._go(after.place)
        self._meta.number(after.count, 6)
        if after.operation == SPREAD:
            self._meta.number(after.size, 4)
        self._next = -(-(after.place * BLOCK + after.count * after.size) // BLOCK)
        if after.operation in (PALETTE, SPREAD):
            self._meta.number(after.aid, 6)

    def finish(self) -> tuple[bytes, bytes]:
        """The bits that say what to do, and the words."""
        return self._meta.data(), encode_rounds(*self._rounds())

    def _rounds(self) -> tuple[Array, Array]:
        """Frequency and first slot of every symbol, [rounds, LANES]. Rows fill whole rounds."""
        frequency: list[Array] = []
        start: list[Array] = []
        known: dict[Table, tuple[Array, Array]] = {}
        for part in self._parts:
            if part.table not in known:
                f = part.table.frequencies
                known[part.table] = f.astype(np.uint16), starts(f).astype(np.uint16)
            f, s = known[part.table]
            symbols = part.symbols.reshape(part.rows, -1)
            length = symbols.shape[1]
            full = -(-length // LANES) * LANES
            for values, out, fill in ((f[symbols], frequency, ONE), (s[symbols], start, 0)):
                if full != length:
                    values = np.pad(values, ((0, 0), (0, full - length)), constant_values=fill)
                out.append(values.reshape(-1, LANES))
        none = np.zeros((0, LANES), np.uint16)
        return np.concatenate([none, *frequency]), np.concatenate([none, *start])
