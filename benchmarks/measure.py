"""One measurement in a process of its own: `python benchmarks/measure.py JOB.json` writes results to its "out".

`speed.py` makes the jobs. A process of its own has nothing of an earlier measurement in its memory or caches, and can
be started through a prefix that gives it a quiet core. Two kinds of job:

    latency    runtimes take turns (a b c a b c ...); medians, ratios of each round, noise against a reference
    footprint  one artifact: memory that grows and time that passes from before it is opened to its first result
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Array, pin

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
SILENT = 1e-20
"""Variance over inputs, as a share of the mean square, below which an output carries no signal."""


def read_feeds(path: str) -> list[dict[str, Array]]:
    """The feeds of an .npz file whose arrays have one more dimension in front: the number of the feed."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    count = len(next(iter(arrays.values())))
    return [{name: np.ascontiguousarray(array[i]) for name, array in arrays.items()} for i in range(count)]


def runner(facts: Mapping[str, Any], feed: Mapping[str, Array]) -> Run:
    """A runtime as a function from feed to outputs. `facts`: runtime, path, threads, hint (of OpenVINO)."""
    threads = int(facts.get("threads", 1))
    if facts["runtime"] == "irc":
        from irc.backends.artifact.load import load_artifact

        return load_artifact(facts["path"], threads=threads).run
    from peers import onnxruntime_session, openvino_request

    if facts["runtime"] == "onnxruntime":
        return onnxruntime_session(Path(facts["path"]), threads)
    return openvino_request(Path(facts["path"]), feed, threads, facts.get("hint"))


def latency(job: Mapping[str, Any]) -> dict[str, Any]:
    from latency import ratios

    feeds = read_feeds(job["feeds"])
    feed = feeds[0]
    runs: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for name, facts in job["runtimes"].items():
        try:
            runs[name] = runner(facts, feed)
            runs[name](feed)
        except Exception as error:  # a peer that cannot run a model is no reason to leave out the others
            if facts["runtime"] == "irc":
                raise
            refused[name] = str(error).strip().splitlines()[-1]
    reference = runner(job["reference"], feed) if job.get("reference") else None
    found: dict[str, Any] = {"refused": refused} if refused else {}
    if reference is not None:
        found["db"] = noise(runs, reference, feeds)
    del reference
    if job.get("pin", True):
        pin(None)  # after loading: OpenVINO counts the cores it may use
    timed: dict[str, Callable[[], object]] = {name: _closure(run, feed) for name, run in runs.items()}
    return found | ratios(timed, job["seconds"], job["rounds"])


def _closure(run: Run, feed: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: run(feed)


def noise(runs: Mapping[str, Run], reference: Run, feeds: list[dict[str, Array]]) -> dict[str, float | None]:
    """Signal to noise in dB of each runtime's first output: of each feed, and of these the median, because after a
    softmax single inputs have most of all noise. None for all where the reference hardly differs between feeds: then
    there is nothing to be right about."""

    def outputs(run: Run) -> Array:
        first = [np.array(next(iter(run(feed).values())), np.float64).reshape(-1) for feed in feeds]
        return np.stack(first)

    exact = outputs(reference)
    signal = float((exact**2).mean())
    if signal == 0 or (len(feeds) > 1 and float(exact.var(0).mean()) <= SILENT * signal):
        return dict.fromkeys(runs)
    return {name: decibels(exact, outputs(run) - exact) for name, run in runs.items()}


def decibels(signal: Array, noise: Array) -> float:
    """Median over the first dimension."""
    powers = [(float((s**2).sum()), float((n**2).sum())) for s, n in zip(signal, noise, strict=True)]
    ratios = [10 * float(np.log10(max(s, 1e-300) / max(n, s * 1e-20, 1e-300))) for s, n in powers]
    return round(statistics.median(ratios), 1)


def resident() -> int:
    """Bytes of this process that are in memory: its own, and its share of what others map too (Linux "Pss")."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise SystemExit("this system does not tell how much memory a process uses")


def footprint(job: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes and milliseconds from before the artifact is opened until its first result is there.

    Python, numpy and irc's loader are in memory before, and so is the input; the file is in the system's cache.
    """
    from irc.backends.artifact.load import load_artifact

    feed = read_feeds(job["feeds"])[0]
    for array in feed.values():
        array.copy().sum()
    pin(None)
    before = resident()
    start = time.perf_counter()
    network = load_artifact(job["path"])
    opened = time.perf_counter()
    network.run(feed)
    first = time.perf_counter()
    growth = resident() - before
    times = []
    for _ in range(int(job.get("runs", 30))):
        begin = time.perf_counter()
        network.run(feed)
        times.append(time.perf_counter() - begin)
    steady = statistics.median(times)
    return {
        "growth_bytes": growth,
        "open_ms": round(1e3 * (opened - start), 3),
        "first_ms": round(1e3 * (first - opened), 3),
        "steady_ms": round(1e3 * steady, 3),
        "start_ms": round(1e3 * (first - start - steady), 3),
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    kinds: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"latency": latency, "footprint": footprint}
    Path(job["out"]).write_text(json.dumps(kinds[job["kind"]](job)))


if __name__ == "__main__":
    main()
