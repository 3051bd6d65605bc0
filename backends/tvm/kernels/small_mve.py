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

from tvm import tirx

from irc.backends.tvm.expression import Instr
from irc.backends.tvm.geometry import chunks
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, cast, const, intrinsic, reinterpret
from irc.backends.tvm.kernels.channels import operand_reader
from irc.backends.tvm.kernels.emit import emit_expression, emit_levels
from irc.backends.tvm.magnitude import magnitudes, sum_limit
from irc.backends.tvm.small_mve import (
    BYTES,
    TILE,
    block_bytes,
    blocks,
    conv_places,
    flattened,
    is_direct,
    pairs_of_places,
    steps_of,
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
        self.w = k.pointer("w", "int8", spec.w_size)
        given = list(enumerate(spec.operands))[spec.streamed :]
        self.operands: list[Any] = [None] * spec.streamed
        self.operands += [k.pointer(f"e{i}", o.dtype, o.size, shared=o.strides[1] != 0) for i, o in given]
        self.y = k.pointer("y", spec.y_dtype, spec.y_size, shared=True)
        self.scratch = k.pointer("scratch", "int8", spec.scratch) if spec.scratch else None

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
        conditions = []
        for axis, first in enumerate((top, left)):
            reach = (spec.kernel[axis] - 1) * spec.dilation[axis]
            end = (spec.out[axis] - 1) * spec.stride[axis] - spec.pads[axis] + reach
            if spec.pads[axis] > 0:
                conditions.append(first >= 0)
            if end >= spec.image[axis]:
                conditions.append(first < spec.image[axis] - reach)
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
        held = len(starts) == 1 and self.steps <= TILE
        data = [k.let(k.load(x, starts[0] + i * BYTES, BYTES), "d") for i in range(self.steps)] if held else None
        whole, rest = divmod(spec.oc, TILE)
        with k.loop(whole, "g") as group:
            self._sums(x, starts, data, group)
            self._write(places, k.let(group * TILE, "ch"), TILE)
        if rest:
            self._sums(x, starts, data, const(whole, "int32"))
            self._write(places, const(whole * TILE, "int32"), rest)

    def _sums(self, x: Buffer, starts: list[Expr], data: list[Expr] | None, group: Expr) -> None:
        """The sums of four channels for each place. Weights: [pair of channels, step, channel, 16 bytes]."""
        k = self.k
        pair = self.steps * 2 * BYTES
        base = k.let(group * (2 * pair), "wb")
        for i in range(len(starts) * TILE):
            k.store(self.acc, i, const(0, "int32"))
        tiles = [(0, 1, 2, 3)] if len(starts) == 1 else [(0, 1), (2, 3)]
        for channels in tiles:
            with k.loop(1 if data is not None else self.steps, "i") as i:
                for step in range(self.steps if data is not None else 1):
                    at = k.let(i * BYTES, "i") if data is None else const(0, "int32")
                    vectors = [k.let(k.load(x, s + at, BYTES), "d") for s in starts] if data is None else [data[step]]
                    for c in channels:
                        offset = c // 2 * pair + c % 2 * BYTES + step * 2 * BYTES
                        weights = k.let(k.load(self.w, base + offset + at * 2, BYTES), "w")
                        for p, vector in enumerate(vectors):
                            place = p * TILE + c
                            k.store(self.acc, place, _dot(k.load(self.acc, place), vector, weights))

    def _write(self, places: list[list[Expr]], channel: Expr, count: int) -> None:
        k, spec = self.k, self.conv
        yn, yh, yw = spec.y_strides
        for p, place in enumerate(places):
            base = k.let(place[0] * yn + place[1] * yh + place[2] * yw + channel, "yb")
            size = TILE if count == TILE else 1
            for c in range(0, count, size):
                read = operand_reader(k, self.operands, spec.operands, place, channel + c if c else channel)
                sums = [k.let(k.load(self.acc, p * TILE + c + i), "s") for i in range(size)]
                # one by one: a load of a vector would make LLVM keep sums in vectors all the time
                total = sums[0] if size == 1 else tirx.Shuffle(sums, [const(i, "int32") for i in range(size)])
                value = emit_expression(k, spec.expression, size, read, total)
                k.store(self.y, base + c, value, size)


class _Depthwise(_Kernel):
    def __init__(self, symbol: str, spec: SmallDepthwiseSpec, target: Target) -> None:
        super().__init__(symbol, spec, target)
        self.depthwise = spec
        self.taps = spec.kernel[0] * spec.kernel[1]
        self.acc = self.k.local(BYTES, "int32")
        self.two = pairs_of_places(spec)

    def build(self) -> Any:
        spec, k = self.depthwise, self.k
        step = 2 if self.two else 1
        with k.loop(spec.batch, "n") as n, k.loop(spec.out[0], "h") as h:
            pairs, rest = divmod(spec.out[1], step)
            with k.loop(pairs, "w") as pair:
                self._some(n, h, k.let(pair * step, "col"), step)
            if rest:
                self._some(n, h, const(spec.out[1] - 1, "int32"), 1)
        return k.finish()

    def _some(self, n: Expr, h: Expr, col: Expr, count: int) -> None:
        """All channels of a place, or of two."""
        k, spec = self.k, self.depthwise
        _, sh, sw = spec.x_strides
        columns = [k.let(col + i, "col") for i in range(count)]
        at, top, left = self.first(n, h, columns[0])
        last = (spec.kernel[0] - 1) * spec.dilation[0] * sh + (spec.kernel[1] - 1) * spec.dilation[1] * sw
        inside = self.whole(at, top, left, last + blocks(spec.channels) * BYTES)
        if count == 2:  # the second place as well
            end = left + 1 + (spec.kernel[1] - 1) * spec.dilation[1] < spec.image[1]
            inside = end if inside is None else tirx.all(inside, end)

        def tap(at: Expr, channel: Expr) -> Callable[[int], Expr]:
            def load(t: int) -> Expr:
                kh, kw = divmod(t, spec.kernel[1])
                return k.load(self.x, at + channel + (kh * spec.dilation[0] * sh + kw * spec.dilation[1] * sw), BYTES)

            return load

        with k.when(inside):
            self._blocks([n, h, columns[0]], lambda channel: tap(at, channel), count)
        if inside is None:
            return
        with k.when(tirx.Not(inside)):
            stride = blocks(spec.channels) * BYTES
            for column in columns:
                at, top, left = self.first(n, h, column)
                self.copy_taps(at, top, left, const(0, "int32"), spec.channels, stride)

                def kept(channel: Expr) -> Callable[[int], Expr]:
                    return lambda t: k.load(self.scratch, channel + t * stride, BYTES)

                self._blocks([n, h, column], kept, 1)

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
        whole = count == BYTES and spec.streamed > 0 and last.op == "requantize" and last.dtype == "int8"
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
            self._write_block(base, weights + after)
        else:
            self._write_in_order(place, channel, base, count)

    def _products(self, x: Expr, weights: Expr, tap: int) -> tuple[Expr, Expr]:
        """Products of even channels and of odd ones, 16 bits."""
        k = self.k
        x, w = k.let(x, "d"), k.let(k.load(self.w, weights + tap * BYTES, BYTES), "w")
        return tuple(
            k.let(
                intrinsic("llvm.arm.mve.vmull.int", f"int16x{_HALF}", x, w, const(0, "int32"), const(odd, "int32")), "p"
            )
            for odd in (0, 1)
        )

    def _write_block(self, base: Expr, constants: Expr) -> None:
        """16 results, with constants that are packed in the order of the sums."""
        k, spec = self.k, self.depthwise
        limits = magnitudes(spec.expression, sum_limit("int8", self.taps), [o.limit for o in spec.operands])
        levels = []
        for i in range(TILE):

            def read(n: int, lanes: int, i: int = i) -> Expr:
                raw = k.load(self.w, constants + (n * TILE + i) * BYTES, BYTES)
                return reinterpret(raw, f"{spec.operands[n].dtype}x{lanes}")

            acc = k.load(self.acc, i * TILE, TILE)
            levels.append(emit_levels(k, spec.expression, TILE, read, acc, limits))
        k.store(self.y, base, _narrowed(k, levels, spec.expression[-1]), BYTES)

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


def _narrowed(k: KernelBuilder, levels: list[Expr], instr: Instr) -> Expr:
    """Four vectors of every fourth channel -> 16 bytes in order, with the zero point, clamped. Saturation to 16 bits
    on the way changes nothing: what it cuts is beyond every 8-bit value."""
    low, high, zero_point, _ = instr.params
    halves = []
    for odd in (0, 1):
        half = _into("int16x8", const(0, "int16", _HALF), levels[odd], 0)
        half = _into("int16x8", half, levels[odd + 2], 1)
        if zero_point:
            half = intrinsic("llvm.sadd.sat", "int16x8", half, const(int(zero_point), "int16", _HALF))
        halves.append(half)
    packed = _into("int8x16", _into("int8x16", const(0, "int8", BYTES), halves[0], 0), halves[1], 1)
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
