"""The checks between compiling and writing: is the result right, and is it good enough."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from irc.backends.program import Program
from irc.calibrate.dataset import Dataset
from irc.driver import lower, runners
from irc.driver.budget import DAMAGE_FEEDS, Accuracy, measure_accuracy
from irc.driver.compilation import Compilation
from irc.driver.divergence import amplified, first_divergence, first_wrong_pass
from irc.driver.lower import Progress
from irc.driver.samples import MAC_BUDGET, count_feeds, has_quantized_activations, output_steps, verification_feeds
from irc.driver.statistics import pass_context
from irc.driver.subject import real_run
from irc.driver.verification import ORIGINAL_SHARE, Reference, Verification, check, failure, measure
from irc.errors import ModelError
from irc.evaluation.damage import LayerDamage, damage
from irc.evaluation.oracle import Oracle
from irc.ir.graph import Model
from irc.ir.quantization import Ports
from irc.ir.types import Array
from irc.pipeline import Pipeline, Repeat
from irc.report.model import shortened
from irc.targets import runs_here
from irc.targets.target import Target


class Twin:
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
                self._done.program, self._build, cache_dir=lower.cache_folder(options), threads=options.threads
            )
        return self._execution

    @property
    def fast(self) -> runners.Execution:
        """In process, for many samples: the target itself, or the same model compiled for this machine."""
        if self._fast is None:
            needs_twin = not runs_here(self._done.options.target)
            self._fast = (
                runners.host_twin(self._build, cache_dir=lower.cache_folder(self._done.options))
                if needs_twin
                else self.execution
            )
        return self._fast

    def _build(self, target: Target) -> Program:
        return lower.build_program(self._done.model, target, self._done.options, self._progress)

    def run_cut(self, model: Model) -> Callable[[dict[str, Array]], dict[str, Array]]:
        """Compile and load another model for the same target (or its twin)."""
        options = replace(self._done.options, weights="plain")
        again = partial(lower.build_program, model, options=options, progress=self._progress)
        return runners.execution(again(options.target), again, cache_dir=lower.cache_folder(options)).run

    def close(self) -> None:
        for execution in (self._execution, self._fast):
            if execution is not None:
                execution.close()


def verify(done: Compilation, twin: Twin, data: Dataset | None) -> Verification:
    """Compare with onnxruntime, on `data` or random inputs. Raises VerificationError where the program is wrong."""
    model, options = done.model, done.options
    execution = twin.execution
    macs = sum(s.macs for s in done.program.steps) if done.program else 0
    quantized = has_quantized_activations(model)
    count = count_feeds(model, macs, quantized=quantized, slow=execution.slow)
    ports = Ports.between(done.original.graph, model.graph)
    given = verification_feeds(model, data, count, options.seed)
    feeds, real = [ports.feed(f) for f in given], [ports.real_feed(f) for f in given]
    steps = output_steps(model)
    exported = Reference("onnxruntime on the exported IR", Oracle(model).run, quantized, steps)
    originally = _original_reference(done)
    pipeline = Pipeline.parse(options.passes)

    def wrong_node() -> str:
        bad = (f for f in feeds if any(failure(d, exported) for d in measure(execution.run, exported, [f])))
        return first_divergence(model, next(bad, feeds[0]), twin.run_cut, quantized=quantized, steps=steps)

    def wrong_pass() -> str:
        with pass_context(replace(options, save_statistics=None), data) as context:
            return first_wrong_pass(done.original, pipeline, context, originally, real)

    result = Verification(execution.where, execution.detail, samples=len(feeds), quantized=quantized)
    result.data = "random" if data is None else "calibration"
    found = result.against[exported.name] = measure(execution.run, exported, feeds)
    result.instructions = execution.instructions()
    right_by_layer = quantized and any(failure(d, exported) for d in found) and _right_by_layer(done, twin, feeds)
    if not right_by_layer:
        check(found, exported, model.name, wrong_node)
    for level, run in execution.levels.items():
        if run is execution.run or right_by_layer:
            continue
        found = result.against[f"{exported.name}, {level}"] = measure(run, exported, feeds)
        check(found, exported, f"{model.name}: kernels for {level}", wrong_node)
    found = result.against[originally.name] = measure(real_run(execution.run, ports), originally, real)
    if right_by_layer:  # then what is left to ask is whether the passes kept the model
        found = measure(real_run(exported.run, ports), originally, real)
    check(found, originally, model.name, wrong_pass)
    return result


def _right_by_layer(done: Compilation, twin: Twin, feeds: list[dict[str, Array]]) -> bool:
    grown = amplified(done.model, feeds, twin.run_cut)
    if grown is None:
        return False
    done.report.notes.append(
        "every layer is within a quantization step of onnxruntime; roundings that fall the other way grow in "
        + shortened(grown)
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


def layer_damage(done: Compilation, data: Dataset | None) -> list[LayerDamage]:
    """What lossy passes did to each layer, on a few samples; nothing for lossless pipelines or without data."""
    if data is None or is_lossless(Pipeline.parse(done.options.passes)):
        return []
    macs = done.report.before.macs if done.report.before else None
    count = max(1, min(DAMAGE_FEEDS, MAC_BUDGET // max(macs or 1, 1)))
    return damage(done.original, done.model, itertools.islice(data.feeds(), count))


def original_oracle(done: Compilation, *, optimize: bool = False) -> Oracle:
    """A session on the file as it is, so that a defect of the importer shows; on the imported model where shapes were
    bound in a way that only irc can do, or where onnxruntime cannot read the file.
    """
    source = done.options.model
    if isinstance(source, Path) and not done.options.shapes:
        try:
            return Oracle(source, optimize=optimize)
        except ModelError:
            done.report.notes.append("onnxruntime cannot load the original file: compared with the imported model")
    return Oracle(done.original, optimize=optimize)


def is_lossless(pipeline: Pipeline) -> bool:
    """Whether only clean-up passes are in it: their results differ by float rounding at most."""

    def safe(elements: Sequence[Any]) -> bool:
        return all(
            safe(e.passes)
            if isinstance(e, Repeat)
            else type(e).__module__.startswith(("irc.passes.clean", "irc.passes.fuse"))
            for e in elements
        )

    return safe(pipeline.passes)


def accuracy(done: Compilation, twin: Twin, data: Dataset | None, progress: Progress) -> Accuracy | None:
    """Raises BudgetError where the drop is too large."""
    options = done.options
    if data is None:
        return None
    # Float models may be rewritten: faster, and the last bits decide nothing here.
    oracle = original_oracle(done, optimize=not has_quantized_activations(done.original))
    return measure_accuracy(done.original, done.model, twin.fast, oracle.run, data, options, progress)
