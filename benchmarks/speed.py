"""Every figure of speed, memory and size that irc is judged by, beside onnxruntime and OpenVINO.

    python benchmarks/speed.py --models FOLDER [--data IRC_DATA] [--json FILE] [--write docs/performance.md]

Latencies are taken in turns (irc, onnxruntime, OpenVINO, irc, ...) in one process of its own for each model, on one
pinned core, in several rounds. A ratio is that of the medians of one round: the middle round stands in the tables,
lowest and highest beside it. Sections (--sections, by commas):

    fp32       irc, onnxruntime and OpenVINO in float32
    int8       irc and OpenVINO on the QDQ model that irc made, OpenVINO on NNCF's own; noise against float32
    batch      int8, eight images at once (models named in --batch-models)
    threads    two threads over one
    tiny       the MLPerf Tiny models of the evaluation data, float and quantized, called from Python
    footprint  memory over weights and workspace, time to the first result, bytes of the library
    compile    seconds of `irc compile`, cold and warm, with two workers
    layers     share of the machine's peak that int8 kernels reach, by multiply-adds

Quantized models and random calibration data stay in --work and are used again. Timed processes are started through
--prefix (for example `chrt -f 10 taskset -c 1`), so that other work can be kept off their core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import Task, data_dir, machine, models, save_npz
from compile_time import compile_once
from prepare import FEEDS, Workshop, ports, run
from speed_report import document

TINY = ("ic", "kws", "vww", "ad")
MARGIN_DB = 1.0
"""Noise that irc's int8 outputs may have beyond the fastest peer's; beyond it a row does not count."""


class Speed:
    def __init__(self, options: argparse.Namespace, shop: Workshop) -> None:
        self.options, self.shop = options, shop
        self.models = models(options.models) if options.models else []

    def latency(self, feeds: Path, runtimes: Mapping[str, Any], reference: Path | None, **more: Any) -> dict[str, Any]:
        job = {
            "kind": "latency",
            "feeds": str(feeds),
            "runtimes": runtimes,
            "seconds": self.options.seconds,
            "rounds": self.options.rounds,
            "reference": {"runtime": "onnxruntime", "path": str(reference)} if reference else None,
        }
        prefix = self.options.prefix if more.get("pin", True) else self.options.prefix_threads
        return self.shop.measure(job | more, prefix)

    def fp32(self) -> list[dict[str, Any]]:
        rows = []
        for model in self.models:
            artifact = self.shop.compiled(model, f"{model.stem}_fp32", "--passes", "none")
            runtimes = {"irc": irc(artifact), "onnxruntime": ort(model), "OpenVINO": openvino(model)}
            found = self.latency(self.shop.feeds(model.stem, ports(model)), runtimes, model)
            rows.append({"model": model.stem, **against_best(found)})
        return rows

    def int8(self) -> list[dict[str, Any]]:
        """The models, and of the evaluation data one with a signal (its row is for the noise, not for the mean)."""
        rows = [self._int8_row(model, self.shop.feeds(model.stem, ports(model))) for model in self.models]
        signal = self._with_signal()
        if signal is not None:
            rows.append({**self._int8_row(*signal), "extra": True})
        return rows

    def _int8_row(self, model: Path, feeds: Path) -> dict[str, Any]:
        qdq = self.shop.quantized(model)
        artifact = self.shop.compiled(qdq, f"{model.stem}_int8", "--passes", "none")
        runtimes = {"irc": irc(artifact), "onnxruntime": ort(qdq)}
        for name, path in (("irc's QDQ", qdq), ("NNCF", self.shop.nncf_model(model))):
            runtimes |= {f"OpenVINO {name} f32": openvino(path), f"OpenVINO {name}": openvino(path, None)}
        return {"model": model.stem, **accepted(against_best(self.latency(feeds, runtimes, model)))}

    def _with_signal(self) -> tuple[Path, Path] | None:
        if not self.options.data:
            return None
        task = Task.load("imagenet")
        calibration = self.shop.folder / "calibration" / f"{task.model.stem}.npz"
        if not calibration.is_file():
            save_npz(calibration, {task.input: task.calibration[:64]})
        feeds = self.shop.keep_feeds(task.model.stem, {task.input: task.x[: 4 * FEEDS, None]})
        return task.model, feeds

    def batch(self) -> list[dict[str, Any]]:
        rows = []
        for model in self._named(self.options.batch_models):
            # The file says how many images it takes; irc compiles, and OpenVINO reshapes, for eight.
            inputs = ports(model)
            shapes = {p.name: (8, *p.shape[1:]) for p in inputs}
            qdq = self.shop.quantized(model)
            more = [x for name, shape in shapes.items() for x in ("--shape", f"{name}={'x'.join(map(str, shape))}")]
            wide = free_batch(qdq, self.shop.folder / f"{model.stem}_batch.onnx")
            artifact = self.shop.compiled(wide, f"{model.stem}_int8_b8", "--passes", "none", *more)
            eight = [SimpleNamespace(**(vars(p) | {"shape": shapes[p.name]})) for p in inputs]
            runtimes = {"irc": irc(artifact), "onnxruntime": ort(wide)}
            for name, path in (("irc's QDQ", wide), ("NNCF", self.shop.nncf_model(model))):
                runtimes |= {f"OpenVINO {name} f32": openvino(path), f"OpenVINO {name}": openvino(path, None)}
            feeds = self.shop.feeds(f"{model.stem}_b8", eight)  # type: ignore[arg-type]  # looks like ports
            rows.append({"model": model.stem, **against_best(self.latency(feeds, runtimes, None))})
        return rows

    def threads(self) -> list[dict[str, Any]]:
        """Time on one thread over that on two, in one process that may use all cores."""
        rows = []
        for model in self.models:
            for kind in ("fp32", "int8"):
                artifact = self._artifact(model, kind)
                runtimes = {"irc": irc(artifact, 2), "one thread": irc(artifact)}
                if kind == "fp32":
                    runtimes["OpenVINO"] = openvino(model, threads=2)
                found = self.latency(self.shop.feeds(model.stem, ports(model)), runtimes, None, pin=False)
                middle, low, high = (round(1 / v, 3) for v in found["irc/one thread"])
                rows.append({"model": model.stem, "kind": kind, "ms": found["ms"], "speedup": [middle, high, low]})
        return rows

    def _artifact(self, model: Path, kind: str) -> Path:
        """What `fp32` or `int8` compiled, or the same now."""
        path = self.shop.folder / f"{model.stem}_{kind}"
        if path.is_dir():
            return path
        source = model if kind == "fp32" else self.shop.quantized(model)
        return self.shop.compiled(source, path.name, "--passes", "none")

    def tiny(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        if not self.options.data:
            return rows
        tasks = Task.load("ic").module.TASKS
        for name in self.options.tiny:
            for kind, file in zip(("fp32", "int8"), tasks[name], strict=False):
                model = data_dir() / "models" / file
                artifact = self.shop.compiled(model, f"tiny_{name}_{kind}", "--passes", "none")
                runtimes = {
                    "irc": irc(artifact),
                    "onnxruntime": ort(model),
                    "OpenVINO f32": openvino(model),
                    "OpenVINO": openvino(model, None),
                }
                if kind == "fp32":
                    del runtimes["OpenVINO"]  # its default is not float32 on every machine
                feeds = self.shop.feeds(f"tiny_{name}_{kind}", ports(model))
                rows.append({"model": name, "kind": kind, **against_best(self.latency(feeds, runtimes, None))})
        return rows

    def footprint(self) -> list[dict[str, Any]]:
        rows = []
        for model in self.models:
            for kind in ("fp32", "int8"):
                artifact = self._artifact(model, kind)
                job = {
                    "kind": "footprint",
                    "path": str(artifact),
                    "feeds": str(self.shop.feeds(model.stem, ports(model))),
                }
                found = [self.shop.measure(job, self.options.prefix) for _ in range(3)]
                manifest = json.loads((artifact / "manifest.json").read_text())
                sizes = {k: manifest["interface"][k] for k in ("weights_bytes", "workspace_bytes")}
                files = {Path(k).suffix[1:]: v["bytes"] for k, v in manifest["files"].items() if k.startswith("lib/")}
                middle = {key: statistics.median(f[key] for f in found) for key in found[0]}
                over = middle["growth_bytes"] - sum(sizes.values())
                library = {"archive_bytes": files.get("a"), "library_bytes": files.get("so")}
                rows.append({"model": model.stem, "kind": kind, **middle, **sizes, **library, "over_bytes": int(over)})
        return rows

    def compile(self) -> list[dict[str, Any]]:
        """With caches of its own; "quantized" compiles the QDQ model, "calibrated" makes it from the float model."""
        rows = []
        for model in self._named(self.options.compile_models):
            calibration = ["--calibration", str(self.shop.calibration(model)), "--passes", self.options.passes]
            for kind, source, more in (
                ("quantized", self.shop.quantized(model), ["--passes", "none"]),
                ("calibrated", model, calibration),
            ):
                if kind not in self.options.compile_kinds:
                    continue
                with tempfile.TemporaryDirectory(prefix="irc-speed-") as folder:
                    environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
                    command = [*self.options.prefix_threads.split(), sys.executable, "-m", "irc.cli.main", "compile"]
                    command += [str(source), "-o", f"{folder}/out", "--jobs", "2", "--target", "native", *more]
                    cold, cold_peak = compile_once(command, environment)
                    warm = [compile_once(command, environment)[0] for _ in range(3)]
                row = {"cold_s": round(cold, 2), "warm_s": round(statistics.median(warm), 2), "peak_bytes": cold_peak}
                rows.append({"model": model.stem, "kind": kind, **row})
        return rows

    def layers(self) -> list[dict[str, Any]]:
        rows = []
        for model in self._named(self.options.compile_models):
            command = [
                sys.executable,
                "-m",
                "irc.cli.main",
                "bench",
                "--layers",
                "--json",
                str(self.shop.quantized(model)),
            ]
            run(command)  # compiles
            found = json.loads(run([*self.options.prefix.split(), *command]))
            rows.append({"model": model.stem, **{k: v for k, v in found.items() if k != "layers"}})
        return rows

    def _named(self, names: list[str]) -> list[Path]:
        return [m for m in self.models if m.stem in names]


def irc(path: Path, threads: int = 1) -> dict[str, Any]:
    return {"runtime": "irc", "path": str(path), "threads": threads}


def ort(path: Path) -> dict[str, Any]:
    return {"runtime": "onnxruntime", "path": str(path)}


def openvino(path: Path, hint: str | None = "f32", threads: int = 1) -> dict[str, Any]:
    return {"runtime": "openvino", "path": str(path), "hint": hint, "threads": threads}


def against_best(found: dict[str, Any]) -> dict[str, Any]:
    """Adds the fastest peer, and irc's time over its."""
    peers = {name: ms for name, ms in found["ms"].items() if name != "irc"}
    best = min(peers, key=lambda name: peers[name])
    return found | {"best": best, "ratio": found[f"irc/{best}"]}


def accepted(row: dict[str, Any]) -> dict[str, Any]:
    """Whether irc's int8 outputs are as near to float32 as the fastest peer's (None: no signal to compare)."""
    ours, theirs = row["db"]["irc"], row["db"][row["best"]]
    return row | {"counts": None if ours is None else ours >= theirs - MARGIN_DB}


def free_batch(model: Path, path: Path) -> Path:
    """A copy of `model` whose first dimensions are open, also where a Reshape repeats the one that was."""
    import onnx
    from onnx import numpy_helper

    loaded = onnx.load(model)
    graph = loaded.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for weight in graph.initializer:
        if weight.name in targets:
            shape = numpy_helper.to_array(weight).copy()
            if shape.size > 1 and shape[0] == 1 and -1 not in shape:
                shape[0] = -1
                weight.CopyFrom(numpy_helper.from_array(shape, weight.name))
    del graph.value_info[:]
    onnx.save(loaded, path)
    return path


SECTIONS: dict[str, Callable[[Speed], list[dict[str, Any]]]] = {
    "fp32": Speed.fp32,
    "int8": Speed.int8,
    "batch": Speed.batch,
    "threads": Speed.threads,
    "tiny": Speed.tiny,
    "footprint": Speed.footprint,
    "compile": Speed.compile,
    "layers": Speed.layers,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help=".onnx files or folders of them, float32")
    parser.add_argument("--data", type=Path, help="folder of evaluation data (MLPerf Tiny, and images for the noise)")
    parser.add_argument("--sections", default=list(SECTIONS), type=lambda s: s.split(","))
    parser.add_argument("--tiny", default=list(TINY), type=lambda s: s.split(","), help="tasks of section tiny")
    parser.add_argument("--batch-models", default=["resnet50"], type=lambda s: s.split(","))
    parser.add_argument("--compile-models", default=["resnet50"], type=lambda s: s.split(","))
    parser.add_argument("--compile-kinds", default=["quantized", "calibrated"], type=lambda s: s.split(","))
    parser.add_argument("--calibration", type=Path, help="folder of MODEL.npz (default: random samples)")
    parser.add_argument("--nncf", type=Path, help="folder of MODEL.xml that NNCF made already")
    parser.add_argument("--passes", default="speed", help="pipeline that quantizes (default: speed)")
    parser.add_argument("--work", type=Path, help="folder for models and artifacts (default: a temporary one)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each runtime and model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=0, help="kernel compilers while preparing")
    parser.add_argument("--prefix", default="", help="starts the timed processes")
    parser.add_argument("--prefix-threads", default="", help="starts those that use several cores")
    parser.add_argument("--json", type=Path, help="write everything here; sections of an older file stay")
    parser.add_argument("--write", type=Path, help="write the tables as a page")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown sections {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return options


def main() -> None:
    options = arguments()
    if options.data:
        os.environ["IRC_DATA"] = str(options.data)
    results: dict[str, Any] = {}
    if options.json and options.json.is_file():
        results = json.loads(options.json.read_text())["results"]
    with tempfile.TemporaryDirectory(prefix="irc-speed-") as scratch:
        folder = (options.work or Path(scratch)).resolve()
        shop = Workshop(
            folder, passes=options.passes, calibration=options.calibration, nncf=options.nncf, jobs=options.jobs
        )
        speed = Speed(options, shop)
        for section in options.sections:
            print(f"{section} ...", file=sys.stderr, flush=True)
            results[section] = SECTIONS[section](speed)
            if options.json:
                options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    text = document(results, machine())
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
