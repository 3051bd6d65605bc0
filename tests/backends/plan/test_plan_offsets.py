"""Search for offsets: legal, no worse than the rules, and optimal where all orders can be tried."""

from __future__ import annotations

import itertools
import random

import pytest

from irc.backends.tvm.plan.offsets import Item, Part, Problem, lower_bound, solve


def random_problem(seed: int, count: int) -> Problem:
    """Items of one part or two, of which the second is born later, or the first dies sooner."""
    chance = random.Random(seed)
    items = []
    for _ in range(count):
        first = chance.randrange(count)
        nbytes, last = chance.choice([8, 24, 100, 333, 1000]), first + chance.randrange(4)
        parts: tuple[Part, ...] = ()
        if last > first and chance.random() < 0.5:
            cut, late = chance.randrange(1, nbytes), chance.random() < 0.5
            parts = (Part(0, cut, first, last if late else first), Part(cut, nbytes, last if late else first, last))
        items.append(Item(nbytes, first, last, parts))
    behind = {
        (a, b, t): chance.choice([-40, 0, 16, 50, 500])
        for a, x in enumerate(items)
        for b, y in enumerate(items)
        for t in {p.last for p in x.pieces} & {q.first for q in y.pieces}
        if a != b and chance.random() < 0.7
    }
    return Problem(tuple(items), 8, behind)


def check(problem: Problem, offsets: list[int], total: int) -> None:
    """Byte by byte: two items have one only where a part that dies meets one that is born, far enough behind it."""
    for a, item in enumerate(problem.items):
        assert offsets[a] >= 0
        assert offsets[a] % problem.alignment == 0
        assert offsets[a] + item.nbytes <= total
    owners: dict[tuple[int, int], list[tuple[int, Part]]] = {}
    for n, item in enumerate(problem.items):
        for piece in item.pieces:
            for step in range(piece.first, piece.last + 1):
                for at in range(offsets[n] + piece.start, offsets[n] + piece.end):
                    owners.setdefault((step, at), []).append((n, piece))
    for (step, _), both in owners.items():
        for a, p in both:
            for b, q in both:
                if a >= b:
                    continue
                dying = p.last == step == q.first and (a, b, step) in problem.behind
                born = q.last == step == p.first and (b, a, step) in problem.behind
                assert (dying and offsets[a] >= offsets[b] + problem.behind[a, b, step]) or (
                    born and offsets[b] >= offsets[a] + problem.behind[b, a, step]
                )


@pytest.mark.parametrize("seed", range(30))
def test_placements_are_legal(seed: int) -> None:
    problem = random_problem(seed, 2 + seed)
    offsets, total = solve(problem, work=20_000)
    check(problem, offsets, total)
    assert lower_bound(problem) <= total <= solve(problem, work=0)[1]
    assert solve(problem, work=20_000) == (offsets, total)


def smallest(problem: Problem) -> int:
    """Each item as low as it goes, in all orders."""
    count = len(problem.items)
    best = sum(problem.size(n) for n in range(count))
    for order in itertools.permutations(range(count)):
        at: dict[int, int] = {}
        for n in order:
            busy = [(at[m] + low, at[m] + high) for m in at for low, high in problem.forbidden(n, m)]
            candidates = {0, *(high for _, high in busy if high > 0)}
            at[n] = min(o for o in candidates if all(o <= low or o >= high for low, high in busy))
        best = min(best, max(o + problem.size(n) for n, o in at.items()))
    return best


@pytest.mark.parametrize("seed", range(100, 120))
def test_small_problems_are_solved_to_the_optimum(seed: int) -> None:
    problem = random_problem(seed, 6)
    assert solve(problem)[1] == smallest(problem)


def test_no_items() -> None:
    assert solve(Problem(())) == ([], 0)


def test_an_output_reaches_into_its_input() -> None:
    chain = tuple(Item(1000, t, t + 1) for t in range(6))
    behind = {(t, t + 1, t + 1): 96 for t in range(5)}
    offsets, total = solve(Problem(chain, 8, behind))
    assert total == 1000 + 5 * 96  # each lies a little below the one before
    check(Problem(chain, 8, behind), offsets, total)


def test_in_place() -> None:
    chain = tuple(Item(1000, t, t + 1) for t in range(6))
    assert solve(Problem(chain, 8, {(t, t + 1, t + 1): 0 for t in range(5)}))[1] == 1000


def test_a_distance_beyond_the_output_is_no_overlap() -> None:
    assert solve(Problem((Item(64, 0, 1), Item(64, 1, 2)), 8, {(0, 1, 1): 9000}))[1] == 128


def test_strips_follow_each_other() -> None:
    """An image that is read from the top while another grows in its place."""
    steps = range(4)
    image = Item(400, 0, 3, tuple(Part(100 * t, 100 * t + 100, 0, t) for t in steps))
    result = Item(400, 0, 4, tuple(Part(100 * t, 100 * t + 100, t, 4) for t in steps))
    assert solve(Problem((image, result), 4))[1] == 500
    assert solve(Problem((image, result), 4, {(0, 1, t): 0 for t in steps}))[1] == 400
