"""Integer kernels of microcontrollers: how they work (`way`), in which order they go through images, hence how far
their output may reach into their inputs (`overlap.py`)."""

from __future__ import annotations

import numpy as np

from irc.backends.tvm.overlap import window_distance
from irc.backends.tvm.small_mve import MVE, conv_distance, conv_places, depthwise_distance
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec

PLAIN = "plain"
PAIRS = "pairs"
"""The way that copies the windows of two places, as int16, before it computes all their channels."""


def conv_distances(spec: SmallConvSpec) -> dict[int, int]:
    """`overlap` of a convolution. Its kernel goes from place to place; the plain one reads a place's window until its
    last channel, the one in pairs has read two of them before it writes the first."""
    if spec.batch > 1:
        return {}
    if spec.way == MVE:
        return {0: conv_distance(spec), **_operands(spec, spec.oc if conv_places(spec) > 1 else 0)}
    return {0: _window(spec, spec.oc, held=spec.way == PAIRS), **_operands(spec, spec.oc if spec.way == PAIRS else 0)}


def depthwise_distances(spec: SmallDepthwiseSpec) -> dict[int, int]:
    """`overlap` of a depthwise convolution: place after place, channel after channel."""
    if spec.batch > 1:
        return {}
    if spec.way == MVE:
        return {0: depthwise_distance(spec), **_operands(spec, 0)}
    return {0: _window(spec, spec.channels, held=False), **_operands(spec, 0)}


def _operands(spec: SmallConvSpec | SmallDepthwiseSpec, distance: int) -> dict[int, int]:
    """Operands that lie as the output does are read right before it is written."""
    item = np.dtype(spec.y_dtype).itemsize
    alike = (*spec.y_strides, 1)
    found = {}
    for number, operand in enumerate(spec.operands[spec.streamed :]):
        if operand.strides == alike and np.dtype(operand.dtype).itemsize == item:
            found[2 + number] = distance * item
    return found


def _window(spec: SmallConvSpec | SmallDepthwiseSpec, channels: int, *, held: bool) -> int:
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
        atomic=held,
    )
