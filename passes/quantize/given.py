"""Scales and biases of layers whose weights have been rounded for an entropy coder.

Kernels multiply by a number for each output channel and add an int32 to its sum. These cost up to 8 bytes a channel,
for small networks as much as the weights. So scales take few distinct values, and biases end in as many zero bits as
their accuracy allows.
"""

from __future__ import annotations

import numpy as np

from irc.ir.types import Array
from irc.passes.quantize.affine import scales_for_bias
from irc.passes.quantize.mixed import Rounded


def given_scales(given: Rounded, bias: Array, input_scale: float) -> Array:
    """The scales as they were chosen; another power of two for channels whose bias would not fit into int32."""
    needed = scales_for_bias(given.scales, bias, input_scale, np.zeros(len(given.scales), bool)).astype(np.float64)
    steps = np.ceil(np.log2(needed / given.scales))
    found: Array = (given.scales * np.exp2(np.maximum(steps, 0))).astype(np.float32)
    return found


def coarse_bias(q: Array, units: Array, steps: Array) -> Array:
    """int32 biases as multiples of the largest power of two that is at most `steps` (real numbers, as `units`)."""
    shift = np.floor(np.log2(np.maximum(steps / units, 1.0))).astype(np.int64)
    shift = np.minimum(shift, 24)
    unit = np.left_shift(1, shift)
    rounded: Array = (np.rint(q / unit) * unit).astype(np.int64)
    return np.clip(rounded, -(2**31) + 1, 2**31 - 1).astype(np.int32)
