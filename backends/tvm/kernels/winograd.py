"""Winograd convolution in two kernels: the input's transform, and products with the transform back.

The first writes, for every point of the transformed tile, a matrix [tiles, channels]. The second takes a block of tiles
and a few vectors of output channels, multiplies the matrices of all points with the weights (register tiles as in
`linear.py`), keeps the sums on the stack, and transforms them back with the expression on the way out. Vectors run over
channels everywhere, so a transform is a few multiply-adds of whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from irc.backends.tvm.geometry import channel_tiles, chunks, lanes_of, spans
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, const
from irc.backends.tvm.kernels.elements import Stream, splat
from irc.backends.tvm.kernels.emit import emit_expression
from irc.backends.tvm.specs import WinogradInputSpec, WinogradSpec
from irc.backends.tvm.winograd import Matrix, input_matrix, input_size, output_matrix, product
from irc.targets.target import Target


def apply(k: KernelBuilder, matrix: Matrix, values: Sequence[Expr], lanes: int) -> list[Expr]:
    """The product of a constant matrix and a column of vectors."""
    return product(matrix, values, k.let, lambda v, c: v * const(float(c), "float32", lanes))


_FEW_SHARES = 8  # of the work: an odd number leaves two threads uneven
_WORTH = 3  # weights from memory that cost as much as a number from another core's cache
_LINE = 16  # float32 in a cache line


class _Tiles:
    """Which tile is where: tiles are numbered over images, rows, columns."""

    def __init__(self, spec: WinogradInputSpec | WinogradSpec) -> None:
        self.out, self.tile = spec.out, spec.tile
        self.rows, self.columns = (-(-o // m) for o, m in zip(spec.out, spec.tile, strict=True))
        self.total = spec.images * self.rows * self.columns

    def corner(self, k: KernelBuilder, number: Expr) -> tuple[Expr, Expr, Expr, Expr, Expr]:
        """(image, row and column of the first output, rows and columns that the tile before has computed)."""
        image = k.let(number // (self.rows * self.columns), "n")
        row = k.let(number // self.columns % self.rows * self.tile[0], "r")
        column = k.let(number % self.columns * self.tile[1], "c")
        h, skip_h = self._fit(k, row, 0)
        w, skip_w = self._fit(k, column, 1)
        return image, h, w, skip_h, skip_w

    def _fit(self, k: KernelBuilder, start: Expr, axis: int) -> tuple[Expr, Expr]:
        if self.out[axis] % self.tile[axis] == 0:
            return start, 0
        moved = k.let(tirx.Min(start, const(self.out[axis] - self.tile[axis], "int32")), "s")
        return moved, k.let(start - moved, "skip")


def build_input(symbol: str, spec: WinogradInputSpec, target: Target) -> Any:
    """The TIR function `symbol(x, v, part, parts)`."""
    k, lanes = KernelBuilder(symbol), lanes_of(target)
    x, v = k.pointer("x", "float32", spec.x_size), k.pointer("v", "float32", spec.v_size)
    tiles = _Tiles(spec)
    sn, sh, sw = spec.x_strides
    vectors, rest = divmod(spec.ic, lanes)
    rows, columns = (input_matrix(m, r) for m, r in zip(spec.tile, spec.kernel, strict=True))

    def transform(x_at: Expr, v_at: Expr, size: int) -> None:
        half = []
        for j in range(len(columns)):
            column = [k.let(k.load(x, x_at + i * sh + j * sw, size), "d") for i in range(len(rows))]
            half.append(apply(k, rows, column, size))
        for i in range(len(rows)):
            for j, value in enumerate(apply(k, columns, [h[i] for h in half], size)):
                k.store(v, v_at + (i * len(columns) + j) * spec.v_strides[0], value, size)

    with k.work(tiles.total, "t") as tile:
        image, h, w, _, _ = tiles.corner(k, tile)
        x_base = k.let(image * sn + h * sh + w * sw, "xb")
        v_base = k.let(tile * spec.v_strides[1], "vb")
        if vectors:
            with k.loop(vectors, "c") as vector:
                transform(k.let(x_base + vector * lanes, "xv"), k.let(v_base + vector * lanes, "vv"), lanes)
        for offset, size in chunks(lanes, rest) if rest else ():
            at = vectors * lanes + offset
            transform(x_base + at, v_base + at, size)
    return k.finish()


@dataclass(frozen=True)
class _Step:
    """Elements of the weights that belong to a step of the reduction: each first one, and how far to the next step."""

    first: list[Expr]
    step: int

    def addresses(self, number: Expr) -> list[Expr]:
        return [first + number * self.step for first in self.first]


class _Weights:
    """Where the packed weights of a few vectors of channels stand."""

    def __init__(self, product: _Product, vector: Expr, vectors: int) -> None:
        self.k, self.ic = product.k, product.spec.ic
        points, lanes, block = product.points, product.lanes, product.spec.w_block
        self.width = block or vectors * lanes  # of what stands together at a step
        size = points * self.ic
        if not block:
            first = self.k.let(vector * (size * lanes), "wb")
            self.bases, self.streams = [first + v * lanes for v in range(vectors)], [first]
            return
        ratio = block // lanes
        numbers = [vector + v for v in range(vectors)]
        self.bases = [
            self.k.let(n // ratio * (size * block) + (n % ratio * lanes if ratio > 1 else 0), "wb") for n in numbers
        ]
        self.streams = self.bases[::ratio]

    def at(self, point: Expr) -> _Step:
        return _Step([self.k.let(b + point * (self.ic * self.width), "wp") for b in self.bases], self.width)

    def ahead(self, point: Expr, register_tile: Expr, register_tiles: int) -> _Step:
        """The weights of the next point, each register tile its share: from memory they come while this one is
        computed."""
        pace = -(-self.width // register_tiles)
        lines = -(-pace // _LINE)
        pace = pace if lines == 1 else lines * _LINE
        start = self.k.let((point + 1) * (self.ic * self.width) + register_tile * (self.ic * pace), "wa")
        return _Step([stream + start + n * _LINE for stream in self.streams for n in range(lines)], pace)


class _Product:
    def __init__(self, symbol: str, spec: WinogradSpec, target: Target) -> None:
        self.spec, self.lanes = spec, lanes_of(target)
        self.tiles = _Tiles(spec)
        self.sizes = tuple(input_size(m, r) for m, r in zip(spec.tile, spec.kernel, strict=True))
        self.points = self.sizes[0] * self.sizes[1]
        k = self.k = KernelBuilder(symbol, target)
        self.v = k.pointer("v", "float32", spec.v_size)
        self.w = k.pointer("w", "float32", spec.w_size)
        self.operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
        self.y = k.pointer("y", "float32", spec.y_size)
        _, columns, vectors = spec.block
        self.channels = channel_tiles(spec.oc, self.lanes, vectors)
        self.block = block = self._block()
        self.acc = k.local(columns * vectors * self.lanes, "float32")
        self.by_element = target.arch == "aarch64"
        self.sums = k.local(self.points * block * vectors * self.lanes, "float32", "sums")
        self.back = k.local(spec.tile[0] * spec.tile[1] * self.lanes, "float32", "back")

    def _block(self) -> int:
        """Tiles of a block: those of the specification, or fewer where there would be an odd number of few shares."""
        chunks_ = sum(count for _, count, _ in self.channels)
        blocks = -(-self.tiles.total // self.spec.block[0])
        if chunks_ * blocks < _FEW_SHARES and chunks_ * blocks % 2:
            blocks += 1
        return min(self.spec.block[0], -(-self.tiles.total // blocks))

    def build(self) -> Any:
        k = self.k
        blocks = spans(self.tiles.total, self.block)
        per_chunk = sum(count for _, count, _ in blocks)
        chunks_ = sum(count for _, count, _ in self.channels)
        # Threads get tiles, which they have mostly transformed themselves, unless the weights are much larger.
        by_channels = self.spec.w_size > _WORTH * self.spec.v_size
        with k.shares(chunks_, per_chunk, by_channels, "i") as (chunk, low, high):
            first = 0
            for start, count, vectors in self.channels:
                with k.when(_inside(chunk, first, count, chunks_)):
                    vector = k.let((chunk - first) * vectors + start, "v")
                    before = 0
                    for tile, many, size in blocks:
                        with k.between(before, many, low, high, "b") as number:
                            self._item(k.let(number * size + tile, "tile"), size, vector, vectors, start)
                        before += many
                first += count
        return k.finish()

    def _item(self, tile: Expr, tiles: int, vector: Expr, vectors: int, start: int) -> None:
        """A block of tiles for a few vectors of channels."""
        spec, k, lanes = self.spec, self.k, self.lanes
        weights = _Weights(self, vector, vectors)
        v_base = k.let(tile * spec.v_strides[1], "vb")
        register_tiles = spans(tiles, spec.block[1])
        many, done = sum(count for _, count, _ in register_tiles), 0
        with k.loop(self.points, "p") as point:
            v_at = k.let(v_base + point * spec.v_strides[0], "vp")
            for column, count, columns in register_tiles:
                with k.loop(count, "x") as x:
                    at = k.let(x * columns + column, "col")
                    ahead = weights.ahead(point, x + done, many)
                    self._multiply(weights.at(point), ahead, k.let(v_at + at * spec.v_strides[1], "va"), columns)
                    sums = k.let((point * tiles + at) * (vectors * lanes), "sb")
                    for i in range(columns * vectors):
                        k.store(self.sums, sums + i * lanes, k.load(self.acc, i * lanes, lanes), lanes)
                done += count
        last = -(-spec.oc // lanes) - 1
        with k.loop(tiles, "t") as t:
            corner = self.tiles.corner(k, k.let(tile + t, "number"))
            whole = vectors - 1 if start + vectors - 1 == last and spec.oc % lanes else vectors
            if whole:
                with k.loop(whole, "v") as v:
                    self._write(corner, t, tiles, v, vectors, vector, lanes)
            if whole < vectors:
                self._write(corner, t, tiles, const(whole, "int32"), vectors, vector, spec.oc % lanes)

    def _multiply(self, weights: _Step, ahead: _Step, v_at: Expr, columns: int) -> None:
        """Sums of one point for `columns` tiles. `weights` are read and `ahead` asked for at each step."""
        spec, k, lanes = self.spec, self.k, self.lanes
        vectors = len(weights.first)
        for i in range(columns * vectors):
            k.store(self.acc, i * lanes, const(0, "float32", lanes), lanes)
        if self.by_element:
            self._by_element(weights, v_at, columns)
            return
        with k.loop(spec.ic, "i") as i:
            factors = [k.let(k.load(self.w, at, lanes), "w") for at in weights.addresses(i)]
            for at in ahead.addresses(i):
                k.prefetch(self.w, at)
            for c in range(columns):
                value = k.let(broadcast(k.load(self.v, v_at + c * spec.v_strides[1] + i), lanes), "d")
                for v, factor in enumerate(factors):
                    at = (c * vectors + v) * lanes
                    k.store(self.acc, at, k.load(self.acc, at, lanes) + value * factor, lanes)

    def _by_element(self, weights: _Step, v_at: Expr, columns: int) -> None:
        """The same on 64-bit Arm: a load brings four channels of a tile, and nothing is asked for ahead."""
        spec, k, lanes = self.spec, self.k, self.lanes
        stream, vectors = Stream(k, self.v, "float32", 1), len(weights.first)
        for begin, many, size in spans(spec.ic, lanes):
            with k.loop(many, "i") as turn:
                first = k.let(turn * size + begin, "i")
                data = [stream.load(v_at + c * spec.v_strides[1] + first, size) for c in range(columns)]
                for j in range(size):
                    factors = [k.let(k.load(self.w, at, lanes), "w") for at in weights.addresses(first + j)]
                    for c, elements in enumerate(data):
                        for v, factor in enumerate(factors):
                            at = (c * vectors + v) * lanes
                            total = k.load(self.acc, at, lanes) + factor * splat(elements[j])
                            k.store(self.acc, at, total, lanes)

    def _write(
        self, corner: tuple[Expr, ...], t: Expr, tiles: int, v: Expr, vectors: int, vector: Expr, used: int
    ) -> None:
        """Transforms the sums of a tile and a vector back and writes the outputs that no other tile writes."""
        spec, k, lanes = self.spec, self.k, self.lanes
        image, h, w, skip_h, skip_w = corner
        rows, columns = (output_matrix(m, r) for m, r in zip(spec.tile, spec.kernel, strict=True))
        at = k.let(t * (vectors * lanes) + v * lanes, "at")
        stride = tiles * vectors * lanes
        half = []
        for j in range(self.sizes[1]):
            column = [
                k.let(k.load(self.sums, at + (i * self.sizes[1] + j) * stride, lanes), "m")
                for i in range(self.sizes[0])
            ]
            half.append(apply(k, rows, column, lanes))
        for i in range(spec.tile[0]):
            for j, value in enumerate(apply(k, columns, [c[i] for c in half], lanes)):
                k.store(self.back, (i * spec.tile[1] + j) * lanes, value, lanes)
        channel = k.let((vector + v) * lanes, "ch")
        with (
            k.loop(spec.tile[0] - skip_h, "i", start=skip_h) as i,
            k.loop(spec.tile[1] - skip_w, "j", start=skip_w) as j,
        ):
            place = (image, k.let(h + i, "yh"), k.let(w + j, "yw"), channel)
            value = k.let((i * spec.tile[1] + j) * lanes, "bb")
            for offset, size in chunks(lanes, used):
                self._element(place, value, offset, size)

    def _element(self, place: tuple[Expr, ...], value: Expr, offset: int, size: int) -> None:
        spec, k = self.spec, self.k

        def operand(n: int, size: int) -> Expr:
            o = spec.operands[n]
            at = sum(p * s for p, s in zip(place, o.strides, strict=True))
            if o.strides[3] == 0:
                return broadcast(k.load(self.operands[n], at), size)
            return k.load(self.operands[n], at + offset, size)

        acc = k.let(k.load(self.back, value + offset, size), "acc")
        result = emit_expression(k, spec.expression, size, operand, acc)
        at = sum(p * s for p, s in zip(place, (*spec.y_strides, 1), strict=True))
        k.store(self.y, at + offset, result, size)


def _inside(value: Expr, first: int, count: int, total: int) -> Expr | None:
    """Whether first <= value < first + count, given 0 <= value < total; None: always."""
    if count == total:
        return None
    if first == 0:
        return value < count
    return value >= first if first + count == total else (value >= first) & (value < first + count)


def build(symbol: str, spec: WinogradSpec, target: Target) -> Any:
    """The TIR function `symbol(v, w, operands..., y, part, parts)`."""
    return _Product(symbol, spec, target).build()
