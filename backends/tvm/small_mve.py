"""Integer convolutions on Arm's M-profile vectors: how weights lie, and in which order kernels go through images.

Shared by the code that packs (`plan/small_mve.py`), the kernels (`kernels/small_mve.py`) and the placement of memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from irc.backends.tvm.overlap import window_distance
from irc.backends.tvm.specs import Operand, SmallConvSpec, SmallDepthwiseSpec

MVE = "mve"
"""The way of kernels that use vectors."""

BYTES = 16
"""Of a vector."""

TILE = 4
"""Output channels that are computed together: their sums are one vector."""

_HELD = 4
"""Vectors of a window that stay in registers (there are eight)."""


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
    return 2 if steps_of(spec) > _HELD and flattened(spec).out[1] > 1 else 1


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


def depthwise_scratch(spec: SmallDepthwiseSpec) -> int:
    """Bytes for the copy of a window, where any may leave the image or end with the data."""
    inside = spec.pads == (0, 0) and spec.channels % BYTES == 0
    for axis in (0, 1):
        reach = (spec.out[axis] - 1) * spec.stride[axis] + (spec.kernel[axis] - 1) * spec.dilation[axis]
        inside = inside and reach < spec.image[axis]
    return 0 if inside else math.prod(spec.kernel) * blocks(spec.channels) * BYTES


def block_bytes(spec: SmallDepthwiseSpec) -> int:
    """Bytes of a block of 16 channels: weights of all taps, then its constants of four bytes a channel."""
    return (math.prod(spec.kernel) + spec.streamed * 4) * BYTES


def is_streamed(operands: tuple[Operand, ...]) -> bool:
    """Whether the operands are numbers of four bytes per channel, which may stand among the weights."""
    return bool(operands) and all(o.strides == (0, 0, 0, 1) and np.dtype(o.dtype).itemsize == 4 for o in operands)


def conv_distance(spec: SmallConvSpec) -> int:
    """`overlap` of the data. Windows are copied, or held in registers, before the first result of their places is
    written; long ones that are read where they lie are read until the last one is."""
    flat = flattened(spec)
    held = not is_direct(spec) or steps_of(spec) <= _HELD
    return _window(flat, flat.oc, conv_places(spec), held=held)


def depthwise_distance(spec: SmallDepthwiseSpec) -> int:
    """`overlap` of the data: place after place, 16 channels after 16."""
    two = pairs_of_places(spec)
    return _window(spec, spec.channels, 2 if two else 1, held=spec.channels <= BYTES and not two)


def _window(spec: SmallConvSpec | SmallDepthwiseSpec, channels: int, columns: int, *, held: bool) -> int:
    item = np.dtype(spec.y_dtype).itemsize
    _, xh, xw = spec.x_strides
    _, yh, yw = (item * s for s in spec.y_strides)
    return window_distance(
        spec.image,
        spec.out,
        spec.kernel,
        (xh, xw),
        (yh, yw),
        channels * item,
        stride=spec.stride,
        dilation=spec.dilation,
        pads=spec.pads,
        columns=columns,
        atomic=held,
    )
