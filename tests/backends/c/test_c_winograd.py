"""Float convolutions of C source that go through Winograd's transforms, against onnxruntime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c_sources import COMPILERS, run_compiled
from in_process import program_of

from irc.backends.program import Program
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.small import WINOGRAD
from irc.backends.tvm.specs import SmallConvSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

IMAGES: dict[str, tuple[tuple[int, ...], int, dict[str, object]]] = {
    "large": ((1, 16, 30, 29), 16, {}),
    "two": ((2, 32, 10, 9), 40, {}),
    "deep": ((1, 64, 8, 8), 64, {}),
    "inside": ((1, 16, 20, 17), 24, {"pads": [0, 0, 0, 0]}),
    "beside": ((1, 16, 25, 25), 16, {"pads": [0, 2, 1, 0]}),
    "wide": ((1, 32, 14, 15), 32, {"kernel": (5, 5)}),
    "row": ((2, 64, 101), 64, {"kernel": (3,)}),
    "flat": ((1, 64, 6, 40), 64, {"kernel": (1, 3)}),
}
"""Shape of the image, output channels, and kernel and attributes where they are not 3 x 3 with padding."""


def add_block(b: GraphBuilder, name: str) -> None:
    """Convolution, bias, ReLU, and a residual where channels are alike."""
    shape, oc, more = IMAGES[name]
    attributes = dict(more)
    kernel = attributes.pop("kernel", (3, 3))
    assert isinstance(kernel, tuple)
    x = b.input(name, "float32", list(shape))
    pads = [k // 2 for k in kernel] * 2
    y = b.conv(x, weights(oc, shape[1], *kernel), weights(oc, seed=1), **{"pads": pads, **attributes})
    y = b.op("Add", y, x) if oc == shape[1] and not attributes else y
    b.output(b.op("Relu", y), name=f"{name} y")


@functools.cache
def model() -> Model:
    b = GraphBuilder("winograd")
    for name in IMAGES:
        add_block(b, name)
    return b.build()


@functools.cache
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, (shape, _, _) in IMAGES.items()}


@functools.cache
def wanted() -> dict[str, np.ndarray]:
    return dict(Oracle(model()).run(feeds()))


@functools.cache
def program() -> Program:
    return program_of(clone(model()), TARGETS["c"], name="net")


def ways(network: Model, target: Target) -> list[str]:
    calls = make_plan(clone(network).graph, target).calls
    return [call.spec.way for call in calls if isinstance(call.spec, SmallConvSpec)]


def block(name: str) -> Model:
    b = GraphBuilder(name)
    add_block(b, name)
    return b.build()


def test_every_block_goes_through_transforms() -> None:
    found = ways(model(), TARGETS["c"])
    assert len(found) == len(IMAGES)
    assert all(way.startswith(WINOGRAD) for way in found)
    assert set(found) == {"winograd1x4", "winograd2x2", "winograd4x4"}


def test_small_machines_keep_small_weights() -> None:
    large = block("large")
    assert ways(large, TARGETS["c"]) == ["winograd4x4"]
    assert ways(large, replace(TARGETS["c"], l2_bytes=0)) == ["real"]


def test_channels_are_whole_vectors() -> None:
    for ic, oc in ((18, 16), (16, 18)):
        b = GraphBuilder("odd")
        x = b.input("x", "float32", [1, ic, 30, 30])
        b.output(b.conv(x, weights(oc, ic, 3, 3), pads=[1, 1, 1, 1]), name="y")
        assert ways(b.build(), TARGETS["c"]) == ["real"]


@pytest.mark.parametrize("way", COMPILERS)
def test_as_onnxruntime(way: str, tmp_path: Path, need_tool: Callable[..., str]) -> None:
    """Sums of some 300 products in another order, and transforms whose matrices have entries up to 45/16: as the
    kernels of other targets."""
    got = run_compiled(program(), way, feeds(), tmp_path, need_tool)
    for name, result in wanted().items():
        error = np.abs(got[name] - result).max() / np.abs(result).max()
        assert error < 1e-5, name
