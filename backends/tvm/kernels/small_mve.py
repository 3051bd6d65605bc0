"""Integer convolutions on Arm's M-profile vectors (MVE, Helium): 16 products and their sum in one instruction.

Convolution (`build_conv`): VMLADAVA sums 16 products of a place's window and of a channel's weights in a register. The
window of a 1 x 1 kernel lies in the image as it is; others are copied to the scratch memory first, with the zero point
in the place of what lies outside. Channels go by four, which share their data and whose sums are one vector for the
requantization. Windows of up to 64 bytes stay in registers while all channels pass; longer ones go by two places, by
two channels each, so that eight loads feed eight instructions.

Depthwise (`build_depthwise`): 16 channels at a time. Products have 16 bits; two of them are added before they are
widened, which cannot overflow as weights are above -128. Even and odd lanes are multiplied apart, and so are those of
the sums: a vector of four sums has every fourth channel, and narrowing brings them back in order. Images of 8 channels
go by two places. Windows that leave the image are copied to the scratch memory.

Vectors are loaded whole: what they hold beyond a window meets weights of zero (`plan/small_mve.py` packs them), and
windows at the very end of the data are copied instead, so that nothing outside is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from irc.backends.tvm.expression import Instr
from irc.backends.tvm.geometry import chunks
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, cast, const, intrinsic, reinterpret
from irc.backends.tvm.kernels.channels import operand_reader
from irc.backends.tvm.kernels.emit import emit_expression, emit_levels, fence
from irc.backends.tvm.kernels.small_plain import conditions_inside
from irc.backends.tvm.magnitude import magnitudes, sum_limit
from irc.backends.tvm.small_mve import (
    BYTES,
    TILE,
    Ring,
    block_bytes,
    conv_places,
    flattened,
    in_blocks,
    is_direct,
    is_held,
    new_rows,
    pairs_of_places,
    ring,
    steps_of,
    tile_bytes,
)
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.targets.target import Target

_HALF = BYTES // 2


def _dot(acc: Expr, x: Expr, w: Expr) -> Expr:
    flags = [const(0, "int32")] * 3  # signed, added, not crosswise
    return intrinsic("llvm.arm.mve.vmldava.v16i8", "int32", *flags, acc, x, w)


class _Kernel:
    """What both kinds share: arguments, places, copies of windows."""

    def __init__(self, symbol: str, spec: SmallConvSpec | SmallDepthwiseSpec, target: Target) -> None:
        self.spec = spec
        k = self.k = KernelBuilder(symbol, target)
        self.x = k.pointer("x", "int8", spec.x_size, shared=True)
        self.w = k.pointer("w", "int32", spec.w_size // 4)  # loads of words reach further from an address
        given = list(enumerate(spec.operands))[spec.streamed :]
        self.operands: list[Any] = [None] * spec.streamed
        self.operands += [k.pointer(f"e{i}", o.dtype, o.size, shared=o.strides[1] != 0) for i, o in given]
        self.y = k.pointer("y", spec.y_dtype, spec.y_size, shared=True)
        self.scratch = k.pointer("scratch", "int8", spec.scratch) if spec.scratch else None

    def weights(self, at: Expr) -> Expr:
        """16 bytes from byte `at` on, a multiple of 16."""
        words = self.k.load(self.w, tirx.truncdiv(at, 4), TILE)
        return self.k.let(reinterpret(words, f"int8x{BYTES}"), "w")

    def first(self, n: Expr, h: Expr, col: Expr) -> tuple[Expr, Expr, Expr]:
        """(first element of a place's window, its row, its column)."""
        k, spec = self.k, self.spec
        sn, sh, sw = spec.x_strides
        top = k.let(h * spec.stride[0] - spec.pads[0], "top")
        left = k.let(col * spec.stride[1] - spec.pads[1], "left")
        return k.let(n * sn + top * sh + left * sw, "at"), top, left

    def whole(self, at: Expr, top: Expr, left: Expr, last: int) -> Expr | None:
        """Whether a window lies in the image, and its vectors in the data: `last` is where the last of them ends,
        counted from the window's first element. None: always."""
        spec = self.spec
        conditions = conditions_inside(spec, top, left)
        places = [n - 1 for n in (spec.batch, *spec.out)]
        steps = (spec.x_strides[0], *(s * x for s, x in zip(spec.stride, spec.x_strides[1:], strict=True)))
        offset = sum(p * s for p, s in zip(spec.pads, spec.x_strides[1:], strict=True))
        if sum(p * s for p, s in zip(places, steps, strict=True)) - offset + last > spec.x_size:
            conditions.append(at + last <= spec.x_size)
        return tirx.all(*conditions) if conditions else None

    def copy(self, at: Expr, to: Expr, count: int, *, whole: bool = False) -> None:
        """`count` bytes of data to the scratch memory; `whole`: with what follows them, up to whole vectors."""
        k = self.k
        for offset, size in self._pieces(count, whole):
            k.store(self.scratch, to + offset, k.load(self.x, at + offset, size), size)

    def fill(self, to: Expr, count: int, *, whole: bool = False) -> None:
        for offset, size in self._pieces(count, whole):
            self.k.store(self.scratch, to + offset, const(self.spec.fill, "int8", size), size)

    @staticmethod
    def _pieces(count: int, whole: bool) -> list[tuple[int, int]]:
        """(offset, size) of the vectors, and parts of one, that make up `count` bytes."""
        full = -(-count // BYTES) if whole else count // BYTES
        found = [(i * BYTES, BYTES) for i in range(full)]
        rest = count - full * BYTES
        return [*found, *((full * BYTES + o, s) for o, s in chunks(BYTES, rest))] if rest > 0 else found

    def copy_taps(self, at: Expr, top: Expr, left: Expr, to: Expr, bytes_of_tap: int, stride: int) -> None:
        """A window tap by tap, `stride` bytes apart, with the zero point for those that do not exist."""
        k, spec = self.k, self.spec
        _, sh, sw = spec.x_strides
        height, width = spec.image
        with k.loop(spec.kernel[0], "kh") as kh, k.loop(spec.kernel[1], "kw") as kw:
            r, c = k.let(top + kh * spec.dilation[0], "r"), k.let(left + kw * spec.dilation[1], "c")
            place = k.let(to + (kh * spec.kernel[1] + kw) * stride, "to")
            exists = tirx.all(r >= 0, r < height, c >= 0, c < width)
            with k.when(exists):
                self.copy(
                    k.let(at + kh * (spec.dilation[0] * sh) + kw * (spec.dilation[1] * sw), "xt"), place, bytes_of_tap
                )
            with k.when(tirx.Not(exists)):
                self.fill(place, bytes_of_tap)


class _Conv(_Kernel):
    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.given = spec
        super().__init__(symbol, flattened(spec), target)
        self.conv: SmallConvSpec = flattened(spec)
        self.steps = steps_of(spec)
        self.places = conv_places(spec)
        self.acc = self.k.local(max(self.places, 1) * TILE, "int32")

    def build(self) -> Any:
        spec, k = self.conv, self.k
        with k.loop(spec.batch, "n") as n, k.loop(spec.out[0], "h") as h:
            pairs, rest = divmod(spec.out[1], self.places)
            with k.loop(pairs, "w") as pair:
                self._some(n, h, k.let(pair * self.places, "col"), self.places)
            if rest:
                self._some(n, h, const(pairs * self.places, "int32"), rest)
        return k.finish()

    def _some(self, n: Expr, h: Expr, col: Expr, count: int) -> None:
        """All channels of `count` neighbouring places."""
        k, spec = self.k, self.conv
        columns = [k.let(col + i, "col") for i in range(count)]
        found = [self.first(n, h, c) for c in columns]
        places = [[n, h, c] for c in columns]
        size = self.steps * BYTES + BYTES
        if not is_direct(spec):
            for i, (at, top, left) in enumerate(found):
                self._window(at, top, left, const(i * size, "int32"))
            self._channels(self.scratch, [const(i * size, "int32") for i in range(count)], places)
            return
        inside = self.whole(*found[-1], self.steps * BYTES)
        with k.when(inside):
            self._channels(self.x, [at for at, _, _ in found], places)
        if inside is None:
            return
        with k.when(tirx.Not(inside)):
            for i, (at, top, left) in enumerate(found):
                self.copy_taps(at, top, left, const(i * size, "int32"), spec.ic, spec.ic)
            self._channels(self.scratch, [const(i * size, "int32") for i in range(count)], places)

    def _window(self, at: Expr, top: Expr, left: Expr, to: Expr) -> None:
        """Copies the window of a place to the scratch memory: rows of contiguous bytes where it lies in the image. A
        row's last vector reaches into the next row, which is copied after it."""
        k, spec = self.k, self.conv
        _, sh, sw = spec.x_strides
        gapless = spec.dilation[1] == 1 and sw == spec.ic
        row = spec.kernel[1] * spec.ic if gapless else spec.ic
        taps = spec.kernel[0] if gapless else spec.kernel[0] * spec.kernel[1]
        reach = (spec.kernel[0] - 1) * spec.dilation[0] * sh
        if not gapless:
            reach += (spec.kernel[1] - 1) * spec.dilation[1] * sw
        inside = self.whole(at, top, left, reach + -(-row // BYTES) * BYTES)
        with k.when(inside):
            for tap in range(taps):
                kh, kw = (tap, 0) if gapless else divmod(tap, spec.kernel[1])
                start = k.let(at + (kh * spec.dilation[0] * sh + kw * spec.dilation[1] * sw), "xr")
                self.copy(start, to + tap * row, row, whole=True)
        if inside is not None:
            with k.when(tirx.Not(inside)):
                self.copy_taps(at, top, left, to, spec.ic, spec.ic)

    def _channels(self, x: Buffer, starts: list[Expr], places: list[list[Expr]]) -> None:
        """All output channels of places whose windows start at `starts`."""
        k, spec = self.k, self.conv
        data = None
        if is_held(spec, len(starts)):
            data = [[k.let(k.load(x, s + i * BYTES, BYTES), "d") for i in range(self.steps)] for s in starts]
        done = 0
        if in_blocks(spec):
            done = spec.oc // BYTES * BYTES
            with k.loop(spec.oc // BYTES, "b") as block:
                self._block(x, starts, data, places, block)
        whole, rest = divmod(spec.oc - done, TILE)
        with k.loop(whole, "g") as group:
            tile = k.let(group + done // TILE, "g")
            self._sums(x, starts, data, tile)
            self._write(places, tile, k.let(tile * TILE, "ch"), TILE)
        if rest:
            tile = const(done // TILE + whole, "int32")
            self._sums(x, starts, data, tile)
            self._write(places, tile, const(done + whole * TILE, "int32"), rest)

    def _block(
        self, x: Buffer, starts: list[Expr], data: list[list[Expr]] | None, places: list[list[Expr]], block: Expr
    ) -> None:
        """16 channels: four tiles of every fourth one, narrowed together."""
        k, spec = self.k, self.conv
        limits = magnitudes(spec.expression, sum_limit("int8", _terms(spec)), [o.limit for o in spec.operands])
        levels: list[list[Expr]] = [[] for _ in places]
        for g in (0, 2, 1, 3):
            tile = k.let(block * TILE + g, "g")
            self._sums(x, starts, data, tile)
            read = self._constants(tile)
            for p in range(len(places)):
                level = emit_levels(k, spec.expression, TILE, read, self._total(p), limits)
                if g >= 2:  # the even lanes of the half came with the tile before
                    level = _half(k, levels[p].pop(), level, spec.expression[-1])
                levels[p].append(level)
        yn, yh, yw = spec.y_strides
        for p, place in enumerate(places):
            base = k.let(place[0] * yn + place[1] * yh + place[2] * yw + block * BYTES, "yb")
            k.store(self.y, base, _bytes(levels[p][0], levels[p][1], spec.expression[-1]), BYTES)

    def _constants(self, tile: Expr) -> Callable[[int, int], Expr]:
        """Reads the constants that stand behind a tile's weights."""
        k, spec = self.k, self.conv
        base = k.let(tile * tile_bytes(spec) + self.steps * TILE * BYTES, "cb")

        def read(n: int, lanes: int) -> Expr:
            return reinterpret(self.weights(base + n * BYTES), f"{spec.operands[n].dtype}x{lanes}")

        return read

    def _total(self, place: int) -> Expr:
        """The sums of a tile. One by one: a load of a vector would make LLVM keep them in vectors all the time."""
        k = self.k
        sums = [k.let(k.load(self.acc, place * TILE + c), "s") for c in range(TILE)]
        return k.let(tirx.Shuffle(sums, [const(i, "int32") for i in range(TILE)]), "s")

    def _sums(self, x: Buffer, starts: list[Expr], data: list[list[Expr]] | None, tile: Expr) -> None:
        """The sums of four channels for each place. Weights: [half of the tile, step, channel, 16 bytes]."""
        k = self.k
        half = self.steps * 2 * BYTES
        base = k.let(tile * tile_bytes(self.conv), "wb")
        for i in range(len(starts) * TILE):
            k.store(self.acc, i, const(0, "int32"))
        tiles = [(0, 2, 1, 3)] if len(starts) == 1 else [(0, 2), (1, 3)]
        for channels in tiles:
            with k.loop(1 if data is not None else self._count(), "i") as i:
                for step in range(self.steps if data is not None else 1):
                    at = k.let(i * BYTES, "i") if data is None else const(0, "int32")
                    if data is None:
                        vectors = [k.let(k.load(x, s + at, BYTES), "d") for s in starts]
                    else:
                        vectors = [d[step] for d in data]
                    for c in channels:
                        offset = c % 2 * half + c // 2 * BYTES + step * 2 * BYTES
                        weights = self.weights(base + offset + at * 2)
                        for p, vector in enumerate(vectors):
                            place = p * TILE + c
                            k.store(self.acc, place, _dot(k.load(self.acc, place), vector, weights))

    def _count(self) -> Expr:
        """The steps, as a number that LLVM does not know: it would make copies of the loop's body."""
        bits = np.array(self.steps, np.int32).view(np.float32)
        return self.k.let(reinterpret(fence(const(float(bits), "float32"), 1), "int32"), "steps")

    def _write(self, places: list[list[Expr]], tile: Expr, channel: Expr, count: int) -> None:
        """The results of a tile, or of `count` of its channels."""
        k, spec = self.k, self.conv
        yn, yh, yw = spec.y_strides
        for p, place in enumerate(places):
            base = k.let(place[0] * yn + place[1] * yh + place[2] * yw + channel, "yb")
            if spec.streamed:
                kept, given = self._constants(tile), operand_reader(k, self.operands, spec.operands, place, channel)

                def read_any(n: int, lanes: int, kept: Any = kept, given: Any = given) -> Expr:
                    return (kept if n < spec.streamed else given)(n, lanes)

                value = k.let(emit_expression(k, spec.expression, TILE, read_any, self._total(p)), "q")
                if count == TILE:
                    k.store(self.y, base, value, TILE)
                    continue
                for c in range(count):
                    k.store(self.y, base + c, tirx.Shuffle([value], [const(c, "int32")]))
                continue
            size = TILE if count == TILE else 1
            for c in range(0, count, size):
                read = operand_reader(k, self.operands, spec.operands, place, channel + c if c else channel)
                total = self._total(p) if size == TILE else k.load(self.acc, p * TILE + c)
                k.store(self.y, base + c, emit_expression(k, spec.expression, size, read, total), size)


def _terms(spec: SmallConvSpec) -> int:
    return spec.kernel[0] * spec.kernel[1] * spec.ic


class _Depthwise(_Kernel):
    def __init__(self, symbol: str, spec: SmallDepthwiseSpec, target: Target) -> None:
        super().__init__(symbol, spec, target)
        self.depthwise = spec
        self.taps = spec.kernel[0] * spec.kernel[1]
        self.acc = self.k.local(BYTES, "int32")
        self.ring = ring(spec)
        self.two = pairs_of_places(spec)

    def build(self) -> Any:
        spec, k = self.depthwise, self.k
        with k.loop(spec.batch, "n") as n:
            if self.ring is not None:
                self._fill(const(0, "int32"), self.ring.nbytes(spec.channels))
            with k.loop(spec.out[0], "h") as h:
                if self.ring is not None:
                    self._new_rows(self.ring, n, h)
                self._row(n, h)
        return k.finish()

    def _row(self, n: Expr, h: Expr) -> None:
        spec, k = self.depthwise, self.k
        sn, sh, sw = spec.x_strides
        buffer, column = self.x, sw
        if self.ring is None:
            first = k.let(n * sn + h * (spec.stride[0] * sh), "xr")
            rows = [first + kh * (spec.dilation[0] * sh) for kh in range(spec.kernel[0])]
        else:
            buffer, column = self.scratch, spec.channels
            numbers = [h * spec.stride[0] + kh * spec.dilation[0] for kh in range(spec.kernel[0])]
            rows = [k.let(number % self.ring.rows * self.ring.row_bytes(spec.channels), "xr") for number in numbers]

        def places(col: Expr, count: int) -> None:
            at = [k.let(row + col * (spec.stride[1] * column), "at") for row in rows]

            def data(channel: Expr) -> Callable[[int], Expr]:
                def load(t: int) -> Expr:
                    kh, kw = divmod(t, spec.kernel[1])
                    return k.load(buffer, at[kh] + channel + kw * (spec.dilation[1] * column), BYTES)

                return load

            self._blocks([n, h, col], data, count)

        step = 2 if self.two else 1
        whole, rest = divmod(spec.out[1], step)
        with k.loop(whole, "w") as pair:
            places(k.let(pair * step, "col"), step)
        if rest:
            places(const(spec.out[1] - 1, "int32"), 1)

    def _each_piece(self, count: int, do: Callable[[Expr, int], None]) -> None:
        """`do(first byte, bytes)` for the vectors, and parts of one, that make up `count` bytes."""
        k = self.k
        with k.loop(count // BYTES, "v") as i:
            do(k.let(i * BYTES, "v"), BYTES)
        for offset, size in self._pieces(count % BYTES, False):
            do(const(count // BYTES * BYTES + offset, "int32"), size)

    def _fill(self, to: Expr, count: int) -> None:
        def store(at: Expr, size: int) -> None:
            self.k.store(self.scratch, to + at, const(self.spec.fill, "int8", size), size)

        self._each_piece(count, store)

    def _copy(self, at: Expr, to: Expr, count: int) -> None:
        def move(offset: Expr, size: int) -> None:
            self.k.store(self.scratch, to + offset, self.k.load(self.x, at + offset, size), size)

        self._each_piece(count, move)

    def _new_rows(self, kept: Ring, n: Expr, h: Expr) -> None:
        """Brings the rows into the ring that row `h` of the output is the first to need."""
        spec, k = self.depthwise, self.k
        sn, sh, sw = spec.x_strides
        new = new_rows(spec, kept.rows)
        count = k.let(tirx.Select(h == 0, const(kept.rows, "int32"), const(new, "int32")), "new")
        with k.loop(count, "r") as i:
            number = k.let(h * spec.stride[0] + (kept.rows - count) + i, "r")
            row = k.let(number - spec.pads[0], "r")
            to = k.let(number % kept.rows * kept.row_bytes(spec.channels) + kept.left * spec.channels, "to")
            exists = tirx.all(row >= 0, row < spec.image[0])
            with k.when(exists):
                at = k.let(n * sn + row * sh, "xr")
                if sw == spec.channels:
                    self._copy(at, to, kept.taken * spec.channels)
                else:
                    with k.loop(kept.taken, "c") as c:
                        self._copy(k.let(at + c * sw, "xc"), k.let(to + c * spec.channels, "to"), spec.channels)
            with k.when(tirx.Not(exists)):
                self._fill(to, kept.taken * spec.channels)

    def _blocks(self, place: list[Expr], data: Callable[[Expr], Callable[[int], Expr]], count: int) -> None:
        spec, k = self.depthwise, self.k
        if count == 2 or spec.channels < BYTES:
            zero = const(0, "int32")
            self._block(place, zero, zero, data(zero), count * spec.channels)
            return
        whole, rest = divmod(spec.channels, BYTES)
        with k.loop(whole, "c") as block:
            channel = k.let(block * BYTES, "ch")
            self._block(place, channel, k.let(block * block_bytes(spec), "wb"), data(channel), BYTES)
        if rest:
            channel = const(whole * BYTES, "int32")
            self._block(place, channel, const(whole * block_bytes(spec), "int32"), data(channel), rest)

    def _block(self, place: list[Expr], channel: Expr, weights: Expr, load: Callable[[int], Expr], count: int) -> None:
        """`count` of 16 neighbouring results. Sums of channels 0, 4, 8, 12 are a vector, those of 1, 5, 9, 13, ..."""
        k, spec = self.k, self.depthwise
        last = spec.expression[-1]
        whole = spec.streamed > 0 and last.op == "requantize" and last.dtype == "int8"
        after = self.taps * BYTES
        for i in range(TILE):
            k.store(self.acc, i * TILE, const(0, "int32", TILE), TILE)
        for first in range(0, self.taps, 2):
            parts = [self._products(load(t), weights, t) for t in range(first, min(first + 2, self.taps))]
            for odd in (0, 1):
                products = k.let(parts[0][odd] if len(parts) == 1 else parts[0][odd] + parts[1][odd], "p")
                for upper in (0, 1):
                    at = (2 * upper + odd) * TILE
                    lanes = [const(i, "int32") for i in range(upper, _HALF, 2)]
                    wide = cast(tirx.Shuffle([products], lanes), "int32", TILE)
                    k.store(self.acc, at, k.load(self.acc, at, TILE) + wide, TILE)
        yn, yh, yw = spec.y_strides
        base = k.let(place[0] * yn + place[1] * yh + place[2] * yw + channel, "yb")
        if whole:
            self._write_block(base, weights + after, count)
        else:
            self._write_in_order(place, channel, base, count)

    def _products(self, x: Expr, weights: Expr, tap: int) -> tuple[Expr, Expr]:
        """Products of even channels and of odd ones, 16 bits."""
        k = self.k
        x, w = k.let(x, "d"), self.weights(weights + tap * BYTES)
        return tuple(
            k.let(
                intrinsic("llvm.arm.mve.vmull.int", f"int16x{_HALF}", x, w, const(0, "int32"), const(odd, "int32")), "p"
            )
            for odd in (0, 1)
        )

    def _write_block(self, base: Expr, constants: Expr, count: int) -> None:
        """16 results, or the first 8, with constants that are packed in the order of the sums."""
        k, spec = self.k, self.depthwise
        limits = magnitudes(spec.expression, sum_limit("int8", self.taps), [o.limit for o in spec.operands])
        levels = []
        for i in range(TILE):

            def read(n: int, lanes: int, i: int = i) -> Expr:
                raw = self.weights(constants + (n * TILE + i) * BYTES)
                return reinterpret(raw, f"{spec.operands[n].dtype}x{lanes}")

            acc = k.load(self.acc, i * TILE, TILE)
            levels.append(emit_levels(k, spec.expression, TILE, read, acc, limits))
        last = spec.expression[-1]
        halves = [_half(k, levels[i], levels[i + 2], last) for i in (0, 1)]
        results = _bytes(halves[0], halves[1], last)
        if count < BYTES:
            results = tirx.Shuffle([results], [const(i, "int32") for i in range(count)])
        k.store(self.y, base, results, count)

    def _write_in_order(self, place: list[Expr], channel: Expr, base: Expr, count: int) -> None:
        """Some of 16 results, or all where the constants are not packed, through memory."""
        k, spec = self.k, self.depthwise
        kept = k.local(BYTES, "int32", "sum")
        for i in range(TILE):
            for lane in range(TILE):
                k.store(kept, lane * TILE + i, k.load(self.acc, i * TILE + lane))
        channels = min(count, spec.channels)
        for c in range(0, count, TILE):
            size = TILE if c + TILE <= count else 1
            for one in range(c, min(c + TILE, count), size):
                where = [place[0], place[1], place[2] + one // channels] if count > channels else place
                inner = channel + one % channels
                value = emit_expression(k, spec.expression, size, self._reader(where, inner), k.load(kept, one, size))
                k.store(self.y, base + one, value, size)

    def _reader(self, place: list[Expr], channel: Expr) -> Any:
        return operand_reader(k=self.k, operands=self.operands, specs=self.spec.operands, place=place, channel=channel)


def _into(kind: str, narrow: Expr, wide: Expr, upper: int) -> Expr:
    """The numbers of `wide`, saturated, in the even (or with `upper` 1 the odd) lanes of `narrow`."""
    flags = [const(n, "int32") for n in (0, 0, upper)]  # to signed, from signed
    return intrinsic("llvm.arm.mve.vqmovn", kind, narrow, wide, *flags)


def _half(k: KernelBuilder, even: Expr, odd: Expr, instr: Instr) -> Expr:
    """Two vectors of rounded numbers side by side as 16 bits, with the zero point. Saturation changes nothing: what it
    cuts is beyond every 8-bit value."""
    half = _into("int16x8", _into("int16x8", const(0, "int16", _HALF), even, 0), odd, 1)
    if instr.params[2]:
        half = intrinsic("llvm.sadd.sat", "int16x8", half, const(int(instr.params[2]), "int16", _HALF))
    return k.let(half, "q")


def _bytes(even: Expr, odd: Expr, instr: Instr) -> Expr:
    """Two halves as 16 bytes, clamped."""
    low, high = instr.params[:2]
    packed = _into("int8x16", _into("int8x16", const(0, "int8", BYTES), even, 0), odd, 1)
    if low > -128:
        packed = tirx.Max(packed, const(int(low), "int8", BYTES))
    if high < 127:
        packed = tirx.Min(packed, const(int(high), "int8", BYTES))
    return packed


def build_conv(symbol: str, spec: SmallConvSpec, target: Target) -> Any:
    """`symbol(x, w, operands..., y, scratch)`; weights as `plan/small_mve.py` packs them."""
    return _Conv(symbol, spec, target).build()


def build_depthwise(symbol: str, spec: SmallDepthwiseSpec, target: Target) -> Any:
    """`symbol(x, w, operands..., y, scratch)`; weights as `plan/small_mve.py` packs them."""
    return _Depthwise(symbol, spec, target).build()
