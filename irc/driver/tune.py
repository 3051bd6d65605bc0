"""Tuning: measure the kernels of a model on this machine, keep what beats the analytic choice."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irc.driver import runners
from irc.driver.bench import pinned
from irc.driver.lower import Progress, build_in_memory, cache_folder, workers
from irc.driver.options import CompileOptions
from irc.driver.samples import verification_feeds
from irc.errors import OptionError, OutputError
from irc.evaluation.latency import Latency, measure
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets import runs_here
from irc.targets.catalogue import levels_of
from irc.targets.target import Target

if TYPE_CHECKING:
    from irc.backends.tvm.tune.records import Record, Records
    from irc.backends.tvm.tune.search import Found

_SEARCH = 0.8  # share of the time for the search; the rest confirms it on the whole network
_CONFIRM = 6.0  # seconds of it that are enough
_STRONG = 1.05  # gain of the records that are tried alone when all together do not help


@dataclass
class Tuned:
    """`records`: one for each kernel that was measured. Milliseconds of the network, None where it was not measured.

    `kept`: which of the better choices the whole network confirmed: "all", "strong" (gain over 5 %) or "none".
    """

    records: list[Record]
    layers: int
    kept: str = "all"
    analytic_ms: float | None = None
    tuned_ms: float | None = None
    notes: list[str] = field(default_factory=list)
    interrupted: KeyboardInterrupt | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kernels": [
                {
                    "kernel": r.text,
                    "choice": dict(r.choice),
                    "analytic": dict(r.analytic),
                    "us": round(r.seconds * 1e6, 3),
                    "analytic_us": round(r.analytic_seconds * 1e6, 3),
                }
                for r in self.records
            ],
            "layers": self.layers,
            "kept": self.kept,
            "analytic_ms": self.analytic_ms,
            "tuned_ms": self.tuned_ms,
            "notes": self.notes,
        }


def tune(
    options: CompileOptions,
    output: Path,
    *,
    seconds: float = 60.0,
    progress: Progress = lambda what, done, total: None,
) -> Tuned:
    """Search for `seconds` and write the records to `output`, beside those that it holds already.

    The model is compiled first, which takes its own time. After Ctrl-C what was found until then is written too;
    `interrupted` then holds the exception for the caller to raise. Raises OptionError for a target that does not run
    on this machine, DataError for a file that holds something else, and the errors of compiling.
    """
    from irc.backends.tvm.tune.records import Records

    if not math.isfinite(seconds) or seconds <= 0:
        raise OptionError("--seconds must be more than 0", got=f"{seconds:g}")
    if not runs_here(options.target):
        raise OptionError(
            f"kernels for target '{options.target.name}' cannot be measured on this machine",
            expected="a target that runs here",
            hint="irc tune on such a machine, and its records with --tuning here",
        )
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise OutputError("cannot be written: no file in a folder that exists", where=str(output))
    if options.target.upgrades:
        options = replace(options, target=best_level(options.target))
    records = Records.load(output) if output.exists() else Records()
    model, _ = build_in_memory(options, progress)  # errors of compiling come before the search
    end = time.perf_counter() + seconds
    found = _search(model, options, records, seconds * _SEARCH, progress)
    done = Tuned(found.records, found.layers, interrupted=found.interrupted)
    if found.interrupted is None:
        try:
            _confirm(done, model, options, min(max(end - time.perf_counter(), 1.0), _CONFIRM), progress)
        except KeyboardInterrupt as signal:
            done.interrupted = signal
    for record in done.records:
        records.add(record)
    if done.records:
        records.save(output)
    if done.layers > len(done.records):
        done.notes.append(
            f"{len(done.records)} of {done.layers} kernels were measured in {seconds:g} s; "
            "run it again, or longer, for the rest"
        )
    return done


def best_level(target: Target) -> Target:
    """Of a library with kernels for several levels the one that this machine picks."""
    return [level for level in levels_of(target) if runs_here(level)][-1]


def _search(model: Model, options: CompileOptions, known: Records, seconds: float, progress: Progress) -> Found:
    from irc.backends.tvm.cache import Cache
    from irc.backends.tvm.plan.make import make_plan
    from irc.backends.tvm.tune.search import Search
    from irc.backends.tvm.workers import Compiler

    plan = make_plan(clone(model).graph, options.target)
    count = workers(options)
    with Compiler(options.target, Cache(cache_folder(options)), count) as compiler:
        return Search(plan, options.target, known, compiler, count, progress).run(seconds)


def _confirm(done: Tuned, model: Model, options: CompileOptions, seconds: float, progress: Progress) -> None:
    """Keep only what makes the whole network faster; the analytic choice takes the place of the rest."""

    def better(gain: float) -> list[Record]:
        return [r for r in done.records if r.choice != r.analytic and r.gain > gain]

    attempts = [("all", better(1.0)), ("strong", better(_STRONG))]
    attempts = [a for i, a in enumerate(attempts) if a[1] and (i == 0 or len(a[1]) < len(attempts[0][1]))]
    kept: list[Record] = []
    done.kept = "none" if attempts else "all"
    for name, records in attempts:
        progress("confirm", 0, 1)
        analytic, tuned = _compare(model, options, records, seconds / len(attempts), progress)
        done.analytic_ms = analytic.median
        if tuned.low <= analytic.low:
            done.kept, done.tuned_ms, kept = name, tuned.median, records
            break
    if attempts and done.tuned_ms is None:
        done.tuned_ms = done.analytic_ms
    done.records = [
        r if r in kept or r.choice == r.analytic else replace(r, choice=r.analytic, seconds=r.analytic_seconds)
        for r in done.records
    ]


def _compare(
    model: Model, options: CompileOptions, records: Sequence[Record], seconds: float, progress: Progress
) -> tuple[Latency, Latency]:
    """One inference without and with `records`, in turn."""
    from irc.backends.tvm.build import build_program as build
    from irc.backends.tvm.tune.records import Records

    folder = cache_folder(options)
    feed = verification_feeds(model, None, 1, 0)[0]
    with ExitStack() as stack:
        runs = {}
        for name, used in (("analytic", ()), ("tuned", records)):
            program = build(
                model,
                options.target,
                name=options.name,
                cache_dir=folder,
                workers=workers(options),
                progress=progress,
                tuning=Records(used),
            )
            network = runners.in_process(program, cache_dir=folder)
            stack.callback(network.close)
            runs[name] = lambda run=network.run: run(feed)
        with pinned(1):
            analytic, tuned = measure(runs, seconds=seconds / 2)
    return analytic, tuned
