"""Integer convolutions on Cortex-M55 vectors: exact, at the edges of images and with any number of channels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import kernel_cases as cases
import numpy as np
import pytest
from kernel_harness import assembly, linkable, symbol_of

from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.qemu import Emulated, missing_tools
from irc.backends.program import Arg, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.backends.tvm.overlap import distances
from irc.backends.tvm.plan.small_mve import mve_conv, mve_depthwise
from irc.backends.tvm.small_mve import PLANES
from irc.backends.tvm.specs import Operand, SmallConvSpec, SmallDepthwiseSpec
from irc.targets.catalogue import TARGETS

TARGET = TARGETS["cortex-m55"]
FILL = 11  # the zero point of the data

Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    ic: int
    oc: int
    image: Pair
    out: Pair
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    pads: Pair = (0, 0)
    dilation: Pair = (1, 1)
    depthwise: bool = False
    residual: bool = False
    limits: Pair = (-128, 127)


LAYERS = {
    "window in registers": Layer(64, 32, (3, 5), (3, 5)),
    "two places": Layer(16, 32, (3, 5), (3, 5)),
    "half a vector": Layer(8, 16, (5, 3), (5, 3)),
    "long windows": Layer(136, 24, (1, 3), (1, 3)),
    "residual": Layer(24, 32, (3, 3), (3, 3), residual=True),
    "residual, odd channels": Layer(24, 30, (3, 3), (3, 3), residual=True),
    "tiles": Layer(64, 12, (3, 4), (3, 4), limits=(-70, 60)),
    "tiles, odd places": Layer(144, 8, (3, 3), (3, 3)),
    "held 8": Layer(8, 24, (3, 4), (3, 4), limits=(-70, 60)),
    "held 16": Layer(16, 20, (1, 6), (1, 6)),
    "held 32": Layer(32, 8, (4, 3), (4, 3)),
    "held 3x3": Layer(3, 16, (5, 6), (5, 6), (3, 3), pads=(1, 1)),
    "held first": Layer(3, 8, (12, 12), (6, 6), (3, 3), (2, 2)),
    "held wide": Layer(3, 8, (9, 20), (5, 10), (3, 3), (2, 2), (1, 1)),
    "held rows": Layer(1, 12, (7, 9), (5, 10), (4, 5), pads=(1, 3)),
    "held columns": Layer(2, 4, (6, 5), (6, 6), (2, 2), pads=(1, 1)),
    "held single rows": Layer(4, 4, (5, 16), (3, 8), (1, 3), (2, 2), (1, 1)),
    "dense": Layer(64, 10, (1, 1), (1, 1)),
    "3x3": Layer(16, 16, (5, 6), (5, 6), (3, 3), pads=(1, 1)),
    "3x3 first": Layer(3, 8, (10, 10), (5, 5), (3, 3), (2, 2)),
    "wide kernel": Layer(1, 20, (15, 6), (8, 3), (10, 4), (2, 2), (4, 1)),
    "dilation": Layer(5, 7, (6, 6), (6, 6), (3, 3), pads=(2, 2), dilation=(2, 2)),
    "strided 1x1": Layer(16, 32, (6, 6), (3, 3), stride=(2, 2)),
    "depthwise": Layer(32, 32, (5, 4), (5, 4), (3, 3), pads=(1, 1), depthwise=True),
    "depthwise limits": Layer(8, 8, (5, 5), (5, 5), (3, 3), pads=(1, 1), depthwise=True, limits=(-70, 60)),
    "depthwise 8": Layer(8, 8, (4, 6), (4, 6), (3, 3), pads=(1, 1), depthwise=True),
    "depthwise 8 odd": Layer(8, 8, (4, 5), (4, 5), (3, 3), pads=(1, 1), depthwise=True),
    "depthwise odd": Layer(48, 48, (3, 9), (3, 9), (3, 3), pads=(1, 1), depthwise=True),
    "depthwise edges": Layer(16, 16, (6, 12), (5, 11), (3, 3), pads=(0, 1), depthwise=True),
    "depthwise below": Layer(8, 8, (2, 3), (4, 3), (3, 3), pads=(1, 0), depthwise=True),
    "depthwise 8, 5x5": Layer(8, 8, (4, 5), (4, 5), (5, 5), pads=(2, 2), depthwise=True),
    "depthwise stride": Layer(16, 16, (8, 8), (4, 4), (3, 3), (2, 2), depthwise=True),
    "depthwise stride odd": Layer(40, 40, (5, 29), (3, 15), (3, 3), (2, 2), (1, 1), depthwise=True),
    "depthwise stride 8": Layer(8, 8, (6, 16), (3, 8), (3, 3), (2, 2), depthwise=True),
    "depthwise stride 9": Layer(8, 8, (6, 18), (3, 9), (3, 3), (2, 2), depthwise=True),
    "depthwise stride 16": Layer(16, 16, (9, 9), (4, 3), (5, 5), (2, 2), (1, 1), depthwise=True),
    "depthwise inside": Layer(16, 16, (5, 6), (3, 4), (3, 3), depthwise=True),
    "depthwise 24": Layer(24, 24, (4, 4), (4, 4), (3, 3), pads=(1, 1), depthwise=True),
    "depthwise 5x5": Layer(5, 5, (4, 5), (4, 5), (5, 5), pads=(2, 2), depthwise=True),
    "depthwise dilation": Layer(32, 32, (5, 5), (5, 5), (3, 3), pads=(2, 2), dilation=(2, 2), depthwise=True),
    "depthwise residual": Layer(16, 16, (4, 3), (4, 3), (3, 3), pads=(1, 1), depthwise=True, residual=True),
}  # fmt: skip


def make(name: str) -> tuple[SmallConvSpec | SmallDepthwiseSpec, list[np.ndarray], np.ndarray]:
    """(specification, arrays in the kernel's order, the result)."""
    la = LAYERS[name]
    rng = np.random.default_rng([*name.encode()])
    x = cases.random(rng, "int8", *la.image, la.ic)
    w = rng.integers(-127, 128, (la.oc, *la.kernel, 1 if la.depthwise else la.ic)).astype(np.int8)
    terms = w[0].size
    expression, data = cases.requantized("int8", terms=terms, residual=la.residual)(rng, la.oc, "int32")
    last = expression[-1]
    expression = (*expression[:-1], replace(last, params=(*la.limits, *last.params[2:])))
    bias, scale = data[0][1] // 64, data[1][1]
    arrays, constants = [bias, scale], [bias, scale]
    operands = [Operand(a.dtype.name, (0, 0, 0, 1), la.oc, float(np.abs(a).max())) for a in arrays]
    size = math.prod(la.out) * la.oc
    strides = (size, la.out[1] * la.oc, la.oc)
    if la.residual:
        arrays.append(cases.random(rng, "int8", size))
        operands.append(Operand("int8", (*strides, 1), size, 128.0))
        constants.append(None)
    x_strides = (x.size, la.image[1] * la.ic, la.ic)
    shape = (la.oc,) if la.depthwise else (la.ic, la.oc)
    spec = (SmallDepthwiseSpec if la.depthwise else SmallConvSpec)(
        *("int8", 1, la.image, la.out, la.kernel, *shape, x_strides, strides, la.stride, la.dilation, la.pads, FILL),
        expression=expression,
        operands=tuple(operands),
        x_size=x.size,
        y_size=size,
    )
    taps = w[..., 0].transpose(1, 2, 0)
    packed = mve_depthwise(spec, taps, constants) if la.depthwise else mve_conv(spec, w, constants)
    assert packed is not None
    made, weights = packed
    return made, [x.reshape(-1), weights, *arrays[made.streamed :]], reference(la, x, w, arrays)


def reference(la: Layer, x: np.ndarray, w: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
    """docs/integer-semantics.md in numpy, for the expression of `cases.requantized`."""
    reach = [
        o * s + k * d + p for o, s, k, d, p in zip(la.out, la.stride, la.kernel, la.dilation, la.pads, strict=True)
    ]
    padded = np.full((reach[0] + la.image[0], reach[1] + la.image[1], la.ic), FILL, np.int64)
    padded[la.pads[0] :, la.pads[1] :][: la.image[0], : la.image[1]] = x
    total = np.zeros((*la.out, la.oc), np.int64)
    for kh in range(la.kernel[0]):
        for kw in range(la.kernel[1]):
            rows, columns = padded[kh * la.dilation[0] :: la.stride[0]], slice(kw * la.dilation[1], None, la.stride[1])
            data = rows[: la.out[0], columns][:, : la.out[1]]
            taps = w[:, kh, kw].astype(np.int64)
            total += data * taps[:, 0] if la.depthwise else data @ taps.T
    value = (total + arrays[0]).astype(np.float32) * arrays[1]
    if la.residual:
        other = np.float32(0.37) * (arrays[2].reshape(total.shape).astype(np.int32) + 11).astype(np.float32)
        value = (value + other) * np.float32(0.73)
    return (np.clip(np.rint(value), la.limits[0] + 7, la.limits[1] + 7) - 7).astype(np.int8).reshape(-1)


def test_exact_on_the_board() -> None:
    """All kernels are one network, whose arrays are inputs."""
    if missing_tools(TARGET):
        pytest.skip(f"needs {missing_tools(TARGET)}")
    steps, kernels, inputs, outputs, expected = [], {}, [], [], {}
    feeds: dict[str, np.ndarray] = {}
    workspace = 0
    for number, name in enumerate(LAYERS):
        spec, arrays, expected[name] = make(name)
        args = []
        for array in arrays:
            args.append(Arg("input", 0, len(inputs)))
            inputs.append(Port(f"i{len(inputs)}", array.dtype.name, array.shape))
            feeds[inputs[-1].name] = array
        args.append(Arg("output", 0, number))
        outputs.append(Port(name, "int8", expected[name].shape))
        if spec.scratch:
            args.append(Arg("workspace", 0))
            workspace = max(workspace, spec.scratch)
        kernels[symbol_of(spec)] = linkable(spec, TARGET)
        steps.append(Step(symbol_of(spec), tuple(args), False))
    program = Program(
        "mve", TARGET, tuple(inputs), tuple(outputs), tuple(steps), kernels, (), 0, workspace, TARGET.alignment
    )
    with Emulated(program, assemble(glue_ll(program), TARGET)) as network:
        found = network.run(feeds)
    for name, wanted in expected.items():
        np.testing.assert_array_equal(found[name], wanted, name)


@pytest.mark.parametrize(
    ("name", "instructions"),
    [
        ("two places", ("vmlav", "vqmovnt.s32")),
        ("3x3", ("vmlava.s8", "le\tlr")),
        ("depthwise stride 16", ("vmullt.s8", "vqadd")),
    ],
)
def test_vector_instructions(name: str, instructions: tuple[str, ...]) -> None:
    text = assembly(make(name)[0], TARGET)
    assert all(i in text for i in instructions), [i for i in instructions if i not in text]
    assert "vfma" not in text
    assert [c for c in re.findall(r"^\s*blx?\s+(\w+)", text, re.MULTILINE) if "mem" not in c] == []


def test_products_that_need_more_than_16_bits_are_left_to_other_kernels() -> None:
    spec, _, _ = make("depthwise stride 16")
    w = np.full((5, 5, 16), -128, np.int8)
    assert isinstance(spec, SmallDepthwiseSpec)
    assert mve_depthwise(spec, w, [None, None]) is None


@pytest.mark.parametrize(
    "name", ["depthwise", "depthwise odd", "depthwise edges", "depthwise below", "depthwise stride odd"]
)
def test_planes_copy_rows_before_results_take_their_place(name: str) -> None:
    spec, _, _ = make(name)
    assert isinstance(spec, SmallDepthwiseSpec)
    assert spec.way == PLANES

    def works(distance: int) -> bool:
        """Whether every row is whole when it is copied, with the image `distance` bytes behind the result."""
        end = 0
        for first in range(0, spec.out[0], 2 // spec.stride[0]):
            pair = first * spec.stride[0] // 2 + 1
            top = max(2 * pair - spec.pads[0], 0)
            copied = range(top if first else 0, min(2 * pair - spec.pads[0] + 2, spec.image[0]))
            if end > 0 and any(distance + row * spec.x_strides[1] < end for row in copied):
                return False
            end = min(first + 2 // spec.stride[0], spec.out[0]) * spec.y_strides[1]
        return True

    found = distances(spec)[0]
    assert works(found)
    assert found < -(1 << 30) or not works(found - 1)  # so small where nothing is left to copy
