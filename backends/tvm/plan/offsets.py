"""Offsets for pieces of memory whose lifetimes are known (dynamic storage allocation), as a problem of numbers.

Two items that live at the same time lie apart. Not all of an item needs to live as long as the item: its parts may be
born and die one after the other. And `behind[x, y, t]` = d says that at step t, with which parts of x die and parts of
y are born, x may start as little as d bytes behind the start of y, although these parts then share bytes
(`irc.backends.tvm.overlap`).

Placing items in the order of their offsets, each as low as it can, gives an optimal placement for one of the orders.
So orders are searched: several rules (greedy by size and by breadth: Pisarchyk and Lee, "Efficient Memory Management
for Deep Neural Net Inference", 2020), then moves of single items in the best order found. The search ends when it
meets the lower bound or has done a fixed amount of work; its random numbers are always the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_WORK = 400_000
"""Comparisons of offsets that a search may make: some tenths of a second."""

Interval = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `end` (not included) of an item, needed from step `first` to step `last`, both included."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Item:
    """`nbytes` that are needed from step `first` to step `last`, both included; all of them without `parts`."""

    nbytes: int
    first: int
    last: int
    parts: tuple[Part, ...] = ()

    @property
    def pieces(self) -> tuple[Part, ...]:
        return self.parts or (Part(0, self.nbytes, self.first, self.last),)

    def meets(self, other: Item) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Problem:
    """Items by number, and by how much which may share memory. Offsets are multiples of `alignment`."""

    items: tuple[Item, ...]
    alignment: int = 64
    behind: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    def size(self, number: int) -> int:
        """Bytes with those that alignment adds."""
        return -(-self.items[number].nbytes // self.alignment) * self.alignment

    def forbidden(self, a: int, b: int) -> list[Interval]:
        """Open intervals in which the offset of `a` minus that of `b` may not lie."""
        found: list[Interval] = []
        for p in self.items[a].pieces:
            for q in self.items[b].pieces:
                if p.first > q.last or q.first > p.last:
                    continue
                low, high = q.start - p.end, q.end - p.start
                if p.last == q.first and (a, b, p.last) in self.behind:
                    high = min(high, self.behind[a, b, p.last])
                if q.last == p.first and (b, a, q.last) in self.behind:
                    low = max(low, -self.behind[b, a, q.last])
                low, high = low // self.alignment * self.alignment, -(-high // self.alignment) * self.alignment
                if low < high:
                    found.append((low, high))
        return _merged(found)


def _merged(intervals: list[Interval]) -> list[Interval]:
    """The union of open intervals; those that only touch leave their common end free."""
    found: list[Interval] = []
    for low, high in sorted(intervals):
        if found and low < found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def lower_bound(problem: Problem) -> int:
    """The most bytes in use at one step: no placement can need less."""
    pieces = [(n, p) for n, item in enumerate(problem.items) for p in item.pieces]
    whole = [problem.size(n) if not item.parts else 0 for n, item in enumerate(problem.items)]
    most = 0
    for step in {p.first for _, p in pieces}:
        alive = [(n, p) for n, p in pieces if p.first <= step <= p.last]
        used = sum(whole[n] or p.end - p.start for n, p in alive)
        shared = 0
        for y, q in alive:
            if q.first != step:
                continue
            both = 0
            for x, p in alive:
                if p.last == step and (x, y, step) in problem.behind:
                    size = whole[y] or q.end - q.start
                    into = size - max(0, problem.behind[x, y, step] + p.start - q.start)
                    both += max(0, min(into, whole[x] or p.end - p.start))
            shared += min(both, whole[y] or q.end - q.start)
        most = max(most, used - shared)
    return -(-most // problem.alignment) * problem.alignment


def solve(problem: Problem, *, work: int = _WORK) -> tuple[list[int], int]:
    """Offsets by item, and the bytes needed."""
    if not problem.items:
        return [], 0
    search = _Search(problem, work)
    search.rules()
    search.moves()
    return search.best, search.total


class _Search:
    """The best placement so far, and what is needed to place quickly."""

    def __init__(self, problem: Problem, work: int) -> None:
        self.problem = problem
        self.work = work
        self.sizes = [problem.size(n) for n in range(len(problem.items))]
        # For each item those it meets, with the offsets that it may not have less the other's.
        self.near: list[list[tuple[int, list[Interval]]]] = [[] for _ in problem.items]
        for a, item in enumerate(problem.items):
            for b in range(a):
                intervals = problem.forbidden(a, b) if item.meets(problem.items[b]) else []
                if intervals:
                    self.near[a].append((b, intervals))
                    self.near[b].append((a, [(-high, -low) for low, high in intervals]))
        self.bound = lower_bound(problem)
        self.best: list[int] = []
        self.total = -1

    def done(self) -> bool:
        return self.total == self.bound or self.work <= 0

    def rules(self) -> None:
        """Orders by rules; each placed as low as it goes, and as close around what is placed as it goes."""
        orders = [sorted(range(len(self.sizes)), key=key) for key in self._keys()]
        for order in [*orders, self._breadth()]:
            for place in (self._lowest, self._closest):
                self._offer(place(order))
                if self.total == self.bound:
                    return

    def _keys(self) -> Iterable[Callable[[int], tuple[int, ...]]]:
        items, sizes = self.problem.items, self.sizes
        yield lambda n: (-sizes[n], n)
        yield lambda n: (-(items[n].last - items[n].first + 1) * sizes[n], n)
        yield lambda n: (-(items[n].last - items[n].first), -sizes[n], n)
        yield lambda n: (items[n].first, -sizes[n], n)
        yield lambda n: (-items[n].last, -sizes[n], n)

    def _breadth(self) -> list[int]:
        """Items of the step that needs most first, in it the largest first."""
        steps = sorted({i.first for i in self.problem.items})
        alive = {t: [n for n, i in enumerate(self.problem.items) if i.first <= t <= i.last] for t in steps}
        steps.sort(key=lambda t: (-sum(self.sizes[n] for n in alive[t]), t))
        found: dict[int, None] = {}
        for t in steps:
            found.update(dict.fromkeys(sorted(alive[t], key=lambda n: (-self.sizes[n], n))))
        return list(found)

    def moves(self) -> None:
        """Moves items within the order of the offsets, mostly such that end where the memory ends."""
        chance = random.Random(0)
        order = self._order(self.best)
        current = self.total
        while not self.done() and len(order) > 1:
            tops = [n for n in order if self.best[n] + self.sizes[n] == self.total]
            tried = list(order)
            item = chance.choice(tops) if chance.random() < 0.5 else chance.choice(tried)
            tried.remove(item)
            tried.insert(chance.randrange(len(order)), item)
            if chance.random() < 0.3:
                a, b = chance.randrange(len(tried)), chance.randrange(len(tried))
                tried[a], tried[b] = tried[b], tried[a]
            offsets = self._lowest(tried)
            total = self._span(offsets)
            if total <= current:
                order, current = self._order(offsets), total
            self._offer(offsets)

    def _order(self, offsets: Sequence[int]) -> list[int]:
        return sorted(range(len(offsets)), key=lambda n: (offsets[n], n))

    def _span(self, offsets: Sequence[int]) -> int:
        return max(o + s for o, s in zip(offsets, self.sizes, strict=True))

    def _offer(self, offsets: list[int]) -> None:
        total = self._span(offsets)
        if self.total < 0 or total < self.total:
            self.best, self.total = offsets, total

    def _forbidden(self, n: int, placed: Sequence[int | None]) -> list[tuple[int, int]]:
        """Open intervals in which the offset of `n` may not lie, by their ends."""
        found = []
        for other, intervals in self.near[n]:
            at = placed[other]
            if at is not None:
                found += [(at + low, at + high) for low, high in intervals]
        self.work -= len(found) + 1
        return found

    def _lowest(self, order: Iterable[int]) -> list[int]:
        placed: list[int | None] = [None] * len(self.sizes)
        for n in order:
            offset = 0
            for low, high in sorted(self._forbidden(n, placed)):
                if offset <= low:
                    break
                offset = max(offset, high)
            placed[n] = offset
        return [o or 0 for o in placed]

    def _closest(self, order: Iterable[int]) -> list[int]:
        """Each where it widens least what is taken, below zero as well; then everything is moved up."""
        placed: list[int | None] = [None] * len(self.sizes)
        low, high = 0, 0
        for n in order:
            forbidden = self._forbidden(n, placed)
            ends = {0, *(end for interval in forbidden for end in interval)}
            free = [o for o in ends if all(o <= a or o >= b for a, b in forbidden)]
            offset = min(free, key=lambda o: (max(high, o + self.sizes[n]) - min(low, o), abs(o), o))
            self.work -= len(forbidden) ** 2
            placed[n] = offset
            low, high = min(low, offset), max(high, offset + self.sizes[n])
        return [(o or 0) - low for o in placed]
