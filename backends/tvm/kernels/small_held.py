"""Convolutions of short windows on Arm's M-profile vectors (MVE): two places by four channels, windows in registers.

Windows have up to 32 bytes, two vectors. Those of 1 x 1 kernels are read where they lie: of 8 channels as 16-bit
numbers, so that nothing behind them is read. Others are copied to the scratch row by row, in vectors that reach into
the next row, which is copied after them. At the edges of the image a row is the zero point first, and then what
exists of it is copied under a predicate: it counts bytes, and nothing outside is read.

VMLADAV adds 16 products to an even register; eight of these hold the sums of both places, and pointers are in odd
ones. Requantization and the scattering store are those of `small_tiles.py`.

The packed weights: for each four channels the vectors of every channel; then the first values of the sums, the scales,
the addends. Armv8-M Architecture Reference Manual, C2: the M-profile vector extension.
"""

from __future__ import annotations

from irc.backends.tvm.kernels.small_asm import Assembly
from irc.backends.tvm.kernels.small_tiles import requantize_tile
from irc.backends.tvm.small_epilogue import epilogue_of
from irc.backends.tvm.small_mve import BYTES, TILE, flattened, is_direct, steps_of
from irc.backends.tvm.specs import SmallConvSpec
from irc.targets.target import Target

_SUMS = (("r0", "r2", "r4", "r6"), ("r8", "r10", "r12", "lr"))
_UNROLLED = 4  # tiles that are written out
# words on the stack
_STREAM, _SCRATCH, _INSIDE, _TOP, _ROWS, _FRAME = 0, 1, 2, 3, 4, 6


def build(symbol: str, spec: SmallConvSpec, target: Target) -> str:
    """LLVM IR text of `symbol(x, stream, y[, scratch])`."""
    return _Held(symbol, spec, target).build()


class _Held:
    """r1: the first place's window in x; r3: its column (1 x 1: the end of x); r5: weights; r7: end of the second
    place's results; r9: where results go; r11: the zero point of the result."""

    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.symbol, self.spec, self.target = symbol, flattened(spec), target
        self.asm = Assembly(16)
        found = epilogue_of(spec.expression)
        assert found is not None, "the plan has looked"
        self.epilogue = found
        self.direct = is_direct(spec)
        self.steps = steps_of(spec)
        self.wide = self.direct and spec.ic == BYTES // 2  # as 16-bit numbers
        self.between = (self.steps + 1) * BYTES  # of the windows in the scratch

    def build(self) -> str:
        asm, spec = self.asm, self.spec
        table = asm.label()
        asm.enter()
        asm(f"sub sp,#{4 * _FRAME}", f"str r1,[sp,#{4 * _STREAM}]", "mov r9,r2", "mov r1,r0")
        if not self.direct:
            asm(f"str r3,[sp,#{4 * _SCRATCH}]")
        asm(f"adr r2,{table}", "vldrw.u32 q7,[r2]")
        asm.constant("r11", int(self.epilogue.requantize.params[2]))
        if self.direct:
            asm.add("r3", "r1", spec.out[1] * spec.ic, "r3")
            pair = asm.label()
            asm.place(pair)
            self._load()
            self._channels()
            asm("cmp r1,r3", f"bne {pair}")
        else:
            self._rows()
        asm(f"add sp,#{4 * _FRAME}")
        asm.leave()
        asm(".p2align 2")
        asm.place(table)
        beside = spec.y_strides[2]
        asm(f".short {','.join(str(c + p) for c in range(TILE) for p in (0, beside))}")
        return asm.function(self.symbol, self.target, 3 if self.direct else 4)

    def _rows(self) -> None:
        """All places of images that are copied."""
        asm, spec = self.asm, self.spec
        _, sh, sw = spec.x_strides
        row, pair, careful, copied = (asm.label() for _ in range(4))
        end = spec.out[1] * spec.stride[1] - spec.pads[1]
        asm.add("r1", "r1", -spec.pads[0] * sh - spec.pads[1] * sw, "r2")
        asm.constant("r0", -spec.pads[0])
        asm.constant("r2", spec.out[0])
        asm(f"str r0,[sp,#{4 * _TOP}]", f"str r2,[sp,#{4 * _ROWS}]")
        asm.place(row)
        # columns of the first place, from 0 on, where nothing of both windows is outside: none in other rows
        asm.constant("r2", max(spec.image[0] - spec.kernel[0] + 1, 0))
        asm.constant("r4", self._inside_columns())
        asm(f"ldr r0,[sp,#{4 * _TOP}]", "cmp r0,r2", "it hs", "movhs r4,#0", f"str r4,[sp,#{4 * _INSIDE}]")
        asm.constant("r3", -spec.pads[1])
        asm.place(pair)
        asm(f"ldrd r4,r0,[sp,#{4 * _SCRATCH}]", "cmp r3,r0", f"bhs {careful}")
        self._copy()
        asm.place(copied)
        self._load()
        self._channels()
        asm.add("r1", "r1", 2 * spec.stride[1] * sw, "r0")
        asm.add("r3", "r3", 2 * spec.stride[1], "r0")
        asm.constant("r0", end)
        asm("cmp r3,r0", f"bne {pair}")
        asm.add("r1", "r1", spec.stride[0] * sh - spec.out[1] * spec.stride[1] * sw, "r0")
        asm.add("r9", "r9", spec.y_strides[1] - spec.out[1] * spec.y_strides[2], "r0")
        asm(f"ldrd r0,r2,[sp,#{4 * _TOP}]")
        asm.add("r0", "r0", spec.stride[0], "r4")
        asm("subs r2,r2,#1", f"strd r0,r2,[sp,#{4 * _TOP}]", f"bne {row}")
        asm.later(careful, copied, self._copy_carefully)

    def _inside_columns(self) -> int:
        """The vectors of the second place's window must end in the image's row, too."""
        spec = self.spec
        end = spec.image[1] - max(spec.kernel[1], -(-BYTES // spec.ic))
        return max(end - spec.stride[1] + 1, 0)

    def _copy(self) -> None:
        """Both windows, which lie in the image, to the scratch at r4."""
        asm, spec = self.asm, self.spec
        _, sh, sw = spec.x_strides
        run = spec.kernel[1] * spec.ic
        second = spec.stride[1] * sw
        pointers = ["r1", *(f"r{r}" for r in (0, 2, 6))]
        for kh in range(spec.kernel[0]):
            at = pointers[kh]
            if kh:
                asm.add(at, pointers[kh - 1], sh, "r8")
            for place, offset in enumerate((0, second)):
                asm(f"vldrb.u8 q{place},[{at},#{offset}]")
                asm(f"vstrb.8 q{place},[r4,#{place * self.between + kh * run}]")

    def _copy_carefully(self) -> None:
        """The same where rows or columns of them do not exist."""
        asm, spec = self.asm, self.spec
        _, sh, sw = spec.x_strides
        run = spec.kernel[1] * spec.ic
        asm.constant("r0", spec.fill & 0xFF)
        asm("vdup.8 q1,r0")
        for place in range(2):
            # r0: columns before the image, r2: bytes that exist, r6: where they lie, r8: where they belong
            asm.add("r10", "r3", place * spec.stride[1], "r0")
            asm("rsb r0,r10,#0", "cmp r0,#0", "it lt", "movlt r0,#0")
            asm.constant("r2", spec.image[1])
            asm("sub r2,r2,r10", f"cmp r2,#{spec.kernel[1]}", "it gt", f"movgt r2,#{spec.kernel[1]}", "subs r2,r2,r0")
            asm("it mi", "movmi r2,#0")
            asm.constant("r6", spec.ic)
            asm("mul r2,r2,r6", "mul r0,r0,r6")
            asm.add("r6", "r1", place * spec.stride[1] * sw, "r6")
            asm("add r6,r6,r0")
            asm.add("r8", "r4", place * self.between, "r8")
            asm(f"ldr r10,[sp,#{4 * _TOP}]")
            asm.constant("r12", spec.image[0])
            for kh in range(spec.kernel[0]):
                missing = asm.label()
                asm(f"vstrb.8 q1,[r8,#{kh * run}]", "cmp r10,r12", f"bhs {missing}")
                asm(f"add.w lr,r8,#{kh * run}", "add lr,r0", "vctp.8 r2")
                asm("vpstt", "vldrbt.u8 q0,[r6]", "vstrbt.8 q0,[lr]")
                asm.place(missing)
                if kh + 1 < spec.kernel[0]:
                    asm("add.w r10,r10,#1")
                    asm.add("r6", "r6", sh, "lr")

    def _load(self) -> None:
        """The windows of both places: q0, q1 and q2, q3."""
        for place in range(2):
            for step in range(self.steps):
                q = f"q{2 * place + step}"
                if self.wide:
                    self.asm(f"vldrb.s16 {q},[r1],#{BYTES // 2}")
                elif self.direct:
                    self.asm(f"vldrb.u8 {q},[r1],#{BYTES}")
                else:
                    self.asm(f"vldrb.u8 {q},[r4,#{place * self.between + step * BYTES}]")

    def _channels(self) -> None:
        """All channels of both places; r9 goes on to the places after them."""
        asm, spec = self.asm, self.spec
        tiles = spec.oc // TILE
        unrolled = max(u for u in range(1, _UNROLLED + 1) if tiles % u == 0)
        again = asm.label()
        asm(f"ldr r5,[sp,#{4 * _STREAM}]")
        if unrolled < tiles:
            asm.add("r7", "r9", spec.oc, "r0")
            asm.place(again)
        for _ in range(unrolled):
            self._tile()
        if unrolled < tiles:
            asm("cmp r9,r7", f"bne {again}")
        asm.add("r9", "r9", 2 * spec.y_strides[2] - spec.oc, "r0")

    def _tile(self) -> None:
        asm = self.asm
        kind = "s16" if self.wide else "s8"
        for c in range(TILE):
            for step in range(self.steps):
                name, w = "vmladav" if step == 0 else "vmladava", f"q{4 + step}"
                asm(f"vldrw.u32 {w},[r5],#16")
                asm(*(f"{name}.{kind} {_SUMS[place][c]},q{2 * place + step},{w}" for place in range(2)))
        requantize_tile(asm, self.epilogue, _SUMS, ("q5", "q6"), "q4")
        asm("vstrb.16 q5,[r9,q7]", "adds.w r9,r9,#4")
