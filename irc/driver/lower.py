"""The driver's way to the backend."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from irc.backends.program import Program
from irc.driver.limits import flash_limit, ram_limit, short_name
from irc.driver.load import load_calibration, load_static
from irc.driver.options import CompileOptions
from irc.driver.runners import measure_stack
from irc.driver.statistics import pass_context
from irc.errors import IrcError
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.pipeline import Pipeline
from irc.report.model import StepRow
from irc.targets.catalogue import levels_of
from irc.targets.target import Target

if TYPE_CHECKING:
    from irc.backends.tvm.tune.records import Records

Progress = Callable[[str, int, int], None]

_BESIDE_WORKSPACE = 256
"""Bytes of RAM that are kept for stack and context while it is decided whether the workspace is small enough."""


def build_program(model: Model, target: Target, options: CompileOptions, progress: Progress) -> Program:
    """Kernels of `model` for `target`. Raises the IrcError of the backend, with the name of the model."""
    from irc.backends.tvm.build import build_program as build

    folder = cache_folder(options)
    count = workers(options)
    records = tuning(options)
    limit = ram_limit(options)
    if target.linking == "source" and (limit or flash_limit(options)):
        target = replace(target, l2_bytes=0)  # source for a microcontroller, where weights stay as small as they are
    try:
        program = build(
            model,
            target,
            name=options.name,
            cache_dir=folder,
            workers=count,
            progress=progress,
            tuning=records,
            workspace_limit=None if limit is None else max(0, limit - _BESIDE_WORKSPACE),
        )
    except IrcError as error:
        raise error.at(model.name) from None
    program.threads = options.threads
    if options.weights != "plain":
        from irc.backends.artifact.coder.choose import coded_program

        program = coded_program(program, "huffman" if options.weights == "huffman" else None)
    measure_stack(program, folder)
    return program


def build_in_memory(options: CompileOptions, progress: Progress) -> tuple[Model, Program]:
    """The model as the passes leave it and its program, neither verified nor written. Its weights are plain: they run
    as fast."""
    model = load_static(options)
    with pass_context(options, load_calibration(options.calibration, model)) as context:
        context.progress = progress
        Pipeline.parse(options.passes).run(model, context)
    return model, build_program(model, options.target, replace(options, weights="plain"), progress)


def workers(options: CompileOptions) -> int:
    """How many processes compile."""
    return options.workers or len(os.sched_getaffinity(0))


def tuning(options: CompileOptions) -> Records | None:
    """The tuning records that the options name. Raises DataError where they cannot be read."""
    if options.tuning is None:
        return None
    from irc.backends.tvm.tune.records import Records

    return Records.load(options.tuning)


def tuning_notes(options: CompileOptions, program: Program) -> list[str]:
    """What became of the tuning records."""
    records = tuning(options)
    if records is None:
        return []
    used, all_calls = program.statistics.get("tuned", 0), len(program.steps)
    stale = records.stale(levels_of(program.target)[-1])
    notes = [f"tuning records: {used} of {all_calls} kernel calls have one"]
    if stale and not used:
        notes.append(
            f"{stale} tuning records were measured with another version of irc's code generator and are not used; "
            "irc tune measures again"
        )
    return notes


def patching_notes(program: Program) -> list[str]:
    """Which layers run in strips, and what that costs."""
    done = program.statistics.get("patched")
    if done is None:
        return []
    again = program.statistics["recomputed_macs"]
    share = again / max(program.statistics["macs"] - again, 1)
    return [
        f"the layers before '{short_name(done['exit'])}' run in {done['strips']} strips to save RAM: "
        f"{again} multiply-adds ({share:.1%}) are done again"
    ]


def coding_notes(program: Program) -> list[str]:
    """Where coding the weights makes the library larger."""
    if program.coded is None:
        return []
    from irc.backends.artifact.coder.choose import decoder_bytes

    saved, takes = program.weights_bytes - len(program.coded.data), decoder_bytes(program.coded)
    if takes < saved:
        return []
    return [
        f"coding saves {saved} bytes of weights, and its decoder takes about {takes} bytes: "
        "--weights plain makes a smaller library"
    ]


def cache_folder(options: CompileOptions) -> Path:
    """Where compiled kernels are kept."""
    from irc.backends.tvm.cache import default_cache_dir

    return options.cache_dir if options.cache_dir is not None else default_cache_dir()


def plan_rows(model: Model, target: Target) -> list[StepRow]:
    """The kernel calls that the plan makes of a model, before any is compiled."""
    from irc.backends.tvm.plan.make import make_plan

    return [StepRow(c.label, c.nodes, c.macs, c.parallel) for c in make_plan(clone(model).graph, target).calls]
