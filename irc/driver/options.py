"""What `compile` can be asked for, checked before anything is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from irc.backends.artifact.interface import check_name, identifier
from irc.backends.artifact.layouts import check_layout
from irc.backends.artifact.pool import check_threads
from irc.backends.artifact.write import DEFAULT_EMIT, EMIT, refuse_foreign
from irc.errors import OptionError, OutputError, suggest
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.pipeline.presets import default_weights
from irc.targets.target import Target

Data = Path | Mapping[str, Array]
"""An .npz file of samples, or its arrays."""

Weights = Literal["plain", "coded", "huffman"]
WEIGHTS: tuple[Weights, ...] = ("plain", "coded", "huffman")

Phase = Literal["import", "passes", "plan", "kernels"]
PHASES: tuple[Phase, ...] = ("import", "passes", "plan", "kernels")


@dataclass(frozen=True)
class CompileOptions:
    """See `irc.compile` for what each means. Paths may be str."""

    model: Path | Model
    target: Target
    output: Path | None = None
    name: str = ""
    passes: str = "none"
    calibration: Data | None = None
    evaluation: Data | None = None
    metric: str = "top1"
    max_drop: float | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    threads: int = 1
    emit: frozenset[str] = DEFAULT_EMIT
    stop_after: Phase | None = None
    verify: bool = True
    cache_dir: Path | None = None
    workers: int = 0
    seed: int = 0
    tuning: Path | None = None
    weights: Weights | None = None
    statistics: Path | None = None
    save_statistics: Path | None = None
    ram: int | None = None
    flash: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", default_name(self.model))
        check_name(self.name)
        if self.output is None:
            object.__setattr__(self, "output", Path(f"{self.name}-irc"))
        check_threads(self.threads, self.target)
        for name, limit in (("--ram", self.ram), ("--flash", self.flash)):
            if limit is not None and limit <= 0:
                raise OptionError(f"{name} must be a number of bytes above 0", got=str(limit))
        if self.seed < 0:
            raise OptionError("--seed must not be negative", got=str(self.seed))
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise OptionError("--max-drop must be a number of points", got=str(self.max_drop))
        if self.max_drop is not None and self.evaluation is None:
            raise OptionError("--max-drop needs data to measure the drop on", hint="--evaluation FILE.npz")
        if self.stop_after is not None and self.stop_after not in PHASES:
            raise OptionError(f"there is no phase '{self.stop_after}'", hint=suggest(self.stop_after, PHASES))
        if self.weights is None:
            source = self.target.linking == "source"
            object.__setattr__(self, "weights", "plain" if source else default_weights(self.passes))
        if self.weights not in WEIGHTS:
            raise OptionError(
                f"weights cannot be stored '{self.weights}'",
                expected=" or ".join(WEIGHTS),
                hint=suggest(str(self.weights), WEIGHTS),
            )
        if self.weights != "plain" and self.target.linking == "source":
            raise OptionError("C source has its weights as plain arrays", where=f"--weights {self.weights}")
        self._check_emit()
        for path in (self.calibration, self.evaluation, self.tuning, self.statistics):
            check_file(path)
        self._check_saving()
        if isinstance(self.model, Path):
            check_file(self.model)

    def _check_emit(self) -> None:
        for part in self.emit:
            if part not in EMIT:
                raise OptionError(f"an artifact has no part '{part}'", hint=suggest(part, EMIT))
        check_layout(self.emit, self.target)
        if "shared" in self.emit and self.emit != DEFAULT_EMIT and self.target.linking != "sections":
            raise OptionError(
                f"there are no shared libraries for target {self.target.name}",
                where="--emit",
                expected="a target for Linux on x86-64 or 64-bit Arm",
                hint="leaving out 'shared'",
            )

    def _check_saving(self) -> None:
        if self.save_statistics is None:
            return
        if self.calibration is None and self.statistics is None:
            raise OptionError("--save-statistics needs samples to take them of", hint="--calibration FILE.npz")
        if not self.save_statistics.absolute().parent.is_dir():
            raise OptionError("there is no such folder", where=str(self.save_statistics), hint="another output path")

    @property
    def directory(self) -> Path:
        """Where the artifact goes."""
        return self.output if self.output is not None else Path(f"{self.name}-irc")


def check_file(path: Data | None) -> None:
    """Raises OptionError for a path that is given and is no readable file."""
    if not isinstance(path, Path):
        return
    if path.is_file():
        if not os.access(path, os.R_OK):
            raise OptionError("cannot be read (permissions)", where=str(path))
        return
    if path.is_dir():
        raise OptionError("is a folder", where=str(path), expected="a file")
    near = [p.name for p in path.parent.iterdir() if p.suffix == path.suffix] if path.parent.is_dir() else []
    raise OptionError("no such file", where=str(path), hint=suggest(path.name, near) if 0 < len(near) <= 20 else "")


def default_name(model: Path | Model) -> str:
    """A C identifier made of the file name ("mobilenet-v2.1.onnx" -> "mobilenet_v2_1")."""
    if isinstance(model, Path):
        return identifier(model.stem)
    return identifier(model.source.stem if model.source else model.graph.name)


def check_writable(directory: Path) -> None:
    """Fail before the work, not after it. Raises OutputError where `directory` cannot become an artifact."""
    refuse_foreign(directory)
    check_parent(directory, "another folder with -o")


def check_parent(path: Path, hint: str) -> None:
    """Raises OutputError where nothing of this path can be made."""
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError("is no folder", where=str(parent), hint=hint)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError("cannot be written (permissions)", where=str(parent), hint=hint)


def json_safe(value: Any) -> Any:
    """`value` with tuples as lists, paths and unknown objects as text, NaN and infinities as text."""
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [json_safe(v) for v in items]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return json_safe(value.item())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
