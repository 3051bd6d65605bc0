"""What the plan chose for each kernel of a model, and why: for `irc explain`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irc.errors import IrcError
from irc.frontend import default_batch, require_static
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import levels_of
from irc.targets.target import Target

if TYPE_CHECKING:
    from irc.backends.tvm.plan.planner import Call
    from irc.backends.tvm.tune.records import Records

_OTHERS = 3


@dataclass(frozen=True)
class KernelRow:
    """One kernel with something to choose, and its `calls` in the network.

    `cycles`: predicted for one call; `bound`: what each resource would take alone; `others`: the next best choices
    and their cycles. All empty where no model speaks of such kernels. `tuned`: microseconds of the recorded choice
    and of the analytic one, measured.
    """

    text: str
    nodes: tuple[str, ...]
    calls: int
    macs: int
    choice: dict[str, Any]
    cycles: float | None
    bound: dict[str, float]
    others: tuple[tuple[dict[str, Any], float], ...]
    tuned: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kernel": self.text,
            "nodes": list(self.nodes),
            "calls": self.calls,
            "macs": self.macs,
            "choice": self.choice,
            "cycles": self.cycles,
            "bound": self.bound,
            "others": [{"choice": choice, "cycles": cycles} for choice, cycles in self.others],
        }
        if self.tuned is not None:
            found |= {"tuned_us": self.tuned[0], "analytic_us": self.tuned[1]}
        return found


@dataclass(frozen=True)
class Kernels:
    """`note`: why there are no rows, or none for some of the calls."""

    rows: list[KernelRow]
    note: str = ""


def explain_kernels(model: Model, target: Target, tuning: Path | None = None) -> Kernels:
    """The kernels of `model` as `irc compile` would plan it, in the order of their first call.

    A model that cannot be planned (open shapes, unknown operators) gives a note. Raises DataError for a record file
    that cannot be read.
    """
    from irc.backends.tvm.build import plan_of
    from irc.backends.tvm.tune.records import Records

    records = Records() if tuning is None else Records.load(tuning)
    static = clone(model)
    try:
        default_batch(static)
        require_static(static)
        plan = plan_of(static, target, records)
    except IrcError as error:
        return Kernels([], f"no kernels: {error}")
    best = levels_of(target)[-1]
    rows: dict[str, list[Call]] = {}
    for call in plan.calls:
        rows.setdefault(repr(call.spec), []).append(call)
    found = [row for calls in rows.values() if (row := _row(calls, best, records)) is not None]
    rest = len(plan.calls) - sum(row.calls for row in found)
    notes = [f"choices are those of the best level, {best.name}"] if target.upgrades else []
    notes += [f"{rest} calls of kernels that leave nothing to choose"] if rest else []
    if records.stale(best):
        notes.append(f"{records.stale(best)} tuning records of another version of the code generator are not used")
    return Kernels(found, "; ".join(notes))


def _row(calls: list[Call], target: Target, records: Records) -> KernelRow | None:
    from irc.backends.tvm.specs import LinearSpec, SparseSpec
    from irc.backends.tvm.tune.candidates import predicted, ranked
    from irc.backends.tvm.tune.classes import choice_of, describe

    call = calls[0]
    text = f"{describe(call.spec)}; {call.note}" if call.note else describe(call.spec)
    nodes = tuple(node for c in calls for node in c.nodes)
    if isinstance(call.spec, SparseSpec):
        shape = {"tile": list(call.spec.linear.tile), "near": f"{call.spec.columns} columns near"}
        return KernelRow(text, nodes, len(calls), call.macs, shape, None, {}, ())
    choice = choice_of(call.spec)
    if not choice:
        return None
    model = predicted(call.spec, target)
    others = ranked(call.spec, target)[: _OTHERS + 1] if isinstance(call.spec, LinearSpec) else []
    tiles = [({"tile": [t.rows, t.columns, t.vectors]}, t.cycles) for t in others]
    record = records.find(call.spec, target)
    return KernelRow(
        text,
        nodes,
        len(calls),
        call.macs,
        choice,
        None if model is None else model.cycles,
        {} if model is None else dict(model.bound),
        tuple((c, cycles) for c, cycles in tiles if c["tile"] != choice["tile"])[:_OTHERS],
        None if record is None else (record.seconds * 1e6, record.analytic_seconds * 1e6),
    )
