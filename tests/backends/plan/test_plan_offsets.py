"""Search for offsets: legal, no worse than the rules, and optimal where all orders can be tried."""

from __future__ import annotations

import itertools
import random

import pytest

from irc.backends.tvm.plan.offsets import Item, Problem, lower_bound, solve


def random_problem(seed: int, count: int) -> Problem:
    chance = random.Random(seed)
    items = []
    for _ in range(count):
        first = chance.randrange(count)
        items.append(Item(chance.choice([1, 8, 24, 100, 333, 1000]), first, first + chance.randrange(4)))
    behind = {
        (a, b): chance.choice([-40, 0, 16, 50, 500])
        for a, x in enumerate(items)
        for b, y in enumerate(items)
        if a != b and x.last == y.first and x.first < y.last and chance.random() < 0.7
    }
    return Problem(tuple(items), 8, behind)


def check(problem: Problem, offsets: list[int], total: int) -> None:
    for a, item in enumerate(problem.items):
        assert offsets[a] >= 0
        assert offsets[a] % problem.alignment == 0
        assert offsets[a] + item.nbytes <= total
        for b in range(a):
            if not item.meets(problem.items[b]):
                continue
            apart = offsets[a] >= offsets[b] + problem.items[b].nbytes or offsets[b] >= offsets[a] + item.nbytes
            shared = [(a, b), (b, a)]
            allowed = any(p in problem.behind and offsets[p[0]] >= offsets[p[1]] + problem.behind[p] for p in shared)
            assert apart or allowed


@pytest.mark.parametrize("seed", range(40))
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
            near = [m for m in at if problem.items[n].meets(problem.items[m])]
            candidates = {0, *(max(0, at[m] + problem.separation(n, m)) for m in near)}
            at[n] = min(
                o
                for o in candidates
                if all(o >= at[m] + problem.separation(n, m) or o <= at[m] - problem.separation(m, n) for m in near)
            )
        best = min(best, max(o + problem.size(n) for n, o in at.items()))
    return best


@pytest.mark.parametrize("seed", range(100, 130))
def test_small_problems_are_solved_to_the_optimum(seed: int) -> None:
    problem = random_problem(seed, 6)
    assert solve(problem)[1] == smallest(problem)


def test_no_items() -> None:
    assert solve(Problem(())) == ([], 0)


def test_an_output_reaches_into_its_input() -> None:
    chain = tuple(Item(1000, t, t + 1) for t in range(6))
    behind = {(t, t + 1): 96 for t in range(5)}
    offsets, total = solve(Problem(chain, 8, behind))
    assert total == 1000 + 5 * 96  # each lies a little below the one before
    check(Problem(chain, 8, behind), offsets, total)


def test_in_place() -> None:
    chain = tuple(Item(1000, t, t + 1) for t in range(6))
    assert solve(Problem(chain, 8, {(t, t + 1): 0 for t in range(5)}))[1] == 1000


def test_a_distance_beyond_the_output_is_no_overlap() -> None:
    assert solve(Problem((Item(64, 0, 1), Item(64, 1, 2)), 8, {(0, 1): 9000}))[1] == 128
