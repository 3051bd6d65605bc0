"""Weights as indices of 4 bits into a codebook of 16 numbers, looked up in registers.

The first 64 bytes of the weights' buffer are the codebook: 16 bytes four times over, or 16 float32 numbers, in either
case what one register holds. A step's weights are bytes of two indices, that of the first of two steps in the lower
half; a shuffle of bytes, or of float32 lanes, turns a register of indices into weights.

  bytes    pshufb (x86, within each 128 bits), tbl (Arm)
  float32  vpermps of 16 lanes; of 8 lanes two of them, and bit 3 of the index chooses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tvm import tirx

from irc.backends.tvm.geometry import PALETTE_BYTES
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, cast, const, intrinsic, reinterpret

if TYPE_CHECKING:
    from irc.backends.tvm.kernels.steps import Step, Value

_SHUFFLE = {4: "llvm.x86.ssse3.pshuf.b.128", 8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}
_FIRST_HALF = 8  # lanes, and numbers of the codebook, in a register of 256 bits


def byte_step(step: Step, lanes: int, arm: bool, split: Callable[[KernelBuilder, Expr], Value]) -> Step:
    """`step` of four int8 channels for weights of a palette. `split`: bytes of weights -> what `step.mac` wants."""
    wide = 4 * lanes
    name = "llvm.aarch64.neon.tbl1.v16i8" if arm else _SHUFFLE[lanes]

    def load(k: KernelBuilder, w: Buffer, i: Expr) -> Value:
        return k.let(k.load(w, i, wide), "n"), k.let(k.load(w, const(0, "int32"), wide), "t")

    def unpack(k: KernelBuilder, w: Value, field: int) -> Value:
        raw = reinterpret(w[0], f"uint8x{wide}")
        index = raw >> const(4, "uint8", wide) if field else raw & const(15, "uint8", wide)
        return split(k, intrinsic(name, f"int8x{wide}", w[1], reinterpret(index, f"int8x{wide}")))

    return replace(step, load_w=load, fields=2, unpack=unpack)


def float_step(step: Step, lanes: int) -> Step:
    """`step` of one float32 channel for weights of a palette; `lanes` 8 or 16."""

    def table(k: KernelBuilder, w: Buffer, half: int) -> Expr:
        return k.let(reinterpret(k.load(w, const(4 * lanes * half, "int32"), 4 * lanes), f"float32x{lanes}"), "t")

    def load(k: KernelBuilder, w: Buffer, i: Expr) -> Value:
        raw = k.let(cast(k.load(w, i, lanes), "int32", lanes), "n")
        return (raw, table(k, w, 0)) if lanes > _FIRST_HALF else (raw, table(k, w, 0), table(k, w, 1))

    def unpack(k: KernelBuilder, w: Value, field: int) -> Value:
        index = k.let(w[0] >> const(4, "int32", lanes), "n") if field else w[0]  # shuffles read the lowest bits only
        if lanes > _FIRST_HALF:
            return (k.let(intrinsic("llvm.x86.avx512.permvar.sf.512", f"float32x{lanes}", w[1], index), "w"),)
        low, high = (intrinsic("llvm.x86.avx2.permps", f"float32x{lanes}", t, index) for t in w[1:])
        upper = (index & const(_FIRST_HALF, "int32", lanes)) > const(0, "int32", lanes)
        return (k.let(tirx.Select(upper, high, low), "w"),)

    return replace(step, load_w=load, fields=2, unpack=unpack)


assert PALETTE_BYTES == 64  # one register of the widest machine, two of the next
