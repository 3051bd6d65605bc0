"""The accuracy budget: score of the compiled network beside the original's, and where the difference comes from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irc.driver.options import CompileOptions
from irc.driver.runners import Execution
from irc.driver.subject import real_run
from irc.errors import BudgetError
from irc.evaluation.damage import LayerDamage, damage
from irc.evaluation.scoring import Labelled, Progress, Score, evaluate
from irc.ir.graph import Model
from irc.ir.quantization import Ports
from irc.ir.types import Array
from irc.pipeline import Pass, Pipeline, Repeat

DAMAGE_FEEDS = 32
"""Samples for the damage by layer: ratios over whole tensors settle with few."""
RELATIVE_FLOOR = 1e-9


@dataclass
class Accuracy:
    """`where`: which machine code was scored ("target" or "host-equivalent")."""

    score: Score
    where: str
    max_drop: float | None

    def to_json(self) -> dict[str, Any]:
        data = self.score.to_json() | {"evaluated": self.where, "shown": self.score.shown}
        if self.score.shown_original:
            data["shown_original"] = self.score.shown_original
        if self.max_drop is not None:
            data["max_drop"] = self.max_drop
        return data


def measure_accuracy(
    original: Model,
    compressed: Model,
    execution: Execution,
    reference: Callable[[dict[str, Array]], Mapping[str, Array]],
    data: Labelled,
    options: CompileOptions,
    progress: Progress,
) -> Accuracy:
    """Evaluate the compiled network and the original. Raises BudgetError, with the damage by layer, when the drop is
    larger than allowed.
    """
    run = real_run(execution.run, Ports.of(compressed.graph))
    theirs = real_run(reference, Ports.of(original.graph))
    score = evaluate(run, data, options.metric, original=theirs, progress=progress)
    found = Accuracy(score, execution.where, options.max_drop)
    drop = score.drop if score.drop is not None else 0.0
    if options.max_drop is None or drop <= options.max_drop + RELATIVE_FLOOR:
        return found
    rows = damage(original, compressed, itertools.islice(data.feeds(), DAMAGE_FEEDS))
    error = BudgetError(
        f"{options.metric} drops by {drop:.2f}, from {score.shown_original} to {score.shown}",
        where=original.name,
        expected=f"at most {options.max_drop:g}",
        hint=_hint(rows, Pipeline.parse(options.passes)),
    )
    error.table = [row.to_json() for row in rows]
    raise error


def _hint(rows: list[LayerDamage], pipeline: Pipeline) -> str:
    """A pipeline line to paste: the same passes, with the layers that do half of the damage left alone."""
    names: list[str] = []
    covered = 0.0
    for row in sorted(rows, key=lambda r: -r.share):
        if covered >= 0.5 or row.share == 0.0 or len(names) == 3:
            break
        names.append(row.name)
        covered += row.share
    milder = with_skip(pipeline, names)
    if not names or milder == pipeline:
        return "milder options of the lossy passes, or more calibration samples"
    return f"leaving the worst layers alone: --passes '{milder}'"


def with_skip(pipeline: Pipeline, names: Sequence[str]) -> Pipeline:
    """The pipeline with `names` added to the option `skip` of every pass that has one."""

    def change(element: Pass | Repeat) -> Pass | Repeat:
        if isinstance(element, Repeat):
            return Repeat(tuple(change(e) for e in element.passes))
        skip = getattr(element, "skip", None)
        if not isinstance(skip, tuple):
            return element
        return dataclasses.replace(element, skip=tuple(dict.fromkeys((*skip, *names))))  # type: ignore[type-var]  # passes are dataclasses by contract

    return Pipeline([change(e) for e in pipeline.passes])
