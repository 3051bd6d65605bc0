"""64-bit Arm: that kernels use the instructions that the plan counts on, with nothing spilled in their loops, and that
awkward sizes are exact under emulation."""

from __future__ import annotations

import re

import kernel_cases as cases
import numpy as np
import pytest
from foreign_kernels import missing, run_foreign
from kernel_harness import Case, assembly

from irc.backends.tvm.depthwise import is_wide
from irc.backends.tvm.plan.tiles import Product, choose_tile
from irc.backends.tvm.specs import DepthwiseSpec
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

ARM, MATRICES, PLAIN = TARGETS["arm"], TARGETS["neoverse-v1"], TARGETS["cortex-a53"]


def _int8(name: str, target: Target, **options: object) -> Case:
    expression = cases.requantized("int8", terms=64)
    return cases.linear(name, target, x_dtype="int8", y_dtype="int8", expression=expression, **options)  # type: ignore[arg-type]  # of any kind


@pytest.mark.parametrize(
    ("target", "instruction"),
    [(ARM, r"sdot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[\d\]"), (MATRICES, r"smmla"), (PLAIN, r"sadalp")],
    ids=lambda v: v.name if isinstance(v, Target) else "",
)
def test_the_widest_products(target: Target, instruction: str) -> None:
    text = assembly(_int8("wide", target, ic=64, oc=16, out=(1, 8), tile=(1, 4, 2)).spec, target)
    assert re.search(instruction, text)
    assert ("sdot" in text) == (target is ARM)


def test_floats_by_element() -> None:
    text = assembly(cases.linear("floats", ARM, ic=32, oc=16, out=(1, 8), tile=(1, 4, 2)).spec, ARM)
    assert re.search(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]", text)
    assert "ld1r" not in text


def test_results_are_narrowed_by_saturation() -> None:
    text = assembly(_int8("narrow", ARM, ic=16, oc=16, out=(1, 8), tile=(1, 4, 4)).spec, ARM)
    for instruction in ("fcvtns", "sqxtn", "sqxtn2"):
        assert instruction in text


# odd places, odd steps of 8 and of 4 channels, sums of x, one place, kernels whose rows lie side by side and apart
SIZES: dict[str, dict[str, object]] = {
    "odd-places": {"ic": 24, "oc": 8, "out": (3, 7), "tile": (1, 5, 2)},
    "one-place": {"ic": 40, "oc": 12, "out": (1, 1), "tile": (1, 1, 3)},
    "part-vector": {"ic": 8, "oc": 7, "out": (2, 5), "tile": (1, 3, 2)},
    "row-kernel": {"ic": 8, "oc": 8, "out": (2, 5), "kernel": (3, 3), "tile": (1, 4, 2)},
    "dilated": {"ic": 16, "oc": 8, "out": (2, 4), "kernel": (2, 3), "dilation": (1, 2), "tile": (1, 4, 2)},
    "four-channels": {"ic": 4, "oc": 8, "out": (2, 5), "kernel": (3, 3), "tile": (1, 4, 2)},
    "pairs": {"ic": 6, "oc": 8, "out": (2, 5), "tile": (1, 4, 2)},
}


@pytest.mark.parametrize("target", [ARM, MATRICES, PLAIN], ids=lambda t: t.name)
def test_awkward_sizes_are_exact(target: Target) -> None:
    if reason := missing(target):
        pytest.skip(reason)
    made = [_int8(name, target, **options) for name, options in SIZES.items()]
    narrow = cases.requantized("int8", terms=9)
    for channels in (8, 16, 20, 35):
        made += [
            cases.depthwise(
                f"depthwise-{channels}-{stride}",
                target,
                x_dtype="int8",
                w_dtype="int8",
                y_dtype="int8",
                out=(3, 7),
                channels=channels,
                stride=(stride, stride),
                expression=narrow,
            )
            for stride in (1, 2)
        ]
    for case, got in zip(made, run_foreign(made, target), strict=True):
        np.testing.assert_array_equal(got[case.written], case.expected[case.written], case.name)


def test_wide_depthwise_kernels_where_a_vector_of_bytes_is_full() -> None:
    found = {}
    for channels in (4, 8, 16, 20):
        spec = cases.depthwise("d", ARM, x_dtype="int8", w_dtype="int8", y_dtype="int8", channels=channels).spec
        assert isinstance(spec, DepthwiseSpec)
        found[channels] = (is_wide(spec, ARM), is_wide(spec, PLAIN))
    assert [found[c][0] for c in (4, 16, 20)] == [False, True, True]
    assert not any(plain for _, plain in found.values())


@pytest.mark.parametrize("pairs", [False, True])
def test_tiles_leave_registers_for_data_and_weights(pairs: bool) -> None:
    tile = choose_tile(ARM, Product((1, 196), 24, 64, pairs=pairs, real=not pairs))
    places = tile.rows * tile.columns
    assert places * tile.vectors + places + tile.vectors < ARM.vector_registers
    assert places * tile.vectors >= 16  # else loads would outweigh products
    assert not (pairs and places % 2)
