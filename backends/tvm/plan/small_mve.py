"""Weights of integer convolutions, packed for Arm's M-profile vectors (`kernels/small_mve.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from irc.backends.tvm.small_epilogue import Epilogue, canonical, channel_values, epilogue_of, streamed_operands
from irc.backends.tvm.small_mve import (
    BYTES,
    HELD,
    MVE,
    PLANES,
    TILE,
    TILES,
    blocks,
    conv_scratch,
    depthwise_scratch,
    has_held,
    has_planes,
    has_tiles,
    in_blocks,
    is_direct,
    pairs_of_places,
    plane_bytes,
    steps_of,
    tile_channels,
)
from irc.backends.tvm.specs import Operand, SmallConvSpec, SmallDepthwiseSpec
from irc.ir.types import Array


def mve_conv(spec: SmallConvSpec, w: Array, constants: Sequence[Array | None]) -> tuple[SmallConvSpec, Array]:
    """`spec` for vectors, and its weights: w [oc, kh, kw, ic] -> [tile of four channels, half, step, channel, 16
    bytes], and behind each tile's its constants of four bytes. A half is the first and third or the second and fourth
    channel of a tile. Channels are filled up to whole tiles and windows to whole vectors, with zeros.

    `constants`: the numbers of each operand where they are known.
    """
    written = _tiles(spec, w, constants) or _held(spec, w, constants)
    if written is not None:
        return written
    oc, steps = w.shape[0], steps_of(spec)
    streamed = _streamed(spec, constants, oc)
    if len(streamed) < len(spec.operands) and oc % TILE:  # operands of elements end with the last channel
        streamed = []
    made = replace(spec, way=MVE, streamed=len(streamed), scratch=conv_scratch(spec))
    tiles = tile_channels(oc, in_blocks(made))
    order = np.asarray(tiles).reshape(-1)
    full = np.zeros((max(order.max() + 1, oc), steps * BYTES), np.int8)
    full[:oc, : w[0].size] = w.reshape(oc, -1)
    halves = full[order].reshape(-1, 2, 2, steps, BYTES)  # tile, channel / 2, channel % 2
    parts = [halves.transpose(0, 2, 3, 1, 4).reshape(len(tiles), -1)]
    for values in streamed:
        padded = np.zeros(len(full), values.dtype)
        padded[:oc] = values
        parts.append(padded[order].view(np.int8).reshape(len(tiles), -1))
    packed = np.ascontiguousarray(np.concatenate(parts, axis=1)).reshape(-1)
    return replace(made, w_size=packed.size), packed


def _streamed(
    spec: SmallConvSpec | SmallDepthwiseSpec, constants: Sequence[Array | None], channels: int
) -> list[Array]:
    """The first operands of an expression, as far as they are numbers of four bytes for each channel. Only kernels that
    end in int8 read them among the weights."""
    found: list[Array] = []
    last = spec.expression[-1]
    if last.op != "requantize" or last.dtype != "int8":
        return found
    for values in constants:
        if values is None or values.size != channels or values.itemsize != 4:
            break
        found.append(values)
    return found


def mve_depthwise(
    spec: SmallDepthwiseSpec, w: Array, constants: Sequence[Array | None]
) -> tuple[SmallDepthwiseSpec, Array] | None:
    """`spec` for vectors, and its weights: w [kh, kw, channels] -> [block of 16 channels, tap, channel], and behind
    each block's its constants of four bytes, of channels 0, 4, 8, 12, then 1, 5, 9, 13, ...; None where the sums of
    two products need more than 16 bits.

    `constants`: the numbers of each operand where they are known.
    """
    if w.dtype != np.int8:
        return None
    planes = _planes(spec, w, constants)
    if planes is not None:
        return planes
    if w.min(initial=0) == -128:
        return None
    channels = w.shape[-1]
    taps = np.zeros((w.shape[0] * w.shape[1], blocks(channels) * BYTES), np.int8)
    taps[:, :channels] = w.reshape(-1, channels)
    if pairs_of_places(spec):
        taps[:, channels:] = taps[:, :channels]
    parts = [taps.reshape(-1, blocks(channels), BYTES).transpose(1, 0, 2).reshape(blocks(channels), -1)]
    streamed = _streamed(spec, constants, channels)
    if len(streamed) < len(spec.operands) or (channels % BYTES and not pairs_of_places(spec)):
        streamed = []
    for values in streamed:
        both = np.concatenate([values, values]) if channels < BYTES else values
        ordered = both.reshape(-1, TILE, TILE).transpose(0, 2, 1)
        parts.append(np.ascontiguousarray(ordered).view(np.int8).reshape(blocks(channels), -1))
    packed = np.concatenate(parts, axis=1).reshape(-1)
    made = replace(spec, way=MVE, streamed=len(streamed), w_size=packed.size)
    return replace(made, scratch=depthwise_scratch(made)), np.ascontiguousarray(packed)


def _planes(
    spec: SmallDepthwiseSpec, w: Array, constants: Sequence[Array | None]
) -> tuple[SmallDepthwiseSpec, Array] | None:
    """`spec` in the way "planes", and its weights [channel, 24 bytes]; None where that kernel is not made for it."""
    epilogue = epilogue_of(spec.expression)
    if epilogue is None or not epilogue.bare or not has_planes(spec):
        return None
    values = _channel_values(spec, epilogue, constants, spec.channels)
    if values is None:
        return None
    bias, scale, _ = values
    words = np.zeros((spec.channels, 4, 4), np.int8)  # channel, column, row
    words[:, :3, :3] = w.transpose(2, 1, 0)
    columns = [values.reshape(-1, 1).view(np.int8) for values in (bias.astype(np.int32), scale.astype(np.float32))]
    packed = np.ascontiguousarray(np.concatenate([words.reshape(spec.channels, -1), *columns], 1)).reshape(-1)
    expression, count = canonical(epilogue)
    made = replace(
        spec,
        expression=expression,
        operands=_channel_operands(spec.channels, count),
        way=PLANES,
        streamed=count,
        scratch=plane_bytes(spec) * spec.channels,
        w_size=packed.size,
    )
    return made, packed


def _tiles(spec: SmallConvSpec, w: Array, constants: Sequence[Array | None]) -> tuple[SmallConvSpec, Array] | None:
    """`spec` in the way "tiles", and its weights; None where that kernel is not made for it."""
    if not has_tiles(spec):
        return None
    steps = w.reshape(-1, TILE, spec.ic // BYTES, BYTES).transpose(0, 2, 1, 3)  # tile, step, channel, byte
    return _in_tiles(spec, TILES, steps, constants)


def _held(spec: SmallConvSpec, w: Array, constants: Sequence[Array | None]) -> tuple[SmallConvSpec, Array] | None:
    """`spec` in the way "held", and its weights; None where that kernel is not made for it."""
    if not has_held(spec):
        return None
    if is_direct(spec) and spec.ic < BYTES:  # as 16-bit numbers
        vectors = np.ascontiguousarray(w.reshape(spec.oc, -1).astype(np.int16)).view(np.int8)
    else:
        vectors = np.zeros((spec.oc, steps_of(spec) * BYTES), np.int8)
        vectors[:, : w[0].size] = w.reshape(spec.oc, -1)
    return _in_tiles(spec, HELD, vectors, constants)


def _in_tiles(
    spec: SmallConvSpec, way: str, vectors: Array, constants: Sequence[Array | None]
) -> tuple[SmallConvSpec, Array] | None:
    """`spec` in a way that is written as instructions, and its weights: the `vectors` of each tile of four channels,
    then its bias, scale and further numbers. None where these kernels do not know the epilogue."""
    epilogue = epilogue_of(spec.expression)
    if epilogue is None or not epilogue.simple:
        return None
    values = _channel_values(spec, epilogue, constants, spec.oc)
    if values is None:
        return None
    bias, scale, others = values
    expression, count = canonical(epilogue)
    numbers = [bias.astype(np.int32), scale.astype(np.float32), *others]
    parts = [vectors.reshape(spec.oc // TILE, -1), *(n.reshape(-1, TILE).view(np.int8) for n in numbers)]
    packed = np.ascontiguousarray(np.concatenate(parts, 1)).reshape(-1)
    made = replace(
        spec,
        expression=expression,
        operands=_channel_operands(spec.oc, count),
        way=way,
        streamed=count,
        scratch=0 if is_direct(spec) else conv_scratch(spec),
        w_size=packed.size,
    )
    return made, packed


def _channel_values(
    spec: SmallConvSpec | SmallDepthwiseSpec, epilogue: Epilogue, constants: Sequence[Array | None], channels: int
) -> tuple[Array, Array, tuple[Array, ...]] | None:
    """Bias, scale and further numbers of every channel; None where an operand is something else."""
    known = [o for o in constants if o is not None]
    if len(streamed_operands(spec.expression, epilogue)) != len(spec.operands) or len(known) < len(spec.operands):
        return None
    return channel_values(spec.expression, epilogue, known, channels)


def _channel_operands(channels: int, count: int) -> tuple[Operand, ...]:
    return tuple(Operand("float32" if i else "int32", (0, 0, 0, 1), channels) for i in range(count))
