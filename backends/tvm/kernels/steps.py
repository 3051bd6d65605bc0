"""One step of a reduction in registers: which input channels it sums, and with which instruction.

Instruction per step:
  float32    fma, one input channel
  vpdpbusd   4 channels, uint8 x int8 -> int32 (AVX-512 VNNI)
  sdot       4 channels, int8 x int8 -> int32 (Arm dotprod)
  pmaddwd    2 channels, widened to int16 first, so nothing saturates (x86 without VNNI)
  widening   1 channel in int32
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from irc.backends.tvm.geometry import dot_of, lanes_of
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, broadcast, cast, const, intrinsic, reinterpret
from irc.targets.target import Target

_PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
_VPDPBUSD = {4: "llvm.x86.avx512.vpdpbusd.128", 8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}


@dataclass(frozen=True)
class Step:
    """One reduction step: how many input channels, and acc + x * w for a vector of `lanes` sums."""

    channels: int
    acc_dtype: str
    load_x: Callable[[KernelBuilder, Buffer, Expr], Expr]
    load_w: Callable[[KernelBuilder, Buffer, Expr], Expr]
    mac: Callable[[Expr, Expr, Expr], Expr]
    ones: Expr = None


def _float_step(lanes: int) -> Step:
    return Step(
        1,
        "float32",
        lambda k, x, i: broadcast(k.load(x, i), lanes),
        lambda k, w, i: k.load(w, i, lanes),
        lambda acc, x, w: acc + x * w,
        const(1.0, "float32", lanes),
    )


def _dot4_step(lanes: int, name: str, ones: Expr) -> Step:
    wide = f"int8x{4 * lanes}"
    acc_type = f"int32x{lanes}"

    def load_x(k: KernelBuilder, x: Buffer, i: Expr) -> Expr:
        return reinterpret(broadcast(reinterpret(k.load(x, i, 4), "int32"), lanes), wide)

    return Step(
        4,
        "int32",
        load_x,
        lambda k, w, i: k.load(w, i, 4 * lanes),
        lambda acc, x, w: intrinsic(name, acc_type, acc, x, w),
        ones,
    )


def _pmaddwd_step(lanes: int) -> Step:
    wide = f"int16x{2 * lanes}"

    def load_x(k: KernelBuilder, x: Buffer, i: Expr) -> Expr:
        pair = reinterpret(cast(k.load(x, i, 2), "int16", 2), "int32")
        return reinterpret(broadcast(pair, lanes), wide)

    return Step(
        2,
        "int32",
        load_x,
        lambda k, w, i: cast(k.load(w, i, 2 * lanes), "int16", 2 * lanes),
        lambda acc, x, w: acc + intrinsic(_PMADDWD[lanes], f"int32x{lanes}", x, w),
        const(1, "int16", 2 * lanes),
    )


def _widening_step(lanes: int) -> Step:
    return Step(
        1,
        "int32",
        lambda k, x, i: broadcast(cast(k.load(x, i), "int32"), lanes),
        lambda k, w, i: cast(k.load(w, i, lanes), "int32", lanes),
        lambda acc, x, w: acc + x * w,
        const(1, "int32", lanes),
    )


def choose_step(x_dtype: str, target: Target, channels: int) -> Step:
    """The step for x with `channels` input channels."""
    lanes = lanes_of(target)
    if x_dtype == "float32":
        return _float_step(lanes)
    dot = dot_of(x_dtype, target, channels)
    if dot == "vpdpbusd":
        return _dot4_step(lanes, _VPDPBUSD[lanes], const(1, "int8", 4 * lanes))
    if dot == "sdot":
        return _dot4_step(lanes, "llvm.aarch64.neon.sdot.v4i32.v16i8", const(1, "int8", 4 * lanes))
    if dot == "pmaddwd":
        return _pmaddwd_step(lanes)
    return _widening_step(lanes)
