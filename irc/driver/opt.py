"""Passes on a model without compiling it: for `irc opt`, `irc explain` and `irc.Pipeline` users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from irc.driver.compilation import new_report, pass_notes, size_of, summaries
from irc.driver.load import load_calibration
from irc.driver.lower import Progress
from irc.driver.options import CompileOptions, Data, check_file
from irc.driver.statistics import pass_context
from irc.frontend import load_model
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.pipeline import Pipeline, PipelineReport
from irc.pipeline.instruments import Instrument
from irc.report.model import Report
from irc.targets import get_target


@dataclass
class Optimized:
    original: Model
    model: Model
    report: Report
    pipeline_report: PipelineReport


def optimize(
    path: Path,
    passes: str,
    *,
    target: str = "native",
    calibration: Data | None = None,
    shapes: Mapping[str, Sequence[int]] = {},
    dims: Mapping[str, int] = {},
    seed: int = 0,
    statistics: Path | None = None,
    save_statistics: Path | None = None,
    explain: bool = False,
    instruments: Sequence[Instrument] = (),
    progress: Progress = lambda what, done, total: None,
) -> Optimized:
    """Run a pipeline. Symbolic dimensions stay symbolic. Raises the IrcError of what failed."""
    check_file(path)
    pipeline = Pipeline.parse(passes)
    options = CompileOptions(
        path,
        get_target(target),
        passes=passes,
        calibration=calibration,
        shapes=shapes,
        dims=dims,
        seed=seed,
        statistics=statistics,
        save_statistics=save_statistics,
    )
    original = load_model(path, shapes=shapes, dims=dims)
    data = load_calibration(calibration, original)
    model = clone(original)
    with pass_context(options, data) as context:
        context.progress, context.explain = progress, explain
        found = pipeline.run(model, context, instruments)
    report = new_report(options, original, pipeline)
    report.passes = summaries(found)
    report.after = size_of(model)
    report.notes.extend((*context.notes, *pass_notes(found)))
    return Optimized(original, model, report, found)
