"""From a model file to a verified artifact: the phases, in order, in `compile_model`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from irc.backends.program import Program
from irc.driver import lower, runners
from irc.driver.checks import Twin, accuracy, layer_damage
from irc.driver.compilation import Compilation, new_report, pass_notes, size_of, summaries
from irc.driver.limits import check_limits, limit_notes
from irc.driver.load import load_calibration, load_data, load_static
from irc.driver.lower import Progress
from irc.driver.manifest import make_manifest
from irc.driver.options import CompileOptions, check_writable
from irc.driver.remembered import verification
from irc.driver.statistics import pass_context
from irc.driver.verification import Verification
from irc.evaluation.scoring import check_metric
from irc.ir.clone import clone
from irc.pipeline import Pipeline
from irc.pipeline.instruments import Instrument
from irc.report.model import StepRow

PROTO_LIMIT = 2_000_000_000
"""Bytes of weights that still fit into one protobuf message (2 GiB with everything else)."""


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
    lower.tuning(options)  # a broken file is reported now
    clock = _Clock()

    # Import. The shapes are bound first: everything after works on numbers, not on names of dimensions.
    # All data is looked at now, so that nobody waits for the compiler to hear of a misspelt array.
    with clock("import"):
        original = load_static(options)
        calibration = load_calibration(options.calibration, original)
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
        with pass_context(options, calibration) as context:
            context.progress = progress
            done.pipeline_report = pipeline.run(done.model, context, instruments)
        report.passes = summaries(done.pipeline_report)
        report.after = size_of(done.model)
        report.notes.extend((*context.notes, *pass_notes(done.pipeline_report)))
    if options.stop_after == "passes":
        return done

    # Lowering: the plan, then the kernels.
    if options.stop_after == "plan":
        report.steps = lower.plan_rows(done.model, options.target)
        return done
    with clock("kernels"):
        done.program = lower.build_program(done.model, options.target, options, progress)
        check_limits(done.program, options, lower.cache_folder(options))
        report.steps = [StepRow(s.label or s.symbol, s.nodes, s.macs, s.parallel) for s in done.program.steps]
        report.sizes = _program_sizes(done.program)
        report.notes.extend(lower.tuning_notes(options, done.program))
        report.notes.extend((*lower.coding_notes(done.program), *lower.patching_notes(done.program)))
        report.notes.extend(limit_notes(done.program, options))
    if options.stop_after == "kernels":
        return done

    # Checks: right, and good enough. Both raise, and nothing has been written yet.
    with closing(Twin(done, progress)) as twin:
        with clock("verify"):
            refused = Verification("none", reason="the user refused (--no-verify)")
            report.verification = verification(done, twin, calibration) if options.verify else refused.to_json()
        report.instructions = _instructions(done.program, report.verification)
        with clock("evaluate"):
            found = accuracy(done, twin, evaluation, progress)
            report.accuracy = found.to_json() if found is not None else None
            report.damage = [d.to_json() for d in layer_damage(done, evaluation or calibration)]

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


def _write(done: Compilation) -> None:
    from irc.backends.artifact.write import interface_facts, write_artifact
    from irc.export import to_bytes
    from irc.report.html import html

    if done.program is None:
        raise ValueError("nothing is compiled yet")
    done.report.interface = interface_facts(done.program)
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
        model_proto_bytes=(done.exported or to_bytes(done.model)) if "onnx" in emit else None,
        report_html=html(done.report) if "report" in emit else None,
        glue_object=runners.glue_object(done.program, lower.cache_folder(done.options)),
        emit=emit,
    )
    done.report.sizes |= _file_sizes(done.manifest)
    done.directory = done.options.directory


def _instructions(program: Program, verification: Mapping[str, Any]) -> dict[str, int]:
    """Of one run: as the code says, and as an emulated board counted while the result was checked."""
    found = {"estimated": program.instructions, "counted": verification.get("instructions")}
    return {name: count for name, count in found.items() if count is not None}


def _program_sizes(program: Program) -> dict[str, int]:
    coded = {} if program.coded is None else {"coded weights": len(program.coded.data)}
    return {"weights": program.weights_bytes, **coded, "workspace": program.workspace_bytes}


def _file_sizes(manifest: dict[str, Any]) -> dict[str, int]:
    """Bytes of the libraries that were written."""
    files = manifest["files"]
    return {Path(name).name: facts["bytes"] for name, facts in files.items() if name.endswith((".a", ".o", ".so"))}
