"""Fourier transforms: DFT and STFT as sums with tables of cosines and sines."""

from __future__ import annotations

import numpy as np
from tvm import te, tirx

from irc.backends.tvm.library.elementwise import Definition
from irc.backends.tvm.library.op import Expr, Op, Refused, Tensor, axis_of, compute, const, dtype_of, element, shape_of


def transform(op: Op, x: Tensor, axis: int, length: int, outputs: int, inverse: bool) -> Tensor:
    """sum over t of x[t] * exp(-+2 pi i t k / length), for k < outputs; x of last extent 1 is real, 2 complex."""
    shape = shape_of(x)
    dtype = dtype_of(x)
    used = min(shape[axis], length)
    angle = 2 * np.pi * np.arange(length) / length
    cosine = op.materialize(np.cos(angle).astype(dtype))
    sine = op.materialize((np.sin(angle) * (1 if inverse else -1)).astype(dtype))
    r = te.reduce_axis((0, used), name="t")
    real = shape[-1] == 1

    def formula(*i: Expr) -> Expr:
        source = [*i[:axis], r.var, *i[axis + 1 : -1]]
        turn = tirx.floormod(r.var * i[axis], length) if length > 1 else const(0, "int32")
        c, s = (element(t, [turn if length > 1 else 0]) for t in (cosine, sine))
        a = element(x, [*source, 0])
        if real:
            value = tirx.Select(i[-1] == 0, a * c, a * s)
        else:
            b = element(x, [*source, 1])
            value = tirx.Select(i[-1] == 0, a * c - b * s, a * s + b * c)
        return te.sum(value, axis=r)

    result = [outputs if a == axis else d for a, d in enumerate(shape[:-1])] + [2]
    made = compute(result, formula, "dft")
    if not inverse:
        return made
    return compute(result, lambda *i: element(made, i) * const(1 / length, dtype), "idft")


def dft(op: Op) -> list[Tensor]:
    x = op.tensor(0)
    shape = shape_of(x)
    axis = (int(op.array(2, "axis").reshape(-1)[0]) if op.has(2) else -2) if op.since >= 20 else op.attr("axis", 1)
    axis = axis_of(axis, len(shape))
    inverse, onesided = bool(op.attr("inverse", 0)), bool(op.attr("onesided", 0))
    given = int(op.array(1, "dft_length").reshape(-1)[0]) if op.has(1) else 0
    if inverse and onesided:
        return [real_inverse(op, x, axis, given or 2 * (shape[axis] - 1))]
    length = given or shape[axis]
    return [transform(op, x, axis, length, length // 2 + 1 if onesided else length, inverse)]


def real_inverse(op: Op, x: Tensor, axis: int, length: int) -> Tensor:
    """The real signal of one-sided frequencies: each but the first (and the middle one) counts twice."""
    shape, dtype = shape_of(x), dtype_of(x)
    if shape[-1] != 2:
        raise Refused("one-sided frequencies have to be complex")
    used = min(shape[axis], length // 2 + 1)
    angle = 2 * np.pi * np.arange(length) / length
    cosine, sine = op.materialize(np.cos(angle).astype(dtype)), op.materialize(np.sin(angle).astype(dtype))
    weight = np.full(used, 2.0)
    weight[0] = 1
    if length % 2 == 0 and used == length // 2 + 1:
        weight[-1] = 1
    factor = op.materialize((weight / length).astype(dtype))
    r = te.reduce_axis((0, used), name="k")

    def formula(*i: Expr) -> Expr:
        source = [*i[:axis], r.var, *i[axis + 1 : -1]]
        turn = tirx.floormod(r.var * i[axis], length) if length > 1 else 0
        value = element(x, [*source, 0]) * element(cosine, [turn]) - element(x, [*source, 1]) * element(sine, [turn])
        return te.sum(value * element(factor, [r.var if used > 1 else 0]), axis=r)

    return compute([length if a == axis else d for a, d in enumerate(shape[:-1])] + [1], formula, op.kind)


def stft(op: Op) -> list[Tensor]:
    """Frames of the signal, times the window, each transformed."""
    x = op.tensor(0)
    batch, total, last = shape_of(x)
    hop = int(op.array(1, "frame_step").reshape(-1)[0])
    window = op.optional(2)
    size = int(op.array(3, "frame_length").reshape(-1)[0]) if op.has(3) else op.value(2).shape[0]
    frames = 1 + (total - size) // hop

    def frame(b: Expr, f: Expr, t: Expr, p: Expr) -> Expr:
        value = element(x, [b, f * hop + t, p])
        return value * element(window, [t]) if window is not None else value

    cut = compute((batch, frames, size, last), frame, "keep_frames")
    return [transform(op, cut, 2, size, size // 2 + 1 if op.attr("onesided", 1) else size, False)]


OPERATORS: dict[str, Definition] = {"DFT": dft, "STFT": stft}
