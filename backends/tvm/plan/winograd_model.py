"""Whether Winograd's way is cheaper for a convolution, with which tile, and the blocks of its product kernel.

F(m x m', r x r') needs (m+r-1)(m'+r'-1) products for m m' outputs; a direct convolution needs m m' r r', up to four
times as many for 3x3. It costs transforms of data, and weights that grow from r r' to (m+r-1)(m'+r'-1) numbers. The
model counts cycles of both ways: multiply-adds, transforms, and the weights' way from memory, which is what decides
about small deep images. Costs of transforms and memory were measured (x86 with AVX-512).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from irc.backends.tvm.geometry import lanes_of, spans
from irc.backends.tvm.plan.tiles import Product, choose_tile
from irc.backends.tvm.plan.tiles_arm import Kind, registers, step_cycles
from irc.backends.tvm.winograd import input_size
from irc.targets.target import Target

OUTPUTS = {1: (1,), 2: (3, 5), 3: (2, 4), 4: (3,), 5: (2,)}
"""Taps along an axis -> outputs of a tile along it: those whose errors are like those of a direct sum."""

_STACK_BYTES = 72 * 1024  # sums of one block of tiles
_MEMORY_RATE = 3 / 32  # bytes of weights per cycle from memory, of a vector: wider machines have faster memory
_CACHE_RATE = 32.0  # from the second-level cache
_LOADS = 1.8  # a cycle, from the first-level cache
_OVERLAP = 0.7  # share of the shorter of two that hides behind the longer: arithmetic, and weights on their way
_INPUT_COST, _OUTPUT_COST = 6.0, 5.0  # cycles per point and vector of channels
_SECOND_CALL = 8000.0  # cycles: a kernel more whose code comes from memory
_MARGIN = 0.85  # of the direct way's cycles that Winograd may need at most


@dataclass(frozen=True)
class Shape:
    """A convolution with stride 1. `out` is per image; `taps` is the kernel's size."""

    images: int
    out: tuple[int, int]
    taps: tuple[int, int]
    ic: int
    oc: int

    def tiles(self, tile: tuple[int, int]) -> int:
        return self.images * math.prod(-(-o // m) for o, m in zip(self.out, tile, strict=True))

    def points(self, tile: tuple[int, int]) -> int:
        return math.prod(input_size(m, r) for m, r in zip(tile, self.taps, strict=True))


@dataclass(frozen=True)
class Choice:
    """Outputs of a tile, the product kernel's block (tiles, columns, vectors), and cycles as the model sees them."""

    tile: tuple[int, int]
    block: tuple[int, int, int]
    cycles: float
    direct: float


@functools.cache
def choose(shape: Shape, target: Target) -> Choice | None:
    """The cheapest tile, where it is cheaper than the direct way by some margin; None where the direct way is."""
    if any(r not in OUTPUTS for r in shape.taps):
        return None
    taps = math.prod(shape.taps)
    vectors = -(-shape.oc // lanes_of(target))
    direct = choose_tile(target, Product(shape.out, vectors, taps * shape.ic)).cycles * shape.images
    direct = with_weights(direct, taps * shape.ic * shape.oc, target)
    best: Choice | None = None
    for tile in itertools.product(OUTPUTS[shape.taps[0]], OUTPUTS[shape.taps[1]]):
        if any(m > o for m, o in zip(tile, shape.out, strict=True)):
            continue
        points, tiles = shape.points(tile), shape.tiles(tile)
        block, work = product_block(target, tiles, points, shape.ic, shape.oc)
        inputs = -(-shape.ic // lanes_of(target)) * _INPUT_COST
        work += tiles * points * (inputs + vectors * _OUTPUT_COST)
        cycles = with_weights(work, points * shape.ic * shape.oc, target) + _SECOND_CALL
        if best is None or cycles < best.cycles:
            best = Choice(tile, block, cycles, direct)
    return best if best is not None and best.cycles < _MARGIN * best.direct else None


@functools.cache
def product_block(target: Target, tiles: int, points: int, ic: int, oc: int) -> tuple[tuple[int, int, int], float]:
    """(tiles, columns, vectors) of the product kernel, and the cycles of all its products."""
    vectors = -(-oc // lanes_of(target))
    found = _blocks(target, tiles, points, ic, vectors)
    block, cycles = min(found, key=lambda b: b[1])
    return block, points * cycles


def with_weights(work: float, numbers: int, target: Target) -> float:
    """Cycles of arithmetic while so many weights come from memory."""
    memory = 4 * numbers / (_MEMORY_RATE * target.vector_bytes)
    return max(work, memory) + (1 - _OVERLAP) * min(work, memory)


def _blocks(
    target: Target, tiles: int, points: int, ic: int, vectors: int
) -> Iterator[tuple[tuple[int, int, int], float]]:
    """(block, cycles for one point) of all blocks whose sums fit the stack and whose tiles fit the registers."""
    lanes = lanes_of(target)
    for v in range(1, min(vectors, 4) + 1):
        most = max(_STACK_BYTES // (points * v * lanes * 4), 1)
        for block in range(1, min(most, tiles) + 1):
            for columns in range(1, min(block, 28) + 1):
                arm = target.arch == "aarch64"
                used = registers(Kind(ic), columns, v) if arm else columns * v + v
                if used > target.vector_registers - 1:
                    break
                yield (block, columns, v), _product_cycles(tiles, vectors, ic, lanes, block, columns, v, arm)


def _product_cycles(
    tiles: int, vectors: int, ic: int, lanes: int, block: int, columns: int, v: int, arm: bool
) -> float:
    """Cycles for one point: register tiles, and the weights from the cache once per block."""
    total = 0.0
    for _, n_v, size in spans(vectors, v):
        for _, n_b, part in spans(tiles, block):
            for _, n_c, c in spans(part, columns):
                step = max(c * size / 2, (c + size) / _LOADS, 4.0 if c * size < 8 else 0.0)
                step = step_cycles(c, size) if arm else step
                total += n_v * n_b * n_c * (ic * step + 2.0 * c * size + 8)
            total += n_v * n_b * (1 - _OVERLAP) * ic * size * lanes * 4 / _CACHE_RATE
    return total
