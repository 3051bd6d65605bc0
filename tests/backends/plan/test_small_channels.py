"""Channels of microcontrollers' images that no result depends on: which ones, and when all of them stay."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_networks import build_networks

from irc.backends.tvm.build import plan_of
from irc.backends.tvm.specs import SmallConvSpec, SmallDepthwiseSpec
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.targets import get_target

F = np.float32
CHANNELS = 32
LIVE = (3, 9, 10, 20, 31)


def layer(
    b: GraphBuilder, x: Value, inputs: int, biases: np.ndarray, pads: int = 0, *, dead: bool = False
) -> Value:  # fmt: skip
    """A quantized convolution with Relu, depthwise where `inputs` is 1. `dead`: all channels but LIVE are their biases,
    whatever `x` is."""
    oc = len(biases)
    group = oc if inputs == 1 else 1
    kernel = 1 + 2 * pads
    w = np.random.default_rng(oc + group).integers(1, 127, (oc, inputs, kernel, kernel)).astype(np.int8)
    scale = np.full(oc, 0.01, F)
    if dead:
        scale[np.setdiff1d(np.arange(oc), LIVE)] = F(1e-8)
    weights = b.dequantize(w, scale, np.zeros(oc, np.int8), axis=0)
    y = b.op("Relu", b.conv(x, weights, biases.astype(F), pads=[pads] * 4, group=group))
    return b.dequantize(b.quantize(y, F(0.05), np.array(-128, np.int8)), F(0.05), np.array(-128, np.int8))


def network(*, constant: float, reader: str, other: str = "") -> Model:
    """1 x 1, depthwise 3 x 3 where `reader` says so, and a 1 x 1 or padded 3 x 3 convolution. Dead channels are
    `constant` everywhere. `other` reads the first image, too."""
    b = GraphBuilder()
    x = b.dequantize(b.input("x", "int8", [1, 8, 5, 5]), F(0.1), np.array(0, np.int8))
    first = layer(b, x, 8, np.full(CHANNELS, constant), dead=True)
    middle = first
    if reader == "depthwise":
        middle = layer(b, first, 1, np.full(CHANNELS, -0.3), 1)
    last = layer(b, middle, CHANNELS, np.zeros(8), 1 if reader == "padded" else 0)
    b.output(b.quantize(last, F(0.05), np.array(-128, np.int8)), name="y")
    if other == "pool":
        pooled = b.op("GlobalAveragePool", first)
        b.output(b.quantize(pooled, F(0.05), np.array(-128, np.int8)), name="z")
    return b.build()


def stored(model: Model, target: str = "cortex-m4") -> list[int]:
    """Channels of the results of the plan's convolutions."""
    calls = plan_of(model, get_target(target)).calls
    specs = [c.spec for c in calls]
    return [
        s.oc if isinstance(s, SmallConvSpec) else s.channels
        for s in specs
        if isinstance(s, SmallConvSpec | SmallDepthwiseSpec)
    ]


@pytest.mark.parametrize(("target", "count"), [("cortex-m4", 8), ("cortex-m0plus", 8), ("c", 16), ("cortex-m55", 16)])
def test_dead_channels_are_neither_computed_nor_stored(target: str, count: int) -> None:
    """As many as kernels take together stay: five live ones become eight, or sixteen."""
    assert stored(network(constant=-1.0, reader="pointwise"), target) == [count, 8]
    assert stored(network(constant=-1.0, reader="depthwise"), target) == [count, count, 8]
    assert stored(network(constant=-1.0, reader="padded"), target) == [count, 8]


def test_what_they_are_joins_the_sums_where_no_window_leaves_the_image() -> None:
    assert stored(network(constant=1.0, reader="pointwise")) == [8, 8]
    assert stored(network(constant=1.0, reader="padded")) == [CHANNELS, 8]
    assert stored(network(constant=1.0, reader="depthwise")) == [CHANNELS, CHANNELS, 8]


def test_images_that_others_read_stay_whole() -> None:
    assert stored(network(constant=-1.0, reader="pointwise", other="pool")) == [CHANNELS, 8]


def test_channels_that_live_stay() -> None:
    b = GraphBuilder()
    x = b.dequantize(b.input("x", "int8", [1, 8, 5, 5]), F(0.1), np.array(0, np.int8))
    last = layer(b, layer(b, x, 8, np.zeros(16)), 16, np.zeros(8))
    b.output(b.quantize(last, F(0.05), np.array(-128, np.int8)), name="y")
    assert stored(b.build()) == [16, 8]


def test_the_network_whose_bits_are_tested_everywhere_has_dead_channels() -> None:
    model, _ = build_networks(["dead_channels"])
    first, second, *_ = stored(clone(model))
    assert first == second
    assert first < 44
