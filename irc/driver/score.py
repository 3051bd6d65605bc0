"""Scores of models and artifacts on files of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from irc.calibrate.dataset import Dataset
from irc.driver.options import Data, check_file
from irc.driver.subject import Run, open_subject
from irc.evaluation.metrics import make_metric
from irc.evaluation.scoring import Progress, Score, evaluate


def score(
    subject: Path,
    data: Data,
    metric: str,
    *,
    original: Path | None = None,
    shapes: Mapping[str, Sequence[int]] = {},
    dims: Mapping[str, int] = {},
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Score:
    """Score an artifact folder or an ONNX file, beside `original` where it is given.

    Raises OptionError, DataError, ModelError.
    """
    make_metric(metric)  # a misspelt name before anything is loaded
    check_file(data)
    check_file(original)
    ours = open_subject(subject, shapes=shapes, dims=dims, threads=threads)
    samples = (
        Dataset.load(data, ours.interface, ours.ports)
        if isinstance(data, Path)
        else Dataset.of(data, ours.interface, ports=ours.ports)
    )
    if original is None:
        return evaluate(ours.run, samples, metric, progress=progress)
    theirs = open_subject(original, shapes=shapes, dims=dims, threads=threads)
    if ours.ports.inputs.keys() <= theirs.ports.inputs.keys():
        return evaluate(ours.run, samples, metric, original=theirs.run, progress=progress)

    # The original takes real numbers: integers are turned into them for both.
    def real(run: Run) -> Run:
        return lambda feed: run(ours.ports.real_feed(feed))

    return evaluate(real(ours.run), samples, metric, original=real(theirs.run), progress=progress)
