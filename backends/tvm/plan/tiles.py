"""The analytic model that picks register tiles: cycles of a whole layer under a simple machine.

Two multiply-adds and nearly two loads per cycle, multiply-add latency 4; a tile costs per reduction step the largest
of the three, something for each vector of weights, more when they do not stay in the first-level cache, and something
for each place when more places fall into one set of that cache than it has ways. Remainder tiles are counted as they
are.

The epilogue of a tile overlaps with the first steps of the next one as far as the processor looks ahead: each vector
costs the cycles of its instructions, and those beyond what fits that window stand in the way for longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from irc.backends.tvm.expression import Expression
from irc.backends.tvm.geometry import (
    PALETTE,
    depthwise_rows,
    dot_of,
    fields_of,
    lanes_of,
    step_channels,
    without_matrices,
)
from irc.backends.tvm.plan import tiles_arm
from irc.backends.tvm.specs import AttentionSpec, DepthwiseSpec, LinearSpec, Order, Spec
from irc.targets.target import Target

_LATENCY = 4.6  # cycles until a sum can be added to again, and what is lost around it
_SLOT = 0.58  # cycles per load
_EPILOGUE = 1.6  # cycles per vector that is written: conversion, factor, conversion back, narrowing
_INSTRUCTION = 0.45  # cycles per vector of what an expression does beyond that
_NARROW = 0.4  # cycles per vector where a place has fewer vectors than are narrowed together
_FUNCTION = 12.0  # cycles per vector of a polynomial
_WINDOW = 16  # vectors of an epilogue that the next tile's work overtakes
_EXPOSED = 1.9  # by how much a vector beyond costs more
_TILE = 4.0  # cycles of a tile's addresses and loops
_WEIGHTS = (0.06, 0.3)  # cycles per vector of weights in the first-level cache and from the second
_SPLIT = 0.9  # cycles per vector of bytes that are made numbers of 16 bits
_UNPACK = (0.2, 0.3)  # cycles per vector of weights that is taken out of bytes it shares; of 64 bytes
_LOOKUP = 0.5  # more cycles where it is an index into a codebook
_CONFLICT = 0.1  # cycles per place whose cache line is gone when its next channel is read
_ARM_COLUMNS = 6  # of a depthwise tile: what neighbours share is loaded once, and stays in registers
_LINE, _PAGE = 64, 4096  # bytes of a cache line, and of a way of the first-level cache


_FUNCTIONS = frozenset({"exp", "sigmoid", "tanh", "erf", "gelu", "gelu_tanh", "div", "sqrt", "reciprocal"})


@dataclass(frozen=True)
class TileChoice:
    """A register tile and what the model says of it. `bound`: cycles that each resource would take alone."""

    rows: int
    columns: int
    vectors: int
    cycles: float
    bound: Mapping[str, float] = field(default_factory=dict, compare=False)


def _parts(total: int, tile: int) -> list[tuple[int, int]]:
    whole, rest = divmod(total, tile)
    return [(n, size) for n, size in ((whole, tile), (1 if rest else 0, rest)) if n]


@dataclass(frozen=True)
class Product:
    """What a tile is chosen for: `out` places, `vectors` of channels, `steps` reduction steps.

    `sums`: one more accumulator per place. `uops`: instructions per multiply-add (widening ways need more). `apart`:
    bytes from the inputs of one place to those of the next, down and across (0: not known). `epilogue`: cycles of a
    vector of results (`epilogue_cycles`). `fields`: steps whose weights share bytes. `lookup`: they are indices.
    `pairs`: places are multiplied two at a time. `real`: results stay reals.
    """

    out: tuple[int, int]
    vectors: int
    steps: float
    sums: bool = False
    uops: float = 1.0
    apart: tuple[int, int] = (0, 0)
    epilogue: float = _EPILOGUE
    fields: int = 1
    lookup: bool = False
    pairs: bool = False
    real: bool = True


def choose_tile(target: Target, product: Product) -> TileChoice:
    """The cheapest tile; of nearly equal ones the first."""
    best: TileChoice | None = None
    for choice in _tiles(target, product):
        if best is None or choice.cycles < best.cycles * 0.999:
            best = choice
    assert best is not None
    return best


def rank_tiles(target: Target, product: Product) -> list[TileChoice]:
    """All tiles that `choose_tile` looks at, cheapest first."""
    return sorted(_tiles(target, product), key=lambda t: t.cycles)


def _tiles(target: Target, product: Product) -> Iterator[TileChoice]:
    if target.arch == "aarch64" and product.uops == 1:
        yield from _arm_tiles(target, product)
        return
    out, sums = product.out, product.sums
    ways = target.l1_bytes // _PAGE
    unpack = _UNPACK[target.vector_bytes == 64]
    free = target.vector_registers - 1 - (2 if product.uops > 1 else 0)
    for v in range(1, min(product.vectors, 8) + 1):
        for r in (1, 2, 3, 4):
            if r > out[0]:
                break
            for c in range(1, min(out[1], 28) + 1):
                if r > 1 and c < out[1]:
                    continue  # several rows only where a row is narrower than a tile
                places = r * c
                if places * v > 1 and places * (v + sums) + v + _kept(product, v) > free:
                    break  # the smallest tile is always there
                conflict = _CONFLICT if share_a_set(r, c, product.apart) > ways else 0.0
                stay = v * product.steps * target.vector_bytes <= target.l1_bytes * product.fields
                weights = _WEIGHTS[0 if stay else 1]
                yield TileChoice(r, c, v, *_cycles(product, r, c, v, conflict, weights, unpack))


def _arm_tiles(target: Target, product: Product) -> Iterator[TileChoice]:
    out = product.out
    kind = tiles_arm.Kind(product.steps, product.pairs, product.sums, product.fields, product.real)
    extra = product.epilogue - _EPILOGUE
    for v in range(1, min(product.vectors, 8) + 1):
        for r in (1, 2, 3, 4):
            if r > out[0]:
                break
            for c in range(1, min(out[1], 28) + 1):
                if r > 1 and c < out[1]:
                    continue
                if tiles_arm.registers(kind, r * c, v) >= target.vector_registers:
                    break
                total, bound = 0.0, dict.fromkeys(("multiply-adds", "loads", "latency", "caches", "epilogue"), 0.0)
                for n_r, rows in _parts(out[0], r):
                    for n_c, columns in _parts(out[1], c):
                        for n_v, size in _parts(product.vectors, v):
                            one, each = tiles_arm.cycles(kind, rows * columns, size, extra)
                            total += n_r * n_c * n_v * one
                            bound = {k: b + n_r * n_c * n_v * each[k] for k, b in bound.items()}
                yield TileChoice(r, c, v, total, bound)


def _kept(product: Product, vectors: int) -> int:
    """Registers for bytes that weights share and for a mask, or for halves of them on their way."""
    if product.fields == 1:
        return 0
    return product.lookup + (4 if product.uops > 1 else vectors + 1)


def share_a_set(rows: int, columns: int, apart: tuple[int, int]) -> int:
    """The most places of a tile whose inputs fall into the same set of the first-level cache."""
    if not any(apart):
        return 1
    sets = [(r * apart[0] + c * apart[1]) % _PAGE // _LINE for r in range(rows) for c in range(columns)]
    return max(sets.count(s) for s in set(sets))


def _cycles(
    product: Product, rows: int, columns: int, v: int, conflict: float, weights: float, unpack: float
) -> tuple[float, dict[str, float]]:
    uops, steps = product.uops, product.steps
    total = 0.0
    bound = {"multiply-adds": 0.0, "loads": 0.0, "latency": 0.0, "caches": 0.0, "epilogue": 0.0}
    for n_r, r in _parts(product.out[0], rows):
        for n_c, c in _parts(product.out[1], columns):
            for n_v, size in _parts(product.vectors, v):
                places = r * c
                written = places * size
                halves = uops > 1  # of a word, in two registers
                work = places * (size + product.sums) * uops / 2 + (_SPLIT * size if halves else 0.0)
                work += unpack * size if product.fields > 1 and not halves else 0.0
                work += _LOOKUP * size if product.lookup else 0.0
                loads = (places * (2 if halves else 1) + size / product.fields) * _SLOT
                latency = _LATENCY if written <= 8 else 0.0
                out_of_sight = max(written - _WINDOW, 0)
                narrow = _NARROW if size % 4 else 0.0
                ending = (product.epilogue + narrow) * (written + _EXPOSED * out_of_sight) + _TILE
                tiles = n_r * n_c * n_v
                caches = weights * size / product.fields + conflict * places
                total += tiles * (steps * (max(work, loads, latency) + caches) + ending)
                for name, cost in (("multiply-adds", work), ("loads", loads), ("latency", latency), ("caches", caches)):
                    bound[name] += tiles * steps * cost
                bound["epilogue"] += tiles * ending
    return total, bound


def epilogue_cycles(expression: Expression) -> float:
    """Of one vector of results, as the tile model counts them."""
    total = _EPILOGUE
    for instr in expression:
        if instr.op in ("operand", "constant", "accumulator", "requantize"):
            continue
        total += _FUNCTION if instr.op in _FUNCTIONS else _INSTRUCTION * (3 if instr.op == "dequantize" else 1)
    standard = sum(instr.op in ("cast", "scale") for instr in expression)
    return total - _INSTRUCTION * standard


def choose_order(target: Target, weight_bytes: int, activation_bytes: int, rows: int) -> Order:
    """ "rows": all weights pass once per row of the image, activations stay; "channels": the other way round."""
    if rows == 1:
        return "channels"
    if weight_bytes <= target.l2_bytes // 2:
        return "rows"
    return "channels" if activation_bytes <= target.l2_bytes // 2 or weight_bytes > activation_bytes else "rows"


def depthwise_tile(target: Target, x_dtype: str, w_dtype: str, channels: int, columns: int) -> tuple[int, int]:
    """(columns, vectors of channels) of a depthwise kernel's register tile."""
    if target.arch == "aarch64" and x_dtype == "float32":
        return min(columns, _ARM_COLUMNS), min(max(channels // lanes_of(target), 1), 2)
    by_rows = depthwise_rows(x_dtype, w_dtype, target)
    vectors = min(max(channels // lanes_of(target), 1), 4 if by_rows == 1 else target.vector_registers // 16)
    halves = by_rows > 1 and (by_rows == 2 or target.dot == "pmaddwd")  # two registers of weights a tap
    return max(1, min(columns, target.vector_registers // (4 if halves else 2) // vectors)), vectors


def retiled(spec: Spec, target: Target) -> Spec:
    """`spec` with the tile that suits `target`. Values and the order of packed weights in blocks stay as they are."""
    if isinstance(spec, DepthwiseSpec):
        tile = depthwise_tile(target, spec.x_dtype, spec.w_dtype, spec.channels, spec.out[1])
        return replace(spec, tile=tile)
    if isinstance(spec, AttentionSpec):
        scores, values = rank_attention(spec, target)
        score_tile = (scores[0].columns, scores[0].vectors)
        return replace(spec, score_tile=score_tile, value_tile=(values[0].columns, values[0].vectors))
    if not isinstance(spec, LinearSpec):
        return spec
    chosen = choose_tile(target, product_of(spec, target))
    return replace(spec, tile=(chosen.rows, chosen.columns, chosen.vectors))


def product_of(spec: LinearSpec, target: Target) -> Product:
    """What the tile of a linear kernel is chosen for."""
    steps = spec.kernel[0] * spec.kernel[1] * spec.ic // step_channels(spec.x_dtype, target, spec.ic)
    return Product(
        spec.out,
        -(-spec.oc // lanes_of(target)),
        steps,
        sums=spec.sum_x,
        uops=uops_of(spec.x_dtype, target),
        apart=places_apart(spec),
        epilogue=epilogue_cycles(spec.expression),
        fields=fields_of(spec.w_dtype),
        lookup=spec.w_dtype == PALETTE,
        pairs=in_pairs(spec.x_dtype, target, spec.ic),
        real=spec.y_dtype == "float32",
    )


def places_apart(spec: LinearSpec) -> tuple[int, int]:
    """Bytes from the inputs of one place to those of the next, down and across."""
    size = np.dtype(spec.x_dtype).itemsize
    return spec.x_strides[2] * spec.stride[0] * size, spec.x_strides[3] * spec.stride[1] * size


def in_pairs(x_dtype: str, target: Target, channels: int) -> bool:
    """Whether places are multiplied two at a time."""
    return x_dtype != "float32" and dot_of(x_dtype, target, channels) == "smmla"


def uops_of(x_dtype: str, target: Target) -> float:
    """Instructions of one multiply-add of a linear kernel."""
    return 1.0 if x_dtype == "float32" or target.dot in ("vpdpbusd", "sdot", "smmla") else 2.0


def rank_attention(spec: AttentionSpec, target: Target) -> tuple[list[TileChoice], list[TileChoice]]:
    """Tiles of both products of attention, cheapest first: (keys, vectors of rows) of the scores, with as many vectors
    as `spec` has, and (rows, vectors of columns) of the weighted sums."""
    target = without_matrices(target)
    lanes, vectors = lanes_of(target), spec.score_tile[1]
    steps = spec.width // step_channels(spec.k_dtype, target, spec.width)
    scores = rank_tiles(target, Product((1, spec.keys), vectors, steps, uops=uops_of(spec.k_dtype, target)))
    rows = min(spec.rows, vectors * lanes)
    steps = -(-spec.keys // step_channels(spec.p_dtype, target))
    sums = Product((1, rows), -(-spec.columns // lanes), steps, uops=uops_of(spec.p_dtype, target))
    return [t for t in scores if t.vectors == vectors], rank_tiles(target, sums)
