"""Whether passing over zero blocks of weights is faster than multiplying by them, and with which register tile.

The dense tile model (`tiles.py`) counts a reduction of as many steps as a unit of output channels has stored blocks.
Added is what only sparse kernels pay: where each block's data lie is loaded, and lists end where nobody foresees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from irc.backends.tvm.geometry import BLOCK, lanes_of
from irc.backends.tvm.plan.tiles import Product, TileChoice, product_of, rank_tiles
from irc.backends.tvm.specs import LinearSpec, SparseSpec
from irc.targets.target import Target

_ENTRY = 0.6  # cycles per stored block: its offset is loaded, and added to an address
_SURPRISE = 12.0  # cycles per tile: the end of a list
_MARGIN = 0.97  # of the dense kernel's cycles that the sparse one may need at most
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
    return SparseChoice(unit, rank(product, target, unit, steps)[0], rank_tiles(target, product)[0].cycles)


def rank(product: Product, target: Target, unit: int, steps: float) -> list[TileChoice]:
    """All tiles of a sparse kernel, cheapest first."""
    return sorted(_tiles(product, target, unit, steps), key=lambda t: t.cycles)


def _tiles(product: Product, target: Target, unit: int, steps: float) -> Iterator[TileChoice]:
    per_unit = unit // lanes_of(target)
    for tile in rank_tiles(target, replace(product, steps=steps)):
        if per_unit % tile.vectors:
            continue
        count = -(-product.out[0] // tile.rows) * -(-product.out[1] // tile.columns)
        lists = count * -(-product.vectors // tile.vectors) * (steps * _ENTRY + _SURPRISE)
        yield replace(tile, cycles=tile.cycles + lists, bound={**tile.bound, "lists": lists})


def retiled(spec: SparseSpec, target: Target) -> SparseSpec:
    """`spec` with the tile that suits `target`."""
    steps = spec.entries / spec.lists
    tile = rank(product_of(spec.linear, target), target, spec.unit, steps)[0]
    return replace(spec, linear=replace(spec.linear, tile=(tile.rows, tile.columns, tile.vectors)))
