"""Whether passing over zero blocks of weights is faster than multiplying by them, and with which register tile.

Cycles are counted as for dense kernels (`tiles.py`), with as many steps as a list has blocks. A sparse step loads one
number more, where its data lie, and one vector of weights serves few places only by chance of the pattern: a tile has
as many vectors of channels as a block, and loads bound it rather than multiply-adds. Constants were measured (x86 with
AVX-512 and VNNI).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.tvm.geometry import BLOCK, lanes_of, spans
from irc.backends.tvm.plan.tiles import Product, TileChoice, product_of, rank_tiles, share_a_set
from irc.backends.tvm.specs import LinearSpec, SparseSpec
from irc.targets.target import Target

_SLOT = 0.53  # cycles per load: of data, of weights, and of where the data lie
_CONFLICT = 1.0  # cycles per place whose cache line is gone when its next channels are read
_PAGE = 4096  # bytes of a way of the first-level cache
_LATENCY = 4.6  # cycles until a sum can be added to again
_SPLIT_DATA, _SPLIT = 0.7, 0.9  # cycles per vector of bytes that are made numbers of 16 bits, of data and of weights
_ENDING = 0.8  # of the cycles that the dense model counts for a vector of results
_WINDOW, _EXPOSED = 16, 1.9  # vectors of results that the next tile's work overtakes, and what others cost more
_TILE = 6.0  # cycles of a tile's addresses, and of the end of a list, which nobody foresees
_MEMORY_RATE = 24.0  # bytes of weights a cycle from behind the second-level cache
_BROKEN = 1.7  # times as long, where reading stops and starts with every list
_LOOKED_AT = 8  # dense tiles
_MARGIN = 0.8  # of the dense kernel's cycles that the sparse one may need at most
_NEAR = 0.6  # of the first-level cache, for places whose data wait for all weights
_FILLED = 0.75  # of the entries that a kernel can address, on average
_WIDEST = 32  # output channels of a block


@dataclass(frozen=True)
class SparseChoice:
    """A register tile for blocks of `unit` output channels, and cycles of both kernels as the model sees them."""

    unit: int
    tile: TileChoice
    dense: float

    @property
    def pays(self) -> bool:
        return self.tile.cycles < _MARGIN * self.dense


def units_of(target: Target) -> list[int]:
    """Output channels that a block may have: whole vectors, of every level of the target."""
    if target.upgrades:
        return [BLOCK]
    lanes = lanes_of(target)
    return [lanes * n for n in (1, 2, 4) if lanes * n <= _WIDEST]


def choose(spec: LinearSpec, target: Target, unit: int, steps: float) -> SparseChoice:
    """For lists of `steps` stored blocks (their mean length) in units of `unit` channels."""
    product = product_of(spec, target)
    dense = min(_cycles(product, tile, product.steps, _Dense())[0] for tile in rank_tiles(target, product)[:_LOOKED_AT])
    found = rank(product, target, unit, steps)[0]
    size = product.vectors * target.vector_bytes / product.fields  # bytes of a dense step; small ones stay near
    memory = size / (_MEMORY_RATE * spec.batch[0]) if product.steps * size > target.l2_bytes // 8 else 0.0
    cycles = max(found.cycles, _BROKEN * steps * memory * product.fields)
    return SparseChoice(unit, replace(found, cycles=cycles), max(dense, product.steps * memory))


def rank(product: Product, target: Target, unit: int, steps: float) -> list[TileChoice]:
    """All tiles of a sparse kernel, cheapest first."""
    return sorted(_tiles(product, target, unit, steps), key=lambda t: t.cycles)


def _tiles(product: Product, target: Target, unit: int, steps: float) -> Iterator[TileChoice]:
    per_unit = unit // lanes_of(target)
    ways = target.l1_bytes // _PAGE
    for tile in rank_tiles(target, product):
        if per_unit % tile.vectors == 0:
            gone = share_a_set(tile.rows, tile.columns, product.apart) > ways
            cycles, bound = _cycles(product, tile, steps, _Sparse(_CONFLICT if gone else 0.0))
            yield replace(tile, cycles=cycles, bound=bound)


@dataclass(frozen=True)
class _Dense:
    """What a step costs beyond multiply-adds and their loads."""

    conflict: float = 0.0  # per place
    entry: float = 0.0  # loads
    split: float = 0.0  # per place, of data that are not prepared


@dataclass(frozen=True)
class _Sparse(_Dense):
    entry: float = 1.0
    split: float = _SPLIT_DATA


def _cycles(product: Product, tile: TileChoice, steps: float, kind: _Dense) -> tuple[float, dict[str, float]]:
    total = 0.0
    bound = {"multiply-adds": 0.0, "loads": 0.0, "latency": 0.0, "epilogue": 0.0}
    halves = 2 if product.uops > 1 else 1  # of a word, in two registers
    for _, rows, r in spans(product.out[0], tile.rows):
        for _, columns, c in spans(product.out[1], tile.columns):
            for _, vectors, v in spans(product.vectors, tile.vectors):
                count, places = rows * columns * vectors, r * c
                work = places * v * product.uops / 2 + (halves - 1) * (kind.split * places + _SPLIT * v)
                loads = _SLOT * (places + v + kind.entry)
                latency = _LATENCY if places * v <= 8 else 0.0
                written = places * v
                ending = _ENDING * product.epilogue * (written + _EXPOSED * max(written - _WINDOW, 0)) + _TILE
                total += count * (steps * (max(work, loads, latency) + kind.conflict * places) + ending)
                for name, cost in (("multiply-adds", work), ("loads", loads), ("latency", latency)):
                    bound[name] += count * steps * cost
                bound["epilogue"] += count * ending
    return total, bound


def columns_of(spec: LinearSpec, target: Target) -> int:
    """Columns of the output whose data, results and operands stay in the first-level cache: whole tiles, one at least,
    unless it is all of them."""
    rows, columns, _ = spec.tile
    height = rows if spec.kernel[0] == 1 else (rows - 1) * spec.stride[0] + spec.kernel[0]
    data = height * min(spec.stride[1], spec.kernel[1]) * spec.ic * _size(spec.x_dtype)
    results = sum(_size(o.dtype) for o in spec.operands if o.strides[3] and o.strides[-1]) + _size(spec.y_dtype)
    near = int(target.l1_bytes * _NEAR) // (data + rows * results * spec.oc)
    return spec.out[1] if near >= spec.out[1] else min(max(near // columns, 1) * columns, spec.out[1])


def _size(dtype: str) -> int:
    return np.dtype(dtype).itemsize


def retiled(spec: SparseSpec, target: Target) -> SparseSpec:
    """`spec` with the tile that suits `target`."""
    steps = _FILLED * spec.entries / spec.lists
    tile = rank(product_of(spec.linear, target), target, spec.unit, steps)[0]
    linear = replace(spec.linear, tile=(tile.rows, tile.columns, tile.vectors))
    return replace(spec, linear=linear, columns=columns_of(linear, target))
