"""The arithmetic of affine quantization to 8 bits (and of activations to 16): real = (q - zero_point) * scale.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018).
Rounding is half to even, as ONNX QuantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from irc.ir.types import Array

WEIGHT_LIMIT = 127  # weights use [-127, 127], so that negating one never overflows
SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**24  # products of two scales stay normal float32 numbers


@dataclass(frozen=True)
class Affine:
    """Per-tensor parameters. `scale` is a float32 number. `bound`: of int16 ones, steps at which values are clipped, so
    that the sums of the layers that read them fit into 32 bits."""

    scale: float
    zero_point: int
    dtype: Literal["uint8", "int8", "int16"]
    bound: int = 0

    @property
    def limits(self) -> tuple[int, int]:
        if self.bound:
            return -self.bound, self.bound
        return {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767)}[self.dtype]

    @property
    def range(self) -> tuple[float, float]:
        """The real numbers that the ends of the range stand for."""
        low, high = self.limits
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def quantize(self, x: Array) -> Array:
        low, high = self.limits
        q: Array = np.clip(np.rint(np.asarray(x) / self.scale) + self.zero_point, low, high)
        return q.astype(self.dtype)

    def dequantize(self, q: Array) -> Array:
        steps: Array = q.astype(np.int32) - self.zero_point
        real: Array = (steps * np.float32(self.scale)).astype(np.float32)
        return real


def asymmetric(low: float, high: float, dtype: Literal["uint8", "int8"]) -> Affine:
    """The 256 steps cover [low, high] extended to 0, and 0 is exact. A range of no width gets the scale 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    first = 0 if dtype == "uint8" else -128
    scale = _safe((high - low) / 255)
    return Affine(scale, int(np.clip(np.rint(-low / scale), 0, 255)) + first, dtype)


def symmetric(low: float, high: float) -> Affine:
    """int8 with zero point 0, from -127 to 127 steps."""
    return Affine(_safe(max(abs(low), abs(high)) / 127), 0, "int8")


def symmetric16(low: float, high: float, bound: int) -> Affine:
    """int16 with zero point 0, from -bound to bound steps."""
    return Affine(_safe(max(abs(low), abs(high)) / bound), 0, "int16", bound)


LARGEST16 = 32767
_SUMS = 2**30 - 2**20  # what products may add up to: half of int32, less what clipping at a rounded bound lets through


def bound16(terms: int, largest: int) -> int:
    """Steps that int16 data may have where `terms` products with weights of at most `largest` are summed."""
    return min(LARGEST16, _SUMS // max(terms * largest, 1))


def _safe(scale: float) -> float:
    if not np.isfinite(scale) or scale <= 0:
        return 1.0
    return float(np.float32(max(scale, SMALLEST_SCALE)))


def weight_scales(weight: Array, axis: int | None, *, search: bool = True, importance: Array | None = None) -> Array:
    """float32 scales for int8 weights in [-127, 127]: one per index of `axis`, or one of all ([] shape) for None.

    With `search` each scale is the one of least squared error among shrunken maxima: clipping the largest weights a
    little can make all others finer. `importance` (shaped like `weight`, or broadcastable to it) weighs the errors;
    E[x^2] of the input makes them errors of the layer's output. All-zero channels get 1.
    """
    rows = _rows(weight, axis)
    weigh = np.ones((1, 1)) if importance is None else _rows(np.broadcast_to(importance, weight.shape), axis)
    full = np.abs(rows).max(axis=1, initial=0.0) / WEIGHT_LIMIT
    full = np.where((full > 0) & np.isfinite(full), np.maximum(full, SMALLEST_SCALE), 1.0)
    best, least = full.copy(), np.full(len(full), np.inf)
    for shrink in np.linspace(1.0, 0.7, 31) if search else (1.0,):
        scale = (full * shrink)[:, None]
        error: Array = np.square(np.clip(np.rint(rows / scale), -WEIGHT_LIMIT, WEIGHT_LIMIT) * scale - rows)
        error = (error * weigh).sum(axis=1)
        better = error < least * (1 - 1e-9)
        best[better], least[better] = scale[better, 0], error[better]
    found: Array = best.astype(np.float32)
    return found.reshape(()) if axis is None else found


def _rows(weight: Array, axis: int | None) -> Array:
    """float64 [output channels, all others], or one row for axis None."""
    if axis is None:
        return weight.reshape(1, -1).astype(np.float64)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)


def quantize_weight(weight: Array, scales: Array, axis: int | None) -> Array:
    """int8 weights in [-127, 127], symmetric; `scales` as from `weight_scales`."""
    q = np.rint(weight / _spread(scales, axis, weight.ndim))
    return np.clip(q, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)


def dequantize_weight(q: Array, scales: Array, axis: int | None) -> Array:
    """float32 weights as the integer kernel sees them."""
    return (q.astype(np.float32) * _spread(scales, axis, q.ndim)).astype(np.float32)


def _spread(scales: Array, axis: int | None, rank: int) -> Array:
    if axis is None:
        return scales
    return scales.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


BIAS_LIMIT = 2**30  # leaves as much room again for the products


def scales_for_bias(scales: Array, bias: Array, input_scale: float, empty: Array) -> Array:
    """`scales` raised where a channel's bias would not fit into int32 at the scale input_scale * weight scale.

    Happens for channels whose weights are almost zero. Where they are exactly zero (`empty`) any scale will do for
    them, so the bias gets one that is fine for it.
    """
    size = np.abs(bias.astype(np.float64)) / input_scale
    fine = np.where(size > 0, np.maximum(size / 2**24, SMALLEST_SCALE), 1.0)
    return np.where(empty, fine, np.maximum(scales.astype(np.float64), size / BIAS_LIMIT)).astype(np.float32)


def quantize_bias(bias: Array, input_scale: float, scales: Array) -> Array:
    """int32, at the scale input_scale * weight scale (float32 product, as the model will state it)."""
    unit = bias_scales(input_scale, scales).astype(np.float64)
    q = np.rint(bias.astype(np.float64) / unit)
    return np.clip(q, -(2**31) + 1, 2**31 - 1).astype(np.int32)


def bias_scales(input_scale: float, scales: Array) -> Array:
    """The scale of a bias (and of the int32 sums): float32."""
    return (np.float32(input_scale) * scales).astype(np.float32)
