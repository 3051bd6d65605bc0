"""Latency of irc beside its peers: one process, one pinned core, one thread, runs interleaved.

    python benchmarks/latency.py FOLDER_OR_MODEL... [--against onnxruntime,openvino] [--int8] [--json FILE]

For every model all runtimes take turns (a b c a b c ...) in several rounds, so that clock drift and other load hit
all alike. A ratio is that of the medians of one round; the table shows the middle round and the range over all.
Absolute times drift from day to day and machine to machine; ratios taken this way repeat.

With --int8 the model is quantized by irc (calibrated on random samples unless --calibration FOLDER holds
MODEL.npz); irc compiles the result, and the peers run the same QDQ model. With --nncf FOLDER there is one more peer:
OpenVINO on what NNCF made of the model (`nncf_models.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Array, machine, models, pin, save_npz, table
from peers import peer_run

import irc
from irc.evaluation.latency import measure


def random_feed(model: Path, seed: int = 0) -> dict[str, Array]:
    """One feed of random values that suit the model's inputs (symbolic first dimensions become 1)."""
    from irc.evaluation.scoring import random_feeds
    from irc.frontend import load_model
    from irc.frontend.bind import default_batch, require_static

    loaded = load_model(model)
    default_batch(loaded)
    require_static(loaded)
    types = {v.name: (v.tensor.dtype.numpy, v.static_shape()) for v in loaded.graph.inputs}
    return random_feeds(types, 1, seed)[0]


def calibration_file(model: Path, folder: Path | None, scratch: Path, samples: int = 16) -> Path:
    """FOLDER/MODEL.npz, or random samples."""
    if folder is not None and (folder / f"{model.stem}.npz").is_file():
        return folder / f"{model.stem}.npz"
    feeds = [random_feed(model, seed) for seed in range(samples)]
    path = scratch / f"{model.stem}_calibration.npz"
    return save_npz(path, {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})


def compiled(model: Path, scratch: Path, arguments: argparse.Namespace) -> tuple[Any, Path]:
    """The network in this process, and the ONNX model that the peers run."""
    output = scratch / f"{model.stem}-irc"
    if arguments.int8:
        calibration = calibration_file(model, arguments.calibration, scratch)
        irc.compile(model, output=output, passes=arguments.passes or "speed", calibration=calibration)
        return irc.load(output), next(output.glob("*.onnx"))
    irc.compile(model, output=output, passes=arguments.passes or "none")
    return irc.load(output), model


def ratios(runners: Mapping[str, Callable[[], object]], seconds: float, rounds: int) -> dict[str, Any]:
    """Median time of each runner and, for every peer, irc's time over its: middle, lowest and highest round."""
    medians: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for found in measure(runners, seconds=seconds / rounds):
            medians[found.name].append(found.median)
    result: dict[str, Any] = {"ms": {name: round(statistics.median(ms), 4) for name, ms in medians.items()}}
    for name in runners:
        if name == "irc":
            continue
        each = sorted(a / b for a, b in zip(medians["irc"], medians[name], strict=True))
        result[f"irc/{name}"] = [round(v, 3) for v in (statistics.median(each), each[0], each[-1])]
    return result


def signal_to_noise(ours: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Decibels of the first output against the reference. Infinite where they are equal."""
    a, b = (np.asarray(next(iter(outputs.values())), np.float64).reshape(-1) for outputs in (ours, reference))
    noise = float(((a - b) ** 2).sum())
    return float("inf") if noise == 0 else round(10 * float(np.log10(float((b**2).sum()) / noise)), 1)


def compare(model: Path, network: Any, peer_model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    feed = random_feed(model)
    runs: dict[str, Callable[[], Mapping[str, Array]]] = {"irc": lambda: dict(network.run(feed))}
    for peer in arguments.against:
        runs[peer] = peer_run(peer, peer_model, feed)
    if arguments.nncf is not None:
        runs["nncf"] = peer_run("openvino", arguments.nncf / f"{model.stem}.xml", feed)
    reference = peer_run("onnxruntime", model, feed)()
    found = ratios(runs, arguments.seconds, arguments.rounds)
    found["db"] = {name: signal_to_noise(run(), reference) for name, run in runs.items()}
    return {"model": model.stem, "int8": arguments.int8, **found}


def show(results: list[dict[str, Any]], peers: list[str]) -> str:
    rows = []
    for found in results:
        row = [found["model"], f"{found['ms']['irc']:.2f}"]
        for peer in peers:
            middle, low, high = found[f"irc/{peer}"]
            row += [f"{found['ms'][peer]:.2f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        rows.append([*row, *(str(db) for db in found["db"].values())])
    header = ["model", "irc ms"]
    for peer in peers:
        header += [f"{peer} ms", f"irc / {peer}"]
    return table([*header, *(f"{name} dB" for name in ["irc", *peers])], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=".onnx files or folders of them")
    parser.add_argument("--against", default="onnxruntime", type=lambda s: s.split(","), help="peers, by commas")
    parser.add_argument("--int8", action="store_true", help="quantize with irc, and give the peers the same model")
    parser.add_argument("--passes", default="", help="pipeline text (default: none; with --int8: speed)")
    parser.add_argument("--calibration", type=Path, help="folder of MODEL.npz for --int8")
    parser.add_argument("--nncf", type=Path, help="folder of MODEL.xml made by nncf_models.py")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each runtime and model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, help="the core to run on (default: the last)")
    parser.add_argument("--json", type=Path, help="write everything here as well")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="irc-latency-") as folder:
        scratch = Path(folder)
        built = [(model, *compiled(model, scratch, options)) for model in models(options.models)]
        core = pin(options.core)
        results = [compare(model, network, peer_model, options) for model, network, peer_model in built]
    print(f"{machine()}, core {core}, one thread\n")
    print(show(results, [name for name in results[0]["ms"] if name != "irc"]))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
