"""1 x 1 convolutions on Arm's M-profile vectors (MVE): two places by four channels, whose sums are eight registers.

VMLADAV adds 16 products to an even register. There are eight of these: with pointers in the odd ones, six loads feed
eight instructions. The sums of a place are a vector for the rounding; the results of both places go to memory in one
scattering store. The last of an odd number of places is computed twice.

The packed weights: for each four channels, for each 16 bytes of a place those of every channel; then the first values
of the sums, the scales, the addends. Armv8-M Architecture Reference Manual, C2: the M-profile vector extension.
"""

from __future__ import annotations

from irc.backends.tvm.kernels.small_asm import Assembly, float_bits
from irc.backends.tvm.small_epilogue import Epilogue, epilogue_of
from irc.backends.tvm.small_mve import BYTES, TILE, flattened, steps_of
from irc.backends.tvm.specs import SmallConvSpec
from irc.targets.target import Target

_UNROLLED = 8  # steps that are written out
_SUMS = (("r0", "r2", "r4", "r6"), ("r8", "r10", "r12", "lr"))
# words on the stack
_X, _STREAM, _Y, _LEFT, _END, _FRAME = 0, 1, 2, 3, 4, 6


def build(symbol: str, spec: SmallConvSpec, target: Target) -> str:
    """LLVM IR text of `symbol(x, stream, y)`."""
    return _Tiles(symbol, spec, target).build()


class _Tiles:
    def __init__(self, symbol: str, spec: SmallConvSpec, target: Target) -> None:
        self.symbol, self.spec, self.target = symbol, flattened(spec), target
        self.asm = Assembly(16)
        found = epilogue_of(spec.expression)
        assert found is not None, "the plan has looked"
        self.epilogue = found
        self.steps = steps_of(spec)

    def build(self) -> str:
        asm, spec = self.asm, self.spec
        places = spec.out[1]
        again, tile, table, pair = (asm.label() for _ in range(4))
        asm.enter()
        asm(f"sub sp,#{4 * _FRAME}", f"strd r0,r1,[sp,#{4 * _X}]", f"str r2,[sp,#{4 * _Y}]")
        asm.constant("r0", places)
        asm(f"str r0,[sp,#{4 * _LEFT}]")
        asm.place(again)
        asm(f"ldrd r1,r5,[sp,#{4 * _X}]", f"ldr r9,[sp,#{4 * _Y}]", f"adr r2,{table}", "vldrw.u32 q7,[r2]")
        asm.add("r3", "r1", spec.x_strides[2], "r3")
        if places % 2:
            asm(f"ldr r0,[sp,#{4 * _LEFT}]", "cmp r0,#1", f"bne {pair}", "mov r3,r1", "vldrw.u32 q7,[r2,#16]")
            asm.place(pair)
        asm.add("r0", "r9", spec.oc, "r0")
        asm(f"str r0,[sp,#{4 * _END}]")
        asm.constant("r11", int(self.epilogue.requantize.params[2]))
        asm.place(tile)
        self._sums()
        self._write()
        asm(f"ldr r0,[sp,#{4 * _END}]", "adds r9,#4", "cmp r9,r0", f"bne {tile}")
        for word, step in ((_X, spec.x_strides[2]), (_Y, spec.y_strides[2])):
            asm(f"ldr r0,[sp,#{4 * word}]")
            asm.add("r0", "r0", 2 * step, "r2")
            asm(f"str r0,[sp,#{4 * word}]")
        asm(f"ldr r0,[sp,#{4 * _LEFT}]", "subs r0,#2", f"str r0,[sp,#{4 * _LEFT}]", f"bgt {again}")
        asm(f"add sp,#{4 * _FRAME}")
        asm.leave()
        asm(".p2align 2")
        asm.place(table)
        for beside in (spec.y_strides[2], 0):
            asm(f".short {','.join(str(c + p) for c in range(TILE) for p in (0, beside))}")
        return asm.function(self.symbol, self.target, 3)

    def _sums(self) -> None:
        asm = self.asm
        unrolled = max(u for u in range(1, _UNROLLED + 1) if self.steps % u == 0)
        looped = unrolled < self.steps
        if looped:
            asm(*(f"mov.w {r},#0" for sums in _SUMS for r in sums))
            asm.constant("r7", self.steps // unrolled)
            again = asm.label()
            asm.place(again)
        for step in range(unrolled):
            name = "vmladav" if step == 0 and not looped else "vmladava"
            asm("vldrb.u8 q0,[r1],#16", "vldrb.u8 q1,[r3],#16")
            for c in range(TILE):
                asm(f"vldrw.u32 q{2 + c},[r5],#16")
                asm(f"{name}.s8 {_SUMS[0][c]},q0,q{2 + c}", f"{name}.s8 {_SUMS[1][c]},q1,q{2 + c}")
        if looped:
            asm("subs r7,#1", f"bne {again}")
        for pointer in ("r1", "r3"):
            asm(f"subw {pointer},{pointer},#{self.steps * BYTES}")

    def _write(self) -> None:
        requantize_tile(self.asm, self.epilogue, _SUMS, ("q0", "q1"), "q2")
        self.asm("vstrb.16 q0,[r9,q7]")


def requantize_tile(
    asm: Assembly, epilogue: Epilogue, sums: tuple[tuple[str, ...], tuple[str, ...]], q: tuple[str, str], spare: str
) -> None:
    """The sums of two places, four channels each, as bytes in the even lanes of `q`[0], place beside place. Constants
    are read at r5; r11 holds the zero point. Saturation to 16 bits changes nothing that 8 bits would show. Uses r0."""
    low, high, zero, factor = epilogue.requantize.params
    first, _ = q

    def both(form: str) -> None:
        asm(*(form.replace("q#", name) for name in q))

    for name, (a, b, c, d) in zip(q, sums, strict=True):
        asm(f"vmov {name}[2],{name}[0],{a},{c}", f"vmov {name}[3],{name}[1],{b},{d}")
    asm(f"vldrw.u32 {spare},[r5],#16")
    both(f"vadd.i32 q#,q#,{spare}")
    both("vcvt.f32.s32 q#,q#")
    asm(f"vldrw.u32 {spare},[r5],#16")
    both(f"vmul.f32 q#,q#,{spare}")
    if epilogue.addend >= 0:
        asm(f"vldrw.u32 {spare},[r5],#16")
        both(f"vadd.f32 q#,q#,{spare}")
    if factor != 1.0:
        asm.constant("r0", float_bits(float(factor)))
        both("vmul.f32 q#,q#,r0")
    both("vcvtn.s32.f32 q#,q#")
    asm(f"vqmovnb.s32 {first},{first}", f"vqmovnt.s32 {first},{q[1]}")
    if zero:
        asm(f"vqadd.s16 {first},{first},r11")
    asm(f"vqmovnb.s16 {first},{first}")
    for name, limit, needed in (("vmax", low, low > -128), ("vmin", high, high < 127)):
        if needed:
            asm.constant("r0", int(limit))
            asm(f"vdup.8 {spare},r0", f"{name}.s8 {first},{first},{spare}")
