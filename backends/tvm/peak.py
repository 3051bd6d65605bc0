"""Sizes and counts of the kernel that measures the machine (`kernels/peak.py`), for those who call it."""

from __future__ import annotations

from irc.backends.tvm.geometry import lanes_of, step_channels
from irc.backends.tvm.specs import PeakSpec
from irc.targets.target import Target

DEPTH = 16
"""Reduction steps whose operands lie in the cache: 4 KB of weights with vectors of 64 bytes."""
PLACES = 6
_VECTORS = {32: 4, 16: 2}


def vectors_of(target: Target) -> int:
    """Vectors of weights in the tile: accumulators fill most of the registers."""
    return _VECTORS.get(target.vector_registers, 1)


def peak_macs(spec: PeakSpec, target: Target) -> int:
    """Multiply-adds of one call."""
    lanes = lanes_of(target)
    return spec.rounds * DEPTH * PLACES * vectors_of(target) * lanes * step_channels(spec.x_dtype, target, 4)


def peak_sizes(spec: PeakSpec, target: Target) -> tuple[int, int, int]:
    """Elements of x (`spec.x_dtype`), w (float32 or int8) and y (float32 or int32)."""
    channels, tile = step_channels(spec.x_dtype, target, 4), vectors_of(target) * lanes_of(target)
    return PLACES * DEPTH * channels, DEPTH * tile * channels, PLACES * tile
