"""Placement of storages: what lives at the same time never overlaps."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from quantized_networks import build_networks

from irc.backends.tvm.plan.make import Plan, make_plan
from irc.backends.tvm.plan.memory import align, lower_bound, place
from irc.backends.tvm.plan.views import Storage
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model
from irc.targets.catalogue import TARGETS


def random_storages(seed: int) -> list[Storage]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(int(rng.integers(1, 40))):
        first = int(rng.integers(0, 20))
        last = min(first + int(rng.integers(0, 8)), 20)
        kind = str(rng.choice(["workspace", "workspace", "workspace", "input", "weights"]))
        storage = Storage(number, kind, int(rng.choice([0, 1, 63, 64, 65, 1000, 5000])), first=first, last=last)  # type: ignore[arg-type]  # one of four words
        if rng.random() < 0.1:
            storage.first = storage.last = -1  # never used
        found.append(storage)
    return found


def check_placement(storages: list[Storage], total: int) -> None:
    used = [s for s in storages if s.kind == "workspace" and s.last >= 0]
    for i, a in enumerate(used):
        assert a.offset % 64 == 0
        assert a.offset >= 0
        assert a.offset + a.nbytes <= total
        for b in used[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
            assert apart or not together, (a, b)


@pytest.mark.parametrize("seed", range(60))
def test_storages_that_live_together_do_not_overlap(seed: int) -> None:
    storages = random_storages(seed)
    total = place(storages)
    check_placement(storages, total)
    bound = lower_bound(storages)
    live = [s for s in storages if s.kind == "workspace" and s.last >= 0]
    peak = max((sum(align(s.nbytes) for s in live if s.first <= t <= s.last) for t in range(22)), default=0)
    assert bound == peak
    assert bound <= total
    assert total <= sum(align(s.nbytes) for s in live)


def test_others_are_left_alone() -> None:
    storages = [Storage(0, "input", 100, first=0, last=3), Storage(1, "weights", 100, offset=7, first=0, last=3)]
    assert place(storages) == 0
    assert [s.offset for s in storages] == [0, 7]


def test_a_chain_needs_two_buffers() -> None:
    storages = [Storage(i, "workspace", 1000, first=i, last=i + 1) for i in range(10)]
    assert place(storages) == lower_bound(storages) == 2 * align(1000)


def test_a_small_one_fills_a_hole() -> None:
    storages = [
        Storage(0, "workspace", 4096, first=0, last=1),
        Storage(1, "workspace", 2048, first=1, last=2),
        Storage(2, "workspace", 4096, first=2, last=3),
        Storage(3, "workspace", 64, first=0, last=3),
    ]
    assert place(storages) == 4096 + 2048 + 64
    check_placement(storages, 4096 + 2048 + 64)


# Plans
def attention() -> Model:
    b = GraphBuilder("attention")
    x = b.input("x", "float32", [2, 5, 24])
    parts = [b.op("Add", b.matmul(x, weights(24, 24, seed=i)), weights(24, seed=i + 5)) for i in range(3)]
    heads = [b.op("Transpose", b.op("Reshape", p, [2, 5, 3, 8]), perm=[0, 2, 1, 3]) for p in parts]
    scores = b.matmul(heads[0], b.op("Transpose", heads[1], perm=[0, 1, 3, 2]))
    y = b.matmul(b.op("Softmax", b.op("Mul", scores, np.float32(0.35)), axis=-1), heads[2])
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), [2, 5, 24])
    total = b.op("Add", x, b.matmul(y, weights(24, 24, seed=9)))
    b.output(b.op("LayerNormalization", total, weights(24, seed=3), weights(24, seed=4)))
    return b.build()


def convolutions() -> Model:
    b = GraphBuilder("convolutions")
    x = b.input("x", "float32", [1, 3, 17, 13])
    y = b.op("Relu", b.conv(x, weights(8, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    z = b.op("Relu", b.conv(y, weights(8, 1, 3, 3, seed=1), pads=[1, 1, 1, 1], group=8))
    z = b.op("Add", y, b.conv(z, weights(8, 8, 1, 1, seed=2)))
    both = b.op("Concat", z, b.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), axis=1)
    b.output(b.conv(both, weights(4, 16, 3, 3, seed=3), pads=[0, 1, 2, 0]), b.op("GlobalAveragePool", both))
    return b.build()


MODELS = {
    "attention": attention,
    "convolutions": convolutions,
    "quantized": lambda: build_networks()[0],
}


@functools.cache
def plan_of(name: str, target: str) -> Plan:
    return make_plan(MODELS[name]().graph, TARGETS[target])


plans = pytest.mark.parametrize(
    ("name", "target"), [(n, t) for n in MODELS for t in ("x86-64-v4-vnni", "x86-64", "arm")]
)


@plans
def test_nothing_is_read_before_it_is_written(name: str, target: str) -> None:
    plan = plan_of(name, target)
    storages = plan.planner.storages
    ready = {s.number for s in storages if s.kind in ("input", "weights")}
    for call in plan.calls:
        read = {p.storage for p in call.args} - set(call.writes)
        assert read <= ready, f"{call.label} reads what nobody wrote"
        assert not {storages[w].kind for w in call.writes} & {"input", "weights"}, call.label
        ready |= set(call.writes)
    outputs = {s.number for s in storages if s.kind == "output"}
    assert outputs <= ready


@plans
def test_pointers_stay_inside(name: str, target: str) -> None:
    plan = plan_of(name, target)
    for call in plan.calls:
        for pointer in call.args:
            assert pointer.offset >= 0
            assert pointer.offset < max(plan.planner.storages[pointer.storage].nbytes, 1), call.label


@plans
def test_real_plans_are_placed_without_overlap(name: str, target: str) -> None:
    plan = plan_of(name, target)
    storages = plan.planner.storages
    for step, call in enumerate(plan.calls):
        for pointer in call.args:
            storage = storages[pointer.storage]
            storage.first = step if storage.first < 0 else storage.first
            storage.last = step
    total = place(storages)
    check_placement(storages, total)
    assert lower_bound(storages) <= total <= 1.5 * lower_bound(storages), "greedy by size is near the bound"


@plans
def test_planning_again_gives_the_same(name: str, target: str) -> None:
    plan = plan_of(name, target)
    again = make_plan(MODELS[name]().graph, TARGETS[target])
    assert [(c.spec, c.args) for c in again.calls] == [(c.spec, c.args) for c in plan.calls]
