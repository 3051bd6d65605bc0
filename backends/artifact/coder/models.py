"""Ways to code one blob. Each is tried; what takes fewest bits by its entropies is kept."""

from __future__ import annotations

import numpy as np

from irc.backends.artifact.coder.runs import BLOCK, Model, Run, Shape, counts_of, entropy_bits
from irc.backends.program import Blob
from irc.ir.types import Array


def choose(blob: Blob, aid: int) -> Model:
    """The model with the fewest bits. `aid`: the first block that is free for palettes and the like."""
    return min(candidates(blob, aid), key=estimate)


def estimate(model: Model) -> float:
    """Bits: entropies of the runs, and about what their descriptions take."""
    bits = 0.0
    for run in model.runs:
        counts = counts_of(run.symbols)
        bits += entropy_bits(counts) + 12 + 3 * min(int((counts > 0).sum()), 16)
    return bits + 20 * len(model.after)


def candidates(blob: Blob, aid: int) -> list[Model]:
    """All models that fit the element type. Every one gives back the blob's bytes exactly."""
    data = np.ascontiguousarray(blob.data)
    raw: Array = data.reshape(-1).view(np.uint8)
    place = blob.offset // BLOCK
    if data.itemsize == 1:
        return [Model("bytes", (Run(place, Shape(0, raw.size), raw),))]
    return [Model("planes", planes(place, raw, data.itemsize))]


def planes(place: int, raw: Array, size: int) -> tuple[Run, ...]:
    """The first bytes of all words, their second bytes, ..."""
    columns = raw.reshape(-1, size)
    count = len(columns)
    return tuple(Run(place, Shape(i, count, size), np.ascontiguousarray(columns[:, i])) for i in range(size))
