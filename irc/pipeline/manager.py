"""Runs passes one after another, checks the graph between them, and says which pass was at fault."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from irc.errors import InternalError, IrcError, ModelError
from irc.ir.clone import clone
from irc.ir.graph import Model, Node
from irc.ir.infer import infer
from irc.ir.verify import verify
from irc.pipeline.contract import Pass, PassContext
from irc.pipeline.instruments import Instrument, Limit, write_model
from irc.pipeline.options import pass_text
from irc.pipeline.report import PassRecord, PipelineReport
from irc.pipeline.text import Element, Repeat, element_text, parse

MAX_ROUNDS = 20
"""Bound on the repetitions of one `( ... )*` group; more means that two passes undo each other."""


class Pipeline:
    """An ordered list of passes and repeated groups. `str()` gives the text that parses back to it."""

    def __init__(self, passes: Sequence[Element] = ()) -> None:
        self.passes = tuple(passes)

    @staticmethod
    def parse(text: str) -> Pipeline:
        """From text (grammar: `irc.pipeline.text`). Raises OptionError."""
        return Pipeline(parse(text))

    def __str__(self) -> str:
        return ",".join(element_text(e) for e in self.passes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def __repr__(self) -> str:
        return f"Pipeline({str(self)!r})"

    def run(
        self, model: Model, ctx: PassContext | None = None, instruments: Sequence[Instrument] = ()
    ) -> PipelineReport:
        """Run all passes on `model`, in place.

        Raises the IrcError of a pass, with the passes before it added to its text; any other exception of a pass, and
        an invalid model after it, becomes an InternalError that names a folder with everything to see it again.
        """
        verify(model)
        ctx = ctx or PassContext()
        if ctx.store is not None:
            ctx.store.begin(model)
        run = _Run(model, ctx, tuple(instruments), PipelineReport(str(self)))
        run.sequence(self.passes, rest=())
        return run.report


class _Stop(Exception):
    """An instrument wants no more passes."""


@dataclass
class _Run:
    model: Model
    ctx: PassContext
    instruments: tuple[Instrument, ...]
    report: PipelineReport
    done: list[str] = field(default_factory=list)
    before: tuple[Model, dict[Node, tuple[Any, ...]]] | None = None  # a copy of the model, and what its nodes compute

    def sequence(self, elements: Sequence[Element], rest: tuple[Element, ...]) -> None:
        """Run `elements`; `rest` is what the pipeline still holds after them (for the reproducer)."""
        try:
            for i, element in enumerate(elements):
                self._element(element, (*elements[i + 1 :], *rest), 0)
        except _Stop:
            self.report.stopped = True

    def _element(self, element: Element, rest: tuple[Element, ...], round: int) -> bool:
        if isinstance(element, Repeat):
            return self._repeat(element, rest)
        return self._pass(element, rest, round)

    def _repeat(self, group: Repeat, rest: tuple[Element, ...]) -> bool:
        ever = False
        for round in range(1, MAX_ROUNDS + 1):
            changed = False
            for i, element in enumerate(group.passes):
                changed |= self._element(element, (*group.passes[i + 1 :], group, *rest), round)
            if not changed:
                return ever
            ever = True
        raise InternalError(
            f"the passes of {group} still change the model after {MAX_ROUNDS} rounds",
            where=self.model.name,
            after=", ".join(self.done),
            hint="one round without the parentheses, and a report of this defect",
        )

    def _pass(self, p: Pass, rest: tuple[Element, ...], round: int) -> bool:
        number = len(self.report.passes) + 1
        if not all(i.wants(number, p) for i in self.instruments):
            raise _Stop
        for instrument in self.instruments:
            instrument.before(number, p, self.model)
        record = self._execute(p, rest, round)
        self.report.passes.append(record)
        self.done.append(p.name)
        for instrument in self.instruments:
            instrument.after(number, record, self.model)
        return record.changed

    def _execute(self, p: Pass, rest: tuple[Element, ...], round: int) -> PassRecord:
        if self.before is None:  # after a pass that changed nothing it is what it was
            self.before = clone(self.model), fingerprints(self.model)  # constants are shared
        backup, before = self.before
        start = time.perf_counter()
        try:
            result = p.run(self.model, self.ctx)
        except IrcError as error:
            raise error.at(self.model.name).following(", ".join(dict.fromkeys(self.done))) from None
        except Exception as error:
            raise self._crash(p, rest, backup, error) from error
        try:
            if result.changed:
                self.before = None
                infer(self.model)
                mark(self.model, before, p.name)
                if self.ctx.store is not None:
                    self.ctx.store.advance(pass_text(p))
            verify(self.model)
        except Exception as error:  # the model was valid before the pass: what is wrong now is the pass's doing
            raise self._crash(p, rest, backup, error) from error
        seconds = time.perf_counter() - start
        return PassRecord(p.name, pass_text(p), result.changed, result.statistics, result.refusals, seconds, round)

    def _crash(self, p: Pass, rest: tuple[Element, ...], backup: Model, error: Exception) -> InternalError:
        folder = reproducer(backup, Pipeline((p, *rest)), error, self.ctx.crash_dir)
        kind = "left an invalid model" if isinstance(error, ModelError) else f"failed: {type(error).__name__}"
        return InternalError(
            f"pass '{p.name}' {kind}: {error}",
            where=self.model.name,
            after=", ".join(self.done),
            hint=f"a report of this defect with the folder {folder}",
        )


def fingerprints(model: Model) -> dict[Node, tuple[Any, ...]]:
    """What a node computes, to see later which nodes are new or changed."""
    return {node: _fingerprint(node) for node in model.graph.walk()}


def _fingerprint(node: Node) -> tuple[Any, ...]:
    return node.domain, node.op_type, node.inputs, dict(node.attributes)


def mark(model: Model, before: dict[Node, tuple[Any, ...]], pass_name: str) -> None:
    """Put `pass_name` into the origin of every node that is new or differs from `before`."""
    for node in model.graph.walk():
        if before.get(node) != _fingerprint(node):
            node.origin = node.origin.touched(pass_name)


def reproducer(model: Model, rest: Pipeline, error: Exception, folder: Path | None) -> Path:
    """Write the model before the failing pass, the rest of the pipeline and the traceback; give the folder.

    What cannot be written is left out with a note in `traceback.txt`: the first error must not be hidden.
    """
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="irc-crash-"))
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(traceback.format_exception(error))
    try:
        write_model(model, folder, "before")
    except Exception as second:  # any failure here is only a missing convenience
        text += f"\nthe model could not be written: {second}\n"
    (folder / "pipeline.txt").write_text(f"{rest}\n", encoding="utf-8")
    (folder / "traceback.txt").write_text(text, encoding="utf-8")
    return folder


def bisect(
    model: Model, pipeline: Pipeline, is_good: Callable[[Model], bool], ctx: PassContext | None = None
) -> PassRecord | None:
    """The record of the first executed pass after which `is_good` fails; None when the whole pipeline is good.

    Binary search over the number of executed passes: about log2(passes) runs, each on a clone of `model`.
    Assumes that a result, once bad, stays bad. Raises ValueError when `model` itself is not good.
    """

    def run(count: int) -> tuple[bool, PipelineReport]:
        trial = clone(model)
        report = pipeline.run(trial, ctx, (Limit(count),))
        return is_good(trial), report

    if not is_good(clone(model)):
        raise ValueError("the model is not good before the first pass")
    fine, report = run(sys.maxsize)
    if fine:
        return None
    good, bad = 0, len(report.passes)
    while bad - good > 1:
        middle = (good + bad) // 2
        fine, _ = run(middle)
        good, bad = (middle, bad) if fine else (good, middle)
    return report.passes[bad - 1]
