"""The way of every pass to calibration statistics.

A pass asks for what it wants of the model as it is now and reads the answer from the `Statistics` it gets back, never
from the observers it handed in: they may be those of an earlier run over the same model, or of a file.
"""

from __future__ import annotations

from irc.calibrate.collect import Statistics, Wanted, collect
from irc.errors import DataError
from irc.ir.graph import Model
from irc.pipeline.contract import PassContext, Samples


def calibrated(ctx: PassContext) -> bool:
    """Whether `gather` can answer: there are samples."""
    return ctx.calibration is not None


def sample_count(ctx: PassContext) -> int:
    """How many samples `gather` would see; 0 without any."""
    return len(ctx.calibration) if ctx.calibration is not None else 0


def gather(ctx: PassContext, model: Model, wanted: Wanted, *, stage: str = "") -> Statistics:
    """The statistics `wanted` (value name -> fresh observers) of `model` as it is now.

    `stage` names a collection of a pass that has changed the model since it began, unique within the pass: without it
    the model must be the one that the pass was given. Raises DataError where there is nothing to learn from.
    """
    return collect(model, need_samples(ctx, model), wanted, progress=ctx.progress)


def need_samples(ctx: PassContext, model: Model) -> Samples:
    """Raises DataError without calibration samples."""
    if ctx.calibration is not None:
        return ctx.calibration
    raise DataError(
        "this needs calibration data",
        where=model.name,
        expected="samples of real inputs",
        got="none",
        hint="--calibration samples.npz",
    )
