"""What is worth measuring: choices near the analytic optimum."""

from __future__ import annotations

import math
from dataclasses import replace

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.plan.tiles import TileChoice, product_of, rank_attention, rank_tiles
from irc.backends.tvm.specs import AttentionSpec, DepthwiseSpec, LinearSpec, Spec, WinogradSpec
from irc.targets.target import Target

_SLACK = 1.5  # predicted cycles over the best, up to which a tile is worth a look
_PER_VECTORS = 3  # tiles of one number of vectors: neighbours behave alike


def ranked(spec: LinearSpec, target: Target) -> list[TileChoice]:
    """The tiles of a linear kernel, cheapest by the model first."""
    return rank_tiles(target, product_of(spec, target))


def predicted(spec: Spec, target: Target) -> TileChoice | None:
    """What the model says of the tile in `spec`; None where it says nothing of such kernels or tiles."""
    if not isinstance(spec, LinearSpec):
        return None
    return next((t for t in ranked(spec, target) if (t.rows, t.columns, t.vectors) == spec.tile), None)


def candidates(spec: Spec, target: Target, count: int = 10) -> list[Spec]:
    """`spec` first, then others like it that may be faster, the most promising first; at most `count`."""
    if isinstance(spec, LinearSpec):
        found = _linear(spec, target)
    elif isinstance(spec, DepthwiseSpec):
        found = _depthwise(spec, target)
    elif isinstance(spec, WinogradSpec):
        found = _winograd(spec, target)
    elif isinstance(spec, AttentionSpec):
        found = _attention(spec, target)
    else:
        found = []
    return list(dict.fromkeys([spec, *found]))[:count]


def _linear(spec: LinearSpec, target: Target) -> list[Spec]:
    tiles = ranked(spec, target)
    kept: list[Spec] = []
    seen: dict[int, int] = {}
    for tile in tiles:
        if tile.cycles > tiles[0].cycles * _SLACK:
            break
        if seen.get(tile.vectors, 0) < _PER_VECTORS:
            seen[tile.vectors] = seen.get(tile.vectors, 0) + 1
            kept.append(replace(spec, tile=(tile.rows, tile.columns, tile.vectors)))
    return [*_other_order(spec), *kept]


def other_orders(specs: list[Spec]) -> list[Spec]:
    """The same tiles, walked the other way."""
    return [other for spec in specs if isinstance(spec, LinearSpec) for other in _other_order(spec)]


def _other_order(spec: LinearSpec) -> list[Spec]:
    """By rows only where there are enough of them to be shared out."""
    if spec.order == "rows":
        return [replace(spec, order="channels")] if not spec.w_rows else []
    rows = spec.batch[0] * spec.batch[1] * -(-spec.out[0] // spec.tile[0])
    return [replace(spec, order="rows")] if rows >= 8 else []


def _depthwise(spec: DepthwiseSpec, target: Target) -> list[Spec]:
    """All numbers of vectors, with as many columns as leave the registers about as full as now."""
    columns, vectors = spec.tile
    most = max(spec.channels // lanes_of(target), 1)
    found: list[tuple[float, Spec]] = []
    for v in range(1, min(most, 8) + 1):
        for c in range(1, min(spec.out[1], target.vector_registers) + 1):
            area = v * c / (columns * vectors)
            if not 0.4 <= area <= 1.3 or v * c > target.vector_registers * 3 // 4:
                continue
            waste = -(-spec.out[1] // c) * c / spec.out[1] + -(-most // v) * v / most
            found.append((waste + abs(area - 1.0) * 0.3, replace(spec, tile=(c, v))))
    seen: dict[int, int] = {}
    kept: list[Spec] = []
    for _, tile in sorted(found, key=lambda f: f[0]):
        assert isinstance(tile, DepthwiseSpec)
        if seen.get(tile.tile[1], 0) < 2:
            seen[tile.tile[1]] = seen.get(tile.tile[1], 0) + 1
            kept.append(tile)
    return kept


def _winograd(spec: WinogradSpec, target: Target) -> list[Spec]:
    """Register tiles near the chosen one, with about as many tiles of the image on the stack."""
    block, _, vectors = spec.block
    tiles = spec.images * math.prod(-(-o // m) for o, m in zip(spec.out, spec.tile, strict=True))
    most = min(block * vectors, tiles * vectors)
    found: list[Spec] = []
    for v in sorted(range(1, min(-(-spec.oc // lanes_of(target)), 6) + 1), key=lambda v: abs(v - vectors)):
        room = min(most // v, tiles)
        widest = min((target.vector_registers - 1 - v) // v, room)
        for c in sorted({widest, widest - 1, -(-widest * 3 // 4)} & set(range(1, widest + 1)), reverse=True):
            found.append(replace(spec, block=(room // c * c, c, v)))
    return found


def _attention(spec: AttentionSpec, target: Target) -> list[Spec]:
    """The best tiles of both products by the model, one of them at a time; blocks of rows become no larger."""
    keys, vectors = spec.score_tile
    scores, values = rank_attention(spec, target)
    first = [replace(spec, score_tile=(t.columns, vectors)) for t in scores[:3]]
    second = [replace(spec, value_tile=(t.columns, t.vectors)) for t in values[:4]]
    fewer = [replace(spec, score_tile=(keys, v)) for v in range(vectors - 1, 0, -1)]
    return [*second, *first, *fewer]
