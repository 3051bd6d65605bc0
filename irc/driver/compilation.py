"""The record of one compilation, and what it has to say about its model and its passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import irc
from irc.backends.program import Program
from irc.driver.options import CompileOptions
from irc.evaluation.cost import costs
from irc.ir.graph import Model
from irc.pipeline import Pipeline, PipelineReport
from irc.report.model import PassSummary, Report, Size

PASS_NOTES = 3


@dataclass
class Compilation:
    """What came out. `program` None and `directory` None where an earlier phase was the last one asked for.
    `exported`: `model` as an ONNX file, where somebody needed it already."""

    options: CompileOptions
    original: Model
    model: Model
    report: Report
    pipeline_report: PipelineReport | None = None
    program: Program | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    exported: bytes | None = None


def new_report(options: CompileOptions, model: Model, pipeline: Pipeline) -> Report:
    return Report(
        irc.__version__,
        model.name,
        options.name,
        options.target.name,
        str(pipeline),
        before=size_of(model),
        notes=list(model.notes),
    )


def size_of(model: Model) -> Size:
    found = costs(model)
    return Size(len(model.graph), found.parameters, found.bytes, found.sparsity, found.macs)


def pass_notes(report: PipelineReport) -> list[str]:
    """What passes want people to know (`notes` in their statistics): the first few of each, as layers are many."""
    found = []
    for record in report.passes:
        notes = record.statistics.get("notes", ())
        found += [f"{record.name}: {note}" for note in notes[:PASS_NOTES]]
        if len(notes) > PASS_NOTES:
            found.append(f"{record.name}: and {len(notes) - PASS_NOTES} more (in the manifest)")
    return found


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
