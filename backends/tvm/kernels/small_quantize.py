"""Reals to bytes for cores with the DSP extension and an FPU: eight at a time, as at the inputs of quantized networks.

VCVTR makes 0 of NaN, which has to become the lowest byte. No result is compared for that: the FPU notes an invalid
operation (FPSCR.IOC) when it converts a NaN, or what an int32 does not hold, and the note is looked at once for eight
numbers. Where it stands, they are converted again one by one. (Armv7-M Architecture Reference Manual, A2.5 and B3.2.)
"""

from __future__ import annotations

from irc.backends.tvm.kernels.small_asm import Assembly, float_bits, store_levels
from irc.backends.tvm.specs import ElementwiseSpec
from irc.targets.target import Target

_TOGETHER = 8
_FACTOR = "s8"


def fits(spec: ElementwiseSpec, target: Target) -> bool:
    """Whether the kernel is made for `spec`: one range of float32, requantized to int8."""
    if target.dot != "smlad" or target.fpu == "none" or spec.gap:
        return False
    if [i.op for i in spec.expression] != ["operand", "requantize"] or spec.y_dtype != "int8":
        return False
    operand = spec.operands[0]
    return operand.dtype == "float32" and len(spec.shape) == 1 and spec.y_strides == operand.strides == (1,)


def build(symbol: str, spec: ElementwiseSpec, target: Target) -> str:
    """LLVM IR text of `symbol(x, y)`."""
    asm = Assembly()
    low, high, zero = (int(v) for v in spec.expression[-1].params[:3])
    factor = float(spec.expression[-1].params[3])
    whole, rest = divmod(spec.shape[0], _TOGETHER)
    asm.enter()
    if factor != 1.0:
        asm.constant("r2", float_bits(factor))
        asm(f"vmov {_FACTOR},r2")
    if whole:
        _forget(asm)
        again, careful, done = asm.label(), asm.label(), asm.label()
        asm.constant("r12", whole)
        asm.place(again)
        asm("vldmia r0!,{s0-s7}")
        if factor != 1.0:
            asm(*(f"vmul.f32 s{i},s{i},{_FACTOR}" for i in range(_TOGETHER)))
        asm(*(f"vcvtr.s32.f32 s{i},s{i}" for i in range(_TOGETHER)))
        asm("vmrs r2,fpscr", "tst r2,#1", f"bne {careful}")
        asm(*(f"vmov r{4 + i},r{5 + i},s{i},s{i + 1}" for i in range(0, _TOGETHER, 2)))
        store_levels(asm, (4, 8), low, high, zero, saturate=True)
        asm("str r4,[r1],#4", "str r8,[r1],#4")
        asm.place(done)
        asm("subs.w r12,r12,#1", f"bne {again}")

        def one_by_one() -> None:
            asm(f"subs r0,#{4 * _TOGETHER}")
            _singly(asm, _TOGETHER, low, high, zero, factor)
            _forget(asm)

        asm.later(careful, done, one_by_one)
    if rest:
        _singly(asm, rest, low, high, zero, factor)
    asm.leave()
    return asm.function(symbol, target, 2)


def _forget(asm: Assembly) -> None:
    asm("vmrs r2,fpscr", "bic r2,r2,#1", "vmsr fpscr,r2")


def _singly(asm: Assembly, count: int, low: int, high: int, zero: int, factor: float) -> None:
    """The next `count` numbers. Saturation to 16 bits first changes nothing that 8 bits would show."""
    asm.constant("r5", low)
    asm.constant("r6", high)
    with asm.repeated(count, "r3"):
        asm("vldmia r0!,{s0}")
        if factor != 1.0:
            asm(f"vmul.f32 s0,s0,{_FACTOR}")
        asm("vcmp.f32 s0,s0", "vmrs APSR_nzcv,fpscr", "vcvtr.s32.f32 s0,s0", "vmov r4,s0")
        asm("it vs", "movvs.w r4,#0x80000000", "ssat r4,#16,r4")
        asm.add("r4", "r4", zero, "r2")
        asm("cmp r4,r5", "it lt", "movlt r4,r5", "cmp r4,r6", "it gt", "movgt r4,r6", "strb r4,[r1],#1")
