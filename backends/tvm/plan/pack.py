"""Weights in the order in which kernels read them."""

from __future__ import annotations

import numpy as np

from irc.backends.tvm.geometry import BLOCK, block_of, channel_tiles, lanes_of
from irc.ir.types import Array
from irc.targets.target import Target


def pack_linear(w: Array, lanes: int, vectors: int, step: int) -> Array:
    """[oc, kh, kw, ic] -> tiles [(kh, kw, ic/step), vectors of the tile, lanes, step], oc padded with zeros.

    ic must be a multiple of `step`.
    """
    oc, kh, kw, ic = w.shape
    total = -(-oc // lanes)
    padded = np.zeros((total * lanes, kh, kw, ic), w.dtype)
    padded[:oc] = w
    parts = []
    for start, count, size in channel_tiles(oc, lanes, vectors):
        for t in range(count):
            at = (start + t * size) * lanes
            tile = padded[at : at + size * lanes].reshape(size, lanes, kh, kw, ic // step, step)
            parts.append(np.ascontiguousarray(tile.transpose(2, 3, 4, 0, 1, 5)).reshape(-1))
    return np.concatenate(parts)


def unpack_linear(packed: Array, shape: tuple[int, ...], lanes: int, vectors: int, step: int) -> Array:
    """The weights [oc, kh, kw, ic] = `shape` that `pack_linear` packed."""
    oc, kh, kw, ic = shape
    total = -(-oc // lanes)
    result = np.empty((total * lanes, kh, kw, ic), packed.dtype)
    for start, count, size in channel_tiles(oc, lanes, vectors):
        for t in range(count):
            at = (start + t * size) * lanes
            length = size * lanes * kh * kw * ic
            tile = packed[at * kh * kw * ic :][:length].reshape(kh, kw, ic // step, size, lanes, step)
            result[at : at + size * lanes] = tile.transpose(3, 4, 0, 1, 2, 5).reshape(size * lanes, kh, kw, ic)
    return np.asarray(result[:oc])


def pack_for(target: Target, w: Array, vectors: int, step: int) -> Array:
    """`pack_linear` as kernels for `target` with tiles of `vectors` read it: in its blocks, if it has any."""
    block = block_of(target)
    return pack_linear(w, block, 1, step) if block else pack_linear(w, lanes_of(target), vectors, step)


def pack_depthwise(w: Array, rows: int) -> Array:
    """[channels, kh, kw] -> [kh, kw, channels], or for `rows` > 1 [ceil(kh / rows), kw, channels, rows].

    Channels are padded (`depthwise_channels`), missing rows are zero.
    """
    taps = pad_channels(w.transpose(1, 2, 0), BLOCK, axis=2)
    if rows == 1:
        return taps
    height, width, channels = taps.shape
    groups = -(-height // rows)
    full = np.zeros((groups * rows, width, channels), w.dtype)
    full[:height] = taps
    return np.ascontiguousarray(full.reshape(groups, rows, width, channels).transpose(0, 2, 3, 1))


def pad_channels(v: Array, lanes: int, axis: int = 0) -> Array:
    """Zeros up to whole vectors along `axis`."""
    size = v.shape[axis]
    pad = [(0, 0)] * v.ndim
    pad[axis] = (0, -(-size // lanes) * lanes - size)
    return np.pad(v, pad)
