"""The search, with real kernels: what it may choose, when it ends, what it keeps. No test depends on a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from irc.backends.tvm.cache import Cache
from irc.backends.tvm.expression import Instr
from irc.backends.tvm.plan.make import Plan, make_plan
from irc.backends.tvm.specs import LinearSpec
from irc.backends.tvm.tune import search as search_module
from irc.backends.tvm.tune.candidates import candidates
from irc.backends.tvm.tune.classes import choice_of
from irc.backends.tvm.tune.measure import Bench
from irc.backends.tvm.tune.records import Records
from irc.backends.tvm.tune.search import Search
from irc.backends.tvm.workers import Compiler
from irc.ir.builder import GraphBuilder, weights
from irc.targets import get_target

NATIVE = get_target("native")


def make() -> Plan:
    b = GraphBuilder("net")
    y = b.op("Relu", b.conv(b.input("x", "float32", [1, 8, 12, 12]), weights(64, 8, 3, 3), weights(64, seed=1)))
    y = b.op("Relu", b.conv(y, weights(64, 1, 3, 3, seed=3), group=64))
    b.output(b.conv(y, weights(48, 64, 1, 1, seed=4)), name="y")
    return make_plan(b.build().graph, NATIVE)


@pytest.fixture(scope="module")
def compiler(kernel_cache: Path) -> Compiler:
    with Compiler(NATIVE, Cache(kernel_cache), 1) as running:
        yield running


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches then end by themselves, long before their time."""
    monkeypatch.setattr(search_module, "candidates", lambda spec, target: candidates(spec, target, 3))


def search(compiler: Compiler, known: Records | None = None) -> Search:
    return Search(make(), NATIVE, known or Records(), compiler, 1, lambda what, done, total: None)


def test_each_record_is_one_of_the_candidates(compiler: Compiler) -> None:
    found = search(compiler).run(60.0)
    by_class = {r.kernel: r for r in found.records}
    assert found.interrupted is None
    assert found.measured == found.layers == len(by_class) == 3
    for call in make().calls:
        record = Records(found.records).find(call.spec, NATIVE)
        if record is None:
            continue
        assert record.analytic == choice_of(call.spec)
        assert record.seconds <= record.analytic_seconds
        if isinstance(call.spec, LinearSpec):
            allowed = [replace(c, order=o) for c in candidates(call.spec, NATIVE, 99) for o in ("rows", "channels")]  # type: ignore[arg-type]  # linear
            assert record.choice in [choice_of(c) for c in allowed]


def test_without_time_the_heaviest_kernel_is_still_measured(compiler: Compiler) -> None:
    found = search(compiler).run(1e-9)
    assert found.measured == len(found.records) == 1


def test_ctrl_c_keeps_what_was_found(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    made = search(compiler)
    best, done = made._best, []

    def second_is_interrupted(layer: object, deadline: float) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(best(layer, deadline))  # type: ignore[arg-type]  # a Layer
        return done[0]

    monkeypatch.setattr(made, "_best", second_is_interrupted)
    found = made.run(60.0)
    assert found.records == done
    assert isinstance(found.interrupted, KeyboardInterrupt)


def test_what_computes_something_else_is_no_variant(compiler: Compiler) -> None:
    plan = make()
    call = next(c for c in plan.calls if isinstance(c.spec, LinearSpec))
    spec = call.spec
    assert isinstance(spec, LinearSpec)
    last = len(spec.expression) - 1
    wrong = replace(spec, expression=(*spec.expression, Instr("neg", "float32", (last,))))
    other = replace(spec, tile=(1, 3, 1))
    made = search(compiler)._compile([spec, wrong, other])
    with Bench(plan, NATIVE, call, 1 << 20) as bench:
        assert bench.add(spec, *made[spec])
        assert not bench.add(wrong, *made[wrong])
        assert bench.add(other, *made[other])
        times = bench.times([spec, other], 3, float("inf"))
        assert {s: len(t) for s, t in times.items()} == {spec: 3, other: 3}
        assert {len(t) for t in bench.times([spec, other], 3, 0.0).values()} == {1}
