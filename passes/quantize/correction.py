"""Bias correction: the mean error that rounded weights make is constant, so the bias can take it back.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2, with E[x]
measured. E[(W - Q) x] = (W - Q) E[x]; at the zero-padded border of a convolution this is an approximation.
"""

from __future__ import annotations

import numpy as np

from irc.ir.types import Array


def conv_correction(weight: Array, rounded: Array, mean: Array) -> Array:
    """What to add to the bias, [out]. `weight`, `rounded`: [out, in / groups, *kernel]; `mean`: E[x], [in]."""
    outputs, per_group = weight.shape[:2]
    groups = len(mean) // per_group
    error = (
        (weight.astype(np.float64) - rounded)
        .sum(axis=tuple(range(2, weight.ndim)))
        .reshape(groups, outputs // groups, per_group)
    )
    found: Array = np.einsum("goi,gi->go", error, mean.reshape(groups, per_group)).reshape(outputs)
    return found


def matrix_correction(weight: Array, rounded: Array, mean: Array, axis: int) -> Array:
    """The same for matrices; `axis` is that of the output channels."""
    error = weight.astype(np.float64) - rounded
    found: Array = error @ mean if axis == 0 else error.T @ mean
    return found
