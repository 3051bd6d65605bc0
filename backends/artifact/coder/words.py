"""Small blobs of words (multipliers, biases, tables): those of one kind are coded as one, and then copied apart.

Blobs of float32 with few distinct words become numbers of colours of a palette instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.artifact.coder.models import Model, words_model
from irc.backends.artifact.coder.runs import BLOCK, COPY, PALETTE, After, Run, Shape, byte_view, counts_of
from irc.backends.program import Blob
from irc.ir.types import Array

POOLED = 1 << 14
"""Bytes up to which blobs of words are coded together."""
_MOST_COLOURS = 128
_PALETTE_BITS = 24


@dataclass
class Pool:
    """Words of several blobs, one after the other; each begins at a multiple of 4 bytes."""

    blobs: list[Blob]
    words: Array


@dataclass
class Palettes:
    """`colours`: uint32, those of the first blob, of the second, ...; `sizes` of each; `numbers`: of all words."""

    blobs: list[Blob]
    colours: Array
    sizes: list[int]
    numbers: Array


def pools(blobs: Sequence[Blob]) -> tuple[Palettes | None, list[Pool]]:
    """Blobs of words, sorted by what is best for each."""
    by_kind: dict[str, list[Blob]] = {}
    for blob in blobs:
        by_kind.setdefault(str(blob.data.dtype), []).append(blob)
    coloured: list[Blob] = []
    found = []
    for alike in by_kind.values():
        if alike[0].data.itemsize == 4:
            costs = _plane_bits(alike)
            few = [blob for blob, bits in zip(alike, costs, strict=True) if _palette_bits(blob) < bits]
            coloured += few
            alike = [blob for blob in alike if not any(blob is other for other in few)]
        if alike:
            found.append(Pool(alike, _joined(alike)))
    return (_palettes(coloured) if coloured else None), found


def _joined(blobs: Sequence[Blob]) -> Array:
    """All elements, filled up to whole units of 4 bytes."""
    parts = []
    for blob in blobs:
        flat = np.ascontiguousarray(blob.data).reshape(-1)
        parts.append(np.pad(flat, (0, -flat.size % max(1, 4 // flat.itemsize))))
    return np.concatenate(parts)


def _plane_bits(blobs: Sequence[Blob]) -> list[float]:
    """About what each blob takes as a part of the pool of all."""
    bits = np.zeros(len(blobs))
    columns = [byte_view(blob.data).reshape(-1, blob.data.itemsize) for blob in blobs]
    for i in range(columns[0].shape[1]):
        counts = counts_of(np.concatenate([c[:, i] for c in columns])) + 1 / 16
        price = -np.log2(counts / counts.sum())
        bits += [float(price[c[:, i]].sum()) for c in columns]
    return list(map(float, bits))


def _palette_bits(blob: Blob) -> float:
    words = np.ascontiguousarray(blob.data).reshape(-1).view(np.uint32)
    colours, counts = np.unique(words, return_counts=True)
    if colours.size > min(_MOST_COLOURS, words.size // 2):
        return float("inf")
    share = counts / words.size
    return float(-(counts * np.log2(share)).sum()) + 24 * colours.size + 16 + _PALETTE_BITS


def _palettes(blobs: Sequence[Blob]) -> Palettes:
    colours, sizes, numbers = [], [], []
    for blob in blobs:
        words = np.ascontiguousarray(blob.data).reshape(-1).view(np.uint32)
        own, number = np.unique(words, return_inverse=True)
        colours.append(own)
        sizes.append(own.size)
        numbers.append(number.reshape(-1).astype(np.uint8))
    return Palettes(list(blobs), np.concatenate(colours), sizes, np.concatenate(numbers))


def palette_models(p: Palettes, colours: int, numbers: int) -> list[Model]:
    """What codes them: colours at block `colours`, numbers at block `numbers`."""
    owners = tuple((blob.offset, blob.data.size) for blob in p.blobs)
    run = Run(numbers, Shape(0, p.numbers.size), p.numbers)
    return [words_model(colours, p.colours), Model((run,), owners=owners)]


def palette_afters(p: Palettes) -> list[After]:
    return [
        After(PALETTE, blob.offset // BLOCK, blob.data.size, size) for blob, size in zip(p.blobs, p.sizes, strict=True)
    ]


def pool_model(pool: Pool, place: int) -> Model:
    """What codes the words, at block `place`."""
    size = pool.words.itemsize
    owners = tuple((blob.offset, -(-blob.data.nbytes // 4) * 4 // size or 1) for blob in pool.blobs)
    return replace(words_model(place, pool.words), owners=owners)


def copies(pool: Pool) -> list[After]:
    return [After(COPY, blob.offset // BLOCK, -(-blob.data.nbytes // 4)) for blob in pool.blobs]
