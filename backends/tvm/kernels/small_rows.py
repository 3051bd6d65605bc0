"""Depthwise convolutions of bytes for cores with the DSP extension: rows of the image pass through a ring.

The rows of the image that a row of results needs lie in a ring in the scratch, with zero points at both ends, so that
no window leaves it; each row is copied there once. A result may therefore take the place of rows that were copied.
Row r lies in slot r mod kh: where windows lie never changes, and what turns is the order in which the rows of the
kernel are loaded.

For each row of results, four channels at a time: their weights, as 16 bits, stay in float registers while two columns
at a time run along the row. A word of four bytes widens to channels 0 and 2, and 1 and 3, and so lie the weights:
SMLABB and SMLATT multiply them.

The packed weights: for each four channels their scales, the first values of their sums, and for each tap the weights
of channels 0, 2, 1, 3. Where an epilogue has more than a rounding, its constants follow, scales first: it takes all
float registers (`small_reals.py`), and the weights are loaded again after it.
"""

from __future__ import annotations

from irc.backends.tvm.kernels.small_asm import Assembly, fixed_levels, store_levels
from irc.backends.tvm.kernels.small_reals import Reals
from irc.backends.tvm.small import fixed_shift, ring_columns
from irc.backends.tvm.small_epilogue import FREE_REGISTERS, epilogue_of
from irc.backends.tvm.specs import SmallDepthwiseSpec
from irc.targets.target import Target

_BIAS, _SCALES, _WEIGHTS = 8, 4, 12  # first float registers
_END, _PLACE = "s30", "s31"
# words on the stack
_X, _Y, _STREAM, _RING, _ROWS, _NEXT, _PHASE, _SLOT, _BLOCK, _COLUMN, _CONSTANTS, _ELEMENTS = range(12)
_FREE, _SECOND = [f"s{16 + i}" for i in range(FREE_REGISTERS)], "s28"  # for the epilogue: weights otherwise


def build(symbol: str, spec: SmallDepthwiseSpec, target: Target) -> str:
    """LLVM IR text of `symbol(x, stream, elements..., y, scratch)`."""
    return _Rows(symbol, spec, target).build()


class _Rows:
    def __init__(self, symbol: str, spec: SmallDepthwiseSpec, target: Target) -> None:
        self.symbol, self.spec, self.target = symbol, spec, target
        self.asm = Assembly(16)
        found = epilogue_of(spec.expression, range(spec.streamed))
        assert found is not None, "the plan has looked"
        self.epilogue, self.requantize = found, found.requantize
        self.reals = None if found.bare else Reals(self.asm, found, _FREE, _SECOND)
        self.frame = 4 * (_COLUMN if self.reals is None else _ELEMENTS + len(found.elements))
        self.saturate = "saturate" in spec.way
        self.fixed = fixed_shift(spec.way)
        self.row = ring_columns(spec) * spec.channels  # bytes of a slot
        self.taps = spec.kernel[0] * spec.kernel[1]
        self.constants = 32 + 8 * self.taps  # of a block of the stream: where those of the epilogue lie
        self.block = self.constants + (0 if self.reals is None else 4 * self.reals.tile_words(4))

    def build(self) -> str:
        asm = self.asm
        asm.enter()
        asm(f"sub sp,#{self.frame}")
        self._start()
        again = asm.label()
        asm.place(again)
        self._row()
        self._after_row(again)
        asm(f"add sp,#{self.frame}")
        asm.leave()
        return asm.function(self.symbol, self.target, 4 + len(self.epilogue.elements))

    def _load(self, register: str, word: int) -> None:
        self.asm(f"ldr {register},[sp,#{4 * word}]")

    def _save(self, register: str, word: int) -> None:
        self.asm(f"str {register},[sp,#{4 * word}]")

    def _start(self) -> None:
        """State, the ring full of zero points, and the first rows but those that every row of results adds."""
        asm, spec = self.asm, self.spec
        elements = [_ELEMENTS + i for i in range(len(self.epilogue.elements))]
        for number, word in enumerate((_X, _STREAM, *elements, _Y, _RING)):
            register = f"r{number}"
            if number > 3:
                register = "r4"
                asm(f"ldr r4,[sp,#{self.frame + asm.stack_bytes + 4 * (number - 4)}]")
            self._save(register, word)
        for word in elements:  # counted from the results: they lie alike
            self._load("r4", word)
            self._load("r5", _Y)
            asm("sub r4,r4,r5")
            self._save("r4", word)
        self._load("r3", _RING)
        asm.constant("r4", (spec.fill & 0xFF) * 0x01010101)
        asm("mov r5,r3")
        with asm.repeated(spec.kernel[0] * self.row // 4, "r6"):
            asm("str r4,[r5],#4")
        asm.constant("r4", spec.out[0])
        self._save("r4", _ROWS)
        top = -spec.pads[0]
        asm.constant("r4", top)
        self._save("r4", _NEXT)  # the next row for the ring
        asm.constant("r4", top % spec.kernel[0])
        self._save("r4", _SLOT)
        self._save("r4", _PHASE)  # slot of the first row of the kernel
        if spec.kernel[0] > spec.stride[0]:
            with asm.repeated(spec.kernel[0] - spec.stride[0], "lr"):
                self._copy_row()

    def _row(self) -> None:
        """One row of results."""
        asm, spec = self.asm, self.spec
        with asm.repeated(spec.stride[0], "lr"):
            self._copy_row()
        self._load("r0", _STREAM)
        asm.constant("r1", 0)
        block = asm.label()
        asm.place(block)
        self._save("r1", _BLOCK)
        asm(f"vldmia r0!,{{s{_SCALES}-s{_SCALES + 7}}}")
        self._load_weights()
        if self.reals is not None:
            self._save("r0", _CONSTANTS)
        self._load("r2", _RING)
        self._load("lr", _Y)
        asm("add r0,r2,r1", "add lr,lr,r1", f"vmov {_PLACE},lr")
        self._columns()
        self._load("r1", _BLOCK)
        self._load("r0", _STREAM)
        asm("adds r1,#4")
        asm.constant("r2", self.block // 4)
        asm("mla r0,r1,r2,r0")
        asm.constant("r2", spec.channels)
        asm("cmp r1,r2", f"bne {block}")

    def _load_weights(self) -> None:
        """Kernel row k for slot (phase + k) mod kh. r0: row 0 of the kernel; r1 is kept."""
        asm, (height, width) = self.asm, self.spec.kernel
        words = 2 * width
        self._load("r3", _PHASE)
        done = asm.label()
        cases = [asm.label() for _ in range(height)]
        for phase in range(1, height):
            asm(f"cmp r3,#{phase}", f"beq {cases[phase]}")
        for phase in range(height):
            asm.place(cases[phase])
            for start, count in ((phase, height - phase), (0, phase)):
                if count:
                    first = _WEIGHTS + start * words
                    asm(f"vldmia r0!,{{s{first}-s{first + count * words - 1}}}")
            if phase + 1 < height:
                asm(f"b {done}")
        asm.place(done)

    def _columns(self) -> None:
        """Two columns at a time along the row; the last two again where their number is odd."""
        asm, spec = self.asm, self.spec
        step = 2 * spec.stride[1] * spec.channels
        pairs, odd = divmod(spec.out[1], 2)
        again = asm.label()
        if odd or pairs > 1:
            asm.add("r1", "r0", (pairs + odd) * step, "r1")
            asm(f"vmov {_END},r1")
        asm.place(again)
        self._pair()
        yw = spec.y_strides[2]
        if not odd and pairs == 1:
            return
        asm.add("r0", "r0", step, "r1")
        asm.add("lr", "lr", 2 * yw, "r1")
        asm(f"vmov r1,{_END}", f"vmov {_PLACE},lr")
        if not odd:
            asm("cmp r0,r1", f"bne {again}")
            return
        last = asm.label()
        asm("subs r1,r1,r0", f"beq {last}")
        asm.constant("r2", step)
        asm("cmp r1,r2", f"bne {again}")
        # one column is left: the pair that ends with it
        asm.add("r0", "r0", -step // 2, "r1")
        asm.add("lr", "lr", -yw, "r1")
        asm(f"vmov r1,{_END}", f"vmov {_PLACE},lr")
        asm.add("r1", "r1", -step // 2, "r2")
        asm(f"vmov {_END},r1", f"b {again}")
        asm.place(last)

    def _pair(self) -> None:
        asm, spec = self.asm, self.spec
        for i in range(0, 4, 2):
            asm(f"vmov r{4 + i},r{5 + i},s{_BIAS + i},s{_BIAS + i + 1}")
        for slot in range(spec.kernel[0]):
            self._slot(slot)
        if self.fixed:
            zero = int(self.requantize.params[2])
            real, done = asm.label(), asm.label()
            factors = ("r1", "r2", "r3", "r12")
            for i in range(0, 4, 2):
                asm(f"vmov {factors[i]},{factors[i + 1]},s{_SCALES + i},s{_SCALES + i + 1}")
            asm("cmp r1,#0", f"blt {real}")
            fixed_levels(asm, factors, zero, (self.fixed, self.fixed), "lr")
            self._write()
            asm.place(done)
            asm.later(real, done, self._real)
            return
        if self.reals is not None:
            self._with_reals(self.reals)
            return
        self._real()

    def _with_reals(self, reals: Reals) -> None:
        """The epilogue of both places, which takes the registers of the weights. r0: where the windows lie."""
        asm = self.asm
        self._save("r0", _COLUMN)
        asm.constant("r2", self.spec.y_strides[2])
        asm(f"vmov {_SECOND},r2")
        reals.start("r2")
        for number, element in enumerate(self.epilogue.elements):
            self._load("r2", _ELEMENTS + number)
            asm(f"vmov r0,{_PLACE}", "add r0,r0,r2", f"vmov {reals.pointers[element.operand]},r0")
        self._load("r1", _CONSTANTS)
        reals.compute(4)
        low, high, zero = (int(v) for v in self.requantize.params[:3])
        store_levels(asm, (4, 8), low, high, zero, saturate=self.saturate)
        if self.epilogue.unsigned:
            asm("eor r4,r4,#0x80808080", "eor r8,r8,#0x80808080")
        self._write()
        self._load("r0", _CONSTANTS)
        asm.add("r0", "r0", -self.constants, "r2")
        asm(f"vldmia r0!,{{s{_SCALES}-s{_SCALES + 7}}}")
        self._load_weights()
        self._load("r0", _COLUMN)

    def _real(self) -> None:
        """The sums of both places rounded as real numbers."""
        asm = self.asm
        low, high, zero = (int(v) for v in self.requantize.params[:3])
        multiply = "vnmul" if self.fixed else "vmul"  # the sign of scales says that they are no integers
        for a in (4, 8):
            asm(f"vmov s0,s1,r{a},r{a + 1}", f"vmov s2,s3,r{a + 2},r{a + 3}")
            asm(*(f"vcvt.f32.s32 s{i},s{i}" for i in range(4)))
            asm(*(f"{multiply}.f32 s{i},s{i},s{_SCALES + i}" for i in range(4)))
            asm(*(f"vcvtr.s32.f32 s{i},s{i}" for i in range(4)))
            asm(f"vmov r{a},r{a + 1},s0,s1", f"vmov r{a + 2},r{a + 3},s2,s3")
        store_levels(asm, (4, 8), low, high, zero, saturate=self.saturate)
        self._write()

    def _write(self) -> None:
        self.asm(f"vmov lr,{_PLACE}", "str r4,[lr]", f"str r8,[lr,#{self.spec.y_strides[2]}]")

    def _slot(self, slot: int) -> None:
        """A row of both windows: a weight serves both places at once, as the two columns that it meets stay in
        registers: channels 0 and 2, and 1 and 3, in r1 and r2, those of the other column in r3 and lr. Taps go in the
        order in which a column meets one after the other."""
        asm, spec = self.asm, self.spec
        width, stride = spec.kernel[1], spec.stride[1]
        registers = (("r1", "r2"), ("r3", "lr"))
        held = [-1, -1]  # columns

        def holding(column: int, needed: tuple[int, int]) -> tuple[str, str]:
            if column not in held:
                free = next(i for i in range(2) if held[i] not in needed)
                held[free] = column
                even, odd = registers[free]
                asm(f"ldr {even},[r0,#{slot * self.row + column * spec.channels}]")
                asm(f"sxtb16 {odd},{even},ror #8", f"sxtb16 {even},{even}")
            return registers[held.index(column)]

        order = sorted(range(width), key=lambda tap: (tap % stride, tap))
        for tap in order:
            columns = (tap, tap + stride)
            x = [holding(column, columns) for column in columns]
            w = _WEIGHTS + 2 * (slot * width + tap)
            for half in range(2):
                asm(f"vmov r12,s{w + half}")
                for place in (1, 0):
                    a = 4 + 4 * place + half
                    # the sums of the second place begin with those of the first
                    start = 4 + half if slot == 0 and tap == order[0] else a
                    asm(f"smlabb r{a},{x[place][half]},r12,r{start}")
                    asm(f"smlatt r{a + 2},{x[place][half]},r12,r{start + 2}")

    def _after_row(self, again: str) -> None:
        asm, spec = self.asm, self.spec
        self._load("r0", _Y)
        asm.add("r0", "r0", spec.y_strides[1], "r1")
        self._save("r0", _Y)
        height = spec.kernel[0]
        self._load("r0", _PHASE)
        asm(f"adds r0,#{spec.stride[0] % height}", f"cmp r0,#{height}", "it ge", f"subge r0,#{height}")
        self._save("r0", _PHASE)
        self._load("r0", _ROWS)
        asm("subs r0,#1")
        self._save("r0", _ROWS)
        asm(f"bne {again}")

    def _copy_row(self) -> None:
        """The next row of the image, or of zero points, into its slot. Keeps lr."""
        asm, spec = self.asm, self.spec
        missing, done = asm.label(), asm.label()
        bytes_ = self._copied_columns() * spec.channels
        self._load("r0", _NEXT)
        self._load("r2", _SLOT)
        self._load("r3", _RING)
        asm.constant("r4", self.row)
        asm("mla r3,r2,r4,r3")
        asm.add("r3", "r3", spec.pads[1] * spec.channels, "r4")
        asm("adds r2,#1", f"cmp r2,#{spec.kernel[0]}", "it eq", "moveq r2,#0")
        self._save("r2", _SLOT)
        asm("adds r1,r0,#1")
        self._save("r1", _NEXT)
        asm.constant("r4", spec.image[0])
        asm("cmp r0,r4", f"bhs {missing}")
        asm.constant("r4", spec.x_strides[1])
        self._load("r1", _X)
        asm("mla r1,r0,r4,r1")
        words = bytes_ // 4
        unroll = max(u for u in range(1, 9) if words % u == 0)
        with asm.repeated(words // unroll, "r12"):
            asm(*(f"ldr r{4 + i},[r1],#4" for i in range(unroll)))
            asm(f"stm r3!,{{r4-r{3 + unroll}}}" if unroll > 1 else "str r4,[r3],#4")
        asm(f"b {done}")
        asm.place(missing)
        asm.constant("r4", (spec.fill & 0xFF) * 0x01010101)
        with asm.repeated(words, "r12"):
            asm("str r4,[r3],#4")
        asm.place(done)

    def _copied_columns(self) -> int:
        """Columns of the image that some window reads."""
        return min(self.spec.image[1], ring_columns(self.spec) - self.spec.pads[1])
