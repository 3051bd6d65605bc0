"""What the benchmarks share: one pinned core, feeds, the evaluation tasks, and tables."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parent.parent


def pin(core: int | None) -> int:
    """Bind this process to one core (the last one it may use, where none is given). Returns the core.

    Call it after compiling: the compile workers would inherit it.
    """
    allowed = sorted(os.sched_getaffinity(0))
    chosen = allowed[-1] if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


def machine() -> dict[str, str]:
    """CPU and versions, to stand beside every figure."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    found = {"cpu": cpu}
    for name in ("irc-compiler", "onnxruntime", "openvino", "nncf"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def models(paths: Iterable[str]) -> list[Path]:
    """The .onnx files named, and those in the folders named, sorted."""
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        found += sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    if not found:
        raise SystemExit("no models: name .onnx files or folders of them")
    return found


def data_dir() -> Path:
    """The folder of evaluation data (IRC_DATA, default ../shared/data)."""
    path = Path(os.environ.get("IRC_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "load.py").is_file():
        raise SystemExit(f"no evaluation data in {path}; set IRC_DATA")
    return path


def tasks_module(folder: Path) -> ModuleType:
    """load.py of the evaluation data: TASKS, load(task, split), score(task, outputs, x, y)."""
    spec = importlib.util.spec_from_file_location("irc_data_load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Task:
    """One evaluation task: its float model, inputs and labels to score, inputs to calibrate on."""

    name: str
    model: Path
    input: str
    metric: str
    x: Array
    y: Array
    calibration: Array
    module: ModuleType

    @staticmethod
    def load(name: str) -> Task:
        import onnx

        folder = data_dir()
        module = tasks_module(folder)
        file, _, metric = module.TASKS[name]
        path = folder / "models" / file
        proto = onnx.load(path, load_external_data=False)
        weights = {w.name for w in proto.graph.initializer}
        input_name = next(i.name for i in proto.graph.input if i.name not in weights)
        x, y = module.load(name)
        calibration, _ = module.load(name, "calibration")
        return Task(name, path, input_name, metric, x, y, calibration, module)

    def save_calibration(self, path: Path) -> Path:
        return save_npz(path, {self.input: self.calibration})

    def score(self, outputs: Array) -> float:
        """In per cent: top-1 accuracy, or 100 times the AUC."""
        return 100 * float(self.module.score(self.name, outputs, self.x, self.y))


def save_npz(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers to the right."""
    body = [[str(cell) for cell in row] for row in rows]
    rule = [" --- " if i == 0 else " ---: " for i in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(rule) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)
