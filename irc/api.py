"""The Python interface. Everything here is also in `irc`: `irc.compile`, `irc.load`, ..."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from irc.backends.artifact.load import Network, load_artifact
from irc.backends.artifact.manifest import read_manifest
from irc.backends.artifact.write import DEFAULT_EMIT
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions, Data
from irc.driver.score import score
from irc.driver.tune import Tuned
from irc.driver.tune import tune as tune_model
from irc.evaluation.scoring import Score
from irc.frontend import load_model
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.pipeline import Pass, Pipeline
from irc.pipeline.instruments import Instrument
from irc.pipeline.presets import with_io
from irc.report.model import Report
from irc.targets import Target, get_target
from irc.targets.sizes import parse_size

__all__ = ["Artifact", "Network", "Score", "compile", "evaluate", "load", "load_model", "tune"]

PathLike = str | os.PathLike[str]
Samples = PathLike | Mapping[str, Array]
"""A file as numpy.savez writes it, or its arrays: inputs by name with a sample axis in front, and `labels`."""


@dataclass(frozen=True)
class Artifact:
    """A compiled network on disk. `manifest`: the contents of manifest.json. `report`: None for one opened by name."""

    directory: Path
    manifest: Mapping[str, Any]
    report: Report | None = None

    @property
    def name(self) -> str:
        """Prefix of the C functions."""
        return str(self.manifest["name"])

    @property
    def header(self) -> Path:
        return self.directory / "include" / f"{self.name}.h"

    @property
    def library(self) -> Path:
        """The static library."""
        return self.directory / "lib" / f"lib{self.name}.a"

    def load(self, *, threads: int | None = None, level: str | None = None) -> Network:
        """Open it in this process; see `load`. Raises OptionError where it was made for another machine."""
        return load_artifact(self.directory, threads=threads, level=level)

    @staticmethod
    def open(directory: PathLike) -> Artifact:
        """An artifact made earlier. Raises OptionError where there is none."""
        return Artifact(Path(directory), read_manifest(Path(directory)))


def compile(
    model: PathLike | Model,
    target: str | Target = "native",
    *,
    output: PathLike | None = None,
    name: str = "",
    passes: str | Pipeline | Sequence[Pass | str] = "none",
    io: str | Mapping[str, str] | None = None,
    calibration: Samples | None = None,
    evaluation: Samples | None = None,
    metric: str = "top1",
    max_drop: float | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    threads: int = 1,
    emit: str | Collection[str] = DEFAULT_EMIT,
    verify: bool = True,
    cache_dir: PathLike | None = None,
    workers: int = 0,
    seed: int = 0,
    tuning: PathLike | None = None,
    statistics: PathLike | None = None,
    save_statistics: PathLike | None = None,
    weights: Literal["plain", "coded", "huffman"] | None = None,
    ram: int | str | None = None,
    flash: int | str | None = None,
    instruments: Sequence[Instrument] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Artifact:
    """Compile an ONNX model into a library without a runtime; see `irc compile --help` for each option.

    `output`: the folder to write (default: NAME-irc in the current folder; an artifact in its place is replaced).
    `passes`: a pipeline or its text; the default is the lossless clean-up. `io`: "int8" or "uint8" gives a quantized
    network inputs and outputs of integers; a mapping the type of each input or output (or of "inputs", "outputs").
    `shapes` and `dims` bind what the model
    leaves open; a symbolic first dimension becomes 1 by default. `max_drop`: accuracy budget in points of `metric` on
    `evaluation`. `tuning`: a file of records that `tune` wrote. `threads`: more than 1 compiles a thread pool in.
    `save_statistics`: a file for what passes learn from `calibration`; `statistics`: such a file in its place or beside
    it.
    `weights`: "coded" and "huffman" store them entropy-coded; they are decoded into RAM when the network is
    initialised. "plain" is the default, but for the preset `size`.
    `ram`, `flash`: bytes (or "64k") that the network may take (LimitError); by default what the target has, where it
    is fixed.
    Raises IrcError: VerificationError where the result differs from onnxruntime's, BudgetError where the budget is
    exceeded, UnsupportedError for operators that cannot be compiled, and others. Nothing is written then.
    """
    options = CompileOptions(
        model=model if isinstance(model, Model) else Path(model),
        target=target if isinstance(target, Target) else get_target(target),
        output=None if output is None else Path(output),
        name=name,
        passes=_pipeline(passes, io),
        calibration=_data(calibration),
        evaluation=_data(evaluation),
        metric=metric,
        max_drop=max_drop,
        shapes=shapes or {},
        dims=dims or {},
        threads=threads,
        emit=frozenset(emit.split(",") if isinstance(emit, str) else emit),
        verify=verify,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        workers=workers,
        seed=seed,
        tuning=None if tuning is None else Path(tuning),
        statistics=None if statistics is None else Path(statistics),
        save_statistics=None if save_statistics is None else Path(save_statistics),
        weights=weights,
        ram=parse_size(ram, "ram") if isinstance(ram, str) else ram,
        flash=parse_size(flash, "flash") if isinstance(flash, str) else flash,
    )
    done = compile_model(options, progress=progress, instruments=instruments)
    return Artifact(options.directory, done.manifest, done.report)


def tune(
    model: PathLike | Model,
    records: PathLike,
    target: str | Target = "native",
    *,
    seconds: float = 60.0,
    passes: str | Pipeline | Sequence[Pass | str] = "none",
    io: str | Mapping[str, str] | None = None,
    calibration: Samples | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    cache_dir: PathLike | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Tuned:
    """Measure the kernels of a model on this machine for about `seconds`, and add to the file `records` what is best.

    `compile(..., tuning=records)` uses it, given the same passes and shapes. Ctrl-C keeps what was found until then.
    Raises IrcError: OptionError for a target that does not run here, DataError for a file that is no record file.
    """
    options = CompileOptions(
        model=model if isinstance(model, Model) else Path(model),
        target=target if isinstance(target, Target) else get_target(target),
        passes=_pipeline(passes, io),
        calibration=_data(calibration),
        shapes=shapes or {},
        dims=dims or {},
        cache_dir=None if cache_dir is None else Path(cache_dir),
        workers=workers,
        seed=seed,
    )
    done = tune_model(options, Path(records), seconds=seconds, progress=progress)
    if done.interrupted is not None:
        raise done.interrupted
    return done


def load(directory: PathLike, *, threads: int | None = None, level: str | None = None) -> Network:
    """Open an artifact for this machine: `net(x)`, or `net.run({"x": x})` by name. Needs no compiler or linker.

    `threads`: how many share the work, at most as many as there are processors; default is what it was compiled with.
    `level`: of a library for several levels of x86-64 the kernels to take; default is the best that this machine runs.

    Raises OptionError where the folder is no artifact, or one for another machine.
    """
    return load_artifact(directory, threads=threads, level=level)


def evaluate(
    subject: PathLike | Artifact,
    data: Samples,
    metric: str = "top1",
    *,
    original: PathLike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    threads: int | None = None,
) -> Score:
    """Score an ONNX file (in onnxruntime) or an artifact (in this process) on data, beside `original` if given.

    Raises DataError, OptionError, ModelError.
    """
    path = subject.directory if isinstance(subject, Artifact) else Path(subject)
    given = _data(data)
    assert given is not None
    return score(
        path,
        given,
        metric,
        original=None if original is None else Path(original),
        shapes=shapes or {},
        dims=dims or {},
        threads=threads,
    )


def _pipeline(passes: str | Pipeline | Sequence[Pass | str], io: str | Mapping[str, str] | None) -> str:
    if isinstance(passes, str | Pipeline):
        text = str(passes)
    else:
        text = ",".join(p if isinstance(p, str) else str(Pipeline([p])) for p in passes)
    return with_io(text, [io] if isinstance(io, str) else [f"{name}={kind}" for name, kind in (io or {}).items()])


def _data(given: Samples | None) -> Data | None:
    return given if given is None or isinstance(given, Mapping) else Path(given)
