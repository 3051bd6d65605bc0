"""Integer convolutions on Arm's M-profile vectors: how weights lie, and in which order kernels go through images.

Shared by the code that packs (`plan/small_mve.py`), the kernels (`kernels/small_mve.py`) and the placement of memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.tvm.overlap import safe_distance, spec_window
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec

MVE = "mve"
"""The way of kernels that use vectors."""

PLANES = "planes"
"""The way of depthwise convolutions whose windows lie in vectors, a plane of the image for each channel."""

TILES = "tiles"
"""The way of 1 x 1 convolutions of long windows: two places by four channels."""

HELD = "held"
"""The way of convolutions of windows of up to 32 bytes: two places by four channels."""

BYTES = 16
"""Of a vector."""

TILE = 4
"""Output channels that are computed together: their sums are one vector."""

_HELD = 4
"""Vectors of windows that stay in registers (there are eight)."""


def flattened(spec: SmallConvSpec) -> SmallConvSpec:
    """A 1 x 1 convolution of images without gaps as one row of places."""
    _, xh, xw = spec.x_strides
    _, yh, yw = spec.y_strides
    height, width = spec.out
    plain = spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.pads == (0, 0) and spec.image == spec.out
    operands = all(o.strides[1] == width * o.strides[2] for o in spec.operands)
    if height == 1 or not plain or xh != width * xw or yh != width * yw or not operands:
        return spec
    row = (1, height * width)
    made = tuple(replace(o, strides=(o.strides[0], 0, *o.strides[2:])) for o in spec.operands)
    x_strides, y_strides = (spec.x_strides[0], 0, xw), (spec.y_strides[0], 0, yw)
    return replace(spec, image=row, out=row, x_strides=x_strides, y_strides=y_strides, operands=made)


def is_direct(spec: SmallConvSpec) -> bool:
    """Whether windows are read where they lie."""
    return spec.kernel == (1, 1) and spec.pads == (0, 0)


def steps_of(spec: SmallConvSpec) -> int:
    """Vectors of a window."""
    return -(-math.prod(spec.kernel) * spec.ic // BYTES)


def conv_places(spec: SmallConvSpec) -> int:
    """Neighbouring places that are computed together."""
    return 2 if flattened(spec).out[1] > 1 and steps_of(spec) not in (_HELD - 1, _HELD) else 1


def is_held(spec: SmallConvSpec, places: int) -> bool:
    """Whether the windows of so many places stay in registers while all channels pass."""
    return places * steps_of(spec) <= _HELD


def has_tiles(spec: SmallConvSpec) -> bool:
    """Whether the kernel in tiles is made for a convolution, and faster: a row of places of 64 bytes or more."""
    flat = flattened(spec)
    plain = flat.kernel == (1, 1) and flat.stride == (1, 1) and flat.pads == (0, 0) and flat.batch == 1
    row = flat.out[0] == 1 and flat.image == flat.out and flat.out[1] > 1
    vectors = spec.ic % BYTES == 0 and _HELD * BYTES <= spec.ic < 4096 and spec.oc % TILE == 0
    return plain and row and vectors and flat.y_strides[2] + TILE < 1 << 16 and spec.y_dtype == "int8"


_HELD_ROWS = 4  # of a kernel
_OFFSETS = 128  # of a vector's load


def has_held(spec: SmallConvSpec) -> bool:
    """Whether the kernel of held windows is made for a convolution: an even number of places in a row, and windows of
    8, 16 or 32 bytes that follow each other, or larger kernels with rows of up to 16."""
    flat = flattened(spec)
    plain = flat.batch == 1 and flat.dilation == (1, 1) and spec.y_dtype == "int8" and spec.oc % TILE == 0
    pairs = flat.out[1] % 2 == 0 and flat.x_strides[2] == spec.ic and flat.y_strides[2] + TILE < 1 << 16
    pairs &= flat.stride[1] * spec.ic < _OFFSETS
    if not (plain and pairs):
        return False
    if is_direct(spec):
        row = flat.out[0] == 1 and flat.image == flat.out and flat.stride == (1, 1)
        return row and spec.ic in (BYTES // 2, BYTES, 2 * BYTES)
    height, width = spec.kernel
    return height <= _HELD_ROWS and width * spec.ic <= BYTES and height * width * spec.ic <= 2 * BYTES


def tiles_distance(spec: SmallConvSpec) -> int:
    """`overlap` of the data in the way "tiles": two places are read until the last of their channels is written."""
    return spec_window(flattened(spec), spec.oc, 2, held=False)


def conv_scratch(spec: SmallConvSpec) -> int:
    """Bytes for copies of windows. Rows are copied in whole vectors, which reach one vector behind the last."""
    if is_direct(spec) and spec.ic % BYTES == 0:
        return 0
    return conv_places(spec) * (steps_of(spec) + 1) * BYTES


def blocks(channels: int) -> int:
    """Vectors of channels."""
    return -(-channels // BYTES)


def pairs_of_places(spec: SmallDepthwiseSpec) -> bool:
    """Whether a vector holds the channels of two neighbouring places."""
    _, _, xw = spec.x_strides
    _, _, yw = spec.y_strides
    narrow = spec.channels == BYTES // 2 == xw == yw
    operands = all(o.strides[2] in (0, spec.channels) for o in spec.operands)
    return narrow and operands and spec.stride[1] == 1 and spec.out[1] > 1


@dataclass(frozen=True)
class Ring:
    """Rows of an image that a depthwise kernel keeps in its scratch memory, with the columns outside of the image:
    `rows` of `columns` places each, the image from column `left` on. Row r of the image, counted from the first one
    that a window needs, is the ring's row r modulo `rows`."""

    rows: int
    columns: int
    left: int
    taken: int  # columns of the image

    def row_bytes(self, channels: int) -> int:
        return self.columns * channels

    def nbytes(self, channels: int) -> int:
        return self.rows * self.row_bytes(channels) + BYTES  # the last vectors may end behind the last channel


def ring(spec: SmallDepthwiseSpec) -> Ring | None:
    """None where all windows lie in the image, and the vectors that hold them in the data."""
    rows, columns = ((k - 1) * d + 1 for k, d in zip(spec.kernel, spec.dilation, strict=True))
    wide = (spec.out[1] - 1) * spec.stride[1] + columns
    high = (spec.out[0] - 1) * spec.stride[0] + rows
    inside = spec.pads == (0, 0) and high <= spec.image[0] and wide <= spec.image[1]
    if inside and (spec.channels % BYTES == 0 or (pairs_of_places(spec) and spec.out[1] % 2 == 0)):
        return None
    taken = max(0, min(spec.image[1], wide - spec.pads[1]))  # none where all windows lie left of the image
    return Ring(rows, wide, spec.pads[1], taken)


def has_planes(spec: SmallDepthwiseSpec) -> bool:
    """Whether the kernel in planes is made for a convolution: 3 x 3, of each place or every other, of channels in
    eights."""
    plain = spec.kernel == (3, 3) and spec.stride in ((1, 1), (2, 2)) and spec.dilation == (1, 1) and spec.batch == 1
    gapless = spec.x_strides[2] == spec.y_strides[2] == spec.channels and spec.channels % 8 == 0
    offsets = spec.y_strides[1] + 7 * spec.y_strides[2] < 1 << 16 and 8 * plane_bytes(spec) < 1 << 16
    padded = max(spec.pads) <= 1 and spec.image[1] + spec.pads[1] >= 3
    return plain and gapless and offsets and padded and spec.out[1] > 2 and spec.y_dtype == "int8"


def plane_bytes(spec: SmallDepthwiseSpec) -> int:
    """Of a channel in the way "planes": four rows of the columns in whole vectors of four, two apart."""
    vectors = spec.out[1] if spec.stride[1] == 2 else -(-spec.out[1] // 2)
    return 4 * (vectors * 2 + 2)


def planes_distance(spec: SmallDepthwiseSpec) -> int:
    """The results of four rows of the image are written when these, and all before, are copied; the next ones need two
    rows more."""
    rows = 2 // spec.stride[0]
    written = np.minimum(np.arange(rows, spec.out[0] + rows, rows), spec.out[0])
    copied = np.arange(len(written)) * 2 + 4 - spec.pads[0]
    needed = copied < spec.image[0]
    behind = written * spec.y_strides[1] - copied * spec.x_strides[1]
    return int(behind[needed].max(initial=-(1 << 40)))


def new_rows(spec: SmallDepthwiseSpec, rows: int) -> int:
    """Rows that a row of the output reads and the one before does not."""
    return min(spec.stride[0], rows)


def depthwise_scratch(spec: SmallDepthwiseSpec) -> int:
    """Bytes of the ring."""
    kept = ring(spec)
    return 0 if kept is None else kept.nbytes(spec.channels)


def block_bytes(spec: SmallDepthwiseSpec) -> int:
    """Bytes of a block of 16 channels: weights of all taps, then its constants of four bytes a channel."""
    return (math.prod(spec.kernel) + spec.streamed * 4) * BYTES


def in_blocks(spec: SmallConvSpec) -> bool:
    """Whether 16 channels are narrowed together: where weights leave registers for that."""
    return 0 < spec.streamed == len(spec.operands) and conv_places(spec) * steps_of(spec) <= _HELD // 2


def tile_bytes(spec: SmallConvSpec) -> int:
    """Bytes of four channels: weights, then their constants."""
    return (steps_of(spec) * TILE + spec.streamed) * BYTES


def tile_channels(oc: int, blocks: bool) -> list[list[int]]:
    """The channels of each tile: neighbours, but in `blocks` of 16 every fourth, as narrowing brings them in order.
    Channels from `oc` on do not exist."""
    whole = oc // BYTES * BYTES if blocks else 0
    found = [[start + g + TILE * i for i in range(TILE)] for start in range(0, whole, BYTES) for g in range(TILE)]
    return found + [list(range(c, c + TILE)) for c in range(whole, oc, TILE)]


def conv_distance(spec: SmallConvSpec) -> int:
    """`overlap` of the data. Windows are copied, or held in registers, before the first result of their places is
    written; long ones that are read where they lie are read until the last one is."""
    flat = flattened(spec)
    held = not is_direct(spec) or is_held(spec, conv_places(spec))
    return spec_window(flat, flat.oc, conv_places(spec), held=held)


def depthwise_distance(spec: SmallDepthwiseSpec) -> int:
    """`overlap` of the data: with a ring row after row, of which the new ones are read first; without one place after
    place, 16 channels after 16."""
    kept = ring(spec)
    if kept is None:
        two = pairs_of_places(spec)
        return spec_window(spec, spec.channels, 2 if two else 1, held=spec.channels <= BYTES and not two)
    item = np.dtype(spec.y_dtype).itemsize
    h = np.arange(spec.out[0])
    written = (h * spec.y_strides[1] + (spec.out[1] - 1) * spec.y_strides[2] + spec.channels) * item
    first = h * spec.stride[0] - spec.pads[0] + kept.rows - new_rows(spec, kept.rows)
    first[0] = 0
    return safe_distance(written, np.clip(first, 0, spec.image[0]) * spec.x_strides[1], atomic=True)
