"""Where the elements of a resized axis come from, and with which weights: the arithmetic of Resize, in numpy.

Source: the operator's page of the ONNX standard; where it leaves room, onnxruntime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from irc.ir.types import Array

COORDINATES = frozenset(
    "half_pixel half_pixel_symmetric pytorch_half_pixel align_corners asymmetric tf_crop_and_resize".split()  # noqa: SIM905 - one line, not one for each
)


@dataclass(frozen=True)
class Axis:
    """One resized axis: extents, the scale (output / input, may be fractional), the region of interest."""

    axis: int
    extent: int
    output: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def source_positions(a: Axis, mode: str) -> Array:
    """Where each output element lies in the input, in elements.

    Computed in float32, as onnxruntime does: `nearest` depends on the last bit. Lengths after resizing are the
    tensor's own (whole numbers), as the standard's text says (its reference evaluator takes scale * extent).
    """
    f = np.float32
    o = np.arange(a.output, dtype=f)
    scale, extent, half = f(a.scale), f(a.extent), f(0.5)
    start, end = f(a.roi[0]), f(a.roi[1])
    if mode == "align_corners":
        return np.zeros_like(o) if a.output == 1 else o * (extent - f(1)) / f(a.output - 1)
    if mode == "asymmetric":
        return o / scale
    if mode == "tf_crop_and_resize":
        if a.output == 1:
            return np.full_like(o, half * (start + end) * (extent - f(1)))
        return start * (extent - f(1)) + o * (end - start) * (extent - f(1)) / f(a.output - 1)
    if mode == "pytorch_half_pixel" and a.output == 1:
        return np.zeros_like(o)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (o + half) / scale - half
    if mode == "half_pixel_symmetric":
        offset = extent / f(2) * (f(1) - f(a.output) / (scale * extent))
        wide = (o.astype(np.float64) + 0.5) / np.float64(scale) - 0.5  # here onnxruntime uses float64
        return (np.float64(offset) + wide).astype(f)
    raise ValueError(f"coordinate_transformation_mode {mode}")


def scaled(extent: int, scale: float) -> int:
    """The extent after scaling, multiplied in float32 as in the standard's shape inference."""
    return int(np.floor(np.float32(extent) * np.float32(scale)))


def nearest(positions: Array, mode: str) -> Array:
    down = np.floor(positions)
    part = positions - down
    up = {"round_prefer_floor": part > 0.5, "round_prefer_ceil": part >= 0.5, "floor": part < 0, "ceil": part > 0}[mode]
    return (down + up).astype(np.int64)


def _cubic(x: Array, a: float) -> Array:
    """Keys' kernel (IEEE ASSP 29, 1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def taps(
    a: Axis,
    coordinates: str,
    *,
    linear: bool,
    antialias: bool = False,
    exclude_outside: bool = False,
    cubic_a: float = -0.75,
) -> tuple[Array, Array]:
    """Source indices and weights, (output, taps) each; indices lie inside the input."""
    positions = source_positions(a, coordinates).astype(np.float64)
    reach = 1 if linear else 2
    scale = min(a.scale, 1.0) if antialias else 1.0
    down = np.floor(positions)
    first = math.floor(-reach / scale) + 1
    offsets = np.arange(first, 2 - first if reach == 2 or scale < 1 else 2)
    if linear and scale == 1.0:
        offsets = np.array([0, 1])
    distance = (offsets[None, :] - (positions - down)[:, None]) * scale
    kernel = 1 - np.abs(distance)
    weights = np.clip(kernel, 0, 1) if linear else _cubic(distance, cubic_a)
    if scale != 1.0:
        weights = weights / weights.sum(1, keepdims=True)
    indices = (down[:, None] + offsets[None, :]).astype(np.int64)
    if exclude_outside:
        weights = np.where((indices < 0) | (indices >= a.extent), 0.0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(indices, 0, a.extent - 1), weights
