"""Weights of integer convolutions, packed for Arm's M-profile vectors (`kernels/small_mve.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from irc.backends.tvm.small_mve import (
    BYTES,
    MVE,
    TILE,
    blocks,
    conv_scratch,
    depthwise_scratch,
    is_streamed,
    pairs_of_places,
    steps_of,
)
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.ir.types import Array


def mve_conv(spec: SmallConvSpec, w: Array) -> tuple[SmallConvSpec, Array]:
    """`spec` for vectors, and its weights: w [oc, kh, kw, ic] -> [pair of channels, step, channel, 16 bytes]. Channels
    are filled up to whole tiles and windows to whole vectors, with zeros."""
    oc, steps = w.shape[0], steps_of(spec)
    flat = w.reshape(oc, -1)
    full = np.zeros((-(-oc // TILE) * TILE, steps * BYTES), np.int8)
    full[:oc, : flat.shape[1]] = flat
    packed = full.reshape(-1, 2, steps, BYTES).transpose(0, 2, 1, 3)
    made = replace(spec, way=MVE, scratch=conv_scratch(spec), w_size=packed.size)
    return made, np.ascontiguousarray(packed).reshape(-1)


def mve_depthwise(
    spec: SmallDepthwiseSpec, w: Array, constants: Sequence[Array | None]
) -> tuple[SmallDepthwiseSpec, Array] | None:
    """`spec` for vectors, and its weights: w [kh, kw, channels] -> [block of 16 channels, tap, channel], and behind
    each block's its constants of four bytes, of channels 0, 4, 8, 12, then 1, 5, 9, 13, ...; None where the sums of
    two products need more than 16 bits.

    `constants`: the numbers of each operand where they are known.
    """
    if w.dtype != np.int8 or w.min(initial=0) == -128:
        return None
    channels = w.shape[-1]
    taps = np.zeros((w.shape[0] * w.shape[1], blocks(channels) * BYTES), np.int8)
    taps[:, :channels] = w.reshape(-1, channels)
    if pairs_of_places(spec):
        taps[:, channels:] = taps[:, :channels]
    parts = [taps.reshape(-1, blocks(channels), BYTES).transpose(1, 0, 2).reshape(blocks(channels), -1)]
    known = [c for c in constants if c is not None and c.size == channels]
    streamed = len(known) if len(known) == len(constants) and is_streamed(spec.operands) else 0
    if channels % BYTES:
        streamed = 0
    for values in known if streamed else ():
        ordered = values.reshape(-1, TILE, TILE).transpose(0, 2, 1)
        parts.append(np.ascontiguousarray(ordered).view(np.int8).reshape(blocks(channels), -1))
    packed = np.concatenate(parts, axis=1).reshape(-1)
    made = replace(spec, way=MVE, streamed=streamed, w_size=packed.size)
    return replace(made, scratch=depthwise_scratch(made)), np.ascontiguousarray(packed)
