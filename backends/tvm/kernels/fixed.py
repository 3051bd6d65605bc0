"""Requantization on cores without an FPU: a few integer instructions, and a rare call where they cannot tell.

`irc.backends.tvm.fixed` says what is computed and why it has float32's bits. The fixed-point number v stands for
float32's y: y * 2**fraction is v up to `guard`. With a half and the guard added, the bits of v after the point are
below twice the guard exactly where v is too near to a half.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from tvm import tirx

from irc.backends.tvm.expression import Expression, Instr
from irc.backends.tvm.fixed import Chain, Term, fraction_of
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, cast, const, reinterpret
from irc.targets.target import Target

_LARGEST = 2.0**31 - 1
_EXACT_PRODUCT = 512  # integers up to it are multiplied in 32 bits: the error of the rounded factor stays small


def has_fpu(target: Target | None) -> bool:
    return target is None or target.fpu != "none"


def has_long_multiply(target: Target | None) -> bool:
    """Whether the upper half of a 64-bit product is an instruction: not on ARMv6-M."""
    return target is None or not target.triple.startswith("thumbv6m")


def int32(value: int) -> Expr:
    return const((value + 2**31) % 2**32 - 2**31, "int32")


def upper_product(k: KernelBuilder, a: Expr, b: Expr) -> tuple[Expr, int]:
    """Upper half of the 64-bit product of two int32, b at least 0; and how far below the exact one it may be."""
    if has_long_multiply(k.target):
        wide = cast(a, "int64") * cast(b, "int64")
        return k.let(cast(wide >> const(32, "int64"), "int32"), "hi"), 1
    a, b = k.let(a), k.let(b)
    sixteen = int32(16)
    high_a, low_a = k.let(a >> sixteen), k.let(a & int32(0xFFFF))
    high_b, low_b = k.let(b >> sixteen), k.let(b & int32(0xFFFF))
    # low * low is below one
    return k.let(high_a * high_b + ((high_a * low_b) >> sixteen) + ((low_a * high_b) >> sixteen), "hi"), 3


class _Fixed:
    """A fixed-point number in the making: its bits, and the bound of what it has lost, in units of the last bit."""

    def __init__(self, k: KernelBuilder, values: Sequence[Expr]) -> None:
        self.k, self.values = k, values
        self.lost = 0.0

    def integer(self, term: Term) -> Expr:
        def less(index: int, zero: int) -> Expr:
            if index < 0:
                return int32(-zero)
            value = cast(self.values[index], "int32")
            return value - int32(zero) if zero else value

        value = less(term.value, term.zero)
        return value if term.other < 0 else self.k.let(value * less(term.other, term.other_zero))

    def packed(self, term: Term) -> Expr:
        """Sum times its packed factor. The shift in the word is part of the product: 2**-25 of it at most."""
        word = self.values[term.word]
        shifted = self.integer(term) << (word & int32(31))
        value, lost = upper_product(self.k, shifted, word)
        self.lost += lost
        return value

    def scaled(self, value: Expr, limit: float, factor: float, fraction: int) -> Expr:
        """value * factor * 2**fraction."""
        exact = abs(factor) * 2.0**fraction
        if limit <= _EXACT_PRODUCT:
            multiplier = round(exact)
            self.lost += limit * abs(multiplier - exact)
            return value * int32(multiplier)
        shift = max(0, math.floor(math.log2(_LARGEST / max(limit, 1.0))))
        multiplier = min(round(exact * 2.0 ** (32 - shift)), int(_LARGEST))
        self.lost += limit * abs(multiplier * 2.0 ** (shift - 32) - exact)
        product, lost = upper_product(self.k, value << int32(shift) if shift else value, int32(multiplier))
        self.lost += lost
        return product

    def sum(self, terms: Sequence[Term], fraction: int, unit: float) -> Expr:
        """Terms with constant factors, each in units of `unit`."""
        total: Expr = None
        for term in terms:
            value = self.scaled(self.integer(term), term.limit, term.factor / unit, fraction)
            if total is None:
                total = value if term.factor > 0 else int32(0) - value
            else:
                total = total + value if term.factor > 0 else total - value
        return total


def representable(chain: Chain) -> bool:
    """Whether the numbers of `chain` fit 32 bits on the way."""
    packed = [t for t in chain.terms if t.word >= 0]
    if not math.isfinite(sum(t.size for t in chain.terms)) or len(packed) > 1:
        return False
    if packed and (packed[0].factor <= 0 or _others(chain, packed[0]) * 2.0 ** packed[0].fraction > 2.0**30):
        return False
    return _is_direct(chain) or _fraction(chain) > 0


def _fraction(chain: Chain) -> int:
    """Bits after the point: as many as the numbers, and the multipliers of `_Fixed.scaled`, have room for."""
    found = fraction_of(sum(t.size for t in chain.terms))
    packed = next((t for t in chain.terms if t.word >= 0), None)
    if packed is not None:  # the last factor is multiplied by its upper 32 bits
        return min(found, packed.fraction + math.floor(math.log2(0.4999 / packed.factor)))
    for term in chain.terms:
        if term.limit > _EXACT_PRODUCT:
            found = min(found, math.floor(28.999 - math.log2(term.size)))
    return found


def _others(chain: Chain, packed: Term) -> float:
    """A limit of the terms beside the packed one, in its units."""
    return sum(t.size for t in chain.terms if t is not packed) / packed.factor


def _is_direct(chain: Chain) -> bool:
    """Whether the packed factor is all there is to multiply with."""
    return len(chain.terms) == 1 and chain.terms[0].word >= 0 and chain.terms[0].factor == 1.0


def _value(fixed: _Fixed, chain: Chain) -> tuple[Expr, int, float]:
    """Bits, fraction, and what the shifts in packed factors add, in steps of the result."""
    packed = next((t for t in chain.terms if t.word >= 0), None)
    if packed is not None and _is_direct(chain):
        return fixed.packed(packed), packed.fraction, chain.bound * 2.0**-25
    fraction = _fraction(chain)
    if packed is None:
        return fixed.sum(chain.terms, fraction, 1.0), fraction, 0.0
    rest = [t for t in chain.terms if t is not packed]
    total = fixed.packed(packed)
    if rest:
        total = fixed.k.let(total + fixed.sum(rest, packed.fraction, packed.factor))
    fixed.lost *= packed.factor * 2.0 ** (fraction - packed.fraction)  # from the first sum's last bit to the result's
    scaled = fixed.scaled(total, _LARGEST, packed.factor * 2.0**-packed.fraction, fraction)
    return scaled, fraction, packed.size * 2.0**-25


def guarded(k: KernelBuilder, chain: Chain, values: Sequence[Expr]) -> tuple[Expr, int, int]:
    """(the fixed-point number, its bits after the point, how many units it may differ from float32's)."""
    fixed = _Fixed(k, values)
    bits, fraction, shifts = _value(fixed, chain)
    return bits, fraction, math.ceil((chain.error + shifts) * 2.0**fraction + fixed.lost) + 1


def requantize_fixed(k: KernelBuilder, expression: Expression, at: int, chain: Chain, values: Sequence[Expr]) -> Expr:
    """The result of the requantization `expression[at]`, an integer of its type, from the integers in `values` alone.

    `chain`, a representable one, is `chain_of` it.
    """
    instr = expression[at]
    zero = int(instr.params[2])
    bits, fraction, guard = guarded(k, chain, values)
    joined = zero if abs(zero) << fraction < 2**29 else 0
    offset = (1 << (fraction - 1)) + guard + (joined << fraction)
    v = k.let(bits + int32(offset), "v")
    level = k.local(1, "int32", "level")
    k.store(level, 0, v >> int32(fraction))
    below = 2 * guard + 1  # odd: LLVM drops the lowest bit before it compares with an even number, at a cost
    rest = v & int32((1 << fraction) - 1)
    near = rest < int32(below) if below < 1 << fraction else const(1, "bool")
    with k.when(near):
        exact = _soft_level(k, expression, at, values)
        k.store(level, 0, exact + int32(joined) if joined else exact)
    result = k.load(level, 0)
    if zero != joined:
        result = result + int32(zero)
    result = tirx.Min(tirx.Max(result, int32(chain.low)), int32(chain.high))
    return k.let(cast(result, instr.dtype))


_REAL_FRACTION = 16  # of reals that are rounded to bytes
_BEYOND = 1 << 29  # more than any result, with that many bits


def rounds_reals(instr: Instr) -> bool:
    """Whether `requantize_real` is made for a requantization."""
    low, high, zero, scale = instr.params
    _, exponent = math.frexp(float(scale))
    return scale > 0 and abs(exponent) <= 100 and max(abs(low - zero), abs(high - zero)) <= 256


def requantize_real(k: KernelBuilder, real: Expr, instr: Instr) -> Expr:
    """The requantization `instr` of any float32, NaN included, from its bits.

    Mantissas are multiplied, and the product is shifted by both exponents until it has 16 bits after the point. What
    is too large for that is beyond all results, and its sign is all that counts.
    """
    low, high, zero, scale = int(instr.params[0]), int(instr.params[1]), int(instr.params[2]), float(instr.params[3])
    mantissa, exponent = math.frexp(scale)
    bits = k.let(reinterpret(real, "int32"), "bits")
    size = k.let(bits & int32(0x7FFFFFFF), "size")
    whole = ((size & int32(0x7FFFFF)) | int32(0x800000)) << int32(7)
    product, lost = upper_product(k, whole, int32(round(mantissa * 2**24) << 7))
    shift = k.let(int32(124 + _REAL_FRACTION - exponent) - (size >> int32(23)), "shift")
    value = tirx.Select(shift < 0, int32(_BEYOND), product >> tirx.Min(tirx.Max(shift, int32(0)), int32(31)))
    negative = tirx.any(bits < 0, size > int32(0x7F800000))  # NaN becomes the lowest value
    value = k.let(tirx.Select(negative, int32(0) - value, value), "value")
    guard = lost + 3  # float32's rounding of numbers below 2**9, the shift, the sign
    v = k.let(value + int32((1 << (_REAL_FRACTION - 1)) + guard + (zero << _REAL_FRACTION)), "v")
    level = k.local(1, "int32", "level")
    k.store(level, 0, v >> int32(_REAL_FRACTION))
    with k.when((v & int32((1 << _REAL_FRACTION) - 1)) < int32(2 * guard + 1)):
        exact = bits if scale == 1.0 else k.let(_call("mul", bits, _float_bits(scale)))
        k.store(level, 0, _call("round", exact) + int32(zero))
    return k.let(cast(tirx.Min(tirx.Max(k.load(level, 0), int32(low)), int32(high)), instr.dtype))


def float_of_word(word: Expr, instr: Instr) -> Expr:
    """The bits of the float32 in a packed word; `instr` unpacks it."""
    exponent = (word & int32(31)) + int32(125 - int(instr.params[0]))
    bits = ((word >> int32(7)) & int32(0x7FFFFF)) | (exponent << int32(23))
    return tirx.Select(word != int32(0), bits, int32(0))


def _call(name: str, *args: Expr) -> Expr:
    return tirx.call_extern("int32", "irc_soft_" + name, *args)


def _float_bits(value: float) -> Expr:
    return int32(struct.unpack("<i", struct.pack("<f", value))[0])


def _soft_level(k: KernelBuilder, expression: Expression, at: int, values: Sequence[Expr]) -> Expr:
    """The rounded number, by float32 arithmetic in integers. Clamps are left out: the result is clamped anyway."""
    instr = expression[at]
    source, scale = instr.args[0], float(instr.params[3])
    while expression[source].op in ("relu", "clip"):
        source = expression[source].args[0]
    step = expression[source]
    if scale == 1.0 and step.op in ("scale", "mul") and expression[step.args[0]].op == "cast":
        factor = _soft(k, expression, step.args[1], values)
        return _call("level", cast(values[expression[step.args[0]].args[0]], "int32"), factor)
    real = _soft(k, expression, source, values)
    if scale != 1.0:
        real = k.let(_call("mul", real, _float_bits(scale)))
    return _call("round", real)


def _soft(k: KernelBuilder, expression: Expression, at: int, values: Sequence[Expr]) -> Expr:
    """The bits of the float32 value of instruction `at`; those that `chain_of` accepts."""
    instr = expression[at]
    if instr.op == "constant":
        return _float_bits(float(instr.params[0]))
    if instr.op == "unpack":
        return k.let(float_of_word(values[instr.args[0]], instr))
    if instr.op == "cast":
        return k.let(_call("float", cast(values[instr.args[0]], "int32")))
    if instr.op == "dequantize":
        scale, zero = instr.params
        integer = cast(values[instr.args[0]], "int32") - int32(int(zero))
        return k.let(_call("mul", _call("float", integer), _float_bits(float(scale))))
    a, b = (_soft(k, expression, i, values) for i in instr.args)
    if instr.op == "sub":
        b = b ^ int32(-(2**31))
    return k.let(_call("mul" if instr.op in ("scale", "mul") else "add", a, b))
