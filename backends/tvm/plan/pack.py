"""Weights in the order in which kernels read them."""

from __future__ import annotations

import math

import numpy as np

from irc.backends.tvm.geometry import (
    BLOCK,
    block_of,
    channel_tiles,
    fields_of,
    lanes_of,
    shared_axis,
    stored_counts,
)
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


_SMALLEST = 2.0**-64
"""Steps of sums: kernels take factors of up to 2**-6 from them, and from their quotients by others, without loss."""


def small_type(w: Array, step: int, scale: Array) -> str:
    """The type in which integer weights [oc, kh, kw, ic] are stored: "int4" or "int2" where all of them fit and that
    saves a quarter at least, otherwise "" (bytes). `scale`: of the sums."""
    if scale.size and scale.min() < _SMALLEST:
        return ""
    low, high = int(w.min(initial=0)), int(w.max(initial=0))
    counts = (w.shape[1], w.shape[2], w.shape[3] // step)
    best, size = "", 3 * math.prod(counts) // 4
    for kind, bits in (("int4", 4), ("int2", 2)):
        stored = math.prod(stored_counts(counts, fields_of(kind)))
        if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1) and stored <= size:
            best, size = kind, stored - 1
    return best


def share_bytes(w: Array, step: int, w_dtype: str) -> Array:
    """Integers [oc, kh, kw, ic] -> int8 of the same kind, several steps of `step` channels to a byte
    (`geometry.shared_axis`); `w` itself where `w_dtype` is no type of less than a byte."""
    fields = fields_of(w_dtype)
    if fields == 1:
        return w
    oc, kh, kw, ic = w.shape
    counts = (kh, kw, ic // step)
    axis = 1 + shared_axis(counts, fields)
    bits = 8 // fields
    split = w.reshape(oc, *counts, step)
    pad = [(0, 0)] * 5
    pad[axis] = (0, -split.shape[axis] % fields)
    split = np.pad(split, pad).astype(np.uint8) & ((1 << bits) - 1)
    each = [np.take(split, range(f, split.shape[axis], fields), axis) << (bits * f) for f in range(fields)]
    rows, columns, steps = stored_counts(counts, fields)
    packed = np.asarray(np.bitwise_or.reduce(each), np.uint8)
    return packed.view(np.int8).reshape(oc, rows, columns, steps * step)


def own_bytes(w: Array, counts: tuple[int, int, int], step: int, w_dtype: str) -> Array:
    """The integers [oc, kh, kw, ic] of `share_bytes`, of which there are `counts` of steps: a byte for each."""
    fields = fields_of(w_dtype)
    if fields == 1:
        return w
    stored = w.view(np.uint8).reshape(w.shape[0], *stored_counts(counts, fields), step)
    axis, bits = 1 + shared_axis(counts, fields), 8 // fields
    each = [(stored << (8 - bits * (f + 1))).view(np.int8) >> (8 - bits) for f in range(fields)]
    mixed = np.stack(each, axis + 1)
    shape = list(stored.shape)
    shape[axis] *= fields
    whole = mixed.reshape(shape)[:, : counts[0], : counts[1], : counts[2]]
    return np.ascontiguousarray(whole).reshape(w.shape[0], *counts[:2], counts[2] * step)


def pack_depthwise(w: Array, rows: int, w_dtype: str = "") -> Array:
    """[channels, kh, kw] -> [kh, kw, channels], or for `rows` > 1 [ceil(kh / rows), kw, channels, rows].

    Channels are padded (`depthwise_channels`), missing rows are zero. `w_dtype` "int4": kw is half as much (rounded
    up), neighbouring columns share bytes, the first in the lower bits.
    """
    if fields_of(w_dtype) > 1:
        pairs = np.pad(w, [(0, 0), (0, 0), (0, w.shape[2] % 2)]).astype(np.uint8) & 15
        w = (pairs[..., ::2] | pairs[..., 1::2] << 4).view(np.int8)
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
