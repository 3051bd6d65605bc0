"""A compressed model for other runtimes: passes, standard ONNX, tried and scored in onnxruntime, written at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from irc.driver.budget import measure_accuracy
from irc.driver.compilation import size_of
from irc.driver.files import check_model_name
from irc.driver.load import load_data
from irc.driver.lower import Progress
from irc.driver.opt import Optimized, optimize
from irc.driver.options import CompileOptions, Data, check_file
from irc.driver.runners import Execution
from irc.driver.samples import verification_feeds
from irc.errors import IrcError, ModelError, OptionError, VerificationError
from irc.evaluation.kinds import KindCost, by_kind
from irc.evaluation.oracle import Oracle
from irc.evaluation.scoring import check_metric
from irc.export import compatible_opset, make_portable, save
from irc.frontend import default_batch, load_model
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets import get_target


@dataclass
class Compressed:
    """What was written: `files`, of `model`. `kinds`: what the weights took before and take now."""

    done: Optimized
    kinds: tuple[list[KindCost], list[KindCost]]
    files: list[Path]
    opset: int

    @property
    def model(self) -> Model:
        return self.done.model


def compress(
    path: Path,
    output: Path,
    passes: str = "speed",
    *,
    target: str = "native",
    calibration: Data | None = None,
    evaluation: Data | None = None,
    metric: str = "top1",
    max_drop: float | None = None,
    shapes: Mapping[str, Sequence[int]] = {},
    dims: Mapping[str, int] = {},
    seed: int = 0,
    statistics: Path | None = None,
    save_statistics: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Compressed:
    """Compress `path` and write `output`, where onnxruntime runs it and the score does not drop by more than allowed.

    Raises the IrcError of what failed: OptionError, DataError, BudgetError, OutputError. Nothing is written then.
    """
    check_model_name(output)
    if output.suffix != ".onnx":
        raise OptionError("other runtimes read ONNX", where=str(output), expected="a name that ends in .onnx")
    if not output.absolute().parent.is_dir():
        raise OptionError("there is no such folder", where=str(output.parent), hint="another output path")
    check_file(path)
    options = CompileOptions(
        path, get_target(target), passes=passes, evaluation=evaluation, metric=metric, max_drop=max_drop
    )
    original = load_model(path, shapes=shapes, dims=dims)
    data = load_data(evaluation, original)
    if data is not None:
        check_metric(metric, data)
    done = optimize(
        path,
        passes,
        target=target,
        calibration=calibration,
        shapes=shapes,
        dims=dims,
        seed=seed,
        statistics=statistics,
        save_statistics=save_statistics,
        progress=progress,
    )
    model = done.model
    widened = make_portable(model)
    if widened:
        done.report.notes.append(f"{widened} constants of 2 bits are stored in 4, the least that other runtimes read")
    oracle = _tried(model, done)
    if data is not None:
        execution = Execution(oracle.run, "target", "onnxruntime", lambda: None)
        reference = Oracle(done.original, optimize=True)
        accuracy = measure_accuracy(done.original, model, execution, reference.run, data, options, progress)
        done.report.accuracy = accuracy.to_json() | {"evaluated": "onnxruntime"}
    files = save(model, output)
    return Compressed(done, _sized(done), files, compatible_opset(model))


def _tried(model: Model, done: Optimized) -> Oracle:
    """The model as onnxruntime runs it for its users: with all its optimizers. Raises VerificationError."""
    try:
        oracle = Oracle(model, optimize=True)
        try:
            feeds = verification_feeds(model, None, 1, 0)
        except IrcError:  # shapes stay open: there is nothing to try it on, but it loads
            return oracle
        oracle.run(feeds[0])
    except ModelError as error:
        raise VerificationError(
            f"onnxruntime cannot run the compressed model: {error.got or error.what}",
            where=done.original.name,
            hint="irc opt, which writes it untried, and a report of this defect",
        ) from error
    return oracle


def _sized(done: Optimized) -> tuple[list[KindCost], list[KindCost]]:
    """What the weights of each kind of layer take before and after; the report gets the sizes of one sample, too."""
    models = clone(done.original), clone(done.model)
    for model in models:
        default_batch(model)
    done.report.before, done.report.after = (size_of(m) for m in models)
    return by_kind(models[0]), by_kind(models[1])
