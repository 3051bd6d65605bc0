"""Offsets for pieces of memory whose lifetimes are known (dynamic storage allocation), as a problem of numbers.

Two items that live at the same time lie apart, with one exception: `behind[x, y]` = d says that x may start as little
as d bytes behind the start of y, although the two then share bytes (`irc.backends.tvm.overlap`).

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


@dataclass(frozen=True)
class Item:
    """`nbytes` that are needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int

    def meets(self, other: Item) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Problem:
    """Items by number, and by how much which may share memory. Offsets are multiples of `alignment`."""

    items: tuple[Item, ...]
    alignment: int = 64
    behind: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def size(self, number: int) -> int:
        """Bytes with those that alignment adds."""
        return -(-self.items[number].nbytes // self.alignment) * self.alignment

    def separation(self, above: int, below: int) -> int:
        """The least offset of `above` minus that of `below`, when it is the one that lies above."""
        apart = self.size(below)
        given = self.behind.get((above, below))
        return apart if given is None else min(apart, -(-given // self.alignment) * self.alignment)


def lower_bound(problem: Problem) -> int:
    """The most bytes in use at one step: no placement can need less."""
    born: dict[int, list[tuple[int, int]]] = {}
    for x, y in problem.behind:
        born.setdefault(problem.items[y].first, []).append((x, y))
    most = 0
    for step in {i.first for i in problem.items}:
        alive = [n for n, i in enumerate(problem.items) if i.first <= step <= i.last]
        shared = 0
        pairs = born.get(step, [])
        for y in {y for _, y in pairs}:
            inputs = [x for x, of in pairs if of == y]
            least = max(0, min(problem.separation(x, y) for x in inputs))
            shared += min(problem.size(y) - least, sum(problem.size(x) for x in inputs))
        most = max(most, sum(problem.size(n) for n in alive) - shared)
    return most


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
        # For each item those it meets: (other, least offset above it, least offset of the other above this one).
        self.near: list[list[tuple[int, int, int]]] = [
            [
                (b, problem.separation(a, b), problem.separation(b, a))
                for b, other in enumerate(problem.items)
                if a != b and item.meets(other)
            ]
            for a, item in enumerate(problem.items)
        ]
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
        for other, above, below in self.near[n]:
            at = placed[other]
            if at is not None and at - below < at + above:
                found.append((at - below, at + above))
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
