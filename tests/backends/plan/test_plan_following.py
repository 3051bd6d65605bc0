"""Kernels ask for the weights of the calls after them, when the network's weights do not stay in the cache anyway."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from irc.backends.tvm.plan.following import ask_ahead
from irc.backends.tvm.plan.make import Plan, make_plan
from irc.backends.tvm.specs import LinearSpec
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Graph
from irc.targets.catalogue import TARGETS

TARGET = TARGETS["x86-64-v4-vnni"]
WIDTHS = (64, 512, 96, 700, 10)


def _chain() -> Graph:
    """Matrix products with Relu between them."""
    rng = np.random.default_rng(3)
    b = GraphBuilder("chain")
    x = b.input("x", "float32", (4, WIDTHS[0]))
    for inner, columns in itertools.pairwise(WIDTHS):
        w = rng.standard_normal((inner, columns)).astype(np.float32)
        x = b.op("Relu", b.op("MatMul", x, w))
    b.output(x)
    return b.build().graph


def _planned(l2_bytes: int) -> tuple[Plan, Plan]:
    """Without asking and with it."""
    plans = make_plan(_chain(), TARGET), make_plan(_chain(), TARGET)
    ask_ahead(plans[1].planner, plans[1].calls, replace(TARGET, l2_bytes=l2_bytes))
    return plans


def test_each_kernel_asks_for_what_comes_next() -> None:
    before, after = _planned(128 * 1024)
    assert len(before.calls) == len(after.calls) == len(WIDTHS) - 1
    sizes = [math.prod(pair) * 4 for pair in itertools.pairwise(WIDTHS)]
    asked = []
    for plain, call in zip(before.calls, after.calls, strict=True):
        assert isinstance(call.spec, LinearSpec)
        asked.append(call.spec.ahead)
        assert replace(call.spec, ahead=0) == plain.spec
        if call.spec.ahead:
            assert (*call.args[:-2], call.args[-1]) == plain.args
        else:
            assert call.args == plain.args
    for i in range(len(WIDTHS) - 2):
        assert after.calls[i].args[-2] == after.calls[i + 1].args[1]
        assert asked[i] <= 32 * 1024, "a part of the cache"
        assert asked[i] >= min(sizes[i + 1], 32 * 1024)
    assert asked[-1] == 0, "nothing comes after the last"


def test_small_networks_stay_in_the_cache() -> None:
    before, after = _planned(16 * 1024 * 1024)
    assert [c.spec for c in before.calls] == [c.spec for c in after.calls]


def test_machines_without_caches_ask_for_nothing() -> None:
    before, after = _planned(0)
    assert after.calls == before.calls
