"""Convolution and matrix multiplication: sums of products in registers, expression on the way out.

The register tile is `rows x columns` output places by `vectors` of output channels. For each step of the reduction one
load per vector of weights (streamed in the order in which they are packed) and one broadcast per place feed
rows*columns*vectors multiply-adds. Tiles at the border of the output get code of their own: no masks, no overreads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from irc.backends.tvm.expression import Expression, Instr
from irc.backends.tvm.geometry import (
    PALETTE,
    PALETTE_BYTES,
    channel_tiles,
    chunks,
    depthwise_channels,
    lanes_of,
    shared_axis,
    spans,
    stored_counts,
)
from irc.backends.tvm.kernels import elements
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, broadcast, const
from irc.backends.tvm.kernels.emit import Operand, emit_expression, emit_levels
from irc.backends.tvm.kernels.rounding import pack, packs, piece
from irc.backends.tvm.kernels.staging import Staging, fits
from irc.backends.tvm.kernels.steps import Value, choose_step, weight_type
from irc.backends.tvm.magnitude import magnitudes, sum_limit
from irc.backends.tvm.specs import DepthwiseSpec, LinearSpec
from irc.targets.target import Target

_WORTH = 3  # bytes from memory that cost as much as one from another core's cache
_FAR = 512 * 1024  # bytes of an operand that does not stay in the second-level cache
_TILES_AHEAD = 2
_AT_ONCE = 6  # cache lines that are asked for one after the other
_LINE = 64  # bytes of a cache line
_BUSY = 6  # places from which on arithmetic takes as long as weights from memory
_FEW_TILES = 16  # register tiles that share their weights
_FEW_SUMS = 2  # places of a register tile whose sums are scaled instead of their weights
_FEW_PLACES = 160  # the same in places, for the small tiles of narrow vectors


class LinearKernel:
    stages = True  # data that a step wants prepared are prepared

    def __init__(self, symbol: str, spec: LinearSpec, target: Target) -> None:
        self.spec = spec
        self.lanes = lanes_of(target)
        self.registers = target.vector_registers
        self.step = choose_step(spec.x_dtype, target, spec.ic, spec.w_dtype)
        k = self.k = KernelBuilder(symbol, target)
        self.x = k.pointer("x", spec.x_dtype, spec.x_size)
        self._declare_weights(target)
        self.operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
        self.following = k.pointer("next", "int8", spec.ahead) if spec.ahead else None
        self.y = k.pointer("y", spec.y_dtype, spec.y_size)
        rows, columns, vectors = spec.tile
        self.acc = k.local(rows * columns * vectors * self.lanes, self.step.acc_dtype)
        self.sums = k.local(rows * columns * self.lanes, "int32", "sum") if spec.sum_x else None
        self.elements = None
        if self.stages and elements.fits(spec, target):
            self.elements = elements.Elements(k, spec, target, self.step, self.x, self.w)
        self.staging = Staging(k, spec, self.lanes) if self.stages and self.step.staged and fits(spec) else None
        self.channel_spans = channel_tiles(spec.oc, self.lanes, vectors)
        self.start, self.expression = split_start(spec)
        limit = sum_limit(spec.x_dtype, spec.kernel[0] * spec.kernel[1] * spec.ic)
        if self.start is not None:
            bias = spec.operands[self.start].limit
            if self.step.shift and limit + bias * (1 << self.step.shift) >= 2**31:  # as many times the bias do not fit
                self.start, self.expression = None, spec.expression
            else:
                limit += bias
        self.factor = scale_of_sum(self.expression) if self.step.shift else None
        self.limits = magnitudes(self.expression, limit, [o.limit for o in spec.operands])

    def _declare_weights(self, target: Target) -> None:
        spec = self.spec
        self.w = self.k.pointer("w", weight_type(spec.x_dtype, spec.w_dtype, target), spec.w_size)

    def build(self) -> Any:
        """Work is shared out by places or by channels, in register tiles, so that shares are as even as can be."""
        spec, k = self.spec, self.k
        tiles = sum(count for _, count, _ in self.channel_spans)
        row_tiles = -(-spec.out[0] // spec.tile[0])
        rows = spec.batch[0] * spec.batch[1] * row_tiles
        if spec.order == "rows" or self.staging is not None:  # staged data serve all channels
            with k.shares(rows, tiles, self._by_places(), "r") as (item, first, end):
                self._place(item // row_tiles, item % row_tiles, partial(self._channels, first, end))
        elif rows > 1:
            with (
                k.shares(tiles, rows, not self._by_places(), "t") as (tile, first, end),
                k.loop(end - first, "r", start=first) as item,
            ):
                self._place(item // row_tiles, item % row_tiles, partial(self._channel_tile, tile, None))
        else:
            columns = -(-spec.out[1] // spec.tile[1])
            zero = const(0, "int32")
            with k.shares(tiles, columns, not self._by_places(), "t") as (tile, first, end):
                self._place(zero, zero, partial(self._channel_tile, tile, (first, end)))
        return k.finish()

    def _by_places(self) -> bool:
        """Whether threads get places or channels of the output.

        Places: each reads all weights, but mostly data that it has written itself, as images are cut alike from layer
        to layer. Channels: each reads its weights only, but all data, from the other's cache.
        """
        spec = self.spec
        data = spec.x_size * np.dtype(spec.x_dtype).itemsize + spec.y_size * np.dtype(spec.y_dtype).itemsize
        return bool(spec.w_size * np.dtype(self.w.dtype).itemsize <= _WORTH * data)

    def _place(self, image: Expr, row_tile: Expr, inside: Callable[[Expr, Expr, Expr, int], None]) -> None:
        """Calls `inside` with the indices of an image, the row, and how many rows its tiles have."""
        spec, k = self.spec, self.k
        a = k.let(image // spec.batch[1], "a") if spec.batch[1] > 1 else image
        b = k.let(image % spec.batch[1], "b") if spec.batch[1] > 1 else const(0, "int32")
        row_spans = spans(spec.out[0], spec.tile[0])
        for start, count, rows in row_spans:
            whole = len(row_spans) == 1
            condition = row_tile < count if start == 0 else row_tile >= start // spec.tile[0]
            with _maybe(k, None if whole else condition):
                inside(a, b, k.let(row_tile * spec.tile[0], "h"), rows)

    def _channels(self, low: Expr, high: Expr, a: Expr, b: Expr, h: Expr, rows: int) -> None:
        """Tiles [low, high) of channels, all columns."""
        k, first = self.k, 0
        if self.staging is not None:
            self._channels_inside(low, high, a, b, h, rows)
            return
        for start, count, vectors in self.channel_spans:
            with k.between(first, count, low, high, "c") as tile:
                self._columns(a, b, h, rows, start, tile, vectors, None)
            first += count

    def _channels_inside(self, low: Expr, high: Expr, a: Expr, b: Expr, h: Expr, rows: int) -> None:
        """The same with the channels in the inner loop: all of them find the data of their places prepared."""
        k = self.k
        for column, count, columns in spans(self.spec.out[1], self.spec.tile[1]):
            with k.loop(count, "x") as x:
                w = k.let(x * columns + column, "col")
                self._stage(a, b, h, w, rows, columns)
                first = 0
                for start, many, vectors in self.channel_spans:
                    with k.between(first, many, low, high, "c") as tile:
                        vector = k.let(tile * vectors + start, "v")
                        self._tile(a, b, h, w, vector, rows, columns, vectors, start)
                    first += many

    def _stage(self, a: Expr, b: Expr, h: Expr, w: Expr, rows: int, columns: int) -> None:
        if self.staging is not None:
            self.staging.fill(self.x, self._x_base(a, b, h, w), rows, columns)

    def _x_base(self, a: Expr, b: Expr, h: Expr, w: Expr) -> Expr:
        """Where the first tap of a place lies."""
        spec, (sa, sb, sh, sw) = self.spec, self.spec.x_strides
        return self.k.let(a * sa + b * sb + h * (spec.stride[0] * sh) + w * (spec.stride[1] * sw), "xb")

    def _channel_tile(
        self, channel_tile: Expr, columns: tuple[Expr, Expr] | None, a: Expr, b: Expr, h: Expr, rows: int
    ) -> None:
        """One tile of channels; of the tiles of columns those in the range, or all."""
        k, first = self.k, 0
        for start, count, vectors in self.channel_spans:
            inside = None
            if len(self.channel_spans) > 1:
                inside = channel_tile < first + count if first == 0 else channel_tile >= first
                if first > 0 and first + count < sum(c for _, c, _ in self.channel_spans):
                    inside = (channel_tile >= first) & (channel_tile < first + count)
            with _maybe(k, inside):
                self._columns(a, b, h, rows, start, k.let(channel_tile - first, "c"), vectors, columns)
            first += count

    def _columns(
        self,
        a: Expr,
        b: Expr,
        h: Expr,
        rows: int,
        start: int,
        tile: Expr,
        vectors: int,
        some: tuple[Expr, Expr] | None,
    ) -> None:
        spec, k = self.spec, self.k
        vector = k.let(tile * vectors + start, "v")
        first = 0
        for column, count, columns in spans(spec.out[1], spec.tile[1]):
            with k.loop(count, "x") if some is None else k.between(first, count, *some, "x") as x:
                w = k.let(x * columns + column, "col")
                self._stage(a, b, h, w, rows, columns)
                self._tile(a, b, h, w, vector, rows, columns, vectors, start)
            first += count

    def _tile(
        self, a: Expr, b: Expr, h: Expr, w: Expr, vector: Expr, rows: int, columns: int, vectors: int, start: int
    ) -> None:
        k, lanes = self.k, self.lanes
        places = [(r, c) for r in range(rows) for c in range(columns)]
        channel = k.let(vector * lanes, "ch")
        bases = [k.let(_address(o.strides, a, b, h, w, channel), "eb") for o in self.spec.operands]
        self._ask_for_operands(bases, places, columns, vectors)
        for v in range(vectors):
            first = const(0, self.step.acc_dtype, lanes)
            if self.start is not None and not self._is_partial(start + v):
                first = k.load(self.operands[self.start], bases[self.start] + v * lanes, lanes)
                if self.step.shift:
                    first = first << const(self.step.shift, "int32", lanes)
                first = k.let(first, "first")
            for p in range(len(places)):
                k.store(self.acc, (p * vectors + v) * lanes, first, lanes)
        if self.sums is not None:
            for i in range(len(places)):
                k.store(self.sums, i * lanes, const(0, "int32", lanes), lanes)
        self._reduce(a, b, h, w, vector, places, vectors, start)
        y_base = k.let(_address(self.spec.y_strides, a, b, h, w, channel), "yb")
        self._write(y_base, bases, places, vectors, start)

    def _ask_for_operands(self, bases: list[Expr], places: list[tuple[int, int]], columns: int, vectors: int) -> None:
        """Asks for what a later tile reads of large operands: the lines lie apart, and where they are not in the
        second-level cache nobody else fetches them in time."""
        for buffer, operand, base in zip(self.operands, self.spec.operands, bases, strict=True):
            size = np.dtype(operand.dtype).itemsize
            down, across, inner = operand.strides[2:]
            if across == 0 or inner != 1 or operand.size * size < _FAR:
                continue
            line = _LINE // size
            for r, c in places:
                at = base + r * down + (c + _TILES_AHEAD * columns) * across
                for n in range(-(-vectors * self.lanes // line)):
                    self.k.prefetch(buffer, at + n * line)

    def _is_partial(self, vector: int) -> bool:
        """Whether only some lanes of this vector of channels exist."""
        return bool(self.spec.oc % self.lanes) and vector == self.spec.oc // self.lanes

    def _reduce(
        self,
        a: Expr,
        b: Expr,
        h: Expr,
        w: Expr,
        vector: Expr,
        places: list[tuple[int, int]],
        vectors: int,
        start: int,
    ) -> None:
        spec, k, step = self.spec, self.k, self.step
        counts = (*spec.kernel, spec.ic // step.channels)
        stored = stored_counts(counts, step.fields)
        x_base = self._x_base(a, b, h, w)
        reduction = math.prod(stored)
        scales = k.let(vector * self.lanes, "sb") if spec.scaled else const(0, "int32")
        bases, w_step = self._weights(self._weights_at(a, b), vector, vectors, start, reduction)
        if self.elements is not None:
            self.elements.reduce(elements.Sums(self.acc, self.sums), x_base, bases, w_step, places)
            return
        image = a * spec.batch[1] + b
        place = k.let((image * spec.out[0] + h) * spec.out[1] + w, "pl")
        ahead = self._ahead(place, bases[0], vectors, reduction, len(places))
        following = self._following(place, vector, vectors, reduction, len(places))
        axis = shared_axis(counts, step.fields)
        for first, _, fields in spans(counts[axis], step.fields):
            extents = list(stored)
            extents[axis] = 1 if fields < step.fields else counts[axis] // step.fields
            starts = [first // step.fields if i == axis else 0 for i in range(3)]
            with (
                k.loop(extents[0], "kh", start=starts[0]) as kh,
                k.loop(extents[1], "kw", start=starts[1]) as kw,
                self._inner(extents[2], starts[2], kh * spec.kernel[1] + kw, scales, len(places), vectors) as (
                    i,
                    factors,
                ),
            ):
                at = (kh * stored[1] + kw) * stored[2] + i
                loaded = [step.load_w(k, self.w, base + at * w_step) for base in bases]
                ahead(at)
                following(at)
                for field in range(fields):
                    taps = [t * step.fields + field if n == axis else t for n, t in enumerate((kh, kw, i))]
                    weights = [step.unpack(k, w, field) for w in loaded]
                    if factors:
                        weights = [(k.let(w[0] * f, "w"),) for w, f in zip(weights, factors, strict=True)]
                    self._step(x_base, taps, weights, places)

    @contextmanager
    def _inner(
        self, extent: int, start: int, tap: Expr, scales: Expr, places: int, vectors: int
    ) -> Iterator[tuple[Expr, list[Expr]]]:
        """The loop over the steps of a tap, with the factors of the weights of each vector, if they have any: those
        change after every `scaled` channels."""
        spec, k, lanes = self.spec, self.k, self.lanes
        if not spec.scaled:
            with k.loop(extent, "i", start=start) as i:
                yield i, []
            return
        groups = spec.ic // spec.scaled
        each = extent // groups
        row = depthwise_channels(spec.oc)
        with k.loop(groups, "g") as g:
            at = scales + (tap * groups + g) * row
            if self._sums_groups(places, vectors):
                yield from self._group(g, each, at, places, vectors)
                return
            factors = [k.let(k.load(self.operands[-1], at + v * lanes, lanes), "f") for v in range(vectors)]
            with k.loop(each, "i") as i:
                yield g * each + i, factors

    def _sums_groups(self, places: int, vectors: int) -> bool:
        """Whether the sums of channels that share a factor get it, instead of each of their weights: that is less work
        for few places, and takes registers for two sums."""
        return places <= _FEW_SUMS and 2 * places * vectors + 4 <= self.registers

    def _group(self, g: Expr, steps: int, scales: Expr, places: int, vectors: int) -> Iterator[tuple[Expr, list[Expr]]]:
        k, lanes = self.k, self.lanes
        total, size = self.acc, places * vectors * lanes
        self.acc = k.local(size, "float32", "part")
        for at in range(0, size, lanes):
            k.store(self.acc, at, const(0.0, "float32", lanes), lanes)
        with k.loop(steps, "i") as i:
            yield g * steps + i, []
        for v in range(vectors):
            factor = k.let(k.load(self.operands[-1], scales + v * lanes, lanes), "f")
            for p in range(places):
                at = (p * vectors + v) * lanes
                k.store(total, at, k.load(total, at, lanes) + k.load(self.acc, at, lanes) * factor, lanes)
        self.acc = total

    def _weights_at(self, a: Expr, b: Expr) -> Expr:
        """Where the weights of an image and group begin."""
        at = a * self.spec.w_strides[0] + b * self.spec.w_strides[1]
        return at + PALETTE_BYTES if self.spec.w_dtype == PALETTE else at

    def _step(self, x_base: Expr, taps: list[Expr], weights: list[Value], places: list[tuple[int, int]]) -> None:
        """One step of the reduction, for all places of a register tile: `taps` are the row and column of the kernel
        and the step of channels."""
        spec, k, lanes, step = self.spec, self.k, self.lanes, self.step
        _, _, sh, sw = spec.x_strides
        kh, kw, i = taps
        x_at = x_base + kh * (spec.dilation[0] * sh) + kw * (spec.dilation[1] * sw) + i * step.channels
        for p, (r, c) in enumerate(places):
            place = r * spec.stride[0] * sh + c * spec.stride[1] * sw
            if self.staging is not None:
                value = self.staging.load((r, c), (kh, kw), i)
            else:
                value = step.load_x(k, self.x, x_at + place)
            for v, w in enumerate(weights):
                at = (p * len(weights) + v) * lanes
                k.store(self.acc, at, step.mac(k.load(self.acc, at, lanes), value, w), lanes)
            if self.sums is not None:
                total = step.mac(k.load(self.sums, p * lanes, lanes), value, step.ones)
                k.store(self.sums, p * lanes, total, lanes)

    def _ahead(self, place: Expr, first: Expr, vectors: int, reduction: int, places: int) -> Callable[[Expr], None]:
        """Step of the reduction -> asks for weights of the next tile of channels, so that they come from memory while
        this tile is computed.

        `place` is the first of a register tile of `places`, `first` where its weights begin. Where many register tiles
        share their weights, waiting for them once does not count.
        """
        spec = self.spec
        total = spec.batch[0] * spec.batch[1] * spec.out[0] * spec.out[1]
        some = _BUSY <= total <= max(_FEW_TILES * spec.tile[0] * spec.tile[1], _FEW_PLACES)
        staged = self.staging is not None and self.step.fields > 1  # all weights pass for each tile of places
        if spec.order != "channels" or spec.w_rows or spec.block or staged or not some:
            return lambda step: None
        size = vectors * self.lanes * self.step.channels  # of a step
        line = _LINE // np.dtype(self.w.dtype).itemsize
        start = self.k.let(first + (place * reduction // total + reduction) * size, "wa")
        return self._ask(self.w, start, -(-reduction * size * places // (total * line)), reduction)

    def _following(
        self, place: Expr, vector: Expr, vectors: int, reduction: int, places: int
    ) -> Callable[[Expr], None]:
        """Step of the reduction -> asks for what follows: each tile for its share of it."""
        spec, k = self.spec, self.k
        all_places, all_vectors = spec.batch[0] * spec.batch[1] * spec.out[0] * spec.out[1], -(-spec.oc // self.lanes)
        total, lines = all_places * all_vectors, spec.ahead // _LINE
        if self.following is None or total * lines >= 2**31:
            return lambda step: None
        before = (
            place * all_vectors + vector * places if spec.order == "rows" else vector * all_places + place * vectors
        )
        start = k.let(before * lines // total * _LINE, "na")
        return self._ask(self.following, start, -(-lines * places * vectors // total), reduction)

    def _ask(self, buffer: Buffer, start: Expr, lines: int, reduction: int) -> Callable[[Expr], None]:
        """Step of the reduction -> asks for cache lines of `buffer`: each once, because asking again is not free.

        A few lines are asked for now, before the first step; more are spread over the steps.
        """
        k, line = self.k, _LINE // np.dtype(buffer.dtype).itemsize
        if lines <= _AT_ONCE:
            for n in range(lines):
                k.prefetch(buffer, start + n * line)
            return lambda step: None
        period = 1 << max((reduction // lines).bit_length() - 1, 0)  # steps
        each = -(-lines * period // reduction)

        def ask(step: Expr) -> None:
            with _maybe(k, None if period == 1 else step % period == 0):
                for n in range(each):
                    k.prefetch(buffer, start + (step // period * each + n) * line)

        return ask

    def _weights(self, base: Expr, vector: Expr, vectors: int, start: int, reduction: int) -> tuple[list[Expr], int]:
        """Where the weights of each vector begin, and how many elements on they go with the next step.

        `vector` is the tile's first one; `start` is that of the first tile of its kind.
        """
        spec, k, lanes = self.spec, self.k, self.lanes
        size = lanes * self.step.channels
        if spec.w_rows:
            first = k.let(base + vector * lanes, "wb")
            return [first + v * lanes for v in range(vectors)], spec.w_rows
        if not spec.block:
            first = k.let(base + vector * (reduction * size), "wb")
            return [first + v * size for v in range(vectors)], vectors * size
        ratio = spec.block // lanes
        stride = reduction * ratio * size
        unit = ratio if vectors % ratio == 0 else vectors
        if ratio % unit == 0 and start % unit == 0:  # no tile ends inside of a block and goes on in the next one
            first = k.let(base + (vector // ratio) * stride + (vector % ratio) * size, "wb")
            return [first + (v // ratio * stride + v % ratio * size) for v in range(vectors)], ratio * size
        each = [vector + v for v in range(vectors)]
        return [k.let(base + (n // ratio) * stride + (n % ratio) * size, "wb") for n in each], ratio * size

    def _write(self, y_base: Expr, bases: list[Expr], places: list[tuple[int, int]], vectors: int, start: int) -> None:
        lanes = self.lanes
        whole: list[tuple[int, int]] = []
        for p in range(len(places)):
            for v in range(vectors):
                if self._is_partial(start + v):
                    for offset, size in chunks(lanes, self.spec.oc % lanes):
                        self._write_vector(y_base, bases, places, p, v, vectors, offset, size, partial=True)
                else:
                    whole.append((p, v))
        if self._packs():
            while len(whole) > 1:
                self._write_packed(y_base, bases, places, whole[:4], vectors)
                whole = whole[4:]
        for p, v in whole:
            self._write_vector(y_base, bases, places, p, v, vectors, 0, lanes)

    def _packs(self) -> bool:
        """Whether four vectors of results are narrowed to bytes at a time."""
        return packs(self.k, self.lanes, self.expression)

    def _write_packed(
        self,
        y_base: Expr,
        bases: list[Expr],
        places: list[tuple[int, int]],
        group: list[tuple[int, int]],
        vectors: int,
    ) -> None:
        """The results of up to four (place, vector), narrowed together, stored in pieces that lie side by side."""
        k, lanes, dtype = self.k, self.lanes, self.spec.y_dtype
        found = []
        for p, v in group:
            read = self._reader(bases, places, p, v * lanes)
            acc = self._sum((p * vectors + v) * lanes, lanes)
            found.append(emit_levels(k, self.expression, lanes, read, acc, self.limits))
        packed = pack(k, [found[i % len(found)] for i in range(4)], self.expression[-1], lanes)
        at = 0
        while at < len(group):
            p, v = group[at]
            side_by_side = sum(1 for i, g in enumerate(group[at:]) if g == (p, v + i))
            size = 1 << (side_by_side.bit_length() - 1)
            place = self._y_place(places[p]) + v * lanes
            part = piece(packed, dtype, at * lanes, size * lanes, 4 * lanes)
            k.store(self.y, y_base + place, part, size * lanes)
            at += size

    def _write_vector(
        self,
        y_base: Expr,
        bases: list[Expr],
        places: list[tuple[int, int]],
        p: int,
        v: int,
        vectors: int,
        offset: int,
        size: int,
        partial: bool = False,
    ) -> None:
        k, lanes = self.k, self.lanes
        inner = v * lanes + offset
        read = self._reader(bases, places, p, inner)
        acc = self._sum((p * vectors + v) * lanes + offset, size)
        if partial and self.start is not None:  # the operand ends with the last channel: no whole vector to start from
            first = read(self.start, size)
            acc = acc + (first if self.factor is None else first << const(self.step.shift, "int32", size))
        value = emit_expression(k, self.expression, size, read, acc, limits=self.limits)
        k.store(self.y, y_base + self._y_place(places[p]) + inner, value, size)

    def _sum(self, at: int, size: int) -> Expr:
        """Finished sums from accumulator `at` on. Where the factor after them has to be smaller instead, too large."""
        acc = self.k.load(self.acc, at, size)
        return acc >> const(self.step.shift, "int32", size) if self.step.shift and self.factor is None else acc

    def _y_place(self, place: tuple[int, int]) -> int:
        return place[0] * self.spec.y_strides[2] + place[1] * self.spec.y_strides[3]

    def _reader(self, bases: list[Expr], places: list[tuple[int, int]], p: int, inner: int) -> Operand:
        k, (r, c) = self.k, places[p]

        def operand(n: int, size: int) -> Expr:
            if n < 0:  # the sum of x, for weights with a zero point
                return k.load(self.sums, p * self.lanes, size)
            o = self.spec.operands[n]
            place = bases[n] + r * o.strides[2] + c * o.strides[3]
            if o.strides[4] == 0:
                value = broadcast(k.load(self.operands[n], place), size)
            else:
                value = k.load(self.operands[n], place + inner, size)
            return value if n != self.factor else value * const(2.0**-self.step.shift, "float32", size)

        return operand


def _address(strides: tuple[int, ...], a: Expr, b: Expr, h: Expr, w: Expr, channel: Expr) -> Expr:
    """Of the first place and channel of a tile."""
    sa, sb, sh, sw, *sc = strides
    return a * sa + b * sb + h * sh + w * sw + channel * (sc[0] if sc else 1)


def split_start(spec: LinearSpec | DepthwiseSpec) -> tuple[int | None, Expression]:
    """An operand per channel that is added to the sum at once: where the sum can start instead of zero, and what then
    remains of the expression. Integer addition is exact; for floats it is another order of the same sum."""
    found = spec.expression
    for i, instr in enumerate(found):
        if instr.op != "add" or len(instr.args) != 2:
            continue
        acc, other = (found[a] for a in instr.args)
        if acc.op != "accumulator" or other.op != "operand":
            continue
        number, users = int(other.params[0]), sum(instr.args[0] in n.args for n in found)
        strides = spec.operands[number].strides if number >= 0 else ()
        if users == 1 and strides[-3:] == (0, 0, 1):
            return number, (*found[:i], Instr("accumulator", instr.dtype), *found[i + 1 :])
    return None, found


def scale_of_sum(expression: Expression) -> int | None:
    """The operand that scales the sum, if that is all that is done with either. Powers of two may then go from one to
    the other: neither the conversion to float32 nor the product rounds otherwise."""
    for n, scale in enumerate(expression):
        if scale.op != "scale":
            continue
        cast, factor = (expression[a] for a in scale.args)
        if cast.op != "cast" or expression[cast.args[0]].op != "accumulator" or factor.op != "operand":
            continue
        used = [a for instr in expression for a in instr.args]
        same = [i for i in expression if i.op == "operand" and i.params == factor.params]
        alone = all(used.count(a) == 1 for a in (*scale.args, cast.args[0])) and len(same) == 1
        return int(factor.params[0]) if alone and n else None
    return None


class _maybe:
    """`with _maybe(k, condition)`: under a condition, or not when it is None."""

    def __init__(self, k: KernelBuilder, condition: Expr | None) -> None:
        self.manager = None if condition is None else k.when(condition)

    def __enter__(self) -> None:
        if self.manager is not None:
            self.manager.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.manager is not None:
            self.manager.__exit__(*error)


def build(symbol: str, spec: LinearSpec, target: Target) -> Any:
    """The TIR function `symbol(x, w, operands..., y, part, parts)`."""
    return LinearKernel(symbol, spec, target).build()
