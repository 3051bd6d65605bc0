"""How kernels cut dimensions into tiles: shared by the code that packs weights and the code that reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from irc.targets.target import DotProduct, Target

DotWay = Literal["vpdpbusd", "smmla", "sdot", "pmaddwd4", "pmaddwd", "wasm", "vpadal", "widening"]
"""A dot product of the target as a kernel uses it: pmaddwd sums two channels, or four of type uint8 in two halves."""

# way, dot products of targets that know it, type of the data ("": any), channels
_DOTS: tuple[tuple[DotWay, tuple[DotProduct, ...], str, int], ...] = (
    ("vpdpbusd", ("vpdpbusd",), "uint8", 4),
    ("smmla", ("smmla",), "int8", 8),
    ("sdot", ("sdot", "smmla"), "int8", 4),
    ("pmaddwd4", ("pmaddwd",), "uint8", 4),
    ("pmaddwd", ("pmaddwd", "vpdpbusd"), "", 2),
    ("wasm", ("wasm",), "", 2),
    ("vpadal", ("vpadal", "widening"), "int8", 2),
)


def dot_of(x_dtype: str, target: Target, channels: int = 0) -> DotWay:
    """How 8-bit products of `x_dtype` data are summed: the widest way that is right for the type.

    `channels` > 0: there are so many, and no more can be added (groups lie side by side); the way divides them.
    """
    for way, targets, wanted, step in _DOTS:
        if target.dot in targets and wanted in ("", x_dtype) and channels % step == 0:
            return way
    return "widening"


def step_channels(x_dtype: str, target: Target, channels: int = 0) -> int:
    """Input channels summed by one step of a linear kernel. With `channels` 0, x must have a multiple of it (the plan
    pads); otherwise it divides them."""
    if x_dtype == "float32":
        return 1
    way = dot_of(x_dtype, target, channels)
    return next((step for name, _, _, step in _DOTS if name == way), 1)


def padded_step(x_dtype: str, target: Target, channels: int) -> int:
    """Input channels that a step sums where the plan may add channels to the `channels` that there are: the widest way,
    but that of four where there are not more."""
    return step_channels(x_dtype, target, 4 if channels <= 4 else 0)


def without_matrices(target: Target) -> Target:
    """`target` for kernels that have no use for products of matrices: dot products instead."""
    return replace(target, dot="sdot") if target.dot == "smmla" else target


PALETTE = "palette"
"""Type of weights that are indices of 4 bits into a codebook, which comes before them."""

PALETTE_BYTES = 64

_FIELDS = {"int4": 2, "int2": 4, PALETTE: 2}


def fields_of(w_dtype: str) -> int:
    """Weights that share a byte. The lowest bits hold the first one."""
    return _FIELDS.get(w_dtype, 1)


def shared_axis(counts: tuple[int, int, int], fields: int) -> int:
    """Which weights share a byte: neighbours along the rows of the kernel (0), its columns (1) or the steps of a tap
    (2), of which there are `counts`. The way that leaves the fewest gaps, of equal ones the last."""
    return min((2, 1, 0), key=lambda axis: -(-counts[axis] // fields) * fields / counts[axis])


def stored_counts(counts: tuple[int, int, int], fields: int) -> tuple[int, int, int]:
    """`counts` of steps as they are stored, `fields` to a byte."""
    axis = shared_axis(counts, fields)
    rows, columns, steps = (-(-n // fields) if i == axis else n for i, n in enumerate(counts))
    return rows, columns, steps


def depthwise_rows(x_dtype: str, w_dtype: str, target: Target) -> int:
    """Kernel rows that a depthwise kernel sums by one dot product; 1: it multiplies tap by tap."""
    if x_dtype != "uint8" or target.dot not in ("vpdpbusd", "pmaddwd"):
        return 1
    return 4 if w_dtype in ("int8", "int4") else 2


def depthwise_channels(channels: int) -> int:
    """Channels in packed depthwise weights: whole vectors of every machine."""
    return -(-channels // BLOCK) * BLOCK


def depthwise_columns(columns: int, w_dtype: str) -> int:
    """Columns of a depthwise kernel as its weights are stored: neighbours share bytes."""
    return -(-columns // fields_of(w_dtype))


def lanes_of(target: Target) -> int:
    """Sums (32 bits each) in a vector."""
    return target.vector_bytes // 4


BLOCK = 16
"""Lanes in a block of packed weights that vectors of any machine divide (32-bit sums; the widest vector has 512 bits).
"""


def block_of(target: Target) -> int:
    """Channels in a block of packed weights of linear kernels; 0: they are packed in tiles of the kernel's.

    Libraries with kernels for several machines keep their weights once, in an order that all of them read.
    """
    return BLOCK if target.upgrades else 0


def spans(total: int, tile: int) -> list[tuple[int, int, int]]:
    """(start, count of tiles, tile size) for whole tiles and then the rest."""
    whole, rest = divmod(total, tile)
    found = [(0, whole, tile)] if whole else []
    return [*found, (whole * tile, 1, rest)] if rest else found


def channel_tiles(channels: int, lanes: int, vectors: int) -> list[tuple[int, int, int]]:
    """Tiles of channel vectors: (first vector, tiles, vectors each). A partly used last vector never stands in the
    loop over whole tiles, because its writes need code of their own."""
    found = spans(-(-channels // lanes), vectors)
    start, count, size = found[-1]
    if channels % lanes and count > 1:
        found[-1] = (start, count - 1, size)
        found.append((start + (count - 1) * size, 1, size))
    return found


def chunks(lanes: int, used: int) -> list[tuple[int, int]]:
    """(offset, size) pieces, powers of two, that cover the `used` first lanes of a vector."""
    if used == lanes:
        return [(0, lanes)]
    found, offset, size = [], 0, lanes
    while offset < used:
        while size > used - offset:
            size //= 2
        found.append((offset, size))
        offset += size
    return found
