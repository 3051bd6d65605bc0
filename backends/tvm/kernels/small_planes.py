"""Depthwise 3 x 3 convolutions on Arm's M-profile vectors (MVE): one vector holds four windows.

The scratch memory has a plane for each channel: of each column of the image, and of those beside it, a word with the
bytes of four rows. Four neighbouring words are 4 x 4 places, in which the windows of 2 x 2 results lie. VMLADAV sums
the 16 products with the weights: nine that lie where the window does, and zeros. Weights of the second column are those
of the first, a word further; of the second row, a byte further.

Rows come in pairs: the next pair takes the half words of the pair that is not needed any more. So the rows of every
other pair of results lie turned by two bytes, and the weights are turned alike. Bytes go from the image to the planes
by eight channels, two rows at a time, in scattering stores.

With stride 2 a vector holds one window; four of them, side by side, are rounded together.

A result beyond the last row or column is computed with the weights of its neighbour, and stored in its place.

The packed weights: for each channel three words (a column of the kernel each), a word of zeros, what its sum begins
with, its scale. Armv8-M Architecture Reference Manual, C2: instructions of the M-profile vector extension.
"""

from __future__ import annotations

from irc.backends.tvm.kernels.small_asm import Assembly
from irc.backends.tvm.small_epilogue import epilogue_of
from irc.backends.tvm.small_mve import plane_bytes
from irc.backends.tvm.specs import SmallDepthwiseSpec
from irc.targets.target import Target

_CHANNELS = 8  # of a scattering store
_UNROLLED = 4  # so many stores of a place are written out
# words on the stack
_X, _STREAM, _Y, _PLANES, _ROW, _PAIR, _FRAME = 0, 1, 2, 3, 4, 5, 6


def build(symbol: str, spec: SmallDepthwiseSpec, target: Target) -> str:
    """LLVM IR text of `symbol(x, stream, y, scratch)`."""
    return _Planes(symbol, spec, target).build()


class _Planes:
    def __init__(self, symbol: str, spec: SmallDepthwiseSpec, target: Target) -> None:
        self.symbol, self.spec, self.target = symbol, spec, target
        self.asm = Assembly(16)
        found = epilogue_of(spec.expression)
        assert found is not None, "the plan has looked"
        self.low, self.high, self.zero = (int(v) for v in found.requantize.params[:3])
        self.plane = plane_bytes(spec)
        self.strided = spec.stride == (2, 2)
        self.pairs = spec.out[0] if self.strided else -(-spec.out[0] // 2)  # of rows of the image, less one
        self.blocks = -(-spec.out[1] // 2)  # of 2 x 2 results

    def build(self) -> str:
        asm = self.asm
        again, table = asm.label(), asm.label()
        asm.enter()
        asm(f"sub sp,#{4 * _FRAME}")
        self._start()
        asm.place(again)
        self._copy_pair()
        self._load("r0", _PAIR)
        asm("adds r1,r0,#1")
        self._save("r1", _PAIR)
        asm("cmp r0,#0", f"beq {again}")  # results need two pairs
        self._results(table)
        self._load("r0", _PAIR)
        asm(f"cmp r0,#{self.pairs}", f"bls {again}", f"add sp,#{4 * _FRAME}")
        asm.leave()
        asm(".p2align 2")
        asm.place(table)
        for below in (self.spec.y_strides[1], *([] if self.strided else [0])):
            self._offsets(below)
        return asm.function(self.symbol, self.target, 4)

    def _load(self, register: str, word: int) -> None:
        self.asm(f"ldr {register},[sp,#{4 * word}]")

    def _save(self, register: str, word: int) -> None:
        self.asm(f"str {register},[sp,#{4 * word}]")

    def _offsets(self, below: int) -> None:
        """Where the results of two blocks of 2 x 2 go, by turns; then those of the last two, or of the last, twice."""
        column = self.spec.y_strides[2]
        if self.strided:
            rest = self.spec.out[1] % 8
            for count in (8, rest) if rest else (8,):
                lanes = [min(i // 2 + i % 2 * 4 * (count > 4), count - 1) for i in range(8)]
                self.asm(f".short {','.join(str(column * lane) for lane in lanes)}")
            return
        single = self.blocks % 2 == 1
        beside = column if self.spec.out[1] % 2 == 0 else 0
        last = (0, 0, beside, beside) if single else (0, 2 * column, column, 2 * column + beside)
        for places in ((0, 2 * column, column, 3 * column), last):
            self.asm(f".short {','.join(str(row + x) for row in (0, below) for x in places)}")

    def _start(self) -> None:
        """State, and planes full of zero points."""
        asm, spec = self.asm, self.spec
        for register, word in (("r0", _X), ("r1", _STREAM), ("r2", _Y), ("r3", _PLANES)):
            self._save(register, word)
        asm.constant("r4", spec.fill)
        asm("vdup.8 q0,r4")
        asm.constant("r5", self.plane * spec.channels // 16)
        with self._loop("r5"):
            asm("vstrw.32 q0,[r3],#16")
        asm.constant("r4", -spec.pads[0])
        self._save("r4", _ROW)
        asm.constant("r4", 0)
        self._save("r4", _PAIR)

    def _loop(self, count: str) -> _Loop:
        return _Loop(self.asm, count)

    def _copy_pair(self) -> None:
        """The next two rows of the image, or of zero points, into the planes."""
        asm, spec = self.asm, self.spec
        self._load("r7", _ROW)
        self._load("r6", _PAIR)
        self._load("r2", _PLANES)
        self._load("r0", _X)
        asm("adds r4,r7,#2")
        self._save("r4", _ROW)
        asm("and r6,r6,#1", "add r2,r2,r6,lsl #1")
        asm.add("r2", "r2", 4 * spec.pads[1], "r4")
        asm.constant("r5", spec.x_strides[1])
        asm("mla r0,r7,r5,r0", "add r1,r0,r5")
        asm.constant("r4", 0)
        asm.constant("r5", self.plane)
        asm("vidup.u16 q7,r4,#1", "vmul.i16 q7,q7,r5")
        asm.constant("r5", _CHANNELS * self.plane)
        asm.constant("r4", spec.fill & 0xFF)
        asm("vdup.16 q2,r4")
        asm.constant("r4", spec.image[0])
        no_upper, no_lower, neither, done = (asm.label() for _ in range(4))
        asm("cmp r7,r4", f"bhs {no_upper}", "adds r7,#1", "cmp r7,r4", f"bhs {no_lower}")
        self._columns(True, True)
        asm(f"b {done}")
        asm.place(no_upper)
        asm("adds r7,#1", "cmp r7,r4", f"bhs {neither}")
        self._columns(False, True)
        asm(f"b {done}")
        asm.place(no_lower)
        self._columns(True, False)
        asm(f"b {done}")
        asm.place(neither)
        self._columns(False, False)
        asm.place(done)

    def _columns(self, upper: bool, lower: bool) -> None:
        asm, spec = self.asm, self.spec
        blocks = spec.channels // _CHANNELS
        asm.constant("r3", min(spec.image[1], (spec.out[1] - 1) * spec.stride[1] + 3 - spec.pads[1]))

        def store(base: str) -> None:
            asm("vldrb.u16 q0,[r0],#8" if upper else "vmov q0,q2")
            if lower:
                asm("vldrb.u16 q1,[r1],#8")
            asm(f"vsli.16 q0,{'q1' if lower else 'q2'},#8", f"vstrh.16 q0,[{base},q7]")

        if blocks <= _UNROLLED:
            with self._loop("r3"):
                store("r2")
                for block in range(1, blocks):
                    asm(f"add.w r6,{'r2' if block == 1 else 'r6'},r5")
                    store("r6")
                asm("adds r2,#4")
            return
        again = asm.label()
        asm.constant("r8", blocks)
        asm.place(again)
        asm("mov r6,r2", "adds r2,#4")
        with self._loop("r8"):
            store("r6")
            asm("add r6,r5")
        asm("subs r3,#1", f"bne {again}")

    def _results(self, table: str) -> None:
        """Two rows of results; one with stride 2. r3: channels that are left."""
        asm, spec = self.asm, self.spec
        odd_columns = spec.out[1] % 2 == 1
        ending = 1 if self.blocks % 2 else 2 * odd_columns  # blocks that are not like the others
        twice = (self.blocks - ending) // 2
        odd_rows = spec.out[0] % 2 == 1 and not self.strided
        column = spec.y_strides[2]
        even, whole, block = (asm.label() for _ in range(3))
        self._load("r7", _Y)
        asm.add("r1", "r7", (1 if self.strided else 2) * spec.y_strides[1], "r1")
        self._save("r1", _Y)
        self._load("r0", _PLANES)
        self._load("r1", _STREAM)
        asm.constant("r3", spec.channels)
        asm.constant("r5", self.zero)
        asm.place(block)
        self._load("r6", _PAIR)
        asm("vldrw.u32 q4,[r1],#16", "ldrd r10,r11,[r1],#8")
        if not self.strided:
            asm("vshl.i32 q5,q4,#8")
        asm(f"adr r2,{table}")
        if odd_rows:
            asm(f"cmp r6,#{self.pairs + 1}", f"bne {whole}", "vmov q5,q4", "adds r2,#32")
            asm.place(whole)
        # after the first pair of results _PAIR is 2
        asm("lsls r4,r6,#31", f"beq {even}", "vrev32.16 q4,q4")
        if self.strided:
            asm.place(even)
            asm("mov r9,r7")
            self._row_of_windows()
            asm("adds r0,#8", "adds r7,#1", "subs r3,#1", f"bne {block}")
            return
        asm("vrev32.16 q5,q5")
        asm.place(even)
        asm("vmov q6,q4", "vmov q7,q5", "mov.w r12,#0", "vshlc q6,r12,#32", "vshlc q7,r12,#32", "mov r9,r7")
        if twice:
            asm("vldrw.u32 q3,[r2]")
            if ending:
                asm("mov r12,r2")
            if twice == 1:
                self._two(column)
            else:
                asm.constant("r2", twice)
                with self._loop("r2"):
                    self._two(column)
        if ending:
            asm(f"vldrw.u32 q3,[{'r12' if twice else 'r2'},#16]")
            if ending == 2:
                self._sums("q1", False)
                self._sums("q2", True)
                self._store("q1", "q2")
            else:
                self._sums("q1", odd_columns)
                self._store("q1", "q1")
        asm("adds r0,#8", "adds r7,#1", "subs r3,#1", f"bne {block}")

    def _row_of_windows(self) -> None:
        """A row of results of a channel, by eight."""
        asm = self.asm
        eights, rest = divmod(self.spec.out[1], 8)

        def some(count: int) -> None:
            self._windows("q1", min(count, 4))
            if count > 4:
                self._windows("q2", count - 4)
            self._store("q1", "q2" if count > 4 else "q1")

        if eights:
            asm("vldrw.u32 q3,[r2]", "mov r12,r2")
            asm.constant("r2", eights)
            with self._loop("r2"):
                some(8)
                asm.add("r9", "r9", 8 * self.spec.y_strides[2], "r2")
        if rest:
            asm(f"vldrw.u32 q3,[{'r12' if eights else 'r2'},#16]")
            some(rest)

    def _windows(self, to: str, count: int) -> None:
        """The rounded results of up to four windows, the last one again in the lanes that are left."""
        sums = [f"r{2 * min(i, count - 1) + 2}" for i in range(4)]
        for register in sums[:count]:
            self.asm("vldrw.u32 q0,[r0],#8", f"vmladav.s8 {register},q0,q4")
        self._round(to, sums)

    def _two(self, column: int) -> None:
        self._sums("q1", False)
        self._sums("q2", False)
        self._store("q1", "q2")
        self.asm.add("r9", "r9", 4 * column, "r2")

    def _sums(self, to: str, last: bool) -> None:
        """The rounded results of a block: (0, 0), (0, 1), (1, 0), (1, 1); `last`: its second column is the first."""
        asm = self.asm
        asm("vldrw.u32 q0,[r0],#8", "vmladav.s8 r2,q0,q4", "vmladav.s8 r6,q0,q5")
        if not last:
            asm("vmladav.s8 r4,q0,q6", "vmladav.s8 r8,q0,q7")
        self._round(to, ["r2", "r2", "r6", "r6"] if last else ["r2", "r4", "r6", "r8"])

    def _round(self, to: str, sums: list[str]) -> None:
        asm = self.asm
        asm(f"vmov {to}[2],{to}[0],{sums[0]},{sums[2]}", f"vmov {to}[3],{to}[1],{sums[1]},{sums[3]}")
        asm(f"vadd.i32 {to},{to},r10", f"vcvt.f32.s32 {to},{to}", f"vmul.f32 {to},{to},r11")
        asm(f"vcvtn.s32.f32 {to},{to}")

    def _store(self, first: str, second: str) -> None:
        """The results of two blocks as bytes. Saturation to 16 bits changes nothing that 8 bits would show."""
        asm = self.asm
        asm(f"vqmovnb.s32 q2,{second}" if first == second else f"vqmovnb.s32 {first},{first}")
        if first == second:
            first = "q2"
        asm(f"vqmovnt.s32 {first},{second}")
        if self.zero:
            asm(f"vqadd.s16 {first},{first},r5")
        asm(f"vqmovnb.s16 {first},{first}")
        for name, limit, needed in (("vmax", self.low, self.low > -128), ("vmin", self.high, self.high < 127)):
            if needed:
                asm.constant("r2", limit)
                asm("vdup.8 q0,r2", f"{name}.s8 {first},{first},q0")
        asm(f"vstrb.16 {first},[r9,q3]")


class _Loop:
    """A low-overhead loop of as many steps as a register says."""

    def __init__(self, asm: Assembly, count: str) -> None:
        self._asm, self._label = asm, asm.label()
        asm(f"dls lr,{count}")
        asm.place(self._label)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._asm(f"le lr,{self._label}")
