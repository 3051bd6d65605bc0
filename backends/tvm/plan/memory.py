"""Static placement of storages in the workspace from their lifetimes.

Greedy by size (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020): the largest
first, each at the lowest offset where it meets no storage that lives at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable

from irc.backends.tvm.plan.views import Storage


def align(n: int, to: int = 64) -> int:
    return -(-n // to) * to


def place(storages: Iterable[Storage]) -> int:
    """Set `offset` of every workspace storage; returns the bytes needed."""
    waiting = [s for s in storages if s.kind == "workspace" and s.last >= 0]
    waiting.sort(key=lambda s: (-s.nbytes, s.number))
    placed: list[Storage] = []
    total = 0
    for storage in waiting:
        offset = 0
        for other in sorted((p for p in placed if _meet(p, storage)), key=lambda p: p.offset):
            if offset + storage.nbytes <= other.offset:
                break
            offset = max(offset, align(other.offset + other.nbytes))
        storage.offset = offset
        placed.append(storage)
        total = max(total, offset + storage.nbytes)
    return align(total)


def lower_bound(storages: Iterable[Storage]) -> int:
    """The most bytes alive at one step: no placement can need less."""
    live = [s for s in storages if s.kind == "workspace" and s.last >= 0]
    steps = {s.first for s in live}
    return max((sum(align(s.nbytes) for s in live if s.first <= t <= s.last) for t in steps), default=0)


def _meet(a: Storage, b: Storage) -> bool:
    return a.first <= b.last and b.first <= a.last
