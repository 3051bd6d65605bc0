"""The driver's way to the backend."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from irc.backends.program import Program
from irc.driver.options import CompileOptions
from irc.errors import IrcError
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.report.model import StepRow
from irc.targets.target import Target

Progress = Callable[[str, int, int], None]


def build_program(model: Model, target: Target, options: CompileOptions, progress: Progress) -> Program:
    """Kernels of `model` for `target`. Raises the IrcError of the backend, with the name of the model."""
    from irc.backends.tvm.build import build_program as build

    workers = options.workers or len(os.sched_getaffinity(0))
    folder = cache_folder(options)
    try:
        return build(model, target, name=options.name, cache_dir=folder, workers=workers, progress=progress)
    except IrcError as error:
        raise error.at(model.name) from None


def cache_folder(options: CompileOptions) -> Path:
    """Where compiled kernels are kept."""
    from irc.backends.tvm.cache import default_cache_dir

    return options.cache_dir if options.cache_dir is not None else default_cache_dir()


def plan_rows(model: Model, target: Target) -> list[StepRow]:
    """The kernel calls that the plan makes of a model, before any is compiled."""
    from irc.backends.tvm.plan.make import make_plan

    return [StepRow(c.label, c.nodes, c.macs, c.parallel) for c in make_plan(clone(model).graph, target).calls]
