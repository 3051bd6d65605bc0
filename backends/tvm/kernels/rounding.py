"""Reals to 8-bit integers with the instructions that a target has for it; the same bits on all of them.

Requantization clamps in float32, rounds half to even, and adds the zero point as an integer. Its bounds are integers,
and rounding is monotonic and leaves integers alone, so clamping may as well come after rounding, where saturating
instructions do it for nothing. What remains is that the conversion to integers must not overflow upwards: it gives
the lowest integer for all that it cannot represent, which is what NaN and large negative numbers have to become.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx

from irc.backends.tvm.expression import Instr
from irc.backends.tvm.kernels.builder import Expr, KernelBuilder, cast, const, intrinsic, reinterpret, vector_type

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds half to even into the low mantissa bits
_MAGIC_BITS = 0x4B400000
_CONVERTIBLE = 2.0**31 * (1 - 2.0**-20)
"""Below, a float32 rounds to an int32; the slack covers the roundings on the way to a limit."""

_PACK_WORDS = {4: "llvm.x86.sse2.packssdw.128", 8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
_PACK_BYTES = {
    ("uint8", 4): "llvm.x86.sse2.packuswb.128",
    ("uint8", 8): "llvm.x86.avx2.packuswb",
    ("uint8", 16): "llvm.x86.avx512.packuswb.512",
    ("int8", 4): "llvm.x86.sse2.packsswb.128",
    ("int8", 8): "llvm.x86.avx2.packsswb",
    ("int8", 16): "llvm.x86.avx512.packsswb.512",
}


def converts(k: KernelBuilder, lanes: int) -> bool:
    """Whether vectors of `lanes` reals are rounded by one instruction (to even: the hardware's default mode)."""
    target = k.target
    if target is None or target.arch not in ("x86-64", "aarch64"):
        return False
    return lanes in (4, 8, 16) and 4 * lanes <= target.vector_bytes


def packs(k: KernelBuilder, lanes: int, expression: Sequence[Instr]) -> bool:
    """Whether `pack` exists for whole vectors of results of `expression`: it ends in a requantization to bytes."""
    if not expression or expression[-1].op != "requantize" or expression[-1].dtype not in ("uint8", "int8"):
        return False
    return converts(k, lanes) and k.target is not None and 4 * lanes == k.target.vector_bytes


def _is_arm(k: KernelBuilder) -> bool:
    return k.target is not None and k.target.arch == "aarch64"


def _convert(x: Expr, lanes: int) -> Expr:
    """Rounded to int32 by x86; -2**31 for NaN and whatever has no int32."""
    if lanes == 16:
        every, current_mode = const(-1, "int16"), const(4, "int32")
        name = "llvm.x86.avx512.mask.cvtps2dq.512"
        return intrinsic(name, "int32x16", x, const(0, "int32", 16), every, current_mode)
    name = "llvm.x86.avx.cvt.ps2dq.256" if lanes == 8 else "llvm.x86.sse2.cvtps2dq"
    return intrinsic(name, f"int32x{lanes}", x)


def levels(k: KernelBuilder, x: Expr, instr: Instr, lanes: int, limit: float) -> Expr:
    """x rounded to int32, before the zero point and before clamping; not above what the clamp allows where x could be
    too large for an int32. `limit` bounds |x|."""
    low, high, zero_point, _ = instr.params
    if _is_arm(k):  # saturates, but makes 0 of NaN
        if not math.isfinite(limit):
            x = tirx.Max(x, const(low - zero_point, "float32", lanes))  # in this order NaN becomes the lowest value
        return k.let(intrinsic("llvm.aarch64.neon.fcvtns.v4i32.v4f32", "int32x4", x))
    if _is_mve(k, lanes):
        if not math.isfinite(limit):
            x = tirx.Max(x, const(low - zero_point, "float32", lanes))
        return k.let(_convert_mve(x))
    if limit >= _CONVERTIBLE:
        x = tirx.Min(const(high - zero_point, "float32", lanes), x)  # in this order NaN stays
    return k.let(_convert(x, lanes))


def requantize(k: KernelBuilder, x: Expr, instr: Instr, lanes: int, limit: float, *, is_number: bool = False) -> Expr:
    """clamp, round half to even, add the zero point; NaN becomes the lowest value, unless `is_number` rules it out."""
    low, high, zero_point, _ = instr.params
    zp = int(zero_point)
    if is_number and lanes == 1 and k.target is not None and k.target.arch == "arm32" and k.target.fpu != "none":
        return _requantize_vfp(k, x, instr, limit)
    if is_number and _is_mve(k, lanes):
        return _requantize_vfp(k, x, instr, limit, lanes)
    wide = k.target is not None and k.target.vector_bytes >= 32  # SSE2 has no minimum of int32
    simple = limit < _CONVERTIBLE if _is_arm(k) else wide and (limit < _CONVERTIBLE or zp >= 0)
    if converts(k, lanes) and simple:
        level = levels(k, x, instr, lanes, limit)
        if zp:
            level = level + const(zp, "int32", lanes)
        # this form becomes one saturating conversion where the bounds are those of the type
        level = tirx.Min(tirx.Max(level, const(int(low), "int32", lanes)), const(int(high), "int32", lanes))
        return cast(level, instr.dtype, lanes)
    if math.isfinite(limit) and k.target is not None and k.target.arch == "c":
        # floats above 0 are in the order of their bits, others have the sign's: C compilers know minima of integers
        bits = reinterpret(x + const(_MAGIC, "float32", lanes), vector_type("int32", lanes))
        low_bits, high_bits = (const(_MAGIC_BITS + int(v) - zp, "int32", lanes) for v in (low, high))
        return cast(
            tirx.Min(tirx.Max(bits, low_bits), high_bits) - const(_MAGIC_BITS - zp, "int32", lanes), instr.dtype, lanes
        )
    # NaN > low is false: it becomes the lowest value
    clamped = tirx.Max(x, const(low - zp, "float32", lanes))
    clamped = tirx.Min(clamped, const(high - zp, "float32", lanes))
    bits = reinterpret(clamped + const(_MAGIC, "float32", lanes), vector_type("int32", lanes))
    return cast(bits - const(_MAGIC_BITS - zp, "int32", lanes), instr.dtype, lanes)


def _requantize_vfp(k: KernelBuilder, x: Expr, instr: Instr, limit: float, lanes: int = 1) -> Expr:
    """VCVTR rounds to an int32 in the current mode, to even, and saturates; 8 bits saturate in one instruction. MVE
    has the same for vectors."""
    low, high, zero_point, _ = instr.params
    level = reinterpret(intrinsic("llvm.arm.vcvtr", "float32", x), "int32") if lanes == 1 else _convert_mve(x)
    zero = const(int(zero_point), "int32", lanes)
    # a plain sum of numbers makes LLVM clamp before it, with other bounds, hence in more instructions
    if zero_point and lanes > 1 and limit < _CONVERTIBLE / 2:
        level = level + zero
    elif zero_point:
        level = intrinsic("llvm.sadd.sat", vector_type("int32", lanes), level, zero)
    level = tirx.Min(tirx.Max(level, const(int(low), "int32", lanes)), const(int(high), "int32", lanes))
    return cast(level, instr.dtype, lanes)


def _is_mve(k: KernelBuilder, lanes: int) -> bool:
    return k.target is not None and k.target.dot == "mve" and lanes == 4


def _convert_mve(x: Expr) -> Expr:
    """Rounded to int32, saturated; 0 for NaN."""
    return intrinsic("llvm.arm.mve.vcvtn.v4i32.v4f32", "int32x4", const(0, "int32"), x)


def pack(k: KernelBuilder, values: Sequence[Expr], instr: Instr, lanes: int) -> Expr:
    """Four vectors of `levels` -> 4 * lanes bytes in the order of the vectors, with the zero point, clamped.

    Saturation to 16 bits on the way changes nothing: what it cuts is beyond every 8-bit value.
    """
    low, high, zero_point, _ = instr.params
    words = [_narrowed(k, "sqxtn", values[i : i + 2], lanes) for i in (0, 2)]
    if zero_point:
        zero = const(int(zero_point), "int16", 2 * lanes)
        words = [intrinsic("llvm.sadd.sat", f"int16x{2 * lanes}", w, zero) for w in words]
    packed = _narrowed(k, "sqxtun" if instr.dtype == "uint8" else "sqxtn", words, 2 * lanes)
    packed = reinterpret(packed, f"{instr.dtype}x{4 * lanes}")
    lowest, highest = (0, 255) if instr.dtype == "uint8" else (-128, 127)
    if low > lowest:
        packed = tirx.Max(packed, const(int(low), instr.dtype, 4 * lanes))
    if high < highest:
        packed = tirx.Min(packed, const(int(high), instr.dtype, 4 * lanes))
    packed = k.let(packed)
    if lanes == 4:
        return packed
    # packing works in blocks of 16 bytes, each with four bytes of every vector
    blocks = lanes // 4
    order = [const(block * 4 + vector, "int32") for vector in range(4) for block in range(blocks)]
    whole = reinterpret(packed, f"int32x{lanes}")
    return k.let(reinterpret(tirx.Shuffle([whole], order), f"{instr.dtype}x{4 * lanes}"))


def _narrowed(k: KernelBuilder, name: str, values: Sequence[Expr], lanes: int) -> Expr:
    """Two vectors of `lanes` numbers -> one of half as many bits each, saturated; `name`: Arm's for one of them."""
    bits = 16 if values[0].ty.dtype.startswith("int32") else 8
    if not _is_arm(k):
        dtype = "uint8" if name == "sqxtun" else "int8"
        x86 = _PACK_WORDS[lanes] if bits == 16 else _PACK_BYTES[dtype, lanes // 2]
        return intrinsic(x86, f"int{bits}x{2 * lanes}", *values)
    kind = f"llvm.aarch64.neon.{name}.v{lanes}i{bits}"
    halves = [intrinsic(kind, f"int{bits}x{lanes}", v) for v in values]
    return tirx.Shuffle(halves, [const(i, "int32") for i in range(2 * lanes)])


def piece(packed: Expr, dtype: str, first: int, size: int, total: int) -> Expr:
    """`size` of the `total` bytes of `packed`, from byte `first`; all three multiples of 4."""
    if size == total:
        return packed
    words = reinterpret(packed, f"int32x{total // 4}")
    taken = tirx.Shuffle([words], [const(i, "int32") for i in range(first // 4, (first + size) // 4)])
    return reinterpret(taken, vector_type(dtype, size))
