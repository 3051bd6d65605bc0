"""How far two results are apart: the figures verification decides on, and the reports show.

Floats: the largest difference relative to the largest magnitude of that output over all samples.
Integers and quantized floats: the share of elements within one quantization step.
Signal-to-noise ratio: 10 log10(sum ref^2 / sum (ref - got)^2) in dB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from irc.errors import VerificationError
from irc.ir.types import Array

SNR_CAP_DB = 999.0
"""Stands for infinity (equal results): JSON has no infinity."""


@dataclass
class Difference:
    """Running comparison of one output over any number of samples. `step`: quantization step in units of the output.

    Without a step, that of an 8-bit quantization of the range is taken: `range_hint`, or what was seen so far.
    """

    name: str
    integer: bool = False
    step: float | None = None
    range_hint: float = 0.0
    dtype: str = ""
    elements: int = 0
    max_abs: float = 0.0
    peak: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    signal: float = 0.0
    noise: float = 0.0
    within_step: int = 0
    equal: int = 0
    broken: int = 0

    def add(self, reference: Array, got: Array) -> None:
        """One more sample. Raises VerificationError where shape or type differ."""
        if reference.shape != got.shape or reference.dtype != got.dtype:
            raise VerificationError(
                "the compiled result has another type",
                where=f"output '{self.name}'",
                expected=f"{reference.dtype}{list(reference.shape)}",
                got=f"{got.dtype}{list(got.shape)}",
            )
        self.dtype = str(reference.dtype)
        if reference.size == 0:
            return
        self.elements += reference.size
        if reference.dtype.kind in "OSU":
            self.broken += int(np.sum(reference != got))
            self.equal += int(np.sum(reference == got))
            return
        self.integer = reference.dtype.kind in "iub"
        ref, res = reference.astype(np.float64), got.astype(np.float64)
        # Elements that are not finite must be the same: the same infinity, or both NaN.
        finite = np.isfinite(ref) & np.isfinite(res)
        odd = ~finite
        if odd.any():
            same = (ref == res) | (np.isnan(ref) & np.isnan(res))
            self.broken += int(np.sum(odd & ~same))
            self.equal += int(np.sum(odd & same))
            self.within_step += int(np.sum(odd & same))
            ref, res = ref[finite], res[finite]
            if ref.size == 0:
                return
        error = np.abs(ref - res)
        self.max_abs = max(self.max_abs, float(error.max()))
        self.peak = max(self.peak, float(np.abs(ref).max()))
        self.low, self.high = min(self.low, float(ref.min())), max(self.high, float(ref.max()))
        self.signal += float(np.sum(ref * ref))
        self.noise += float(np.sum(error * error))
        self.equal += int(np.sum(error == 0))
        # Half a per mille of slack: a step that went through float32 is not exactly a step any more.
        self.within_step += int(np.sum(error <= self.step_size * 1.0005))

    @property
    def step_size(self) -> float:
        """One step: given, 1 for integers, else the 255th part of the range seen so far."""
        if self.step is not None:
            return self.step
        if self.integer:
            return 1.0
        return max(self.range_hint, self.high - self.low, 0.0) / 255 if self.high >= self.low else 0.0

    @property
    def relative(self) -> float:
        """Largest difference over largest reference magnitude; infinite where NaN or infinities do not agree."""
        if self.broken:
            return math.inf
        if self.max_abs == 0.0:
            return 0.0
        return self.max_abs / self.peak if self.peak else math.inf

    @property
    def share_within_step(self) -> float:
        return self.within_step / self.elements if self.elements else 1.0

    @property
    def snr_db(self) -> float:
        return snr_db(self.signal, self.noise)

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to what is worth reading."""
        return {
            "name": self.name,
            "elements": self.elements,
            "max_abs": _significant(self.max_abs),
            "relative": _significant(self.relative) if math.isfinite(self.relative) else "infinite",
            "within_one_step": round(self.share_within_step, 6),
            "equal": round(self.equal / self.elements, 6) if self.elements else 1.0,
            "snr_db": round(self.snr_db, 2),
        }


def snr_db(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB, within +-SNR_CAP_DB."""
    if noise == 0.0:
        return SNR_CAP_DB
    if signal == 0.0:
        return -SNR_CAP_DB
    return 10 * math.log10(signal / noise)


def compare(reference: Mapping[str, Array], got: Mapping[str, Array], steps: Mapping[str, float]) -> list[Difference]:
    """One `Difference` for each output of one sample."""
    found = []
    for name, value in reference.items():
        difference = Difference(name, step=steps.get(name))
        difference.add(np.asarray(value), np.asarray(got[name]))
        found.append(difference)
    return found


def _significant(x: float) -> float:
    return float(f"{x:.4g}")
