"""Constants of hand-written kernels of microcontrollers: when they are packed how, and what the kernels rely on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.overlap import distances
from irc.backends.tvm.plan.small_pack import pack_conv, pack_depthwise
from irc.backends.tvm.small import pair_order, ring_columns, row_steps
from irc.backends.tvm.small_epilogue import Elements, epilogue_of
from irc.backends.tvm.specs import Operand, SmallConvSpec, SmallDepthwiseSpec
from irc.targets import get_target

M4 = get_target("cortex-m4")


def requantized(zero: int = -128, *, swish: bool = False) -> Expression:
    b = ExpressionBuilder()
    total = b.add("add", "int32", b.add("accumulator", "int32"), b.operand(0, "int32"))
    value = b.add("scale", "float32", b.add("cast", "float32", total), b.operand(1, "float32"))
    if swish:
        value = b.add("mul", "float32", value, b.add("sigmoid", "float32", value))
    return b.finish(b.requantize(value, "int8", -128, 127, zero))


def conv(oc: int = 8, ic: int = 8, out: tuple[int, int] = (4, 6)) -> SmallConvSpec:
    operands = (Operand("int32", (0, 0, 0, 1), oc), Operand("float32", (0, 0, 0, 1), oc))
    h, w = out
    return SmallConvSpec(
        "int8", 1, out, out, (1, 1), ic, oc, (h * w * ic, w * ic, ic), (h * w * oc, w * oc, oc),
        expression=requantized(), operands=operands, x_size=h * w * ic, y_size=h * w * oc,
    )  # fmt: skip


def constants(oc: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(oc, dtype=np.int32), np.full(oc, 0.01, np.float32)


def weights(oc: int = 8, ic: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(-127, 128, (oc, 1, 1, ic)).astype(np.int8)


def test_two_channels_share_a_word() -> None:
    w = weights()
    packed = pack_conv(conv(), w, constants(8), M4)
    assert packed.spec.way == "pairs"
    assert packed.spec.streamed == 2
    assert packed.spec.out == (1, 24)  # rows of places follow each other
    tile = packed.weights[: packed.weights.size // 2]
    steps = tile[4:-4].reshape(4, 2)  # steps, pairs of channels
    for step, (first, second) in enumerate(pair_order(8)):
        for pair in range(2):
            a, b = w[2 * pair, 0, 0].astype(int), w[2 * pair + 1, 0, 0].astype(int)
            halves = np.array([steps[step, pair]], np.int32).view(np.int16)
            assert halves.tolist() == [256 * b[k] + a[k] for k in (first, second)]
    bias = constants(8)[0].astype(int)
    assert tile[:4].tolist() == [bias[0], 256 * bias[1] + bias[0], bias[2], 256 * bias[3] + bias[2]]


def test_weights_that_share_no_word() -> None:
    w = weights()
    w[0], w[1] = -1, -128  # 256 * b + a leaves 16 bits
    assert pack_conv(conv(), w, constants(8), M4).spec.way == "pairs/wide"
    w[0] = 1
    assert pack_conv(conv(), w, constants(8), M4).spec.way == "pairs"


def test_sums_beyond_24_bits_take_words_of_their_own() -> None:
    bias, scale = constants(8)
    bias[3] = 1 << 24
    assert pack_conv(conv(), weights(), (bias, scale), M4).spec.way == "pairs/wide/saturate"
    w = weights()
    w[3] = 0  # a channel that is the same everywhere costs the others nothing
    assert pack_conv(conv(), w, (bias, scale), M4).spec.way == "pairs"


@pytest.mark.parametrize(
    "spec",
    [
        replace(conv(), batch=2),
        replace(conv(), expression=requantized(swish=True)),
        replace(conv(), y_strides=(384, 96, 16)),
    ],
    ids=["images", "expression", "gaps"],
)
def test_other_convolutions_are_left_to_the_plain_kernel(spec: SmallConvSpec) -> None:
    assert pack_conv(spec, weights(), constants(8), M4).spec == spec


@pytest.mark.parametrize("target", ["cortex-m3", "cortex-m4-nofpu", "riscv32"])
def test_cores_without_pairs_or_an_fpu_have_the_plain_kernel(target: str) -> None:
    assert pack_conv(conv(), weights(), constants(8), get_target(target)).spec == conv()


@pytest.mark.parametrize("run", range(1, 14))
def test_steps_hold_every_byte_once(run: int) -> None:
    order = pair_order(run)
    assert len(order) == row_steps(run)
    assert sorted(b for pair in order for b in pair if b >= 0) == list(range(run))


def depthwise(stride: int, top: int, channels: int = 4) -> SmallDepthwiseSpec:
    h, w = 9, 7
    out = ((h + 2 * top - 3) // stride + 1, (w - 3) // stride + 1)
    operands = (Operand("int32", (0, 0, 0, 1), channels), Operand("float32", (0, 0, 0, 1), channels))
    return SmallDepthwiseSpec(
        "int8", 1, (h, w), out, (3, 3), channels, (h * w * channels, w * channels, channels),
        (out[0] * out[1] * channels, out[1] * channels, channels), stride=(stride, stride), pads=(top, 0),
        expression=requantized(), operands=operands,
    )  # fmt: skip


@pytest.mark.parametrize(("stride", "top"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)])
def test_rows_are_copied_before_the_result_reaches_them(stride: int, top: int) -> None:
    w = weights(9, 4).reshape(3, 3, 4)
    spec = pack_depthwise(depthwise(stride, top), w, constants(4), M4).spec
    assert spec.way == "rows"
    assert spec.scratch == 3 * ring_columns(spec) * 4
    found = distances(spec)[0]

    def works(distance: int) -> bool:
        """Whether every row is whole when it is copied, with the image `distance` bytes behind the result."""
        overwritten = -(1 << 30)
        copied = 0
        for row in range(spec.out[0]):
            while copied < min(row * stride - top + 3, spec.image[0]):
                if distance + copied * spec.x_strides[1] < overwritten:
                    return False
                copied += 1
            overwritten = (row + 1) * spec.y_strides[1]
        return True

    assert works(found)
    assert not works(found - 1)


def test_residual_connections_are_known() -> None:
    b = ExpressionBuilder()
    first = requantized(5)
    values: list[int] = []
    for i in first:
        values.append(b.add(i.op, i.dtype, *(values[a] for a in i.args), params=i.params))
    total = b.add("add", "float32", b.dequantize(values[-1], 0.1, 5), b.dequantize(b.operand(2, "int8"), 0.2, -7))
    found = epilogue_of(b.finish(b.requantize(b.add("relu", "float32", total), "int8", -128, 127, 3, 4.0)))
    assert found is not None
    assert [type(s).__name__ for s in found.steps] == ["Round", "Elements"]
    assert found.elements[0] == Elements(2, "int8", 0.2, -7)
    assert found.requantize.params[0] == 3  # the relu is the lower bound
