"""Integer kernels of microcontrollers: how they work (`way`), in which order they go through images, hence how far
their output may reach into their inputs (`overlap.py`)."""

from __future__ import annotations

import math

import numpy as np

from irc.backends.tvm.overlap import spec_window
from irc.backends.tvm.small_mve import (
    HELD,
    MVE,
    PLANES,
    TILES,
    conv_distance,
    conv_places,
    depthwise_distance,
    planes_distance,
    tiles_distance,
)
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec

PLAIN = "plain"
PAIRS = "pairs"
"""The way that copies the windows of two places, as int16, before it computes all their channels."""
ROWS = "rows"
"""The way of depthwise convolutions that copies the image row by row into a ring."""
FIXED = "fixed"
"""Begins the last part of a way: sums are rounded by integer products, shifted by the number that follows."""
SOURCE, SOURCE_WIDE = "source", "source-wide"
"""Ways of C source: depthwise kernels copy the rows of the image first. Wide: some weight is -128."""
CHUNKS, CHUNKS_WIDE = "chunks", "chunks-wide"
"""The same for some of the channels at a time: all places of those, then the others."""
SOURCE_NARROW = "source-narrow"
"""C source of convolutions that sum over few channels of one place: one expression for each output channel."""
REAL = "real"
"""C source for real numbers: data, weights and sums are float32."""
WINOGRAD = "winograd"
"""Begins a way of C source: the same through Winograd's transforms; outputs of a tile follow, as in winograd4x4."""


def is_real(spec: SmallConvSpec | SmallDepthwiseSpec) -> bool:
    """Whether data are float32."""
    return spec.way == REAL or spec.way.startswith(WINOGRAD)


def conv_distances(spec: SmallConvSpec) -> dict[int, int]:
    """`overlap` of a convolution. Its kernel goes from place to place; the plain one reads a place's window until its
    last channel, the one in pairs has read two of them before it writes the first."""
    if spec.batch > 1 or is_real(spec):
        return {}
    if spec.way == MVE:
        return {0: conv_distance(spec), **_operands(spec, spec.oc if conv_places(spec) > 1 else 0)}
    if spec.way == HELD:
        return {0: conv_distance(spec)}
    if spec.way == TILES:
        return {0: tiles_distance(spec)}
    pairs = spec.way.startswith(PAIRS)
    held = pairs and spec.scratch > 0
    return {0: spec_window(spec, spec.oc, held=held), **_operands(spec, spec.oc if pairs else 0)}


def depthwise_distances(spec: SmallDepthwiseSpec) -> dict[int, int]:
    """`overlap` of a depthwise convolution: place after place, channel after channel."""
    if spec.batch > 1 or spec.way in (CHUNKS, CHUNKS_WIDE, REAL):
        return {}
    if spec.way == MVE:
        return {0: depthwise_distance(spec), **_operands(spec, 0)}
    if spec.way == PLANES:
        return {0: planes_distance(spec)}
    if spec.way.startswith(ROWS):
        return {0: ring_distance(spec)}
    return {0: spec_window(spec, spec.channels, held=False), **_operands(spec, 0)}


def _operands(spec: SmallConvSpec | SmallDepthwiseSpec, distance: int) -> dict[int, int]:
    """Operands that lie as the output does are read right before it is written."""
    item = np.dtype(spec.y_dtype).itemsize
    alike = (*spec.y_strides, 1)
    found = {}
    for number, operand in enumerate(spec.operands[spec.streamed :]):
        if operand.strides == alike and np.dtype(operand.dtype).itemsize == item:
            found[2 + number] = distance * item
    return found


def window_rows(spec: SmallConvSpec) -> tuple[int, int]:
    """(runs, bytes of each) of a window whose rows are contiguous in memory."""
    return spec.kernel[0], spec.kernel[1] * spec.ic


def row_steps(run: int) -> int:
    """Pairs in which the way "pairs" reads a run of bytes."""
    return run // 4 * 2 + (0, 1, 1, 2)[run % 4]


def pair_order(run: int) -> list[tuple[int, int]]:
    """Which two bytes of a run each of its steps holds; -1: none. Words give bytes 0 and 2, then 1 and 3; what is
    left gives neighbours, or of three the first with the third."""
    found = []
    for word in range(run // 4):
        found += [(4 * word, 4 * word + 2), (4 * word + 1, 4 * word + 3)]
    at, rest = run // 4 * 4, run % 4
    if rest == 1:
        found.append((at, -1))
    elif rest == 2:
        found.append((at, at + 1))
    elif rest == 3:
        found += [(at, at + 2), (at + 1, -1)]
    return found


SINGLE_TILE = 8


def tile_channels(spec: SmallConvSpec) -> int:
    """Channels that the way "pairs" computes together: four, but eight of one place that reads no other elements."""
    single = math.prod(spec.out) == 1 and spec.kernel == (1, 1) and spec.ic % 4 == 0 and spec.pads == (0, 0)
    return SINGLE_TILE if single and len(spec.operands) == spec.streamed else 4


def scratch_bytes(spec: SmallConvSpec) -> int:
    """Memory of a kernel in the way "pairs": the steps of two places, and at the edge of images a row of zero points
    and one row of each place."""
    if tile_channels(spec) == SINGLE_TILE:
        return 0
    rows, run = window_rows(spec)
    return 8 * rows * row_steps(run) + (3 * -(-run // 4) * 4 if leaves_image(spec) else 0)


def leaves_image(spec: SmallConvSpec) -> bool:
    """Whether some window leaves the image."""
    for axis in range(2):
        reach = (spec.kernel[axis] - 1) * spec.dilation[axis]
        last = (spec.out[axis] - 1) * spec.stride[axis] - spec.pads[axis] + reach
        if spec.pads[axis] > 0 or last >= spec.image[axis]:
            return True
    return False


def ring_columns(spec: SmallDepthwiseSpec) -> int:
    """Columns of the ring: from the first that a window reads to the last."""
    return (spec.out[1] - 1) * spec.stride[1] + spec.kernel[1]


def ring_distance(spec: SmallDepthwiseSpec) -> int:
    """A row of results is written when its last row of the image has been copied; a row copied is read no more."""
    height, kernel = spec.image[0], spec.kernel[0]
    rows = np.arange(spec.out[0])
    written = (rows + 1) * spec.y_strides[1]
    following = np.maximum(rows * spec.stride[0] - spec.pads[0] + kernel, 0)  # the first row not yet copied
    read = np.minimum(following, height) * spec.x_strides[1]
    needed = following < height
    return int((written - read)[needed].max(initial=-(1 << 40)))


def fixed_shift(way: str) -> int:
    """The shift of `FIXED`, 0 where results are rounded as real numbers."""
    last = way.rsplit("/", 1)[-1]
    return int(last.removeprefix(FIXED)) if last.startswith(FIXED) else 0
