"""What each preset does to six real models: accuracy, agreement, bytes of weights, multiply-adds, latency.

    python benchmarks/presets.py [--tasks ic,kws] [--presets none,fast,small] [--limit N] [--json FILE]
                                 [--write docs/presets.md]

Models, samples and splits are those of the evaluation data (IRC_DATA). Calibration uses its calibration split alone,
scores its evaluation split alone. Every number is of the compiled library on this machine, except the first row of
each task, which is the original model in onnxruntime. Latency: one thread, one pinned core, in turns with
onnxruntime on the original model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Array, Task, machine, pin, table
from latency import ratios
from peers import peer_run

import irc
from irc.pipeline.presets import PRESETS, SUMMARIES

BUSY = (
    " **The machine was busy with other work meanwhile: scores stand, but times are too long, and ratios of large "
    "models, which want the shared caches, are not to be trusted.**"
)
TASKS = ("ic", "kws", "vww", "cifar", "imagenet", "ad")


def outputs(run: Callable[[Array], Any], x: Array) -> Array:
    """The outputs of all samples, fed one at a time, [N, ...]."""
    return np.concatenate([np.asarray(run(x[i : i + 1])).reshape(1, -1) for i in range(len(x))])


def reference(task: Task) -> Callable[[Array], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(task.model), options, providers=["CPUExecutionProvider"])
    return lambda sample: np.asarray(session.run(None, {task.input: sample})[0])


def agreement(task: Task, ours: Array, original: Array) -> float:
    """Share of equal top-1 in per cent; for reconstructions the correlation of the errors of all windows."""
    if task.metric == "top1":
        return 100 * float((ours.argmax(1) == original.argmax(1)).mean())
    errors = [((out - task.x) ** 2).mean(1) for out in (ours, original)]
    return 100 * float(np.corrcoef(errors)[0, 1])


def shorten(task: Task, limit: int) -> Task:
    """The first `limit` labelled samples. For trying this script out."""
    if not limit or limit >= len(task.y):
        return task
    each = len(task.x) // len(task.y)
    fields = task.__dict__ | {"x": task.x[: limit * each], "y": task.y[:limit]}
    return Task(**fields)


def one(task: Task, preset: str, original: Array, folder: Path) -> dict[str, Any]:
    """Compile with one preset, score the library. Latency comes later, on the pinned core."""
    output = folder / f"{task.name}-{preset}"
    calibration = task.save_calibration(folder / f"{task.name}.npz")
    irc.compile(task.model, output=output, passes=preset, calibration=None if preset == "none" else calibration)
    manifest = json.loads((output / "manifest.json").read_text())
    network = irc.load(output)
    ours = outputs(network, task.x)
    return {
        "task": task.name,
        "preset": preset,
        "score": task.score(ours),
        "agreement": agreement(task, ours, original),
        "weights": irc_weights(manifest),
        "macs": manifest["after"]["macs"],
        "pipeline": manifest["pipeline"],
        "network": network,
    }


def irc_weights(manifest: dict[str, Any]) -> int:
    """Bytes of constant data in the library."""
    return int(manifest["interface"]["weights_bytes"])


def measure_latency(task: Task, rows: list[dict[str, Any]], seconds: float) -> None:
    feed = {task.input: task.x[:1]}
    for row in rows:
        runs: dict[str, Callable[[], object]] = {
            "irc": partial(row.pop("network").run, feed),
            "onnxruntime": peer_run("onnxruntime", task.model, feed),
        }
        found = ratios(runs, seconds, 3)
        row["ms"], row["onnxruntime_ms"] = found["ms"]["irc"], found["ms"]["onnxruntime"]
        row["ratio"] = found["irc/onnxruntime"]


def original_row(task: Task, original: Array) -> dict[str, Any]:
    from irc.evaluation.cost import costs
    from irc.frontend import load_model
    from irc.frontend.bind import default_batch

    model = load_model(task.model)
    default_batch(model)
    found = costs(model)
    return {"task": task.name, "preset": "", "score": task.score(original), "weights": found.bytes, "macs": found.macs}


def task_table(rows: list[dict[str, Any]]) -> str:
    first, *rest = rows
    auc = first["task"] == "ad"
    header = ["", "AUC" if auc else "top-1 %", "drop", "correlation %" if auc else "agreement %"]
    header += ["weights kB", "MACs M", "ms", "of onnxruntime fp32"]

    def score(value: float) -> str:
        return f"{value / 100:.4f}" if auc else f"{value:.2f}"

    ms = rest[0]["onnxruntime_ms"] if rest else 0.0
    size, macs = f"{first['weights'] / 1e3:.0f}", f"{first['macs'] / 1e6:.2f}"
    lines = [["onnxruntime, original", score(first["score"]), "", "", size, macs, f"{ms:.3f}", "1.00"]]
    for row in rest:
        middle, low, high = row["ratio"]
        line = [
            f"irc, {row['preset']}",
            score(row["score"]),
            score(first["score"] - row["score"]),
            f"{row['agreement']:.2f}",
            f"{row['weights'] / 1e3:.0f}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['ms']:.3f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
        ]
        lines.append(line)
    return table(header, lines)


def summary(rows: list[dict[str, Any]], presets: list[str]) -> str:
    """Means over the classification tasks: single tasks are noisy (one of 300 images is a third of a point)."""
    lines = []
    for preset in presets:
        of_preset = [r for r in rows if r["preset"] == preset and r["task"] != "ad"]
        if not of_preset:
            continue
        originals = {r["task"]: r for r in rows if not r["preset"]}
        drops = [originals[r["task"]]["score"] - r["score"] for r in of_preset]
        sizes = [originals[r["task"]]["weights"] / r["weights"] for r in of_preset]
        line = [
            preset,
            f"{statistics.mean(drops):.2f}",
            f"{statistics.mean(r['agreement'] for r in of_preset):.2f}",
            f"{statistics.geometric_mean(sizes):.2f}",
            f"{statistics.geometric_mean(r['ratio'][0] for r in of_preset):.2f}",
        ]
        lines.append(line)
    return table(
        ["preset", "mean drop, points", "agreement %", "weights smaller by", "time of onnxruntime fp32"], lines
    )


def document(rows: list[dict[str, Any]], presets: list[str]) -> str:
    """docs/presets.md."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    pipelines = {row["preset"]: PRESETS.get(row["preset"], row["preset"]) for row in rows if row["preset"]}
    busy = os.getloadavg()[0] > 2  # this script itself, and a little
    parts = [
        "# What the presets do",
        "Made by `python benchmarks/presets.py --write docs/presets.md` from the compiled libraries, on "
        + ", ".join(f"{k} {v}" if k != "cpu" else v for k, v in machine().items())
        + ", one thread. Drops are in points (hundredths for the AUC). Times are medians in turns with onnxruntime; "
        "the last column is the ratio of the middle round and the range over rounds." + (BUSY if busy else ""),
        "\n".join(f"- `{p}`: {SUMMARIES.get(p, '')}. `{text}`" for p, text in pipelines.items()),
        "## Mean over the classification tasks",
        summary(rows, presets),
    ]
    for task in tasks:
        parts += [f"## {task}", task_table([r for r in rows if r["task"] == task])]
    return "\n\n".join(parts) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), type=lambda s: s.split(","))
    parser.add_argument("--presets", default="none,fast,small", type=lambda s: s.split(","))
    parser.add_argument("--limit", type=int, default=0, help="score so many samples only, to try this script out")
    parser.add_argument("--seconds", type=float, default=3.0, help="of latency, for each library")
    parser.add_argument("--core", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, help=f"write the page here ({ROOT.name}/docs/presets.md)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    rows: list[dict[str, Any]] = []
    measured: list[tuple[Task, list[dict[str, Any]]]] = []
    with tempfile.TemporaryDirectory(prefix="irc-presets-") as folder:
        for name in options.tasks:
            task = shorten(Task.load(name), options.limit)
            original = outputs(reference(task), task.x)
            found = [one(task, preset, original, Path(folder)) for preset in options.presets]
            rows += [original_row(task, original), *found]
            measured.append((task, found))
        pin(options.core)  # only now: the compile workers would inherit it
        for task, found in measured:
            measure_latency(task, found, options.seconds)
    text = document(rows, options.presets)
    print(text)
    if options.write:
        options.write.write_text(text)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
