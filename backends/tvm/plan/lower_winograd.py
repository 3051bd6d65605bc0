"""Convolutions that are cheaper by Winograd's minimal filtering, and the model that says which.

F(m x m', 3x3) needs (m+2)(m'+2) products for m m' outputs where a direct convolution needs 9 m m': up to 4 times fewer,
for transforms of data and, at compile time, of weights, which grow by (m+2)(m'+2) / 9. The model counts cycles of both
ways: multiply-adds, transforms, and the weights' way from memory, which is what decides about small deep images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from irc.backends.tvm.geometry import block_of, lanes_of, spans
from irc.backends.tvm.plan import lower_conv as conv
from irc.backends.tvm.plan.integer import float_weights, integer_weights
from irc.backends.tvm.plan.kinds import kind_of, stored_half
from irc.backends.tvm.plan.pack import pack_linear
from irc.backends.tvm.plan.planner import Planner, Pointer
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.tiles import choose_tile
from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View
from irc.backends.tvm.specs import Operand, WinogradInputSpec, WinogradSpec
from irc.backends.tvm.winograd import input_size, transform_weights
from irc.targets.target import Target

_KERNEL = (3, 3)
_OUTPUTS = (2, 4)  # per tile and axis
_STACK_BYTES = 72 * 1024  # sums of one block of tiles
_MEMORY_RATE = 8.0  # bytes of weights per cycle from memory
_CACHE_RATE = 32.0  # from the second-level cache
_OVERLAP = 0.6  # share of the shorter of two that hides behind the longer: arithmetic, and weights on their way
_INPUT_COST, _OUTPUT_COST = 6.0, 5.0  # cycles per point and vector of channels
_MARGIN = 0.9  # of the direct way's cycles that Winograd may need at most


@dataclass(frozen=True)
class Shape:
    """What the choice depends on. `out` is per image; `points` of a tile are (tile + 2) along each axis."""

    images: int
    out: tuple[int, int]
    ic: int
    oc: int


@dataclass(frozen=True)
class Choice:
    """Outputs of a tile, the product kernel's blocks, and cycles as the model sees them."""

    tile: tuple[int, int]
    block: tuple[int, int, int]
    cycles: float
    direct: float

    @property
    def name(self) -> str:
        return f"F({self.tile[0]}x{self.tile[1]},3x3)"


def winograd_choice(region: Region, target: Target) -> Choice | None:
    """How to compute this region's convolution by Winograd, or None where that is impossible or does not pay."""
    node = region.root
    if not node.is_op("Conv") or kind_of(node) != "linear" or len(node.need(0).static_shape()) != 4:
        return None
    g = conv._geometry(node)
    if g.kernel != _KERNEL or g.stride != (1, 1) or g.dilation != (1, 1) or node.get_int("group", 1) != 1:
        return None
    if integer_weights(node) is not None or storage_dtype(region.output.dtype) != "float32":
        return None
    if stored_half(node.need(1)) is not None:
        return None  # transformed weights need float32: many times the bytes of those that were made small
    if block_of(target):
        return None  # its weights are packed in tiles
    if target.l2_bytes < 256 * 1024 or target.vector_registers < 16:
        return None  # small machines, where the size of weights counts more
    n, oc, height, width = region.output.static_shape()
    return choose(Shape(n, (height, width), node.need(0).static_shape()[1], oc), target)


def choose(shape: Shape, target: Target) -> Choice | None:
    """The cheapest tile, where it is cheaper than the direct way by some margin."""
    vectors = -(-shape.oc // lanes_of(target))
    direct = choose_tile(target, shape.out, vectors, 9 * shape.ic).cycles * shape.images
    direct = _with_weights(direct, 9 * shape.ic * shape.oc * 4, target)
    best: Choice | None = None
    for tile in itertools.product(_OUTPUTS, _OUTPUTS):
        if any(m > o for m, o in zip(tile, shape.out, strict=True)):
            continue
        block, cycles = _cycles(shape, tile, target)
        if best is None or cycles < best.cycles:
            best = Choice(tile, block, cycles, direct)
    return best if best is not None and best.cycles < _MARGIN * best.direct else None


def _points(tile: tuple[int, int]) -> int:
    return math.prod(input_size(m, r) for m, r in zip(tile, _KERNEL, strict=True))


def _with_weights(work: float, nbytes: int, target: Target) -> float:
    memory = nbytes / _MEMORY_RATE
    return max(work, memory) + (1 - _OVERLAP) * min(work, memory)


def _cycles(shape: Shape, tile: tuple[int, int], target: Target) -> tuple[tuple[int, int, int], float]:
    lanes, points = lanes_of(target), _points(tile)
    tiles = shape.images * math.prod(-(-o // m) for o, m in zip(shape.out, tile, strict=True))
    rows, columns = -(-shape.ic // lanes), -(-shape.oc // lanes)
    block, work = min(_blocks(tiles, points, shape.ic, columns, target), key=lambda b: b[1])
    transforms = tiles * points * (rows * _INPUT_COST + columns * _OUTPUT_COST)
    return block, _with_weights(work + transforms, points * shape.ic * shape.oc * 4, target)


def _blocks(
    tiles: int, points: int, ic: int, vectors: int, target: Target
) -> Iterator[tuple[tuple[int, int, int], float]]:
    """(block of the product kernel, its cycles)."""
    lanes = lanes_of(target)
    for v in range(1, min(vectors, 4) + 1):
        most = max(_STACK_BYTES // (points * v * lanes * 4), 1)
        for block in range(1, min(most, tiles) + 1):
            for columns in range(1, min(block, 28) + 1):
                if columns * v + v > target.vector_registers - 1:
                    break
                yield (block, columns, v), points * _product_cycles(tiles, vectors, ic, lanes, block, columns, v)


def _product_cycles(tiles: int, vectors: int, ic: int, lanes: int, block: int, columns: int, v: int) -> float:
    """Cycles for one point: register tiles, and the weights from the cache once per block."""
    total = 0.0
    for _, n_v, size in spans(vectors, v):
        for _, n_b, part in spans(tiles, block):
            for _, n_c, c in spans(part, columns):
                step = max(c * size / 2, (c + size) / 2, 4.0 if c * size < 8 else 0.0)
                total += n_v * n_b * n_c * (ic * step + 2.0 * c * size + 8)
            total += n_v * n_b * (1 - _OVERLAP) * ic * size * lanes * 4 / _CACHE_RATE
    return total


def lower_winograd(p: Planner, region: Region, choice: Choice) -> None:
    """Two calls per strip of the image: transform of the input, and products with the transform back."""
    node = region.root
    g = conv._geometry(node)
    x = conv._first_tap(conv._source(p, node, None), g)
    n, oc, height, width = region.output.static_shape()
    out = p.output_view(region.output, (0, 2, 3, 1), innermost=1)
    w = float_weights(node.need(1)).astype(np.float32).transpose(0, 2, 3, 1)
    ic, lanes = w.shape[3], lanes_of(p.target)
    b, operands, result = conv._expression(p, region, None, conv._bias(node), None)
    views = [
        conv._channel_ready(p, p.operand_view(conv._broadcast(v, 4), (n, oc, height, width))) for v in operands.values
    ]
    packed = pack_linear(transform_weights(w, choice.tile), lanes, choice.block[2], 1)
    weights = p.constant(packed, node.need(1).name)
    row = _row_stride(ic, lanes)
    strips = list(_strips(p.target, n, (height, width), choice.tile, row, packed.nbytes))
    across = -(-width // choice.tile[1])
    most = max(images * -(-rows // choice.tile[0]) * across for _, images, _, rows in strips)
    point = _apart(most * row, lanes)
    points = _points(choice.tile)
    v = p.new_storage("float32", points * point)
    for image, images, top, rows in strips:
        x_i, out_i, *views_i = (_strip(view, image, images, top, rows) for view in (x, out, *views))
        shape = (images, (rows, width), choice.tile, _KERNEL, ic)
        reach = x_i.extent + sum((k - 1) * s for k, s in zip(_KERNEL, conv._nhw(x_i)[1:], strict=True))
        first = WinogradInputSpec(*shape, conv._nhw(x_i), (point, row), reach, points * point)
        macs = images * oc * rows * width * math.prod(_KERNEL) * ic
        p.call(first, [p.pointer(x_i), Pointer(v, 0)], (v,), f"{choice.name} input")
        second = WinogradSpec(
            *shape,
            oc,
            (point, row),
            conv._nhw(out_i),
            b.finish(result),
            tuple(Operand(e.dtype, (*conv._nhw(e), e.strides[1]), e.extent) for e in views_i),
            choice.block,
            points * point,
            out_i.extent,
            weights.extent,
        )
        args = [p.pointer(e) for e in (weights, *views_i, out_i)]
        p.call(second, [Pointer(v, 0), *args], (out.storage,), f"{region.label} {choice.name}", macs=macs)
    p.views[id(region.output)] = out


def _row_stride(channels: int, lanes: int) -> int:
    """Elements from one tile to the next: whole vectors, and no multiple of a large power of two, so that the tiles of
    a register tile do not fall into the same cache sets."""
    return _apart(-(-channels // lanes) * lanes, lanes)


def _apart(stride: int, lanes: int) -> int:
    return stride + lanes if stride % 256 == 0 else stride


def _strips(
    target: Target, images: int, out: tuple[int, int], tile: tuple[int, int], row: int, weight_bytes: int
) -> Iterator[tuple[int, int, int, int]]:
    """(first image, images, first row, rows): parts whose transformed input is small beside caches and weights."""
    limit = max(2 * target.l2_bytes, weight_bytes // 2)
    per_row = _points(tile) * -(-out[1] // tile[1]) * row * 4
    tile_rows = -(-out[0] // tile[0])
    together = max(1, limit // (per_row * tile_rows))
    parts = -(-per_row * tile_rows // limit)
    step = -(-tile_rows // parts) * tile[0]
    tops = [t for t in range(0, out[0], step) if t == 0 or out[0] - t >= tile[0]]
    for image in range(0, images, together):
        for top, end in itertools.pairwise([*tops, out[0]]):
            yield image, min(together, images - image), top, end - top


def _strip(view: View, image: int, images: int, top: int, rows: int) -> View:
    """Some images and rows of [n, c, h, w]; the input keeps the rows that windows reach."""
    _, channels, _, width = view.shape
    return view.sliced((image, 0, top, 0), (images, channels, rows, width), (1, 1, 1, 1))
