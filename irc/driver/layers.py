"""Where the time of a network goes: every kernel alone, beside what this machine could do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from irc.driver import lower, runners
from irc.driver.lower import Progress, build_in_memory, cache_folder
from irc.driver.options import CompileOptions
from irc.driver.samples import verification_feeds
from irc.errors import OptionError
from irc.ir.graph import Model
from irc.pipeline import PassContext, Pipeline
from irc.targets import get_target, runs_here
from irc.targets.catalogue import target_of_manifest
from irc.targets.target import Target

if TYPE_CHECKING:
    from irc.backends.artifact.load import Network
    from irc.backends.tvm.plan.make import Plan

_PEAK_ROUNDS = 2000
_COPIED = 8 << 20
_ENOUGH = 0.5
"""Share of the nearer limit below which neither of the two explains a kernel's time."""


@dataclass(frozen=True)
class Machine:
    """What one core reached just now: multiply-adds a second by "int8" and "float32", and bytes a second of a copy of
    8 MB, read and written."""

    macs: dict[str, float]
    bandwidth: float


@dataclass(frozen=True)
class Layer:
    """One kernel call. `seconds`: median over all runs, in its place in the network. Bytes as `traffic` counts them."""

    number: int
    text: str
    nodes: tuple[str, ...]
    seconds: float
    macs: int
    dtype: str
    weights: int = 0
    read: int = 0
    written: int = 0

    def fraction(self, machine: Machine) -> float:
        """Of the machine's peak for this type of numbers."""
        return self.macs / self.seconds / machine.macs[self.dtype] if self.seconds else 0.0

    def bound(self, machine: Machine) -> str:
        """What would take longest if nothing else took time: arithmetic, or memory. "neither": both together would take
        less than half of what it took."""
        arithmetic = self.macs / machine.macs[self.dtype]
        memory = (self.weights + self.read + self.written) / machine.bandwidth
        if max(arithmetic, memory) < _ENOUGH * self.seconds:
            return "neither"
        return "arithmetic" if arithmetic >= memory else "memory"

    def to_json(self, machine: Machine, total: float) -> dict[str, Any]:
        moved = self.weights + self.read + self.written
        return {
            "number": self.number,
            "kernel": self.text,
            "nodes": list(self.nodes),
            "us": round(self.seconds * 1e6, 3),
            "share": round(self.seconds / total, 4) if total else 0.0,
            "macs": self.macs,
            "type": self.dtype,
            "gops": round(2 * self.macs / self.seconds / 1e9, 1) if self.seconds else 0.0,
            "fraction": round(self.fraction(machine), 4),
            "weights_bytes": self.weights,
            "read_bytes": self.read,
            "written_bytes": self.written,
            "gb_per_s": round(moved / self.seconds / 1e9, 1) if self.seconds else 0.0,
            "bound": self.bound(machine),
        }


@dataclass(frozen=True)
class Layers:
    """`whole`: seconds of one call from Python. `note`: what is not in `rows`."""

    rows: list[Layer]
    machine: Machine
    whole: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """All rows."""
        return sum(row.seconds for row in self.rows)

    def weighted(self, dtype: str | None = None) -> float | None:
        """Fraction of the peak, each kernel weighted by its multiply-adds; None where there are none."""
        rows = [row for row in self.rows if row.macs and dtype in (None, row.dtype)]
        total = sum(row.macs for row in rows)
        return sum(row.macs * row.fraction(self.machine) for row in rows) / total if total else None

    def to_json(self) -> dict[str, Any]:
        total = self.seconds
        by_type = {dtype: self.weighted(dtype) for dtype in self.machine.macs}
        weighted = self.weighted()
        return {
            "peak": {dtype: round(2 * rate / 1e9, 1) for dtype, rate in self.machine.macs.items()},
            "copy_gb_per_s": round(self.machine.bandwidth / 1e9, 1),
            "call_us": round(self.whole * 1e6, 2),
            "kernels_us": round(total * 1e6, 2),
            "macs": sum(row.macs for row in self.rows),
            "weighted_fraction": None if weighted is None else round(weighted, 4),
            "weighted_fraction_by_type": {k: round(v, 4) for k, v in by_type.items() if v is not None},
            "note": self.note,
            "layers": [row.to_json(self.machine, total) for row in self.rows],
        }


def layers(
    subject: Path,
    *,
    passes: str = "none",
    target: str = "native",
    calibration: Path | None = None,
    statistics: Path | None = None,
    shapes: Mapping[str, Sequence[int]] = {},
    dims: Mapping[str, int] = {},
    seconds: float = 2.0,
    cache_dir: Path | None = None,
    workers: int = 0,
    tuning: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Layers:
    """Times of all kernels of a model (compiled in memory, without being verified), or of an artifact's library.

    One thread. Times are taken by machine code around each kernel, in runs of the whole network. Raises OptionError
    where this machine cannot run the target, UnsupportedError where its clock cannot be read.
    """
    if subject.is_dir():
        return _of_artifact(subject, seconds, cache_dir)
    options = CompileOptions(
        subject,
        get_target(target),
        passes=passes,
        calibration=calibration,
        statistics=statistics,
        shapes=shapes,
        dims=dims,
        cache_dir=cache_dir,
        workers=workers,
        tuning=tuning,
    )
    if not runs_here(options.target):
        raise OptionError(
            "kernels can be timed only where they run", got=f"target {options.target.name}", hint="--target native"
        )
    return _of_model(options, seconds, progress)


def _of_model(options: CompileOptions, seconds: float, progress: Progress) -> Layers:
    from irc.backends.artifact.load import load_program
    from irc.backends.tvm.build import plan_of

    model, program = build_in_memory(options, progress)
    # Every step through the parallel-for, where the timer sits: it asks for part 0 of 1, which any kernel can do.
    program.steps = tuple(replace(step, parallel=True) for step in program.steps)
    plan = plan_of(model, options.target, lower.tuning(options))
    with closing(load_program(program, runners.glue_object(program, cache_folder(options)), threads=1)) as network:
        network.poison = False
        folder = cache_folder(options)
        return _measured(network, model, plan, list(range(len(plan.calls))), options.target, folder, seconds, "")


def _of_artifact(path: Path, seconds: float, cache_dir: Path | None) -> Layers:
    """The names of its kernels come from planning the model inside again: they are not in the library."""
    from irc.backends.artifact.load import load_artifact
    from irc.backends.artifact.manifest import read_manifest
    from irc.backends.tvm.build import plan_of
    from irc.backends.tvm.cache import default_cache_dir
    from irc.backends.tvm.plan.waits import worth_sharing
    from irc.driver.subject import artifact_model

    manifest = read_manifest(path)
    model = artifact_model(path)
    Pipeline.parse("none").run(model, PassContext())
    target = target_of_manifest(manifest["target"])
    plan = plan_of(model, target, None)
    steps = [i for i, call in enumerate(plan.calls) if worth_sharing(call, plan)]
    with closing(load_artifact(path, threads=1)) as network:
        rest = len(plan.calls) - len(steps)
        note = f"{rest} kernels that run on one thread only are not timed" if rest else ""
        return _measured(network, model, plan, steps, target, cache_dir or default_cache_dir(), seconds, note)


def _measured(
    network: Network,
    model: Model,
    plan: Plan,
    steps: list[int],
    target: Target,
    cache: Path | None,
    seconds: float,
    note: str,
) -> Layers:
    from irc.backends.artifact.timer import StepTimer, timer_ll
    from irc.backends.tvm.build import assemble_glue
    from irc.backends.tvm.traffic import traffic
    from irc.driver.bench import pinned

    timer = assemble_glue(timer_ll(target), target, cache_dir=cache)
    feed = verification_feeds(model, None, 1, 0)[0]
    # A library with kernels for several machines runs those of the best level here.
    peaks = _peak_kernels(get_target(network.level) if network.level else target, cache)
    with pinned(1):
        machine = Machine({name: run() for name, run in peaks.items()}, _bandwidth())
        start = time.perf_counter()
        network.run(feed)
        rounds = int(np.clip(seconds / (time.perf_counter() - start), 5, 500))
        with StepTimer(network, timer, target, len(steps)) as stopwatch:
            times, _ = stopwatch.seconds(lambda: network.run(feed), rounds)
        whole = _whole(lambda: network.run(feed), rounds)
    middle = np.median(times, axis=0)
    rows = []
    for number, step in enumerate(steps):
        call = plan.calls[step]
        moved = traffic(call, plan)
        text, dtype = _described(call.spec, call.label)
        sizes = (moved.weights, moved.read, moved.written)
        rows.append(Layer(step, text, call.nodes, float(middle[number]), call.macs, dtype, *sizes))
    return Layers(rows, machine, whole, note)


def _described(spec: Any, label: str) -> tuple[str, str]:
    """A kernel in words, and whether it multiplies 8-bit numbers or floats."""
    from irc.backends.tvm.tune.classes import describe

    dtype = next((getattr(spec, name) for name in ("x_dtype", "q_dtype") if hasattr(spec, name)), "float32")
    text = describe(spec)
    known = " " in text or not label
    return text if known else f"{text} ({label})", "int8" if dtype in ("int8", "uint8") else "float32"


def _whole(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _peak_kernels(target: Target, cache_dir: Path | None) -> dict[str, Callable[[], float]]:
    """Functions that measure multiply-adds a second, by type of numbers."""
    from irc.backends.artifact.function import Function
    from irc.backends.artifact.load import aligned_empty
    from irc.backends.tvm.build import compile_kernel
    from irc.backends.tvm.peak import peak_macs, peak_sizes
    from irc.backends.tvm.specs import PeakSpec

    found: dict[str, Callable[[], float]] = {}
    for name, dtype in (("int8", target.activations), ("float32", "float32")):
        spec = PeakSpec(dtype, _PEAK_ROUNDS)
        function = Function(compile_kernel(spec, target, "irc_peak", cache_dir=cache_dir), "irc_peak", target)
        buffers = [aligned_empty(4 * size, 64) for size in peak_sizes(spec, target)]
        for buffer in buffers:
            buffer.fill(0)
        arguments = function.bind([b.ctypes.data for b in buffers])

        def run(
            function: Function = function, arguments: Any = arguments, spec: PeakSpec = spec, kept: Any = buffers
        ) -> float:
            times = []
            for _ in range(30):
                start = time.perf_counter()
                function(arguments)
                times.append(time.perf_counter() - start)
            return peak_macs(spec, target) / min(times)

        found[name] = run
    return found


def _bandwidth() -> float:
    """Bytes a second that a copy between two large arrays reads and writes."""
    source, target = np.ones(_COPIED, np.uint8), np.zeros(_COPIED, np.uint8)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * _COPIED / statistics.median(times)
