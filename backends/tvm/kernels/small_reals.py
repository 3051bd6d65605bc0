"""Eight sums as real numbers, for cores with the DSP extension and an FPU: the steps of an `Epilogue`.

The sums come in r4-r11 and become s0-s7: four channels of two places, or eight channels of one. s8-s15 hold what is
added to them or multiplied with them: numbers of channels, which follow each other in the stream at r1, or elements,
which lie as the results do. Other numbers, and where elements lie, stay in float registers all the time.

What comes out are rounded integers in r4-r11, or real numbers in s0-s7. Uses r0, r2, r3, r12 and lr.
"""

from __future__ import annotations

import math

from irc.backends.tvm.kernels.small_asm import Assembly, float_bits, halves
from irc.backends.tvm.small_epilogue import Channel, Clamp, Elements, Epilogue, Gate, Leaky, Round, scalars

_SUMS = 8


class Reals:
    def __init__(self, asm: Assembly, epilogue: Epilogue, registers: list[str], second: str) -> None:
        """`registers`: free float registers; `second`: the one that says how many elements the second place lies behind
        the first."""
        self.asm, self.epilogue, self.second = asm, epilogue, second
        free = iter(registers)
        self.pointers = {e.operand: next(free) for e in epilogue.elements}
        self.scalars = {value: next(free) for value in scalars(epilogue)}

    def start(self, spare: str = "r4") -> None:
        """Loads the numbers that all channels share."""
        for value, register in self.scalars.items():
            self.asm.constant(spare, float_bits(value))
            self.asm(f"vmov {register},{spare}")

    def tile_words(self, channels: int) -> int:
        """Words of the stream for a tile: scales and numbers of channels."""
        return channels * (1 + len(self.epilogue.channels))

    def skip(self, elements: int) -> None:
        """Moves on to elements that follow. Uses r0 and r2."""
        for e in self.epilogue.elements:
            pointer = self.pointers[e.operand]
            self.asm(f"vmov r0,{pointer}")
            self.asm.add("r0", "r0", elements * _bytes(e), "r2")
            self.asm(f"vmov {pointer},r0")

    def compute(self, different: int, *, negated: bool = False) -> None:
        """`different` channels: then they repeat. `negated`: the scales have the other sign."""
        asm = self.asm
        for i in range(0, _SUMS, 2):
            asm(f"vmov s{i},s{i + 1},r{4 + i},r{5 + i}")
        self._each("vcvt.f32.s32 #,#")
        self._with_channels("vnmul" if negated else "vmul", different)
        for step in self.epilogue.steps:
            if isinstance(step, Channel):
                self._with_channels(f"v{step.op}", different)
            elif isinstance(step, Elements):
                self._add_elements(step)
            elif isinstance(step, Clamp):
                self._clamp(step.low, step.high, 0)
            elif isinstance(step, Leaky):
                self._leaky(step)
            elif isinstance(step, Gate):
                self._gate(step)
            else:
                self._round(step)
        if self.epilogue.last is not None:
            self._rounded(float(self.epilogue.last.params[3]))

    def _each(self, form: str, first: int = 0) -> None:
        """An instruction for eight registers: # stands for each."""
        self.asm(*(form.replace("#", f"s{first + i}") for i in range(_SUMS)))

    def _with_channels(self, name: str, different: int) -> None:
        self.asm(f"vldmia r1!,{{s8-s{7 + different}}}")
        self.asm(*(f"{name}.f32 s{i},s{i},s{8 + i % different}" for i in range(_SUMS)))

    def _times(self, factor: float, first: int = 0) -> None:
        if factor != 1.0:
            self._each(f"vmul.f32 #,#,{self.scalars[factor]}", first)

    def _rounded(self, factor: float) -> None:
        """s0-s7 times `factor`, rounded to integers in r4-r11."""
        self._times(factor)
        self._each("vcvtr.s32.f32 #,#")
        for i in range(0, _SUMS, 2):
            self.asm(f"vmov r{4 + i},r{5 + i},s{i},s{i + 1}")

    def _add_elements(self, step: Elements) -> None:
        """Adds the next four elements of both places."""
        asm, pointer = self.asm, self.pointers[step.operand]
        asm(f"vmov r0,{pointer}", f"vmov r2,{self.second}")
        if step.dtype == "float32":
            asm("add r2,r0,r2,lsl #2", "vldmia r0!,{s8-s11}", "vldmia r2,{s12-s15}")
        else:
            asm("ldr r2,[r0,r2]", "ldr r12,[r0],#4")
            for word, base in (("r12", 8), ("r2", 12)):
                self._widen(word, base, step.zero)
            self._each("vcvt.f32.s32 #,#", 8)
            self._times(step.scale, 8)
        asm(f"vmov {pointer},r0")
        asm(*(f"vadd.f32 s{i},s{i},s{8 + i}" for i in range(_SUMS)))

    def _widen(self, word: str, base: int, zero: int) -> None:
        """Four bytes less `zero` -> integers in float registers. Uses r3-r7."""
        asm = self.asm
        extend = "sxtb16"
        if zero == -128:  # what is left is the byte without its sign
            asm(f"eor {word},{word},#0x80808080")
            extend = "uxtb16"
        asm(f"{extend} r4,{word}", f"{extend} r5,{word},ror #8")
        if zero not in (0, -128):
            asm.constant("r6", halves(zero))
            asm("ssub16 r4,r4,r6", "ssub16 r5,r5,r6")
        asm("asr r6,r4,#16", "asr r7,r5,#16", "sxth r4,r4", "sxth r5,r5")
        asm(f"vmov s{base},s{base + 1},r4,r5", f"vmov s{base + 2},s{base + 3},r6,r7")

    def _clamp(self, low: float, high: float, first: int) -> None:
        """NaN compares false and stays."""
        for bound, condition in ((low, "mi"), (high, "gt")):
            if math.isfinite(bound):
                register = self.scalars[bound]
                for i in range(first, first + _SUMS):
                    self._move_if(f"vcmp.f32 s{i},{register}", condition, f"s{i},{register}")

    def _move_if(self, compare: str, condition: str, move: str) -> None:
        self.asm(compare, "vmrs APSR_nzcv,fpscr", f"it {condition}", f"vmov{condition}.f32 {move}")

    def _leaky(self, step: Leaky) -> None:
        self._products(step.slope)
        for i in range(_SUMS):
            self._move_if(f"vcmp.f32 s{i},#0.0", "mi", f"s{i},s{8 + i}")

    def _products(self, slope: float) -> None:
        """s8-s15 = slope * s0-s7"""
        if slope == 1.0:
            self.asm(*(f"vmov.f32 s{8 + i},s{i}" for i in range(_SUMS)))
            return
        self.asm(*(f"vmul.f32 s{8 + i},s{i},{self.scalars[slope]}" for i in range(_SUMS)))

    def _gate(self, step: Gate) -> None:
        self._products(step.slope)
        self._each(f"vadd.f32 #,#,{self.scalars[step.shift]}", 8)
        self._clamp(step.low, step.high, 8)
        self.asm(*(f"vmul.f32 s{i},s{i},s{8 + i}" for i in range(_SUMS)))

    def _round(self, step: Round) -> None:
        """To bytes and back."""
        asm = self.asm
        low, high, zero, factor = step.requantize.params
        self._rounded(float(factor))
        registers = [f"r{r}" for r in range(4, 4 + _SUMS)]
        for r in registers:
            if zero:
                asm.add(r, r, int(zero), "r2")
            asm(f"ssat {r},#8,{r}")
            _bound(asm, r, int(low), int(high))
            if step.zero:
                asm.add(r, r, -step.zero, "r2")
        for i in range(0, _SUMS, 2):
            asm(f"vmov s{i},s{i + 1},r{4 + i},r{5 + i}")
        self._each("vcvt.f32.s32 #,#")
        self._times(step.scale)


def _bound(asm: Assembly, register: str, low: int, high: int) -> None:
    if low > -128:
        asm(f"cmn {register},#{-low}" if low < 0 else f"cmp {register},#{low}", "it lt")
        asm(f"movlt {register},#{low}" if low >= 0 else f"mvnlt {register},#{-low - 1}")
    if high < 127:
        asm(f"cmn {register},#{-high}" if high < 0 else f"cmp {register},#{high}", "it gt")
        asm(f"movgt {register},#{high}" if high >= 0 else f"mvngt {register},#{-high - 1}")


def _bytes(step: Elements) -> int:
    return 4 if step.dtype == "float32" else 1
