"""What the speed benchmark runs: feeds, calibration data, artifacts of irc, models quantized by irc and by NNCF.

Everything goes into one folder and is made by processes of their own. Quantized models that are there already stay;
artifacts are compiled anew, since it is irc that is measured.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import Array, save_npz

FEEDS, SAMPLES = 8, 16


@dataclass(frozen=True)
class Port:
    """An input of a model: numpy's type, static shape, and below which number integers stay."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    below: int = 2


def ports(model: Path, batch: int = 1) -> list[Port]:
    """The inputs of an ONNX file; a symbolic first dimension is the batch, others are 1.

    Integers that number the rows of a table go up to its length; masks are all ones.
    """
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    weights = {w.name: w for w in graph.initializer}
    rows = {
        node.input[1]: weights[node.input[0]].dims[0]
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] in weights
    }
    found = []
    for value in graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        dims = [d.dim_value if d.dim_value > 0 else (batch if i == 0 else 1) for i, d in enumerate(kind.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        found.append(Port(value.name, dtype, tuple(dims), int(rows.get(value.name, 2))))
    return found


def random_samples(inputs: Sequence[Port], count: int, seed: int) -> dict[str, Array]:
    """`count` random samples of each input, stacked in a new first dimension."""
    rng = np.random.default_rng(seed)
    return {p.name: _random(rng, p, (count, *p.shape)) for p in inputs}


def _random(rng: np.random.Generator, port: Port, shape: tuple[int, ...]) -> Array:
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    if "mask" in port.name:
        return np.ones(shape, dtype)
    info = np.iinfo(dtype)
    low, high = (int(info.min), int(info.max) + 1) if dtype.itemsize == 1 else (0, port.below)
    return rng.integers(low, high, shape).astype(dtype)


class Workshop:
    """The folder, and the commands that fill it."""

    def __init__(self, folder: Path, *, passes: str, calibration: Path | None, nncf: Path | None, jobs: int) -> None:
        self.folder, self.passes, self.calibrated, self.nncf, self.jobs = folder, passes, calibration, nncf, jobs
        for name in ("feeds", "calibration", "nncf"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def feeds(self, name: str, inputs: Sequence[Port]) -> Path:
        """An .npz of random feeds, other ones than those for calibration."""
        path = self.folder / "feeds" / f"{name}.npz"
        return path if path.is_file() else save_npz(path, random_samples(inputs, FEEDS, 1))

    def keep_feeds(self, name: str, arrays: dict[str, Array]) -> Path:
        """These feeds (one more dimension in front) instead of random ones."""
        return save_npz(self.folder / "feeds" / f"{name}.npz", arrays)

    def calibration(self, model: Path) -> Path:
        """MODEL.npz of the user's calibration folder, or random samples. Samples lie along the batch."""
        for folder in (self.calibrated, self.folder / "calibration"):
            if folder is not None and (folder / f"{model.stem}.npz").is_file():
                return folder / f"{model.stem}.npz"
        samples = random_samples(ports(model), SAMPLES, 0)
        joined = {name: array.reshape(-1, *array.shape[2:]) for name, array in samples.items()}
        return save_npz(self.folder / "calibration" / f"{model.stem}.npz", joined)

    def compiled(self, model: Path, name: str, *options: str) -> Path:
        """irc's artifact of `model`."""
        out = self.folder / name
        jobs = ["--jobs", str(self.jobs)] if self.jobs else []
        run([sys.executable, "-m", "irc.cli.main", "compile", str(model), "-o", str(out), *jobs, *options])
        return out

    def quantized(self, model: Path) -> Path:
        """The QDQ model that irc makes of `model`; the artifact that comes with it is thrown away."""
        path = self.folder / f"{model.stem}_qdq.onnx"
        if not path.is_file():
            calibration = str(self.calibration(model))
            out = self.compiled(
                model, f"{model.stem}_first", "--passes", self.passes, "--calibration", calibration, "--no-verify"
            )
            next(out.glob("*.onnx")).replace(path)
        return path

    def nncf_model(self, model: Path) -> Path:
        """NNCF's own quantization of `model` on the same samples."""
        if self.nncf is not None and (self.nncf / f"{model.stem}.xml").is_file():
            return self.nncf / f"{model.stem}.xml"
        path = self.folder / "nncf" / f"{model.stem}.xml"
        if not path.is_file():
            script = str(Path(__file__).with_name("nncf_models.py"))
            data = self.calibration(model).parent
            run([sys.executable, script, str(model), "-o", str(path.parent), "--calibration", str(data)])
        return path

    def measure(self, job: dict[str, Any], prefix: str) -> dict[str, Any]:
        """Runs a job of `measure.py` in a process of its own, started through `prefix`."""
        request, out = self.folder / "job.json", self.folder / "result.json"
        request.write_text(json.dumps(job | {"out": str(out)}))
        run([*shlex.split(prefix), sys.executable, str(Path(__file__).with_name("measure.py")), str(request)])
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def run(command: Sequence[str]) -> str:
    """Its standard output. Ends the benchmark with its messages where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
