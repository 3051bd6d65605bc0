"""How several threads go through the calls together: which calls are shared out, and which have to wait for others.

A call waits when it meets a call since the last waiting one in memory that one of the two writes, unless both run on
one thread. Placement has given storages that do not live at the same time the same memory: bytes are compared, not
storages. The border of an image and its inside are written by two calls and do not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irc.backends.tvm.plan.make import Plan
from irc.backends.tvm.plan.planner import Call
from irc.backends.tvm.plan.views import Storage
from irc.backends.tvm.specs import FillSpec
from irc.backends.tvm.traffic import traffic

_MACS_PER_NS = {True: 60.0, False: 250.0}  # of float32 data, of bytes
_BYTES_PER_NS = 50.0
_WORTH_NS = 500.0  # what it costs threads to meet, on processors that are far from each other
_RUN_WORTH_NS = 100_000.0  # below, the way of the data from one processor's cache to the other's eats up the gain


def worth_sharing(call: Call, plan: Plan) -> bool:
    """Whether threads gain by sharing out a call: not when it takes about as long as meeting after it.

    Neighbouring calls that are not shared out cost no meeting between them.
    """
    return call.parallel and _nanoseconds(call, plan) >= _WORTH_NS


def worth_threads(calls: Sequence[Call], plan: Plan) -> bool:
    """Whether threads gain by sharing out a whole network of these calls."""
    return sum(_nanoseconds(call, plan) for call in calls if call.parallel) >= _RUN_WORTH_NS


def _nanoseconds(call: Call, plan: Plan) -> float:
    """About what a call takes on one thread."""
    rate = _MACS_PER_NS[getattr(call.spec, "x_dtype", "float32") == "float32"]
    return call.macs / rate + traffic(call, plan).total / _BYTES_PER_NS


@dataclass(frozen=True)
class _Access:
    """Memory that a call touches: [low, high) of `space` (workspace, or an input or output by number)."""

    space: tuple[str, int]
    low: int
    high: int
    writes: bool
    storage: int
    border: bool


def waits(calls: Sequence[Call], storages: Sequence[Storage]) -> list[bool]:
    """For each call whether it waits. The first never does."""
    found: list[bool] = []
    since: list[tuple[bool, list[_Access]]] = []
    for call in calls:
        mine = _accesses(call, storages)
        wait = any((call.parallel or parallel) and _meet(mine, theirs) for parallel, theirs in since)
        since = [(call.parallel, mine)] if wait else [*since, (call.parallel, mine)]
        found.append(wait)
    return found


def _accesses(call: Call, storages: Sequence[Storage]) -> list[_Access]:
    found = []
    for number in {pointer.storage for pointer in call.args}:
        storage = storages[number]
        if storage.kind == "weights":
            continue
        placed = storage.kind == "workspace"
        space = (storage.kind, 0 if placed else storage.port)
        low = storage.offset if placed else 0
        high = low + storage.nbytes if placed else 1
        border = isinstance(call.spec, FillSpec)
        found.append(_Access(space, low, high, number in call.writes, number, border))
    return found


def _meet(some: list[_Access], others: list[_Access]) -> bool:
    return any(_collide(a, b) for a in some for b in others)


def _collide(a: _Access, b: _Access) -> bool:
    if a.space != b.space or not (a.writes or b.writes) or a.high <= b.low or b.high <= a.low:
        return False
    return not (a.storage == b.storage and a.writes and b.writes and a.border != b.border)
