"""Static placement of storages in the workspace from their lifetimes (`offsets.py` searches the offsets).

Where nothing runs on several threads, the output of a call may reach into the memory of an input that the call reads
last, as far as its kernel allows (`overlap.py`). On small targets network inputs and outputs get a place as well: a
caller who follows it needs no memory for them, and gives up an input that lies there to the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from irc.backends.tvm.overlap import distances
from irc.backends.tvm.plan.offsets import Item, Problem, solve
from irc.backends.tvm.plan.offsets import lower_bound as bound_of
from irc.backends.tvm.plan.planner import Call
from irc.backends.tvm.plan.views import Storage

Behind = Mapping[tuple[int, int], int]
"""(x, y): the storage x may start so many bytes behind the start of y while y is written and x read for the last
time."""

_EXACT = 150
"""Storages up to which a placement is searched for, not only chosen among rules."""


@dataclass(frozen=True)
class Placement:
    """`nbytes` of workspace hold everything. `bound`: no placement can need less. `inputs`, `outputs`: offsets in the
    workspace where the ports may lie; None where there is no place for one."""

    nbytes: int
    bound: int
    inputs: tuple[int | None, ...] = ()
    outputs: tuple[int | None, ...] = ()


def align(n: int, to: int = 64) -> int:
    return -(-n // to) * to


def place(storages: Iterable[Storage], alignment: int = 64, behind: Behind | None = None, ports: bool = False) -> int:
    """Set `offset` of every workspace storage (and, with `ports`, of inputs and outputs); returns the bytes needed."""
    used = _placed(storages, ports)
    problem = _problem(used, alignment, behind or {})
    if len(used) > _EXACT:
        offsets, total = solve(problem, work=0)
    else:
        offsets, total = solve(problem)
    for storage, offset in zip(used, offsets, strict=True):
        storage.offset = offset
    return align(total, alignment)


def lower_bound(
    storages: Iterable[Storage], alignment: int = 64, behind: Behind | None = None, ports: bool = False
) -> int:
    """The most bytes alive at one step: no placement can need less."""
    return bound_of(_problem(_placed(storages, ports), alignment, behind or {}))


def _placed(storages: Iterable[Storage], ports: bool) -> list[Storage]:
    kinds = ("workspace", "input", "output") if ports else ("workspace",)
    return [s for s in storages if s.kind in kinds and s.last >= 0]


def _problem(used: Sequence[Storage], alignment: int, behind: Behind) -> Problem:
    number = {s.number: i for i, s in enumerate(used)}
    pairs = {(number[x], number[y]): d for (x, y), d in behind.items() if x in number and y in number}
    return Problem(tuple(Item(s.nbytes, s.first, s.last) for s in used), alignment, pairs)


def place_plan(calls: Sequence[Call], storages: Sequence[Storage], alignment: int, *, small: bool) -> Placement:
    """Lifetimes from the calls, then places. `small`: with overlaps, and with inputs and outputs."""
    lifetimes(calls, storages)
    if not small:
        return Placement(place(storages, alignment), lower_bound(storages, alignment))
    _lifetimes_of_ports(storages, len(calls))
    behind = overlaps(calls, storages)
    total = place(storages, alignment, behind, ports=True)
    bound = lower_bound(storages, alignment, behind, ports=True)
    return Placement(total, bound, _offsets(storages, "input"), _offsets(storages, "output"))


def lifetimes(calls: Sequence[Call], storages: Sequence[Storage]) -> None:
    """Set `first` and `last` of every storage that a call touches."""
    for storage in storages:
        storage.first = storage.last = -1
    for step, call in enumerate(calls):
        for pointer in call.args:
            storage = storages[pointer.storage]
            storage.first = step if storage.first < 0 else storage.first
            storage.last = step


def _lifetimes_of_ports(storages: Sequence[Storage], steps: int) -> None:
    """Inputs are there before the first step, whether or not somebody reads them; outputs stay after the last one."""
    for storage in storages:
        if storage.kind == "input":
            storage.first, storage.last = 0, max(storage.last, 0)
        elif storage.kind == "output" and storage.last >= 0:
            storage.last = max(steps, 1)


def overlaps(calls: Sequence[Call], storages: Sequence[Storage]) -> dict[tuple[int, int], int]:
    """What may share memory: the storage that a call is the first to write (its result, not its scratch), and those
    that it is the last to read."""
    found: dict[tuple[int, int], int] = {}
    for step, call in enumerate(calls):
        allowed = distances(call.spec)
        results = [p for p in call.args if p.storage in call.writes[:1]]
        if not allowed or len(results) != 1 or storages[results[0].storage].first != step:
            continue
        y = results[0]
        for x in {p.storage for p in call.args} - set(call.writes):
            if storages[x].kind == "weights" or storages[x].last != step:
                continue
            pointers = [(i, p) for i, p in enumerate(call.args) if p.storage == x]
            if all(i in allowed for i, _ in pointers):
                found[x, y.storage] = max(allowed[i] + y.offset - p.offset for i, p in pointers)
    return found


def peak(calls: Sequence[Call], storages: Sequence[Storage], *, ports: bool) -> list[tuple[str, int]]:
    """What lives at the step that needs most: the layer that writes it (or "input"), and its bytes."""
    used = _placed(storages, ports)
    if not used:
        return []

    def alive(step: int) -> list[Storage]:
        return [s for s in used if s.first <= step <= s.last]

    step = max({s.first for s in used}, key=lambda t: (sum(s.nbytes for s in alive(t)), -t))
    writers: dict[int, str] = {}
    for call in calls:
        for number in call.writes:
            writers.setdefault(number, ", ".join(call.nodes[-1:]) or call.label)
    return [(writers.get(s.number, "input"), s.nbytes) for s in alive(step)]


def _offsets(storages: Sequence[Storage], kind: str) -> tuple[int | None, ...]:
    ports = sorted((s for s in storages if s.kind == kind), key=lambda s: s.port)
    return tuple(s.offset if s.last >= 0 else None for s in ports)
