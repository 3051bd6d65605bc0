"""Memory and weights of convolutions of C source that go through Winograd's transforms."""

from __future__ import annotations

import math

import numpy as np

from irc.backends.tvm.small import WINOGRAD
from irc.backends.tvm.specs import SmallConvSpec
from irc.backends.tvm.winograd import input_size, transform_weights
from irc.ir.types import Array

TILES = 4
"""Tiles that are transformed together."""


def tile_of(way: str) -> tuple[int, int]:
    """Outputs of a tile by rows and columns."""
    rows, columns = way.removeprefix(WINOGRAD).split("x")
    return int(rows), int(columns)


def scratch_bytes(spec: SmallConvSpec, tile: tuple[int, int]) -> int:
    """Transformed tiles, and the larger of a window and the sums of eight channels."""
    points = math.prod(input_size(m, r) for m, r in zip(tile, spec.kernel, strict=True))
    return 4 * points * (TILES * spec.ic + max(spec.ic, 8 * TILES))


def winograd_weights(w: Array, tile: tuple[int, int]) -> Array:
    """[oc, kh, kw, ic] transformed and in blocks of eight channels, [points, ic, 8] each."""
    made = transform_weights(w, tile)
    blocks = made.reshape(-1, 8, made.shape[1] * made.shape[2], made.shape[3])
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1)).reshape(-1)
