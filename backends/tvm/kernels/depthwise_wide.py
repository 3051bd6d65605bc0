"""Depthwise convolution of bytes, as many channels at a time as a vector has bytes.

A column of the image is loaded as four rows of bytes, one load each, and turned by unpacking into words that hold the
four rows of a channel: the operand of a dot product of four taps. Sums of neighbouring columns stay in registers until
their last column has come, so every column is unpacked once for a tile; the results of four vectors are narrowed
together.

Where a whole number of places of an image without gaps fills a vector (8, 16, 32 channels), the vector runs over
them instead: neighbouring places are then further channels with the same weights. There every place is unpacked
kw times, so two rows of the output share the words: rows h-1 to h+2 meet the weights (w0 w1 w2 0) and (0 w0 w1 w2), the
second being the first shifted by a byte.

Weights as in `depthwise.py`: [ceil(kh / 4), kw, padded channels, 4].
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from irc.backends.tvm.depthwise import places_of
from irc.backends.tvm.geometry import depthwise_channels, depthwise_columns, fields_of, lanes_of
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, broadcast, const, intrinsic, reinterpret
from irc.backends.tvm.kernels.emit import emit_expression, emit_levels
from irc.backends.tvm.kernels.linear import split_start
from irc.backends.tvm.kernels.rounding import pack, packs
from irc.backends.tvm.kernels.steps import SDOT, VPDPBUSD, column_weights
from irc.backends.tvm.magnitude import magnitudes, sum_limit
from irc.backends.tvm.specs import DepthwiseSpec
from irc.targets.target import Target


def _tile_columns(out: int, places: int, kernel: int) -> int:
    """Vectors side by side in a tile. Each costs about six times what unpacking does, of which a tile does kernel - 1
    more."""
    whole = out // places
    costs = {c: -(-out // (c * places)) * (7 * c + kernel - 1) for c in range(min(4, whole), min(8, whole) + 1)}
    return min(costs, key=lambda c: (costs[c], c))


class _Wide:
    def __init__(self, symbol: str, spec: DepthwiseSpec, target: Target) -> None:
        self.spec = spec
        self.lanes = lanes_of(target)
        self.width = 4 * self.lanes
        k = self.k = KernelBuilder(symbol, target)
        self.padded = depthwise_channels(spec.channels)
        self.places = 1 if spec.channels >= self.width else places_of(spec, self.width)
        shared = self.places > 1 and spec.kernel[0] < 4 and spec.stride[0] == 1 and spec.dilation[0] == 1
        registers = target.arch != "aarch64"  # enough for the weights of two rows
        self.rows = 2 if shared and registers and spec.out[0] > 1 else 1
        self.dot = SDOT if target.arch == "aarch64" else VPDPBUSD[self.lanes]
        self.groups = -(-spec.kernel[0] // 4)
        self.x = k.pointer("x", spec.x_dtype, spec.x_size)
        self.stored = depthwise_columns(spec.kernel[1], spec.w_dtype)
        self.w = k.pointer("w", "int8", self.groups * self.stored * self.padded * 4)
        self.operands = [k.pointer(f"e{i}", o.dtype, o.size) for i, o in enumerate(spec.operands)]
        self.y = k.pointer("y", spec.y_dtype, spec.y_size)
        self.start, self.expression = split_start(spec)
        limit = sum_limit(spec.x_dtype, spec.kernel[0] * spec.kernel[1])
        if self.start is not None:
            limit += spec.operands[self.start].limit
        self.limits = magnitudes(self.expression, limit, [o.limit for o in spec.operands])
        self.narrow = packs(k, self.lanes, self.expression)

    def build(self) -> Any:
        spec, k = self.spec, self.k
        pairs = -(-spec.out[0] // self.rows)
        with k.work(spec.batch * pairs, "r") as item:
            n, row = k.let(item // pairs, "n"), k.let(item % pairs * self.rows, "h")
            if spec.out[0] % self.rows:
                with k.when(row < spec.out[0] - 1):
                    self._row(n, row, self.rows)
                with k.when(row == spec.out[0] - 1):
                    self._row(n, row, 1)
            else:
                self._row(n, row, self.rows)
        return k.finish()

    def _row(self, n: Expr, h: Expr, rows: int) -> None:
        spec, k = self.spec, self.k
        if self.places > 1:
            self._columns(n, h, const(0, "int32"), rows)
            return
        last = spec.channels - self.width  # the last vectors begin where they end with the last channel
        with k.loop(-(-spec.channels // self.width), "c") as t:
            self._columns(n, h, k.let(tirx.Min(t * self.width, const(last, "int32")), "ch"), rows)

    def _columns(self, n: Expr, h: Expr, channel: Expr, rows: int) -> None:
        spec, k = self.spec, self.k
        columns = _tile_columns(spec.out[1], self.places, spec.kernel[1])
        weights = self._weights(channel, rows)
        last = spec.out[1] - columns * self.places  # tiles may overlap
        with k.loop(-(-spec.out[1] // (columns * self.places)), "x") as x:
            col = k.let(tirx.Min(x * (columns * self.places), const(last, "int32")), "col")
            self._tile(n, h, col, channel, columns, rows, weights)

    def _weights(self, channel: Expr, rows: int) -> list[Any]:
        """[row][group][kw][vector]: a second row's are those of the first, a row further down."""
        spec, k = self.spec, self.k
        first = []
        for group in range(self.groups):
            taps = []
            for kw in range(spec.kernel[1]):
                at = (group * self.stored + kw // fields_of(spec.w_dtype)) * self.padded * 4
                taps.append([self._weight(at, kw, channel, v) for v in range(4)])
            first.append(taps)
        found: list[Any] = [first]
        for _ in range(1, rows):
            eight = const(8, "int32", self.lanes)
            kind = f"int32x{self.lanes}"
            moved = [[[k.let(reinterpret(w, kind) << eight, "w") for w in t] for t in g] for g in found[-1]]
            found.append([[[k.let(reinterpret(w, f"int8x{self.width}"), "w") for w in t] for t in g] for g in moved])
        return found

    def _weight(self, at: int, kw: int, channel: Expr, v: int) -> Expr:
        k, lanes = self.k, self.lanes
        first = v * lanes % self.spec.channels if self.places > 1 else v * lanes
        size = min(lanes, self.spec.channels)
        part = k.load(self.w, channel * 4 + (at + first * 4), 4 * size)
        part = column_weights(part, kw, self.spec.w_dtype, 4 * size)
        if size < lanes:
            words = reinterpret(part, f"int32x{size}")
            part = reinterpret(self._repeated(words, size), f"int8x{self.width}")
        return k.let(part, "w")

    def _repeated(self, value: Expr, size: int) -> Expr:
        """`size` lanes again and again until they fill a vector."""
        return tirx.Shuffle([value] * (self.lanes // size), [const(i, "int32") for i in range(self.lanes)])

    def _tile(self, n: Expr, h: Expr, col: Expr, channel: Expr, columns: int, rows: int, weights: list[Any]) -> None:
        """Columns of the output: `columns` vectors wide (places apart), `rows` high."""
        spec, k = self.spec, self.k
        sn, sh, sw = spec.x_strides
        base = k.let(n * sn + h * (spec.stride[0] * sh) + col * (spec.stride[1] * sw) + channel, "xb")
        step = spec.stride[1] * self.places
        columns_of = [c * step + kw * spec.dilation[1] for c in range(columns) for kw in range(spec.kernel[1])]
        starts = self._starts(channel)
        sums: dict[int, list[list[Expr]]] = {}
        for j in sorted(set(columns_of)):
            users = [(c, j - c * step) for c in range(columns)]
            users = [
                (c, d // spec.dilation[1])
                for c, d in users
                if 0 <= d < spec.kernel[1] * spec.dilation[1] and d % spec.dilation[1] == 0
            ]
            for group in range(self.groups):
                words = self._words(base + j * sw, group, rows)
                for c, kw in users:
                    acc = sums.setdefault(c, [list(starts) for _ in range(rows)])
                    for r in range(rows):
                        for v in range(4):
                            w = weights[r][group][kw][v]
                            kind = f"int32x{self.lanes}"
                            acc[r][v] = k.let(intrinsic(self.dot, kind, acc[r][v], words[v], w), "s")
            for c, kw in users:
                if kw == spec.kernel[1] - 1:
                    for r, found in enumerate(sums.pop(c)):
                        self._write(n, h + r, k.let(col + c * self.places, "at"), channel, found)

    def _starts(self, channel: Expr) -> list[Expr]:
        if self.start is None:
            return [const(0, "int32", self.lanes)] * 4
        return [self.k.let(self._operand(self.start, None, channel, v), "b") for v in range(4)]

    def _words(self, base: Expr, group: int, rows: int) -> list[Expr]:
        """Four vectors of words: the rows of a group at one column, neighbouring channels in neighbouring lanes."""
        spec, k, lanes = self.spec, self.k, self.lanes
        _, sh, _ = spec.x_strides
        used = min(4, spec.kernel[0] + rows - 1 - group * 4)
        blocks = lanes // 4
        # unpacking works in blocks of 16 bytes: block b gets four channels of each of the four vectors
        order = [block + vector * blocks for block in range(blocks) for vector in range(4)]
        loaded = []
        for r in range(4):
            if r >= used:
                loaded.append(const(0, spec.x_dtype, self.width))
                continue
            raw = k.load(self.x, base + (group * 4 + r) * spec.dilation[0] * sh, self.width)
            turned = tirx.Shuffle([reinterpret(raw, f"int32x{lanes}")], [const(i, "int32") for i in order])
            loaded.append(k.let(reinterpret(turned, f"{spec.x_dtype}x{self.width}"), "a"))
        pairs = [self._unpacked(loaded[0], loaded[1], 8, half) for half in range(2)]
        others = [self._unpacked(loaded[2], loaded[3], 8, half) for half in range(2)] if used > 2 else []
        if not others:
            others = [const(0, "int16", 2 * lanes)] * 2
        return [
            k.let(reinterpret(self._unpacked(a, b, 16, half), f"int8x{self.width}"), "p")
            for a, b in zip(pairs, others, strict=True)
            for half in range(2)
        ]

    def _unpacked(self, a: Expr, b: Expr, bits: int, half: int) -> Expr:
        """Elements of `bits` of the lower or upper halves of all 16-byte blocks, in turns from a and b."""
        each = 128 // bits
        total = self.width * 8 // bits
        order = []
        for block in range(0, total, each):
            for i in range(each // 2):
                at = block + half * each // 2 + i
                order += [at, total + at]
        mixed = tirx.Shuffle([a, b], [const(i, "int32") for i in order])
        wider = 2 * bits
        return self.k.let(reinterpret(mixed, f"int{wider}x{self.width * 8 // wider}"), "u")

    def _operand(self, number: int, place: list[Expr] | None, channel: Expr, v: int) -> Expr:
        """A vector of operand `number` for vector `v` of the tile at `place` (n, h, w)."""
        k, o, lanes = self.k, self.spec.operands[number], self.lanes
        at: Expr = const(0, "int32")
        for index, stride in zip(place or (), o.strides, strict=False):
            at = at + index * stride
        if o.strides[-1] == 0:
            return broadcast(k.load(self.operands[number], at), lanes)
        if self.places == 1:
            return k.load(self.operands[number], at + channel + v * lanes, lanes)
        size = min(lanes, self.spec.channels)
        part = k.load(self.operands[number], at + v * lanes % self.spec.channels, size)
        return part if size == lanes else self._repeated(part, size)

    def _write(self, n: Expr, h: Expr, col: Expr, channel: Expr, sums: list[Expr]) -> None:
        spec, k, lanes = self.spec, self.k, self.lanes
        yn, yh, yw = spec.y_strides
        at = k.let(n * yn + h * yh + col * yw + channel, "yb")

        def reader(v: int) -> Any:
            return lambda number, size: self._operand(number, [n, h, col], channel, v)

        if self.narrow:
            found = [emit_levels(k, self.expression, lanes, reader(v), acc, self.limits) for v, acc in enumerate(sums)]
            k.store(self.y, at, pack(k, found, self.expression[-1], lanes), self.width)
            return
        for v, acc in enumerate(sums):
            value = emit_expression(k, self.expression, lanes, reader(v), acc, limits=self.limits)
            k.store(self.y, at + v * lanes, value, lanes)


def build(symbol: str, spec: DepthwiseSpec, target: Target) -> Any:
    """`symbol(x, w, operands..., y, part, parts)`."""
    return _Wide(symbol, spec, target).build()
