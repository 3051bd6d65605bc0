"""Static placement of storages in the workspace from their lifetimes (`offsets.py` searches the offsets).

Where nothing runs on several threads, the output of a call may reach into the memory of an input that the call reads
last, as far as its kernel allows (`overlap.py`). On small targets network inputs and outputs get a place as well: a
caller who follows it needs no memory for them, and gives up an input that lies there to the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irc.backends.tvm.overlap import distances
from irc.backends.tvm.plan.offsets import Item, Part, Problem, solve
from irc.backends.tvm.plan.offsets import lower_bound as bound_of
from irc.backends.tvm.plan.planner import Call
from irc.backends.tvm.plan.views import Storage
from irc.backends.tvm.small import is_real
from irc.backends.tvm.specs import ElementwiseSpec, SmallConvSpec, SmallDepthwiseSpec, Spec

Behind = Mapping[tuple[int, int, int], int]
"""(x, y, step): the storage x may start so many bytes behind the start of y in a step that writes y, as far as parts of
x that are read there for the last time and parts of y that are written for the first time meet."""

Parts = Mapping[int, tuple[Part, ...]]
"""By storage: which bytes are needed when. Not there: all of them all the time."""

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


def place(
    storages: Iterable[Storage],
    alignment: int = 64,
    behind: Behind | None = None,
    parts: Parts | None = None,
    *,
    ports: bool = False,
) -> int:
    """Set `offset` of every workspace storage (and, with `ports`, of inputs and outputs); returns the bytes needed."""
    used = _placed(storages, ports)
    problem = _problem(used, alignment, behind or {}, parts or {})
    if len(used) > _EXACT:
        offsets, total = solve(problem, work=0)
    else:
        offsets, total = solve(problem)
    for storage, offset in zip(used, offsets, strict=True):
        storage.offset = offset
    return align(total, alignment)


def lower_bound(
    storages: Iterable[Storage],
    alignment: int = 64,
    behind: Behind | None = None,
    parts: Parts | None = None,
    *,
    ports: bool = False,
) -> int:
    """The most bytes alive at one step: no placement can need less."""
    return bound_of(_problem(_placed(storages, ports), alignment, behind or {}, parts or {}))


def _placed(storages: Iterable[Storage], ports: bool) -> list[Storage]:
    kinds = ("workspace", "input", "output") if ports else ("workspace",)
    return [s for s in storages if s.kind in kinds and s.last >= 0]


def _problem(used: Sequence[Storage], alignment: int, behind: Behind, parts: Parts) -> Problem:
    number = {s.number: i for i, s in enumerate(used)}
    pairs = {(number[x], number[y], t): d for (x, y, t), d in behind.items() if x in number and y in number}
    items = tuple(Item(s.nbytes, s.first, s.last, parts.get(s.number, ())) for s in used)
    return Problem(items, alignment, pairs)


def place_plan(calls: Sequence[Call], storages: Sequence[Storage], alignment: int, *, small: bool) -> Placement:
    """Lifetimes from the calls, then places. `small`: with overlaps, and with inputs and outputs."""
    lifetimes(calls, storages)
    if not small:
        return Placement(place(storages, alignment), lower_bound(storages, alignment))
    _lifetimes_of_ports(storages, len(calls))
    behind = overlaps(calls, storages)
    parts = parts_of(calls, storages)
    total = place(storages, alignment, behind, parts, ports=True)
    bound = lower_bound(storages, alignment, behind, parts, ports=True)
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


def overlaps(calls: Sequence[Call], storages: Sequence[Storage]) -> dict[tuple[int, int, int], int]:
    """What may share memory: the result of a call (not its scratch) and what it reads."""
    found: dict[tuple[int, int, int], int] = {}
    for step, call in enumerate(calls):
        allowed = distances(call.spec)
        results = [p for p in call.args if p.storage in call.writes[:1]]
        if not allowed or len(results) != 1:
            continue
        y = results[0]
        for x in {p.storage for p in call.args} - set(call.writes):
            pointers = [(i, p) for i, p in enumerate(call.args) if p.storage == x]
            if storages[x].kind != "weights" and all(i in allowed for i, _ in pointers):
                found[x, y.storage, step] = max(allowed[i] + y.offset - p.offset for i, p in pointers)
    return found


def parts_of(calls: Sequence[Call], storages: Sequence[Storage]) -> dict[int, tuple[Part, ...]]:
    """Storages whose bytes are not all needed for the same time: images that are read or written strip by strip."""
    touched: dict[int, list[tuple[int, int, int]]] = {}
    for step, call in enumerate(calls):
        extents = arg_bytes(call.spec, len(call.args))
        for pointer, nbytes in zip(call.args, extents, strict=True):
            size = storages[pointer.storage].nbytes
            low, high = (0, size) if nbytes is None else (pointer.offset, min(pointer.offset + nbytes, size))
            touched.setdefault(pointer.storage, []).append((step, low, high))
    found = {}
    for number, events in touched.items():
        storage = storages[number]
        ends = sorted({0, storage.nbytes, *(e for _, low, high in events for e in (low, high))})
        if storage.kind == "weights" or len(ends) <= 2:
            continue
        parts: list[Part] = []
        for low, high in itertools.pairwise(ends):
            steps = [step for step, start, end in events if start <= low and high <= end]
            first, last = (min(steps), max(steps)) if steps else (storage.first, storage.last)
            first = 0 if storage.kind == "input" else first
            last = storage.last if storage.kind == "output" else last
            if parts and (parts[-1].first, parts[-1].last) == (first, last):
                parts[-1] = Part(parts[-1].start, high, first, last)
            else:
                parts.append(Part(low, high, first, last))
        if len(parts) > 1:
            found[number] = tuple(parts)
    return found


def arg_bytes(spec: Spec, count: int) -> list[int | None]:
    """Bytes from each argument's pointer on that a call of `spec` may touch; None: not known, so all."""
    known: list[int | None] = [None] * count
    if isinstance(spec, SmallConvSpec | SmallDepthwiseSpec):
        known[0] = spec.x_size * (4 if is_real(spec) else 1)
        operands = spec.operands[spec.streamed :]
        for i, operand in enumerate(operands):
            known[2 + i] = operand.size * np.dtype(operand.dtype).itemsize
        known[2 + len(operands)] = spec.y_size * np.dtype(spec.y_dtype).itemsize
    elif isinstance(spec, ElementwiseSpec):
        for i, operand in enumerate(spec.operands):
            known[i] = operand.size * np.dtype(operand.dtype).itemsize
        known[count - 1] = (spec.y_size + spec.gap) * np.dtype(spec.y_dtype).itemsize
    return known


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
