"""Latency of several runners in one process, interleaved.

Runs alternate (a b c a b c ...), so that clock drift and other load hit all of them alike; ratios of medians taken
this way repeat within a few per cent where absolute times do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Milliseconds. `low`, `high`: 10th and 90th percentile."""

    name: str
    median: float
    low: float
    high: float
    best: float
    runs: int

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "median_ms": round(self.median, 4),
            "p10_ms": round(self.low, 4),
            "p90_ms": round(self.high, 4),
            "best_ms": round(self.best, 4),
            "runs": self.runs,
        }


def measure(
    runners: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    min_runs: int = 10,
    max_runs: int = 10_000,
) -> list[Latency]:
    """Times of each runner over about `seconds` for each of them, after a warm-up of two runs."""
    for run in runners.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    end = time.perf_counter() + seconds * len(runners)
    for count in range(max_runs):
        if count >= min_runs and time.perf_counter() > end:
            break
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return [_latency(name, np.asarray(values)) for name, values in times.items()]


def _latency(name: str, ms: np.ndarray[Any, np.dtype[np.float64]]) -> Latency:
    low, median, high = (float(v) for v in np.percentile(ms, [10, 50, 90]))
    return Latency(name, median, low, high, float(ms.min()), len(ms))
