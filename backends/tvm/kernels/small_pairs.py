"""Integer convolutions for cores with the DSP extension: two places by four channels, two products an instruction.

The windows of two neighbouring places are copied to a scratch, widened to pairs of int16, place beside place: a step is
one pair of each. Whatever an image has at its edge is settled there: rows that do not exist come from a row of zero
points, rows that cross the edge are put together first. Then all tiles of four channels run over the scratch.

Weights of two channels a, b share a word: its halves are 256 * b + a. SMLAD with the word as it is sums 256 * b + a,
with its low bytes (SXTB16) it sums a, and the difference is 256 times the sum of b: one instruction to unpack four
weights. It is exact where the sums of b fit 24 bits and 256 * b + a fit 16, which the packer has looked at; otherwise
(way with "wide") both channels are unpacked. A step takes 16 cycles for 16 products.

One place alone, which is what fully connected layers have, has no scratch: eight channels at a time, 20 cycles for 16
products.

The packed weights are a stream in the order of use: for each tile of four channels the first values of its sums, its
steps, its scales, and further numbers of channels in the order in which the epilogue (`small_reals.py`) takes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from irc.backends.tvm.kernels.small_asm import Assembly, fixed_levels, store_levels
from irc.backends.tvm.kernels.small_reals import Reals
from irc.backends.tvm.small import SINGLE_TILE, fixed_shift, leaves_image, row_steps, tile_channels, window_rows
from irc.backends.tvm.small_epilogue import FREE_REGISTERS, Epilogue, epilogue_of
from irc.backends.tvm.specs import SmallConvSpec
from irc.targets.target import Target

_TILE = 4  # channels of two places
_UNROLL = 16  # steps of straight code, at most
_STATE = 16  # float registers that hold what the sums leave no room for
_X, _TOP, _LEFT, _SCRATCH, _Y, _STREAM, _END, _STEPS_END = (f"s{16 + i}" for i in range(8))
_SECOND, _PLACES = "s24", "s25"
_FREE = [f"s{i}" for i in range(26, 26 + FREE_REGISTERS)]  # for the epilogue


@dataclass(frozen=True)
class _Shape:
    """Numbers of the kernel that follow from its specification."""

    rows: int  # contiguous runs of a window
    run: int  # bytes of each
    steps: int  # pairs of each
    places: int
    crossing: bool  # some window leaves the image

    @property
    def scratch(self) -> int:
        """Bytes of the steps; behind them lie the row of zero points and one row of each place."""
        return 8 * self.rows * self.steps

    @property
    def padded(self) -> int:
        return -(-self.run // 4) * 4


def build(symbol: str, spec: SmallConvSpec, target: Target) -> str:
    """LLVM IR text of `symbol(x, stream, elements..., y, scratch)`."""
    return _Pairs(symbol, spec, target).build()


class _Pairs:
    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.symbol, self.spec, self.target = symbol, spec, target
        self.asm = Assembly(_STATE)
        rows, run = window_rows(spec)
        self.shape = _Shape(rows, run, row_steps(run), math.prod(spec.out), leaves_image(spec))
        found = epilogue_of(spec.expression, range(spec.streamed))
        assert found is not None, "the plan has looked"
        self.epilogue: Epilogue = found
        self.reals = Reals(self.asm, found, _FREE, _SECOND)
        self.wide, self.saturate = "wide" in spec.way, "saturate" in spec.way
        self.fixed = fixed_shift(spec.way)
        self.tile = tile_channels(spec)

    def build(self) -> str:
        asm, shape = self.asm, self.shape
        if self.tile == SINGLE_TILE:
            return self._single()
        self._start()
        pair, done = asm.label(), asm.label()
        asm.place(pair)
        self._gather()
        self._tiles()
        if shape.places > 2:
            asm(f"vmov r0,{_PLACES}", "subs r0,#2")
            if shape.places % 2:
                last = asm.label()
                asm(f"vmov {_PLACES},r0", f"ble {done}", "cmp r0,#1", f"bne {last}")
                asm("movs r1,#0", f"vmov {_SECOND},r1")  # the last place alone: the second one's bytes come first
                asm.place(last)
                asm(f"b {pair}")
            else:
                asm(f"vmov {_PLACES},r0", f"bne {pair}")
        asm.place(done)
        asm.leave()
        return asm.function(self.symbol, self.target, 4 + len(self.epilogue.elements))

    def _start(self) -> None:
        asm, spec, shape = self.asm, self.spec, self.shape
        asm.enter()
        # x, stream, elements, y, scratch: the first four in r0-r3
        given = [self.reals.pointers[e.operand] for e in self.epilogue.elements]
        for number, register in enumerate([*given, _Y, _SCRATCH], 2):
            if number > 3:
                asm(f"ldr r4,[sp,#{asm.stack_bytes + 4 * (number - 4)}]")
            asm(f"vmov {register},{f'r{number}' if number < 4 else 'r4'}")
        top, left = -spec.pads[0], -spec.pads[1]
        _, sh, sw = spec.x_strides
        asm.add("r0", "r0", top * sh + left * sw, "r4")
        asm(f"vmov {_X},r0", f"vmov {_STREAM},r1", f"vmov r3,{_SCRATCH}")
        asm.add("r4", "r3", shape.scratch, "r4")
        asm(f"vmov {_STEPS_END},r4")
        if shape.crossing:
            asm.constant("r5", (spec.fill & 0xFF) * 0x01010101)
            with asm.repeated(shape.padded // 4, "r6"):
                asm("str r5,[r4],#4")
        asm.constant("r4", top)
        asm.constant("r5", left)
        asm(f"vmov {_TOP},r4", f"vmov {_LEFT},r5")
        whole = spec.oc // 4
        asm.constant("r5", whole * self._tile_bytes())
        asm("add r4,r1,r5", f"vmov {_END},r4")
        # an odd number of places starts with two, too: the last one is alone
        asm.constant("r4", shape.places)
        asm(f"vmov {_PLACES},r4")
        asm.constant("r4", spec.oc if shape.places > 1 else 0)
        asm(f"vmov {_SECOND},r4")
        self.reals.start()

    def _tile_bytes(self) -> int:
        return 16 + 8 * self.shape.rows * self.shape.steps + 4 * self.reals.tile_words(_TILE)

    # Windows
    def _gather(self) -> None:
        """The windows of the next two places; of the last place twice, where it is alone."""
        asm, shape = self.asm, self.shape
        asm(f"vmov r0,{_X}")
        if shape.crossing:
            asm(f"vmov r4,{_TOP}", f"vmov r5,{_LEFT}")
        self._next("r0", "r4", "r5", "r1", "r6", "r7")  # the second place
        self._next("r1", "r6", "r7", "r8", "r9", "r11")  # the place after it
        asm(f"vmov {_X},r8")
        if not shape.crossing:
            if shape.places % 2:  # there may be no second place to read
                asm(f"vmov r2,{_SECOND}", "cmp r2,#0", "it eq", "moveq r1,r0")
            asm(f"vmov r12,{_SCRATCH}")
            self._rows_plainly()
            return
        asm(f"vmov {_TOP},r9", f"vmov {_LEFT},r11")
        careful, done = asm.label(), asm.label()
        self._inside("r4", "r5", careful)
        self._inside("r6", "r7", careful)
        asm(f"vmov r12,{_SCRATCH}")
        self._rows_plainly()
        asm(f"b {done}")
        asm.place(careful)
        self._rows_carefully()
        asm.place(done)

    def _next(self, at: str, top: str, left: str, at2: str, top2: str, left2: str) -> None:
        """The place after the one at (`at`, `top`, `left`)."""
        asm, spec, shape = self.asm, self.spec, self.shape
        _, sh, sw = spec.x_strides
        step = spec.stride[1] * sw
        asm.add(at2, at, step, at2)
        if spec.out[0] == 1:
            if shape.crossing:
                asm(f"mov {top2},{top}")
                asm.add(left2, left, spec.stride[1], left2)
            return
        # the end of a row of places: of the image's columns where the edge matters, otherwise of those left
        end = spec.out[1] * spec.stride[1] - spec.pads[1]
        back = spec.stride[0] * sh - spec.out[1] * step
        if not shape.crossing:
            asm(f"vmov {left},{_LEFT}")
        asm.add(left2, left, spec.stride[1], left2)
        if shape.crossing:
            asm(f"mov {top2},{top}")
        stays = asm.label()
        self._compare(left2, end)
        asm(f"bne {stays}")
        asm.constant(left2, -spec.pads[1])
        asm.add(at2, at2, back, "r10")
        if shape.crossing:
            asm.add(top2, top2, spec.stride[0], "r10")
        asm.place(stays)
        if not shape.crossing:
            asm(f"vmov {_LEFT},{left2}")

    def _compare(self, register: str, value: int) -> None:
        self.asm.constant("r10", value)
        self.asm(f"cmp {register},r10")

    def _inside(self, top: str, left: str, otherwise: str) -> None:
        """Goes to `otherwise` where the window leaves the image (unsigned: negative numbers are large)."""
        spec = self.spec
        for axis, register in enumerate((top, left)):
            most = spec.image[axis] - (spec.kernel[axis] - 1) * spec.dilation[axis] - 1
            if most < 0:
                self.asm(f"b {otherwise}")
                return
            self._compare(register, most)
            self.asm(f"bhi {otherwise}")

    def _row_step(self) -> int:
        """From one run of a window to the next, in bytes."""
        return self.spec.dilation[0] * self.spec.x_strides[1]

    def _advance_rows(self) -> None:
        step = self._row_step() - self._consumed()
        self.asm.add("r0", "r0", step, "r10")
        self.asm.add("r1", "r1", step, "r10")

    def _consumed(self) -> int:
        """Bytes by which `_run` moves its pointers."""
        return self.shape.run // 4 * 4

    def _rows_plainly(self) -> None:
        with self.asm.repeated(self.shape.rows, "lr"):
            self._run()
            if self.shape.rows > 1:
                self._advance_rows()

    def _run(self) -> None:
        """Widens the bytes from r0 and r1 on to steps at r12. Uses r2-r9 and r11."""
        asm, run = self.asm, self.shape.run
        words = run // 4
        if words:
            unroll = max(u for u in range(1, 5) if words % u == 0)
            with asm.repeated(words // unroll, "r11"):
                for _ in range(unroll):
                    asm("ldr r4,[r0],#4", "ldr r5,[r1],#4")
                    asm("sxtb16 r2,r4", "sxtb16 r3,r5", "sxtb16 r4,r4,ror #8", "sxtb16 r5,r5,ror #8")
                    asm("stm r12!,{r2-r5}")
        rest = run % 4
        if not rest:
            return
        for pointer, pair in (("r0", "r2"), ("r1", "r3")):
            second = "r4" if pointer == "r0" else "r5"
            asm(f"ldrsb {pair},[{pointer}]")
            if rest > 1:
                asm(f"ldrsb {second},[{pointer},#1]")
            if rest == 2:  # neighbours make a pair: one step
                asm(f"pkhbt {pair},{pair},{second},lsl #16")
            if rest == 3:
                asm(f"ldrsb r6,[{pointer},#2]", f"pkhbt {pair},{pair},r6,lsl #16")
        asm("stm r12!,{r2-r5}" if rest == 3 else "stm r12!,{r2,r3}")

    def _rows_carefully(self) -> None:
        """Runs of windows that leave the image. r0, r4, r5 and s0-s2: address, row and column of both places."""
        asm, shape = self.asm, self.shape
        asm("vmov s3,r0", "vmov s4,r4", "vmov s5,r5", "vmov s6,r1", "vmov s7,r6", "vmov s8,r7")
        asm(f"vmov r12,{_SCRATCH}", "vmov s9,r12")
        asm.constant("r12", shape.rows)
        asm("vmov s10,r12")
        again = asm.label()
        asm.place(again)
        self._source("s3", "s4", "s5", 1)
        asm("mov lr,r0")
        self._source("s6", "s7", "s8", 2)
        asm("mov r1,r0", "mov r0,lr", "vmov r12,s9")
        self._run()
        asm("vmov s9,r12", "vmov r12,s10", "subs.w r12,r12,#1", "vmov s10,r12", f"bne {again}")

    def _source(self, at: str, top: str, left: str, row: int) -> None:
        """r0 = where the run lies that begins at `at`; the state moves on by a row. `row`: this place's own row."""
        asm, spec, shape = self.asm, self.spec, self.shape
        missing, done = asm.label(), asm.label()
        asm(f"vmov r0,{at}", f"vmov r4,{top}", f"vmov r5,{left}")
        asm.add("r6", "r0", self._row_step(), "r6")
        asm.add("r7", "r4", spec.dilation[0], "r7")
        asm(f"vmov {at},r6", f"vmov {top},r7")
        self._compare("r4", spec.image[0])
        asm(f"bhs {missing}")
        most = spec.image[1] - (spec.kernel[1] - 1) * spec.dilation[1] - 1
        if most >= 0:
            self._compare("r5", most)
            asm(f"bls {done}")
        # byte by byte: places of the row that exist, zero points for the others
        asm(f"vmov r6,{_STEPS_END}")
        asm.add("r6", "r6", row * shape.padded, "r10")
        asm("mov r11,r6")
        asm.constant("r9", spec.fill)
        with asm.repeated(spec.kernel[1], "r8"):
            outside, next_ = asm.label(), asm.label()
            self._compare("r5", spec.image[1])
            asm(f"bhs {outside}")
            self._copy_place("ldrsb r7,[r0],#1", "ldr r7,[r0],#4", "r7")
            asm(f"b {next_}")
            asm.place(outside)
            if spec.ic % 4 == 0:
                asm.constant("r7", (spec.fill & 0xFF) * 0x01010101)
            asm.add("r0", "r0", spec.ic, "r10")
            self._copy_place("", "", "r7" if spec.ic % 4 == 0 else "r9")
            asm.place(next_)
            asm("adds r5,#1")
        asm("mov r0,r11", f"b {done}")
        asm.place(missing)
        asm(f"vmov r0,{_STEPS_END}")
        asm.place(done)

    def _copy_place(self, byte: str, word: str, value: str) -> None:
        """One place of a row at r6: by words where its channels are words."""
        asm, ic = self.asm, self.spec.ic
        if ic % 4 == 0:
            with asm.repeated(ic // 4, "r10"):
                asm(*([word] if word else []), f"str {value},[r6],#4")
            return
        with asm.repeated(ic, "r10"):
            asm(*([byte] if byte else []), f"strb {value},[r6],#1")

    # Tiles of channels
    def _tiles(self) -> None:
        asm, spec = self.asm, self.spec
        asm(f"vmov r1,{_STREAM}")
        whole, rest = divmod(spec.oc, 4)
        if whole:
            again = asm.label()
            if whole > 1:
                asm.place(again)
            self._tile(4)
            if whole > 1:
                asm(f"vmov r2,{_END}", "cmp r1,r2", f"bne {again}")
        if rest:
            self._tile(rest)
        if self.shape.places > 2:  # past the second place
            asm(f"vmov r0,{_Y}")
            asm.add("r0", "r0", spec.oc * (4 if self.epilogue.last is None else 1), "r2")
            asm(f"vmov {_Y},r0")
            self.reals.skip(spec.oc)

    def _tile(self, channels: int) -> None:
        asm, shape = self.asm, self.shape
        asm("ldm r1!,{r4-r7}", f"vmov r0,{_SCRATCH}")
        total = shape.rows * shape.steps
        self._step(first=True)
        if total <= _UNROLL:
            for _ in range(total - 1):
                self._step()
        else:
            unroll = _best_unroll(total - 1)
            for _ in range((total - 1) % unroll):
                self._step()
            again = asm.label()
            asm.place(again)
            for _ in range(unroll):
                self._step()
            asm(f"vmov r2,{_STEPS_END}", "cmp r0,r2", f"bne {again}")
        self._finish(channels)

    def _step(self, *, first: bool = False) -> None:
        """`first`: the sums of both places begin with r4-r7."""
        asm = self.asm

        def multiply(channel: int, w: str) -> None:
            start = channel if first else channel + 4
            asm(f"smlad r{channel + 4},r3,{w},r{start}", f"smlad r{channel},r2,{w},r{channel}")

        asm("ldrd r2,r3,[r0],#8")
        if self.wide:
            for a, b in ((4, 5), (6, 7)):
                asm("ldr r12,[r1],#4", "sxtb16 lr,r12,ror #8", "sxtb16 r12,r12")
                multiply(a, "r12")
                multiply(b, "lr")
            return
        asm("ldrd r12,lr,[r1],#8")
        multiply(5, "r12")
        multiply(7, "lr")
        asm("sxtb16 r12,r12", "sxtb16 lr,lr")
        multiply(4, "r12")
        multiply(6, "lr")

    def _finish(self, channels: int) -> None:
        """Sums in r4-r7 (first place) and r8-r11 -> bytes."""
        asm, e = self.asm, self.epilogue
        if not self.wide:
            asm("sub r5,r5,r4", "sub r7,r7,r6", "sub r9,r9,r8", "sub r11,r11,r10")
        if self.fixed:
            real, done = asm.label(), asm.label()
            asm("ldm r1!,{r2,r3,r12,lr}", "cmp r2,#0", f"blt {real}")
            shifts = (self.fixed, self.fixed + (0 if self.wide else 8))
            fixed_levels(asm, ("r2", "r3", "r12", "lr"), int(e.requantize.params[2]), shifts, "r0")
            self._write(channels)
            asm.place(done)
            asm.later(real, done, lambda: self._real(channels, back=True))
            return
        self._real(channels)

    def _real(self, channels: int, *, back: bool = False) -> None:
        """Sums rounded as real numbers. `back`: their scales have been read as factors."""
        asm, last = self.asm, self.epilogue.last
        if back:
            asm("subs r1,#16")
        self.reals.compute(_TILE, negated=self.fixed > 0)  # the sign of scales says that they are no integers
        if last is None:
            self._write_reals(channels)
            return
        low, high, zero = (int(v) for v in last.params[:3])
        store_levels(asm, (4, 8), low, high, zero, saturate=self.saturate)
        self._write(channels)

    # One place
    def _single(self) -> str:
        """All channels of one place, eight at a time; its bytes are widened as they are read."""
        asm, spec = self.asm, self.spec
        asm.enter()
        asm(f"vmov {_X},r0", f"vmov {_Y},r2")
        asm.add("r3", "r0", spec.ic, "r3")
        asm(f"vmov {_STEPS_END},r3")
        self.reals.start()
        whole, rest = divmod(spec.oc, SINGLE_TILE)
        if whole:
            asm.constant("r3", whole * self._single_bytes())
            asm("add r3,r3,r1", f"vmov {_END},r3")
            again = asm.label()
            asm.place(again)
            self._single_tile(SINGLE_TILE)
            if whole > 1:
                asm(f"vmov r2,{_END}", "cmp r1,r2", f"bne {again}")
        if rest:
            self._single_tile(rest)
        asm.leave()
        return asm.function(self.symbol, self.target, 3)

    def _single_bytes(self) -> int:
        return 4 * (SINGLE_TILE + self.reals.tile_words(SINGLE_TILE)) + SINGLE_TILE * self.spec.ic

    def _single_tile(self, channels: int) -> None:
        asm = self.asm
        asm("ldm r1!,{r4-r11}", f"vmov r0,{_X}")
        words = self.spec.ic // 4
        unroll = max(u for u in range(1, 9) if words % u == 0)
        again = asm.label()
        asm.place(again)
        for _ in range(unroll):
            asm("ldr r3,[r0],#4", "sxtb16 r2,r3", "sxtb16 r3,r3,ror #8")
            for x in ("r2", "r3"):
                self._single_step(x)
        if unroll < words:
            asm(f"vmov r2,{_STEPS_END}", "cmp r0,r2", f"bne {again}")
        if not self.wide:
            asm("sub r5,r5,r4", "sub r7,r7,r6", "sub r9,r9,r8", "sub r11,r11,r10")
        self.reals.compute(SINGLE_TILE)
        last = self.epilogue.last
        if last is None:
            asm(f"vmov r0,{_Y}", f"vstmia r0!,{{s0-s{channels - 1}}}", f"vmov {_Y},r0")
            return
        store_levels(asm, (4, 8), *(int(v) for v in last.params[:3]), saturate=self.saturate)
        self._flip()
        asm(f"vmov r0,{_Y}")
        for first in range(0, channels, 4):
            word = f"r{4 + first}"
            if channels - first >= 4:
                asm(f"str {word},[r0],#4")
                continue
            for i in range(channels - first):
                asm(*([f"lsr {word},{word},#8"] if i else []), f"strb {word},[r0],#1")
        asm(f"vmov {_Y},r0")

    def _single_step(self, x: str) -> None:
        asm = self.asm
        for first in range(4, 12, 4):
            if self.wide:
                for a in (first, first + 2):
                    asm("ldr r12,[r1],#4", "sxtb16 lr,r12,ror #8", "sxtb16 r12,r12")
                    asm(f"smlad r{a},{x},r12,r{a}", f"smlad r{a + 1},{x},lr,r{a + 1}")
                continue
            asm("ldrd r12,lr,[r1],#8")
            asm(f"smlad r{first + 1},{x},r12,r{first + 1}", "sxtb16 r12,r12")
            asm(f"smlad r{first + 3},{x},lr,r{first + 3}", "sxtb16 lr,lr")
            asm(f"smlad r{first},{x},r12,r{first}", f"smlad r{first + 2},{x},lr,r{first + 2}")

    def _second(self, spare: str) -> str:
        """Address of the second place of y, or of what lies like it, at r0."""
        if self.shape.places % 2 == 0 and self.spec.oc < 4096:
            return f"[r0,#{self.spec.oc}]"
        self.asm(f"vmov {spare},{_SECOND}")
        return f"[r0,{spare}]"

    def _flip(self) -> None:
        """Bytes in r4 and r8 as the result has them."""
        if self.epilogue.unsigned:
            self.asm("eor r4,r4,#0x80808080", "eor r8,r8,#0x80808080")

    def _write(self, channels: int) -> None:
        asm = self.asm
        self._flip()
        asm(f"vmov r0,{_Y}")
        second = self._second("r2")
        if channels == 4:
            asm(f"str r8,{second}", "str r4,[r0],#4", f"vmov {_Y},r0")
            return
        asm(f"add r2,r0,{second[1:-1].split(',')[1]}")
        for pointer, value in (("r2", "r8"), ("r0", "r4")):
            for i in range(channels):
                asm(f"strb {value},[{pointer}],#1")
                if i + 1 < channels:
                    asm(f"lsr {value},{value},#8")
        asm(f"vmov {_Y},r0")

    def _write_reals(self, channels: int) -> None:
        asm = self.asm
        asm(f"vmov r0,{_Y}", f"vmov r2,{_SECOND}", "add r2,r0,r2,lsl #2")
        asm(f"vstmia r2,{{s4-s{3 + channels}}}", f"vstmia r0!,{{s0-s{channels - 1}}}", f"vmov {_Y},r0")


def _best_unroll(total: int) -> int:
    """Steps of the loop's body. Five cycles for each turn; what is left is straight code, which takes bytes."""
    return min(range(1, _UNROLL + 1), key=lambda u: 5 * (total // u) + total % u / 2)
