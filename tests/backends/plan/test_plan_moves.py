"""Reshapes that shuffle parts of an image: one copy, channels-last, to where the readers want it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from in_process import open_program, program_of

from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.plan.views import merged_dimensions
from irc.backends.tvm.specs import LibrarySpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.targets.catalogue import get_target


def test_dimensions_merge_where_whole_ones_make_each() -> None:
    assert merged_dimensions((1, 4, 2, 3, 5), (1, 8, 3, 5)) == [[], [0, 1, 2], [3], [4]]
    assert merged_dimensions((2, 3, 4), (2, 12)) == [[0], [1, 2]]
    assert merged_dimensions((2, 3, 4), (6, 4)) == [[0, 1], [2]]
    assert merged_dimensions((2, 6), (4, 3)) is None
    assert merged_dimensions((2, 3, 2), (2, 3)) is None


def conv(b: GraphBuilder, x: Value, ic: int, oc: int, k: int) -> Value:
    return b.op("Relu", b.conv(x, weights(oc, ic, k, k, seed=oc), pads=[k // 2] * 4))


def shuffled_channels(b: GraphBuilder) -> None:
    x = conv(b, b.input("x", "float32", (1, 4, 5, 6)), 4, 12, 1)
    x = b.op("Transpose", b.op("Reshape", x, np.array([1, 2, 6, 5, 6])), perm=(0, 2, 1, 3, 4))
    b.output(conv(b, b.op("Reshape", x, np.array([1, 12, 5, 6])), 12, 5, 3))


def depth_to_space(b: GraphBuilder) -> None:
    for mode in ("DCR", "CRD"):
        x = conv(b, b.input(mode, "float32", (2, 4, 3, 5)), 4, 20, 3)
        b.output(conv(b, b.op("DepthToSpace", x, blocksize=2, mode=mode), 5, 6, 3))
    x = b.input("x", "float32", (1, 8, 2, 3))
    b.output(b.op("DepthToSpace", x, blocksize=2))


def space_to_depth(b: GraphBuilder) -> None:
    x = conv(b, b.input("x", "float32", (1, 4, 4, 6)), 4, 5, 3)
    b.output(conv(b, b.op("SpaceToDepth", x, blocksize=2), 20, 6, 1))


_NETWORKS = [shuffled_channels, depth_to_space, space_to_depth]


def built(build: Callable[[GraphBuilder], None]) -> Model:
    b = GraphBuilder()
    build(b)
    return b.build()


@pytest.mark.parametrize("build", _NETWORKS, ids=lambda f: f.__name__)
def test_one_copy_each(build: Callable[[GraphBuilder], None]) -> None:
    calls = make_plan(clone(built(build)).graph, get_target("x86-64-v4-vnni")).calls
    assert not any(isinstance(c.spec, LibrarySpec) for c in calls)
    inside = [c.label for c in calls[2:] if c.label in ("regroup", "reorder", "pad")]
    assert inside.count("regroup") == (2 if build is depth_to_space else 1)
    assert len(inside) - inside.count("regroup") <= (2 if build is depth_to_space else 0), "inputs are padded"


@pytest.mark.parametrize("build", _NETWORKS, ids=lambda f: f.__name__)
def test_numbers_are_those_of_onnxruntime(build: Callable[[GraphBuilder], None]) -> None:
    model = built(build)
    rng = np.random.default_rng(4)
    feeds = {v.name: rng.standard_normal(v.static_shape()).astype(np.float32) for v in model.graph.inputs}
    with open_program(program_of(model, get_target("native"))) as network:
        got = network.run(feeds)
    for name, value in Oracle(model).run(feeds).items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * np.abs(value).max())
