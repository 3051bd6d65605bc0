"""Thumb-2 assembly as a kernel: a writer of instructions, and the LLVM function around them.

LLVM's register allocation has no place to spare in the inner loops of cores with 14 registers, so these kernels are
written as instructions: one naked function, which LLVM's assembler takes as it is. Armv7-M Architecture Reference
Manual (A7: instructions with the DSP extension and the single precision FPU); Procedure Call Standard for the Arm
Architecture (r4-r11 and s16-s31 belong to the caller).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from irc.targets.target import Target

_SAVED_WORDS = 9  # r4-r11, lr


class Assembly:
    """Instructions in order. Labels are local to the kernel."""

    def __init__(self, saved_floats: int = 0) -> None:
        """`saved_floats`: registers s16, s17, ... that the kernel uses."""
        self.lines: list[str] = []
        self._labels = 0
        self._later: list[tuple[str, str, Callable[[], None]]] = []
        self._floats = saved_floats

    def __call__(self, *instructions: str) -> None:
        self.lines += instructions

    def label(self) -> str:
        self._labels += 1
        return f".Lirc{self._labels}_${{:uid}}"

    def place(self, label: str) -> None:
        self.lines.append(label + ":")

    def later(self, label: str, back: str, write: Callable[[], None]) -> None:
        """What `write` writes lies behind the kernel, from `label` on, and goes on at `back`."""
        self._later.append((label, back, write))

    def enter(self) -> None:
        self("push {r4-r11,lr}")
        if self._floats:
            self(f"vpush {{s16-s{15 + self._floats}}}")

    def leave(self) -> None:
        if self._floats:
            self(f"vpop {{s16-s{15 + self._floats}}}")
        self("pop {r4-r11,pc}")
        for label, back, write in self._later:
            self.place(label)
            write()
            self(f"b {back}")

    @property
    def stack_bytes(self) -> int:
        """What `enter` puts on the stack: arguments beyond the fourth lie behind it."""
        return 4 * (_SAVED_WORDS + self._floats)

    def constant(self, register: str, value: int) -> None:
        """`register` = value, any 32 bits."""
        bits = value & 0xFFFFFFFF
        if _encodes(bits):
            self(f"mov.w {register},#{bits:#x}")
        elif _encodes(~bits & 0xFFFFFFFF):
            self(f"mvn {register},#{~bits & 0xFFFFFFFF:#x}")
        else:
            self(f"movw {register},#{bits & 0xFFFF:#x}")
            if bits >> 16:
                self(f"movt {register},#{bits >> 16:#x}")

    def add(self, register: str, source: str, value: int, spare: str = "") -> None:
        """`register` = source + value; `spare` may be `register` where that is not `source`."""
        size = abs(value)
        name = "add" if value >= 0 else "sub"
        if value == 0:
            if register != source:
                self(f"mov {register},{source}")
        elif size < 4096 or _encodes(size):
            self(f"{name}{'w' if size < 4096 else '.w'} {register},{source},#{size}")
        else:
            self.constant(spare, size)
            self(f"{name}.w {register},{source},{spare}")

    @contextmanager
    def repeated(self, count: int, counter: str) -> Iterator[None]:
        """A loop over `count` steps that counts down in a register; straight code for one."""
        if count == 1:
            yield
            return
        start = self.label()
        self.constant(counter, count)
        self.place(start)
        yield
        self(f"subs.w {counter},{counter},#1", f"bne {start}")

    def function(self, symbol: str, target: Target, parameters: int) -> str:
        """LLVM IR text of `void symbol(ptr, ...)` with these instructions."""
        pointers = ", ".join(f"ptr %{i}" for i in range(parameters))
        text = "\\0A".join(self.lines)
        return (
            f'target datalayout = "{_LAYOUT}"\n'
            f'target triple = "{target.triple}"\n\n'
            f"define dso_local void @{symbol}({pointers}) #0 {{\n"
            f'  tail call void asm sideeffect "{text}", ""()\n'
            "  unreachable\n"
            "}\n\n"
            "attributes #0 = { naked noinline nounwind }\n"
        )


_LAYOUT = "e-m:e-p:32:32-Fi8-i64:64-v128:64:128-a:0:32-n32-S64"


def _encodes(bits: int) -> bool:
    """Whether 32 bits are a Thumb-2 modified immediate."""
    low = bits & 0xFF
    if bits in (low, low * 0x00010001, low * 0x01010101, (bits >> 8 & 0xFF) * 0x01000100):
        return True
    top = bits.bit_length() - 8
    return top > 0 and bits >> top << top == bits


def halves(value: int) -> int:
    """A pair of 16-bit numbers."""
    return (value & 0xFFFF) * 0x00010001


def float_bits(value: float) -> int:
    import struct

    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def store_levels(
    asm: Assembly, registers: Sequence[int], low: int, high: int, zero: int, *, saturate: bool = False
) -> None:
    """Rounded integers, four from each of `registers` on, without the zero point -> four bytes in each, clamped.

    `saturate`: they may not fit 16 bits. Uses r2 and r3.
    """
    for first in registers:
        if saturate:
            asm(*(f"ssat r{r},#16,r{r}" for r in range(first, first + 4)))
        asm(f"pkhbt r{first},r{first},r{first + 2},lsl #16", f"pkhbt r{first + 1},r{first + 1},r{first + 3},lsl #16")
    pairs = [f"r{r}" for first in registers for r in (first, first + 1)]
    if zero != -128:
        asm.constant("r2", halves(zero + 128))
        asm(*(f"qadd16 {pair},{pair},r2" for pair in pairs))
    asm(*(f"usat16 {pair},#8,{pair}" for pair in pairs))
    if low > -128:
        asm.constant("r2", halves(low + 128))
        for pair in pairs:
            asm(f"usub16 r3,{pair},r2", f"sel {pair},{pair},r2")
    if high < 127:
        asm.constant("r2", halves(high + 128))
        for pair in pairs:
            asm(f"usub16 r3,{pair},r2", f"sel {pair},r2,{pair}")
    for r in registers:
        asm(f"orr r{r},r{r},r{r + 1},lsl #8", f"eor r{r},r{r},#0x80808080")


def fixed_levels(asm: Assembly, factors: Sequence[str], zero: int, shifts: Sequence[int], addend: str) -> None:
    """Sums of two places in r4-r7 and r8-r11 -> four bytes in r4 and in r8 (`plan/small_fixed.py`).

    `factors`: registers of the four factors; `shifts` of channels 0 and 2, and of 1 and 3; `addend`: a register.
    """
    asm.constant(addend, (2 * zero + 1) << shifts[0] >> 1)
    for odd in range(2):
        if odd and shifts[1] != shifts[0]:
            asm(f"lsl {addend},{addend},#{shifts[1] - shifts[0]}")
        for channel in (odd, odd + 2):
            for r in (4 + channel, 8 + channel):
                asm(f"smmla r{r},r{r},{factors[channel]},{addend}")
    asm(*(f"ssat r{r},#8,r{r},asr #{shifts[r % 2]}" for r in range(4, 12)))
    for first in (4, 8):
        asm(*(f"bfi r{first},r{first + i},#{8 * i},#8" for i in range(1, 4)))
