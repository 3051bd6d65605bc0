"""The speed benchmark's results as a page of Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common import table

Row = dict[str, Any]

HOW = """Made by `python benchmarks/speed.py --write docs/performance.md`. To repeat it:

```
pip install -e .[benchmarks]
python benchmarks/speed.py --models FOLDER_OF_ONNX --data IRC_DATA --work FOLDER --json results.json
```

How to read it

- Times are medians in milliseconds, batch 1, one thread on one pinned core unless a table says otherwise; runtimes take
  turns in one process. A ratio below 1 means that irc is faster: it is irc's median over the peer's in one round, the
  middle of all rounds with the range in brackets. Ratios repeat from day to day within a few per cent; times do not.
- A peer is always the fastest of what is measured for it: in float32 onnxruntime and OpenVINO (float32 asked for), in
  8 bits OpenVINO on the QDQ model that irc made and on NNCF's own quantization, each with float layers in float32 and
  in the precision that OpenVINO chooses, and onnxruntime on the QDQ model.
- OpenVINO's arrays are bound once and shared with it; the other runtimes get and return arrays in every call.
- Models whose weights are random have no accuracy. The noise of their 8-bit outputs is still compared, as the median
  over inputs of each output's signal to noise: a row counts only where irc is at most 1 dB noisier than the fastest
  peer. "No signal" means that the float model gives the same output whatever it sees; where the evaluation data is at
  hand, the last row of that table is a trained model on real images instead.
- Sections may have been measured one after another, on a machine with other work on its other core: what shares the
  last cache and the memory with it (large models, first results) was slower for all runtimes alike."""


def document(results: Mapping[str, list[Row]], machine: Mapping[str, str]) -> str:
    on = ", ".join(v if k == "cpu" else f"{k} {v}" for k, v in machine.items())
    parts = ["# Performance", f"{HOW}\n\nMachine and versions of the tables below: {on}."]
    for name, (title, show) in _TABLES.items():
        rows = results.get(name)
        if rows:
            parts += [f"## {title}", show(rows)]
    return "\n\n".join(parts) + "\n"


def _range(ratio: Sequence[float]) -> str:
    middle, low, high = ratio
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _mean(rows: Sequence[Row]) -> str:
    ratios = [row["ratio"][0] for row in rows]
    return f"{statistics.geometric_mean(ratios):.3f}, worst {max(ratios):.3f}" if ratios else "none"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _latency(rows: list[Row]) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row["ms"] if name != "irc"))
    body = []
    for row in rows:
        times = [_ms(row["ms"]["irc"]), *(_ms(row["ms"][p]) if p in row["ms"] else "refused" for p in peers)]
        body.append([row["model"], *times, row["best"], _range(row["ratio"])])
    text = table(["model", "irc", *peers, "fastest peer", "irc / fastest peer"], body)
    return f"{text}\n\nGeometric mean {_mean(rows)}."


def _int8(rows: list[Row]) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row["ms"] if name != "irc"))
    times, body = [], []
    for row in rows:
        db = {name: "" if value is None else f" ({value:.1f} dB)" for name, value in row["db"].items()}
        cells = [f"{_ms(row['ms'][n])}{db[n]}" if n in db else "refused" for n in ["irc", *peers]]
        times.append([row["model"], *cells])
        counts = {True: "yes", False: "no: too noisy", None: "yes (no signal)"}[row["counts"]]
        counts = "for the noise only" if row.get("extra") and row["counts"] else counts
        body.append([row["model"], row["best"], _range(row["ratio"]), counts])
    counted = [row for row in rows if row["counts"] is not False and not row.get("extra")]
    return "\n\n".join(
        [
            table(["model", "irc", *peers], times),
            table(["model", "fastest peer", "irc / fastest peer", "counts"], body),
            f"Geometric mean of {len(counted)} rows that count: {_mean(counted)}.",
        ]
    )


def _tiny(rows: list[Row]) -> str:
    parts = []
    for kind in ("fp32", "int8"):
        some = [row for row in rows if row["kind"] == kind]
        if some:
            parts.append(f"{'float32' if kind == 'fp32' else '8 bits'}:\n\n{_latency(some)}")
    return "\n\n".join(parts)


def _threads(rows: list[Row]) -> str:
    body = []
    for row in rows:
        peer = _ms(row["ms"]["OpenVINO"]) if "OpenVINO" in row["ms"] else ""
        times = [_ms(row["ms"]["one thread"]), _ms(row["ms"]["irc"]), peer]
        body.append([row["model"], row["kind"], *times, _range(row["speedup"])])
    return table(["model", "kind", "irc, one", "irc, two", "OpenVINO, two", "one / two"], body)


def _mega(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value / 1e6:.{digits}f}"


def _footprint(rows: list[Row]) -> str:
    sizes = ("library_bytes", "archive_bytes", "weights_bytes", "workspace_bytes", "growth_bytes", "over_bytes")
    body = [
        [row["model"], row["kind"], *(_mega(row[s]) for s in sizes), f"{row['open_ms']:.2f}", f"{row['start_ms']:.2f}"]
        for row in rows
    ]
    header = ["model", "kind", "library", "archive", "weights", "workspace", "resident", "over both"]
    note = (
        "Megabytes and milliseconds. Resident: what the process grows by from before the library is opened until the "
        "first result is there. To the first result: from before opening, less one inference when everything is warm."
    )
    return f"{table([*header, 'open ms', 'to first result ms'], body)}\n\n{note}"


def _compile(rows: list[Row]) -> str:
    body = [
        [r["model"], r["kind"], f"{r['cold_s']:.1f}", f"{r['warm_s']:.2f}", _mega(r["peak_bytes"], 0)] for r in rows
    ]
    note = (
        "Seconds of `irc compile --jobs 2`, verification included; cold: empty kernel cache. Quantized: the QDQ model. "
        "Calibrated: from the float model and 16 samples. Memory: peak of the compiler and its workers, cold."
    )
    return f"{table(['model', 'from', 'cold s', 'warm s', 'peak MB'], body)}\n\n{note}"


def _layers(rows: list[Row]) -> str:
    body = [
        [r["model"], f"{r['peak']['int8']:.0f}", f"{r['peak']['float32']:.0f}", f"{100 * r['weighted_fraction']:.1f}"]
        for r in rows
    ]
    note = "By `irc bench --layers`. Peaks in GOP/s are measured, by kernels that multiply and add in registers alone."
    return f"{table(['model', 'int8 peak', 'float32 peak', 'reached, %, by multiply-adds'], body)}\n\n{note}"


_TABLES: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "fp32": ("float32", _latency),
    "int8": ("8 bits", _int8),
    "batch": ("8 bits, batch 8", _latency),
    "threads": ("Two threads", _threads),
    "tiny": ("MLPerf Tiny, called from Python", _tiny),
    "footprint": ("Memory, size and start", _footprint),
    "compile": ("Compile time", _compile),
    "layers": ("Share of the machine's peak", _layers),
}
