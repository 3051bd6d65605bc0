"""One step of a reduction in registers: which input channels it sums, and with which instructions.

Instructions per step:
  float32    fma, one input channel; weights of 16 bits are widened when they are loaded
  vpdpbusd   4 channels, uint8 x int8 -> int32 (AVX-512 VNNI, AVX-VNNI)
  sdot       4 channels, int8 x int8 -> int32 (Arm dotprod)
  smmla      8 channels, by sdot: two places at a time are multiplied in `elements.py` (Arm i8mm)
  pmaddwd    4 uint8 or 2 channels, widened to int16 first, so nothing saturates (x86 without VNNI)
  wasm       2 channels, widened to int16 first (WebAssembly's i32x4.dot_i16x8_s)
  vpadal     2 channels int8 x int8: products in int16, whose pairs are added to int32 (NEON)
  widening   1 channel in int32

Weights of 4 or 2 bits come several steps to a byte (`Step.fields`). Dot products of bytes take them as they stand at
the upper end of a byte, the other steps' bits cleared: 16 or 64 times the weight, and no more than a byte's 128. Their
sums are that many times too large, which `Step.shift` undoes exactly. Where weights are widened, two shifts take the
bits out.

pmaddwd with four channels reads weights as vpdpbusd does, four bytes a lane. Neighbours are told apart without
shuffles: bytes 0 and 2 of a word become one pair of int16, bytes 1 and 3 the other, by a mask and a shift for data
(uint8) and by two arithmetic shifts for weights (int8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx

from irc.backends.tvm.geometry import PALETTE, dot_of, fields_of, lanes_of
from irc.backends.tvm.kernels.builder import (
    Buffer,
    Expr,
    KernelBuilder,
    broadcast,
    cast,
    const,
    intrinsic,
    reinterpret,
    vector_type,
)
from irc.backends.tvm.kernels.palette import byte_step, float_step
from irc.targets.target import Target

PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
VPDPBUSD = {4: "llvm.x86.avx512.vpdpbusd.128", 8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
VPDPWSSD = {4: "llvm.x86.avx512.vpdpwssd.128", 8: "llvm.x86.avx512.vpdpwssd.256", 16: "llvm.x86.avx512.vpdpwssd.512"}

Value = tuple[Expr, ...]
"""Data or weights of a step in registers."""


@dataclass(frozen=True)
class Step:
    """One reduction step: how many input channels, and acc + x * w for a vector of `lanes` sums."""

    channels: int
    acc_dtype: str
    load_x: Callable[[KernelBuilder, Buffer, Expr], Value]
    load_w: Callable[[KernelBuilder, Buffer, Expr], Value]  # of all steps that share the bytes
    mac: Callable[[Expr, Value, Value], Expr]
    ones: Value = ()
    staged: bool = False  # linear kernels prepare x before a tile (`staging.py`)
    fields: int = 1  # steps whose weights share bytes
    unpack: Callable[[KernelBuilder, Value, int], Value] = lambda k, w, field: w  # the weights of one of them
    shift: int = 0  # sums are 2**shift times too large


def weight_type(x_dtype: str, w_dtype: str, target: Target) -> str:
    """Element type of the weights' buffer. float16 has it only where the machine converts it: others take the bits."""
    if x_dtype != "float32" or w_dtype in ("int8", "int4", "int2", PALETTE):
        return "int8"
    if not w_dtype:
        return "float32"
    converts = target.arch != "x86-64" or target.vector_bytes >= 32  # F16C comes with AVX2
    return "float16" if w_dtype == "float16" and converts else "uint16"


def widened(k: KernelBuilder, value: Expr, w_dtype: str, dtype: str, lanes: int) -> Expr:
    """Loaded weights as float32. `dtype` is the buffer's type: uint16 are the bits of `w_dtype`, finite numbers."""
    if dtype == "float32":
        return value
    if dtype == "int8":
        return cast(cast(value, "int32", lanes), "float32", lanes)
    if dtype == "float16":
        return cast(value, "float32", lanes)
    wide, real = vector_type("uint32", lanes), vector_type("float32", lanes)
    bits = k.let(cast(value, "uint32", lanes), "b")
    if w_dtype == "bfloat16":
        return reinterpret(bits << const(16, "uint32", lanes), real)
    # Exponent and mantissa move into place and the exponent's bias changes. Subnormal numbers have no hidden one: they
    # get it, as a number of the next exponent, and it is subtracted.
    sign = (bits & const(0x8000, "uint32", lanes)) << const(16, "uint32", lanes)
    rest = k.let((bits & const(0x7FFF, "uint32", lanes)) << const(13, "uint32", lanes), "b")
    normal = rest + const(112 << 23, "uint32", lanes)
    hidden = reinterpret(rest + const(113 << 23, "uint32", lanes), real) - const(2.0**-14, "float32", lanes)
    small = rest < const(1 << 23, "uint32", lanes)
    magnitude = tirx.Select(small, reinterpret(hidden, wide), normal)
    return reinterpret(magnitude | sign, real)


def _float_step(lanes: int, w_dtype: str, target: Target) -> Step:
    dtype = weight_type("float32", w_dtype, target)
    return Step(
        1,
        "float32",
        lambda k, x, i: (k.let(broadcast(k.load(x, i), lanes), "d"),),
        lambda k, w, i: (k.let(widened(k, k.load(w, i, lanes), w_dtype, dtype, lanes), "w"),),
        lambda acc, x, w: acc + x[0] * w[0],
        (const(1.0, "float32", lanes),),
    )


def _word(k: KernelBuilder, x: Buffer, i: Expr, lanes: int) -> Expr:
    """Four bytes from element `i`, in every lane."""
    return broadcast(reinterpret(k.load(x, i, 4), "int32"), lanes)


def _dot4_step(lanes: int, name: str) -> Step:
    return Step(
        4,
        "int32",
        lambda k, x, i: (k.let(reinterpret(_word(k, x, i, lanes), f"int8x{4 * lanes}"), "d"),),
        lambda k, w, i: (k.let(k.load(w, i, 4 * lanes), "w"),),
        lambda acc, x, w: intrinsic(name, f"int32x{lanes}", acc, x[0], w[0]),
        (const(1, "int8", 4 * lanes),),
    )


def _half_step() -> Step:
    """Eight channels of one place, packed for smmla: 8 bytes of a channel side by side. Each lane of a dot product has
    half of a channel's sum."""

    def mac(acc: Expr, x: Value, w: Value) -> Expr:
        each = []
        for half in range(2):
            part = tirx.Shuffle([reinterpret(w[0], "int64x4")], [const(2 * half + i, "int32") for i in range(2)])
            zero = const(0, "int32", 4)
            each.append(intrinsic(SDOT, "int32x4", zero, reinterpret(part, "int8x16"), x[0]))
        even, odd = (tirx.Shuffle(each, [const(2 * i + n, "int32") for i in range(4)]) for n in range(2))
        return acc + (even + odd)

    return Step(
        8,
        "int32",
        lambda k, x, i: (k.let(reinterpret(broadcast(reinterpret(k.load(x, i, 8), "int64"), 2), "int8x16"), "d"),),
        lambda k, w, i: (k.let(k.load(w, i, 32), "w"),),
        mac,
        (const(1, "int8", 32),),
    )


def _pmaddwd(lanes: int, x: Expr, w: Expr) -> Expr:
    return intrinsic(PMADDWD[lanes], f"int32x{lanes}", x, w)


def split_bytes(k: KernelBuilder, quads: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Four int8 a lane -> numbers 0 and 2 of them, and 1 and 3, as int16."""
    raw = k.let(reinterpret(quads, f"int16x{2 * lanes}"), "b")
    eight = const(8, "int16", 2 * lanes)
    return k.let((raw << eight) >> eight, "w"), k.let(raw >> eight, "w")


def _quad_step(lanes: int) -> Step:
    """Four uint8 channels by two pmaddwd."""
    wide = 2 * lanes

    def load_x(k: KernelBuilder, x: Buffer, i: Expr) -> Value:
        word = k.let(_word(k, x, i, lanes), "b")
        even = reinterpret(word & const(0x00FF00FF, "int32", lanes), f"int16x{wide}")
        odd = reinterpret(reinterpret(word, f"uint16x{wide}") >> const(8, "uint16", wide), f"int16x{wide}")
        return k.let(even, "d"), k.let(odd, "d")

    return Step(
        4,
        "int32",
        load_x,
        lambda k, w, i: split_bytes(k, k.load(w, i, 4 * lanes), lanes),
        lambda acc, x, w: acc + (_pmaddwd(lanes, x[0], w[0]) + _pmaddwd(lanes, x[1], w[1])),
        (const(1, "int16", wide), const(1, "int16", wide)),
        staged=True,
    )


def _pair_step(lanes: int, name: str, *, adds: bool, bytes_first: bool = False) -> Step:
    """Two channels of either sign, or of 16 bits, by the instruction `name` (`adds`: which takes the sum so far).

    `bytes_first`: a pair of bytes is repeated before it is widened, not after.
    """
    wide = 2 * lanes

    def mac(acc: Expr, x: Value, w: Value) -> Expr:
        if adds:
            return intrinsic(name, f"int32x{lanes}", acc, x[0], w[0])
        return acc + intrinsic(name, f"int32x{lanes}", x[0], w[0])

    def load_x(k: KernelBuilder, x: Buffer, i: Expr) -> Value:
        if bytes_first:
            pairs = reinterpret(broadcast(reinterpret(k.load(x, i, 2), "int16"), wide), f"{x.dtype}x{2 * wide}")
            half = tirx.Shuffle([pairs], [const(n, "int32") for n in range(wide)])
            return (k.let(cast(half, "int16", wide), "d"),)
        pair = reinterpret(cast(k.load(x, i, 2), "int16", 2), "int32")
        return (k.let(reinterpret(broadcast(pair, lanes), f"int16x{wide}"), "d"),)

    return Step(
        2,
        "int32",
        load_x,
        lambda k, w, i: (k.let(cast(k.load(w, i, wide), "int16", wide), "w"),),
        mac,
        (const(1, "int16", wide),),
    )


def _product_pair_step(arch: str) -> Step:
    """Two int8 channels by NEON without dot products: eight products of 16 bits, whose neighbours are added."""

    def mac(acc: Expr, x: Value, w: Value) -> Expr:
        if arch == "aarch64":
            products = intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", w[0], x[0])
            return acc + intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", products)
        products = intrinsic("llvm.arm.neon.vmulls", "int16x8", w[0], x[0])
        return intrinsic("llvm.arm.neon.vpadals", "int32x4", acc, products)

    def load_x(k: KernelBuilder, x: Buffer, i: Expr) -> Value:
        pair = reinterpret(k.load(x, i, 2), "int16")
        return (k.let(reinterpret(broadcast(pair, 4), "int8x8"), "d"),)

    return Step(2, "int32", load_x, lambda k, w, i: (k.let(k.load(w, i, 8), "w"),), mac, (const(1, "int8", 8),))


def _widening_step(lanes: int) -> Step:
    return Step(
        1,
        "int32",
        lambda k, x, i: (k.let(broadcast(cast(k.load(x, i), "int32"), lanes), "d"),),
        lambda k, w, i: (k.let(cast(k.load(w, i, lanes), "int32", lanes), "w"),),
        lambda acc, x, w: acc + x[0] * w[0],
        (const(1, "int32", lanes),),
    )


def column_weights(value: Expr, column: int, w_dtype: str, lanes: int) -> Expr:
    """The int8 weights of a depthwise kernel's `column` out of the bytes that hold them."""
    return _field(value, column % 2, 4, "int8", lanes) if w_dtype == "int4" else value


def _field(value: Expr, field: int, bits: int, dtype: str, lanes: int, *, above: int = 0) -> Expr:
    """Field `field` of `bits` of a byte in every lane, sign and all; `above`: bits of the lane above the byte, which
    repeat its sign or do not matter."""
    width = above + 8
    up, down = width - bits * (field + 1), width - bits
    if above and field == 8 // bits - 1:  # the byte's sign is the field's
        up, down = 0, 8 - bits
    moved = value << const(up, dtype, lanes) if up else value
    return moved >> const(down, dtype, lanes)


_PERMUTE = "llvm.x86.avx512.permvar.sf.512"  # by the lowest four bits of every lane


def _levels(bits: int, lanes: int) -> Expr:
    """The number that each pattern of the lowest bits stands for."""
    half = 1 << (bits - 1)
    numbers = [(i + half) % (2 * half) - half for i in range(lanes)]
    return tirx.Shuffle([const(n, "float32") for n in numbers], [const(i, "int32") for i in range(lanes)])


def _shared(step: Step, lanes: int, bits: int, way: str) -> Step:
    """`step` for weights of `bits`, of which a byte holds those of several steps."""
    wide = lanes * step.channels
    kinds = {"pmaddwd": ("int16", 8), "wasm": ("int16", 8), "vpadal": ("int8", 0)}  # type, bits above the byte

    def high(k: KernelBuilder, w: Value, field: int) -> Value:
        up = 8 - bits * (field + 1)
        moved = w[0] << const(up, "int8", wide) if up else w[0]
        return (k.let(moved & const(-(1 << (8 - bits)), "int8", wide) if field else moved, "w"),)

    def quad(k: KernelBuilder, w: Value, field: int) -> Value:
        words = reinterpret(w[0], f"int16x{2 * lanes}")
        up, down = 16 - bits * (field + 1), const(16 - bits, "int16", 2 * lanes)
        odd = words << const(up - 8, "int16", 2 * lanes) if up > 8 else words
        return k.let((words << const(up, "int16", 2 * lanes)) >> down, "w"), k.let(odd >> down, "w")

    def looked_up(k: KernelBuilder, w: Value, field: int) -> Value:
        index = w[0] >> const(bits * field, "int32", lanes) if field else w[0]
        return (k.let(intrinsic(_PERMUTE, f"float32x{lanes}", _levels(bits, lanes), index), "w"),)

    def widened_field(k: KernelBuilder, w: Value, field: int) -> Value:
        dtype, above = kinds.get(way, ("int32", 24))
        value = _field(w[0], field, bits, dtype, wide, above=above)
        return (k.let(cast(value, "float32", lanes) if way == "float32" else value, "w"),)

    def load(k: KernelBuilder, w: Buffer, i: Expr) -> Value:
        raw = k.load(w, i, wide)
        if way == "permute":
            return (k.let(cast(reinterpret(raw, f"uint8x{lanes}"), "int32", lanes), "n"),)
        if way in ("vpdpbusd", "sdot", "smmla", "pmaddwd4", "vpadal"):
            return (k.let(raw, "n"),)
        return (k.let(cast(raw, kinds.get(way, ("int32", 24))[0], wide), "n"),)

    high_ends = way in ("vpdpbusd", "sdot", "smmla")
    unpack = {"pmaddwd4": quad, "permute": looked_up}.get(way, high if high_ends else widened_field)
    return replace(step, load_w=load, fields=8 // bits, unpack=unpack, shift=8 - bits if high_ends else 0)


def choose_step(x_dtype: str, target: Target, channels: int, w_dtype: str = "") -> Step:
    """The step for x with `channels` input channels; `w_dtype` as in LinearSpec."""
    lanes = lanes_of(target)
    step = _plain_step(x_dtype, target, channels, w_dtype)
    if w_dtype == PALETTE:
        return _palette_step(step, x_dtype, target, channels)
    fields = fields_of(w_dtype)
    if fields == 1:
        return step
    if x_dtype == "float32":
        way: str = "permute" if target.arch == "x86-64" and lanes == 16 else "float32"
    else:
        way = dot_of(x_dtype, target, channels)
    return _shared(step, lanes, 8 // fields, way)


def _palette_step(step: Step, x_dtype: str, target: Target, channels: int) -> Step:
    lanes = lanes_of(target)
    if x_dtype == "float32":
        return float_step(step, lanes)
    way = dot_of(x_dtype, target, channels)
    if way == "pmaddwd4":
        return byte_step(step, lanes, False, lambda k, w: split_bytes(k, w, lanes))
    return byte_step(step, lanes, way == "sdot", lambda k, w: (k.let(w, "w"),))


def _plain_step(x_dtype: str, target: Target, channels: int, w_dtype: str) -> Step:
    lanes = lanes_of(target)
    if x_dtype == "float32":
        return _float_step(lanes, w_dtype, target)
    dot = dot_of(x_dtype, target, channels)
    if dot == "vpdpbusd":
        return _dot4_step(lanes, VPDPBUSD[lanes])
    if dot == "sdot":
        return _dot4_step(lanes, SDOT)
    if dot == "smmla":
        return _half_step()
    if dot == "pmaddwd4":
        return _quad_step(lanes)
    if dot == "pmaddwd":
        vnni = target.dot == "vpdpbusd"
        return _pair_step(lanes, VPDPWSSD[lanes] if vnni else PMADDWD[lanes], adds=vnni)
    if dot == "wasm":
        return _pair_step(lanes, "llvm.wasm.dot", adds=False, bytes_first=x_dtype != "int16")
    if dot == "vpadal":
        return _product_pair_step(target.arch)
    return _widening_step(lanes)
