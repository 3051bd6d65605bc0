"""What compression costs in accuracy and saves in bytes, on real networks: every figure of a compiled library.

    python benchmarks/compression.py [--rows size,w8a8] [--tasks ic,kws] [--data DIR] [--zoo DIR] [--limit N]
                                     [--json FILE] [--write docs/compression.md]

Models, samples and splits are those of the evaluation data (--data or IRC_DATA). Calibration uses its calibration split
alone, scores its evaluation split alone. Scores are of libraries compiled for this machine; the reference is the
original model in onnxruntime. Rows that need networks of the zoo (random weights, for bytes and time) are left out
where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import compression_memory
import instructions
import numpy as np
import svd
from common import ROOT, Array, Task, machine, table

import irc
from irc.driver.compilation import Compilation
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.frontend import load_model
from irc.targets.catalogue import get_target

CLASSIFIERS = ("ic", "kws", "vww", "cifar", "imagenet")
Weights = Literal["plain", "coded"]


@dataclass(frozen=True)
class Result:
    """One network compressed in one way. Scores in per cent, drops in points, bytes of the weights in the library."""

    task: str
    passes: str
    weights: Weights
    score: float
    drop: float
    agreement: float
    original_bytes: int
    bytes: int
    macs: int
    original_macs: int
    estimate: float | None
    seconds: float
    entropy_bytes: int

    @property
    def smaller(self) -> float:
        return self.original_bytes / self.bytes


class Subject:
    """One task: its original in onnxruntime, and what was measured of its compressed forms."""

    def __init__(self, name: str, bench: Bench) -> None:
        self.task = shorten(Task.load(name), bench.options.limit)
        self.bench = bench
        self.known: dict[tuple[str, str], Result] = {}

    @cached_property
    def original(self) -> Array:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(str(self.task.model), options, providers=["CPUExecutionProvider"])
        return outputs(lambda sample: session.run(None, {self.task.input: sample})[0], self.task.x)

    @cached_property
    def costs(self) -> tuple[int, int]:
        """Bytes of weights and multiply-adds of the original."""
        from irc.evaluation.cost import costs
        from irc.frontend import load_model
        from irc.frontend.bind import default_batch

        model = load_model(self.task.model)
        default_batch(model)
        found = costs(model)
        return found.bytes, found.macs or 0

    def measure(self, passes: str, weights: Weights = "plain") -> Result:
        """Compile with `passes` and score the library."""
        if (passes, weights) not in self.known:
            self.known[passes, weights] = self._measure(passes, weights)
        return self.known[passes, weights]

    def _measure(self, passes: str, weights: Weights) -> Result:
        folder = self.bench.folder / f"{self.task.name}-{len(self.known)}"
        calibration = self.task.save_calibration(self.bench.folder / f"{self.task.name}.npz")
        options = CompileOptions(
            self.task.model,
            get_target("native"),
            output=folder,
            passes=passes,
            calibration=calibration,
            weights=weights,
            emit=frozenset(("shared",)),
            cache_dir=self.bench.options.cache_dir,
        )
        start = time.perf_counter()
        done = compile_model(options)
        seconds = time.perf_counter() - start
        manifest = done.manifest
        assert manifest is not None
        ours = outputs(irc.load(folder), self.task.x)
        score = self.task.score(ours)
        result = Result(
            task=self.task.name,
            passes=passes,
            weights=weights,
            score=score,
            drop=self.task.score(self.original) - score,
            agreement=100 * float((ours.argmax(1) == self.original.argmax(1)).mean()),
            original_bytes=self.costs[0],
            bytes=stored_bytes(done),
            macs=manifest["after"]["macs"],
            original_macs=self.costs[1],
            estimate=estimated_drop(manifest),
            seconds=seconds,
            entropy_bytes=manifest["storage"]["entropy_bytes"],
        )
        print(
            f"  {self.task.name:8} {passes} ({weights}): drop {result.drop:.2f}, agreement {result.agreement:.2f} %, "
            f"{result.smaller:.2f} times smaller, {result.seconds:.0f} s",
            flush=True,
        )
        return result


def outputs(run: Callable[[Array], Any], x: Array) -> Array:
    """The outputs of all samples, fed one at a time, [N, ...]."""
    return np.concatenate([np.asarray(run(x[i : i + 1])).reshape(1, -1) for i in range(len(x))])


def shorten(task: Task, limit: int) -> Task:
    """The first `limit` labelled samples. For trying this script out."""
    if not limit or limit >= len(task.y):
        return task
    each = len(task.x) // len(task.y)
    return Task(**(task.__dict__ | {"x": task.x[: limit * each], "y": task.y[:limit]}))


def stored_bytes(done: Compilation) -> int:
    """Bytes of the weights section of the library: everything that the network needs besides code."""
    program = done.program
    assert program is not None
    return program.weights_bytes if program.coded is None else len(program.coded.data)


def estimated_drop(manifest: dict[str, Any]) -> float | None:
    """What the pass expected, where it did."""
    found = [p["statistics"]["estimate"]["drop"] for p in manifest["passes"] if "estimate" in p["statistics"]]
    return float(found[-1]) if found else None


class Bench:
    """What the rows share: options, a folder, and the tasks, each loaded once."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.subjects: dict[str, Subject] = {}

    def subject(self, name: str) -> Subject:
        if name not in self.subjects:
            self.subjects[name] = Subject(name, self)
        return self.subjects[name]

    def classifiers(self, passes: str, weights: Weights = "plain") -> list[Result]:
        """The same compression of all classification tasks that were asked for."""
        names = [n for n in CLASSIFIERS if n in self.options.tasks]
        return [self.subject(name).measure(passes, weights) for name in names]


@dataclass(frozen=True)
class Section:
    """What a row found: a paragraph, a table, and the figures for --json."""

    title: str
    text: str
    table: str
    figures: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        return "\n\n".join(part for part in (f"## {self.title}", self.text, self.table) if part)


def accuracy_table(results: list[Result]) -> tuple[str, dict[str, Any]]:
    """A line for each task, and means (drop, agreement) and geometric means (bytes)."""
    header = ["task", "top-1 %", "drop", "expected", "agreement %", "weights, bytes", "of float32", "times smaller"]
    lines: list[list[object]] = []
    for r in results:
        expected = "" if r.estimate is None else f"{r.estimate:.2f}"
        line = [r.task, f"{r.score:.2f}", f"{r.drop:.2f}", expected, f"{r.agreement:.2f}", r.bytes, r.original_bytes]
        lines.append([*line, f"{r.smaller:.2f}"])
    means = {
        "mean_drop": statistics.mean(r.drop for r in results),
        "worst_drop": max(r.drop for r in results),
        "mean_agreement": statistics.mean(r.agreement for r in results),
        "times_smaller": statistics.geometric_mean(r.smaller for r in results),
    }
    last = ["mean", "", f"{means['mean_drop']:.2f}", "", f"{means['mean_agreement']:.2f}", "", ""]
    lines.append([*last, f"{means['times_smaller']:.2f}"])
    return table(header, lines), means | {"results": [asdict(r) for r in results]}


def over_tasks(bench: Bench, title: str, text: str, passes: str, weights: Weights = "plain") -> Section:
    found, figures = accuracy_table(bench.classifiers(passes, weights))
    return Section(title, f"`{passes}`, weights {weights}. {text}".rstrip(), found, figures)


def w8a8(bench: Bench) -> Section:
    return over_tasks(bench, "8-bit weights and activations (preset speed)", "", "speed")


def w4a8(bench: Bench) -> Section:
    return over_tasks(bench, "4-bit weights, 8-bit activations", "All layers.", "none,quantize{weights=int4}")


def balanced(bench: Bench) -> Section:
    return over_tasks(bench, "4 or 8 bits for each layer (preset balanced)", "", "balanced")


def size(bench: Bench) -> Section:
    text = (
        "Bytes are those of the weights section of the library: coded weights, scales, biases and tables. `expected` "
        "is the drop that the pass estimated from calibration samples alone."
    )
    return over_tasks(bench, "The smallest library (preset size)", text, "size", "coded")


def pruning(bench: Bench) -> Section:
    """Elements and blocks, on the ResNet-20."""
    cases = [
        ("70 % of all weights", "none,prune{sparsity=0.7}"),
        ("50 % of all weights", "none,prune{sparsity=0.5}"),
        ("25 % in blocks of 16x4, 8 bits", "none,prune{sparsity=0.25 pattern=block block=16x4},quantize"),
        ("50 % in blocks of 4x4, 8 bits", "none,prune{sparsity=0.5 pattern=block block=4x4},quantize"),
    ]
    subject = bench.subject("cifar")
    results = [(what, subject.measure(passes)) for what, passes in cases]
    rows = [[what, f"`{r.passes}`", f"{r.drop:.2f}", f"{r.agreement:.2f}"] for what, r in results]
    text = "ResNet-20 on CIFAR-10: weights go in one shot, and the ones that stay are fitted to calibration samples."
    figures = {what: asdict(r) for what, r in results}
    return Section("Pruning", text, table(["zero", "pipeline", "drop", "agreement %"], rows), figures)


def channels(bench: Bench) -> Section:
    """Channels of the ResNet-20, with the instructions that they save."""
    subject = bench.subject("cifar")
    lines, figures = [], {}
    for whole in ("none", "none,quantize"):
        passes = whole.replace("none", "none,prune-channels{macs=0.7 round=4}")
        result = subject.measure(passes)
        before, after = (_instructions(subject, p) for p in (whole, passes))
        relative = f"{after / before:.3f}" if before and after else instructions.missing()
        left = f"{result.macs / result.original_macs:.3f}"
        lines.append([f"`{passes}`", f"{result.drop:.2f}", f"{result.agreement:.2f}", left, relative])
        figures[passes] = asdict(result) | {"arm_instructions": after, "arm_instructions_of_whole": before}
    header = ["pipeline", "drop", "agreement %", "multiply-adds", "instructions on arm"]
    text = (
        "ResNet-20 on CIFAR-10. Instructions: those of one run as qemu counts them, over those of the same pipeline "
        "without pruning. `round=4` makes the same network for this machine and for Arm."
    )
    return Section("Channels", text, table(header, lines), figures)


def _instructions(subject: Subject, passes: str) -> float | None:
    if instructions.missing():
        return None
    folder = subject.bench.folder / f"arm-{len(list(subject.bench.folder.iterdir()))}"
    options = CompileOptions(
        subject.task.model,
        get_target("arm"),
        output=folder,
        passes=passes,
        calibration=subject.task.save_calibration(subject.bench.folder / f"{subject.task.name}.npz"),
        verify=False,
        cache_dir=subject.bench.options.cache_dir,
    )
    compile_model(options)
    return instructions.count(folder, {subject.task.input: subject.task.x[:1]}, subject.bench.folder)


def whitening(bench: Bench) -> Section:
    """Error of the layers' outputs with factors of equal rank: SVD in the metric of the inputs against plain SVD."""
    lines, figures = [], {}
    for name in ("imagenet", "cifar"):
        subject = bench.subject(name)
        ratios = svd.whitened_over_plain(subject.task)
        figures[name] = ratios
        lines.append([subject.task.model.stem, len(ratios), f"{statistics.mean(ratios.values()):.3f}"])
    every = [r for ratios in figures.values() for r in ratios.values()]
    lines.append(["all", len(every), f"{statistics.mean(every):.3f}"])
    text = (
        "Squared error of the layer's output on samples that were not calibrated on, root of the ratio, mean over all "
        "layers but depthwise ones; rank a quarter of the smaller side of the weight matrix for both."
    )
    return Section("Whitened SVD", text, table(["network", "layers", "whitened over plain"], lines), figures)


def coder(bench: Bench) -> Section:
    """Bytes of coded weights over their entropy."""
    cases = [("speed", "8 bits"), ("size", "free steps")]
    lines, figures = [], {}
    for passes, what in cases:
        for r in bench.classifiers(passes, "coded"):
            over = r.bytes / r.entropy_bytes - 1
            lines.append([r.task, what, r.bytes, r.entropy_bytes, f"{over:+.2%}"])
            figures[f"{r.task} {passes}"] = asdict(r)
    text = "Against the entropy of each constant's symbols, without tables; [coding.md](coding.md) has more."
    header = ["task", "weights", "coded bytes", "entropy", "over it"]
    return Section("Entropy coding", text, table(header, lines), figures)


def resnet50(bench: Bench) -> Section:
    """A large network with random weights: bytes of 4 bits against 8, and the time and memory of compressing it."""
    path = Path(bench.options.zoo or "") / "resnet50.onnx"
    if not path.is_file():
        return Section("ResNet-50", "Left out: there is no resnet50.onnx in --zoo.", "")
    entry = load_model(path).graph.inputs[0].name
    samples = np.random.default_rng(0).normal(size=(256, 3, 224, 224)).astype(np.float32)
    cases = {
        "8 bits": "none,quantize{rounding=nearest}",
        "4 bits": "none,quantize{weights=int4 rounding=nearest}",
        "Hessian pruning and rounding": "none,prune{sparsity=0.5},quantize",
    }
    lines, figures = [], {}
    for what, passes in cases.items():
        count = 256 if "Hessian" in what else 8
        with compression_memory.Peak() as peak:
            start = time.perf_counter()
            options = CompileOptions(
                path,
                get_target("native"),
                passes=passes,
                calibration={entry: samples[:count]},
                cache_dir=bench.options.cache_dir,
                stop_after="passes" if count > 8 else "kernels",
            )
            done = compile_model(options)
            seconds = time.perf_counter() - start
        stored = None if done.program is None else done.program.weights_bytes
        figures[what] = {"passes": passes, "bytes": stored, "seconds": seconds, "peak_bytes": peak.bytes}
        memory = f"{peak.bytes / 1e9:.1f}"
        lines.append([what, f"`{passes}`", "" if stored is None else stored, count, f"{seconds:.0f}", memory])
    header = ["", "pipeline", "weights, bytes", "samples", "s", "GB"]
    return Section("ResNet-50, random weights", "Passes alone for the last line.", table(header, lines), figures)


ROWS: dict[str, Callable[[Bench], Section]] = {
    "w8a8": w8a8,
    "w4a8": w4a8,
    "balanced": balanced,
    "size": size,
    "pruning": pruning,
    "channels": channels,
    "whitening": whitening,
    "coder": coder,
    "resnet50": resnet50,
}


def document(sections: list[Section]) -> str:
    """docs/compression.md."""
    parts = [
        "# What compression costs and saves",
        "Made by `python benchmarks/compression.py --write docs/compression.md` from compiled libraries, on "
        + ", ".join(f"{k} {v}" if k != "cpu" else v for k, v in machine().items())
        + ". Drops are in points of top-1 accuracy against the original model in onnxruntime, agreement is the share "
        "of samples with the same top-1 as the original. Nothing was trained, and no labels were used. Passes see the "
        "calibration samples alone; a few constants in them, the same for all networks, were set by people who saw "
        "figures such as these. The small sets are noisy: one of 400 samples is a quarter of a point.",
    ]
    return "\n\n".join([*parts, *(s.markdown() for s in sections)]) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", default=list(ROWS), type=lambda s: [r for r in s.split(",") if r], help=f"of {', '.join(ROWS)}"
    )
    parser.add_argument("--tasks", default=list(CLASSIFIERS), type=lambda s: s.split(","))
    parser.add_argument("--data", type=Path, help="folder of the evaluation data (default: IRC_DATA)")
    parser.add_argument("--zoo", type=Path, default=os.environ.get("IRC_ZOO"), help="folder of larger networks")
    parser.add_argument("--limit", type=int, default=0, help="score so many samples only, to try this script out")
    parser.add_argument("--cache-dir", type=Path, help="kernel cache")
    parser.add_argument("--json", type=Path, help="figures of all rows; those of earlier runs in it are kept")
    parser.add_argument("--write", type=Path, help=f"write the page here ({ROOT.name}/docs/compression.md)")
    options = parser.parse_args()
    for row in options.rows:
        if row not in ROWS:
            parser.error(f"there is no row '{row}'; there are {', '.join(ROWS)}")
    if options.data is not None:
        os.environ["IRC_DATA"] = str(options.data)
    return options


def main() -> None:
    options = arguments()
    sections = _earlier(options.json)
    with tempfile.TemporaryDirectory(prefix="irc-compression-") as folder:
        bench = Bench(options, Path(folder))
        for row in options.rows:
            print(row, flush=True)
            sections[row] = ROWS[row](bench)
            if options.json:  # after each: the whole takes long
                made = {"machine": machine(), "rows": {name: asdict(section) for name, section in sections.items()}}
                options.json.write_text(json.dumps(made, indent=1) + "\n")
    text = document([sections[row] for row in ROWS if row in sections])
    print(text)
    if options.write:
        options.write.write_text(text)


def _earlier(path: Path | None) -> dict[str, Section]:
    """The rows of an earlier run, which this one adds to."""
    if path is None or not path.is_file():
        return {}
    return {name: Section(**section) for name, section in json.loads(path.read_text())["rows"].items()}


if __name__ == "__main__":
    main()
