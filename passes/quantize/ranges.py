"""From a histogram of an activation to the range that its 8 bits should cover.

min-max keeps everything, percentile cuts a share of the elements off each end, mse finds the clipping of least squared
error (clipping a few outliers makes the steps of all others finer), entropy the one whose distribution of values is
nearest to the original's (Migacz, "8-bit Inference with TensorRT", 2017). Pure arithmetic on (centers, counts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from irc.calibrate.observers import Histogram
from irc.ir.types import Array
from irc.passes.quantize.affine import Affine

Calibrator = Literal["min-max", "percentile", "mse", "entropy"]


@dataclass(frozen=True)
class Range:
    """What an activation's values lie in after clipping. 0 is always inside."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))


def choose(histogram: Histogram, calibrator: Calibrator, percentile: float) -> Range:
    """The range by `calibrator`. [0, 0] where nothing finite was seen."""
    if histogram.exponent is None:
        return Range(0.0, 0.0)
    whole = Range(min(histogram.low, 0.0), max(histogram.high, 0.0))
    if calibrator == "min-max":
        return whole
    if calibrator == "percentile":
        return _percentile(histogram, percentile, whole)
    counts, centers = _noisy(histogram)
    measure = _divergence if calibrator == "entropy" else _error
    return _least(whole, lambda tried: measure(tried, centers, counts))


def _percentile(histogram: Histogram, percentile: float, whole: Range) -> Range:
    """Keeps `percentile` % of the elements, the rest split between the two ends."""
    share = np.cumsum(histogram.counts) / max(1, histogram.counts.sum())
    tail = (100.0 - percentile) / 200.0
    edges = (np.arange(histogram.bins + 1) + histogram.first) * histogram.width
    low = float(edges[int(np.searchsorted(share, tail, side="right"))])
    high = float(edges[min(int(np.searchsorted(share, 1 - tail)) + 1, histogram.bins)])
    return Range(max(min(low, 0.0), whole.low), min(max(high, 0.0), whole.high))


def _least(whole: Range, error: Callable[[Range], float]) -> Range:
    """Shrinks both ends together, then each alone; the error decides."""
    best, least = whole, error(whole)
    for low_steps, high_steps in ((True, True), (True, False), (False, True)):
        start = best
        for shrink in np.linspace(0.98, 0.3, 69):
            tried = Range(start.low * (shrink if low_steps else 1), start.high * (shrink if high_steps else 1))
            found = error(tried)
            if found < least:
                best, least = tried, found
    return best


def _divergence(tried: Range, centers: Array, counts: Array) -> float:
    """Kullback-Leibler divergence of the clipped values from the same in 255 equal steps over the range.

    Clipping puts what lies beyond the range into the outermost bins inside; the steps spread evenly over their bins
    what was inside already, so that both coarse steps and much clipping make the two differ.
    """
    inside = np.flatnonzero((centers >= tried.low) & (centers <= tried.high))
    if not inside.size or tried.high <= tried.low:
        return np.inf
    first, last = int(inside[0]), int(inside[-1]) + 1
    kept = counts[first:last]
    step = (tried.high - tried.low) / 255
    index = np.clip(np.floor((centers[first:last] - tried.low) / step), 0, 254).astype(np.int64)
    spread = np.bincount(index, kept, 255)[index] / np.bincount(index, minlength=255)[index]
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    share = clipped / clipped.sum()
    return float((share * np.log(share / (spread / spread.sum()))).sum())


def _error(tried: Range, centers: Array, counts: Array) -> float:
    """Squared error of 255 equal steps over the range: clipping exactly, rounding as step^2 / 12 inside it.

    The uniform-noise form is used because bin centers, being a lattice themselves, alias with the steps.
    """
    step = (tried.high - tried.low) / 255
    inside = (centers >= tried.low) & (centers <= tried.high)
    outside = centers - np.clip(centers, tried.low, tried.high)
    return float((counts * outside**2).sum() + (counts * inside).sum() * step**2 / 12)


def _noisy(histogram: Histogram) -> tuple[Array, Array]:
    """(counts, centers) of the used bins without the exact zeros, which 8 bits hold exactly."""
    counts = histogram.counts.astype(np.float64)
    if histogram.zeros:
        counts[-histogram.first] -= histogram.zeros
    used = np.flatnonzero(counts > 0)
    return counts[used], histogram.centers[used]


def signal_to_noise(histogram: Histogram, affine: Affine) -> float:
    """10 log10(E[x^2] / E[(x - quantized x)^2]) in dB, from the histogram (uniform noise inside the range)."""
    counts, centers = _noisy(histogram)
    low, high = affine.range
    clipped = np.clip(centers, low, high)
    noise = (counts * (centers - clipped) ** 2).sum() + (counts * (clipped == centers)).sum() * affine.scale**2 / 12
    return decibel(float((counts * centers**2).sum()), float(noise))


def saturation(histogram: Histogram, affine: Affine) -> float:
    """Share of the elements that lie beyond the 8-bit range by more than half a step."""
    low, high = affine.range
    centers = histogram.centers
    beyond = (centers < low - affine.scale / 2) | (centers > high + affine.scale / 2)
    return float(histogram.counts[beyond].sum() / max(1, histogram.counts.sum()))


def decibel(signal: float, noise: float) -> float:
    """A ratio of powers in dB; 200 (beyond float32) where there is no noise, 0 where there is no signal."""
    if signal <= 0:
        return 0.0
    if noise <= signal * 1e-20:
        return 200.0
    return float(10 * np.log10(signal / noise))
