"""From a model file to a verified artifact: the phases, in order, in `compile_model`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import irc
from irc.backends.program import Program
from irc.driver import runners
from irc.driver.budget import Accuracy, measure_accuracy
from irc.driver.divergence import amplified, first_divergence, first_wrong_pass
from irc.driver.manifest import make_manifest
from irc.driver.options import CompileOptions, Data, check_writable
from irc.driver.samples import count_feeds, has_quantized_activations, output_steps, verification_feeds
from irc.driver.verification import ORIGINAL_SHARE, Reference, Verification, check, failure, measure
from irc.errors import IrcError, ModelError
from irc.evaluation.cost import Costs, costs
from irc.evaluation.oracle import Oracle
from irc.evaluation.scoring import check_metric
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.pipeline import PassContext, Pipeline, PipelineReport
from irc.pipeline.instruments import Instrument
from irc.report.model import PassSummary, Report, Size, StepRow
from irc.targets import runs_here
from irc.targets.target import Target

if TYPE_CHECKING:
    from irc.calibrate.dataset import Dataset

PROTO_LIMIT = 2_000_000_000
"""Bytes of weights that still fit into one protobuf message (2 GiB with everything else)."""

Progress = Callable[[str, int, int], None]


@dataclass
class Compilation:
    """What came out. `program` None and `directory` None where an earlier phase was the last one asked for."""

    options: CompileOptions
    original: Model
    model: Model
    report: Report
    pipeline_report: PipelineReport | None = None
    program: Program | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    directory: Path | None = None


def compile_model(
    options: CompileOptions,
    *,
    progress: Progress = lambda what, done, total: None,
    instruments: Sequence[Instrument] = (),
) -> Compilation:
    """All phases, or those up to `options.stop_after`. Nothing is written unless everything before went well.

    Raises the IrcError of the phase that failed.
    """
    if options.stop_after is None:
        check_writable(options.directory)
    pipeline = Pipeline.parse(options.passes)
    clock = _Clock()

    # Import. The shapes are bound first: everything after works on numbers, not on names of dimensions.
    # All data is looked at now, so that nobody waits for the compiler to hear of a misspelt array.
    with clock("import"):
        original = load_static(options)
        calibration = load_data(options.calibration, original)
        evaluation = load_data(options.evaluation, original)
        if evaluation is not None:
            check_metric(options.metric, evaluation)
        report = new_report(options, original, pipeline)
    done = Compilation(options, original, original, report)
    if options.stop_after == "import":
        return done

    # Passes. They work on a copy: the original is what everything later is compared with.
    with clock("passes"):
        done.model = clone(original)
        context = PassContext(options.target, calibration, options.seed, progress)
        done.pipeline_report = pipeline.run(done.model, context, instruments)
        report.passes = summaries(done.pipeline_report)
        report.after = size_of(costs(done.model), done.model)
    if options.stop_after == "passes":
        return done

    # Lowering: the plan, then the kernels.
    if options.stop_after == "plan":
        report.steps = plan_rows(done.model, options.target)
        return done
    with clock("kernels"):
        done.program = _build(done.model, options, options.target, progress)
        report.steps = [StepRow(s.label or s.symbol, s.nodes, s.macs, s.parallel) for s in done.program.steps]
        report.sizes = _program_sizes(done.program)
    if options.stop_after == "kernels":
        return done

    # Checks: right, and good enough. Both raise, and nothing has been written yet.
    with closing(_Twin(done, progress)) as twin:
        with clock("verify"):
            verification = _verify(done, twin, calibration) if options.verify else _refused()
            report.verification = verification.to_json()
        with clock("evaluate"):
            accuracy = _accuracy(done, twin, evaluation, progress)
            if accuracy is not None:
                report.accuracy, report.damage = accuracy.to_json(), [d.to_json() for d in accuracy.damage]

    # Output, in one move.
    with clock("write"):
        _write(done)
    report.seconds = clock.seconds
    return done


class _Clock:
    """Seconds per phase, for the terminal only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def load_static(options: CompileOptions) -> Model:
    """The model with all shapes known. Raises ModelError, ShapeError."""
    from irc.frontend import load_model
    from irc.frontend.bind import bind, default_batch, require_static

    if isinstance(options.model, Path):
        model = load_model(options.model, shapes=options.shapes, dims=options.dims)
    else:
        model = clone(options.model)
        bind(model, options.shapes, options.dims)
    model.notes.extend(default_batch(model))
    require_static(model)
    if not model.graph.outputs:
        raise ModelError("the model has no output", where=model.name)
    return model


def load_data(data: Data | None, model: Model) -> Dataset | None:
    """Samples for `model`. Raises DataError."""
    if data is None:
        return None
    from irc.calibrate.dataset import Dataset

    return Dataset.load(data, model) if isinstance(data, Path) else Dataset.of(data, model)


def build_program(model: Model, target: Target, options: CompileOptions, progress: Progress) -> Program:
    """The backend. (A name of this module, so that tests can put something quicker in its place.)"""
    from irc.backends.tvm.build import build_program as build

    workers = options.workers or len(os.sched_getaffinity(0))
    return build(model, target, name=options.name, cache_dir=cache_folder(options), workers=workers, progress=progress)


def cache_folder(options: CompileOptions) -> Path:
    """Where compiled kernels are kept."""
    from irc.backends.tvm.cache import default_cache_dir

    return options.cache_dir if options.cache_dir is not None else default_cache_dir()


def _build(model: Model, options: CompileOptions, target: Target, progress: Progress) -> Program:
    try:
        return build_program(model, target, options, progress)
    except IrcError as error:
        raise error.at(model.name) from None


class _Twin:
    """The ways to run this compilation's program, each made once and only when asked for. Close it."""

    def __init__(self, done: Compilation, progress: Progress) -> None:
        self._done, self._progress = done, progress
        self._execution: runners.Execution | None = None
        self._fast: runners.Execution | None = None

    @property
    def execution(self) -> runners.Execution:
        """As near to the target as this machine allows."""
        if self._execution is None:
            if self._done.program is None:
                raise ValueError("nothing is compiled yet")
            options = self._done.options
            self._execution = runners.execution(
                self._done.program, self._build, cache_dir=cache_folder(options), threads=options.threads
            )
        return self._execution

    @property
    def fast(self) -> runners.Execution:
        """In process, for many samples: the target itself, or the same model compiled for this machine."""
        if self._fast is None:
            needs_twin = not runs_here(self._done.options.target)
            self._fast = (
                runners.host_twin(self._build, cache_dir=cache_folder(self._done.options))
                if needs_twin
                else self.execution
            )
        return self._fast

    def _build(self, target: Target) -> Program:
        return _build(self._done.model, self._done.options, target, self._progress)

    def run_cut(self, model: Model) -> Callable[[dict[str, Array]], dict[str, Array]]:
        """Compile and load another model for the same target (or its twin)."""
        options = self._done.options
        program = _build(model, options, options.target, self._progress)
        again = partial(_build, model, options, progress=self._progress)
        return runners.execution(program, again, cache_dir=cache_folder(options)).run

    def close(self) -> None:
        for execution in (self._execution, self._fast):
            if execution is not None:
                execution.close()


def _refused() -> Verification:
    return Verification("none", reason="the user refused (--no-verify)")


def _verify(done: Compilation, twin: _Twin, data: Dataset | None) -> Verification:
    """Raises VerificationError where the program is wrong."""
    model, options = done.model, done.options
    execution = twin.execution
    macs = sum(s.macs for s in done.program.steps) if done.program else 0
    quantized = has_quantized_activations(model)
    count = count_feeds(model, macs, quantized=quantized, slow=execution.slow)
    feeds = verification_feeds(model, data, count, options.seed)
    steps = output_steps(model)
    exported = Reference("onnxruntime on the exported IR", Oracle(model).run, quantized, steps)
    originally = _original_reference(done)
    pipeline = Pipeline.parse(options.passes)

    def wrong_node() -> str:
        return first_divergence(model, feeds[0], twin.run_cut, quantized=quantized, steps=steps)

    def wrong_pass() -> str:
        context = PassContext(options.target, data, options.seed)
        return first_wrong_pass(done.original, pipeline, context, originally, feeds)

    result = Verification(execution.where, execution.detail, samples=len(feeds), quantized=quantized)
    result.data = "random" if data is None else "calibration"
    found = result.against[exported.name] = measure(execution.run, exported, feeds)
    right_by_layer = quantized and any(failure(d, exported) for d in found) and _right_by_layer(done, twin, feeds)
    if not right_by_layer:
        check(found, exported, model.name, wrong_node)
    found = result.against[originally.name] = measure(execution.run, originally, feeds)
    if right_by_layer:  # then what is left to ask is whether the passes kept the model
        found = measure(exported.run, originally, feeds)
    check(found, originally, model.name, wrong_pass)
    return result


def _right_by_layer(done: Compilation, twin: _Twin, feeds: list[dict[str, Array]]) -> bool:
    grown = amplified(done.model, feeds, twin.run_cut)
    if grown is None:
        return False
    done.report.notes.append(
        "every layer is within a quantization step of onnxruntime; roundings that fall the other way grow in "
        + ", ".join(grown)
    )
    return True


def _original_reference(done: Compilation) -> Reference:
    """The original in onnxruntime, read by onnxruntime itself where it can; binding where no pass is lossy."""
    original = done.original
    quantized = has_quantized_activations(original)
    binding = is_lossless(Pipeline.parse(done.options.passes))
    oracle = original_oracle(done)
    name, steps = "onnxruntime on the original", output_steps(original)
    return Reference(name, oracle.run, quantized, steps, binding, ORIGINAL_SHARE)


def original_oracle(done: Compilation) -> Oracle:
    """A session on the file as it is, so that a defect of the importer shows; on the imported model where shapes were
    bound in a way that only irc can do, or where onnxruntime cannot read the file.
    """
    source = done.options.model
    if isinstance(source, Path) and not done.options.shapes:
        try:
            return Oracle(source)
        except ModelError:
            done.report.notes.append("onnxruntime cannot load the original file: compared with the imported model")
    return Oracle(done.original)


def is_lossless(pipeline: Pipeline) -> bool:
    """Whether only clean-up passes are in it: their results differ by float rounding at most."""
    from irc.pipeline.text import Repeat

    def safe(elements: Sequence[Any]) -> bool:
        return all(
            safe(e.passes)
            if isinstance(e, Repeat)
            else type(e).__module__.startswith(("irc.passes.clean", "irc.passes.fuse"))
            for e in elements
        )

    return safe(pipeline.passes)


def _accuracy(done: Compilation, twin: _Twin, data: Dataset | None, progress: Progress) -> Accuracy | None:
    """Raises BudgetError where the drop is too large."""
    options = done.options
    if data is None:
        return None
    oracle = original_oracle(done)
    return measure_accuracy(done.original, done.model, twin.fast, oracle.run, data, options, progress)


def _write(done: Compilation) -> None:
    from irc.backends.artifact.write import write_artifact
    from irc.export import to_bytes
    from irc.report.html import html

    if done.program is None:
        raise ValueError("nothing is compiled yet")
    emit = done.options.emit
    if "onnx" in emit and done.report.after is not None and done.report.after.bytes > PROTO_LIMIT:
        emit -= {"onnx"}
        done.report.notes.append(
            "the compressed model is too large for one ONNX file and was left out (irc opt writes it)"
        )
    done.manifest = write_artifact(
        done.program,
        done.options.directory,
        manifest=make_manifest(done),
        model_proto_bytes=to_bytes(done.model) if "onnx" in emit else None,
        report_html=html(done.report) if "report" in emit else None,
        glue_object=runners.glue_object(done.program, cache_folder(done.options)),
        emit=emit,
    )
    done.report.sizes |= _file_sizes(done.manifest)
    done.directory = done.options.directory


def new_report(options: CompileOptions, model: Model, pipeline: Pipeline) -> Report:
    return Report(
        irc.__version__,
        model.name,
        options.name,
        options.target.name,
        str(pipeline),
        before=size_of(costs(model), model),
        notes=list(model.notes),
    )


def size_of(found: Costs, model: Model) -> Size:
    return Size(len(model.graph), found.parameters, found.bytes, found.sparsity, found.macs)


def summaries(report: PipelineReport) -> list[PassSummary]:
    """Numbers of repeated executions added up; other statistics are the last ones."""
    texts = dict.fromkeys(p.text for p in report.passes)
    found = []
    for text in texts:
        records = [p for p in report.passes if p.text == text]
        merged: dict[str, Any] = {}
        for record in records:
            for key, value in record.statistics.items():
                number = isinstance(value, int) and not isinstance(value, bool)
                merged[key] = merged.get(key, 0) + value if number else value
        found.append(PassSummary(text, len(records), sum(r.changed for r in records), merged))
    return found


def _program_sizes(program: Program) -> dict[str, int]:
    return {"weights": program.weights_bytes, "workspace": program.workspace_bytes}


def _file_sizes(manifest: dict[str, Any]) -> dict[str, int]:
    """Bytes of the libraries that were written."""
    files = manifest["files"]
    return {Path(name).name: facts["bytes"] for name, facts in files.items() if name.endswith((".a", ".o", ".so"))}


def plan_rows(model: Model, target: Target) -> list[StepRow]:
    """The kernel calls that the plan makes of a model, before any is compiled."""
    from irc.backends.tvm.plan.make import make_plan

    return [StepRow(c.label, c.nodes, c.macs, c.parallel) for c in make_plan(clone(model).graph, target).calls]
