"""Winograd kernels against the definition of both halves, between forbidden pages, for several splits of the work."""

from __future__ import annotations

import math

import kernel_cases as cases
import numpy as np
import pytest
import spec_reference
from kernel_harness import Case, check, native_targets, optimized

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.plan.pack import pack_linear
from irc.backends.tvm.plan.views import row_major
from irc.backends.tvm.specs import Operand, WinogradInputSpec, WinogradSpec
from irc.backends.tvm.winograd import input_matrix, input_size, output_matrix, transform_weights, weight_matrix
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

EPSILON = 2.0**-24  # largest relative error of one rounding to float32
KERNEL = (3, 3)

native = pytest.mark.skipif(not native_targets(), reason="no built-in target runs on this machine")
_widths = {t.vector_bytes: t for t in reversed(native_targets())}
targets = pytest.mark.parametrize("target", _widths.values(), ids=lambda t: t.name)

SHAPES = {
    "whole tiles": {"out": (8, 8), "ic": 16, "oc": 16},
    "odd image": {"out": (5, 7), "ic": 17, "oc": 40, "block": (3, 2, 2)},
    "one tile": {"out": (4, 4), "ic": 3, "oc": 1, "block": (1, 1, 1)},
    "two images": {"images": 2, "out": (7, 6), "ic": 9, "oc": 33, "block": (5, 3, 2), "gap": 3},
    "narrow": {"out": (2, 11), "tile": (2, 4), "ic": 5, "oc": 70, "block": (3, 3, 1)},
    "flat": {"out": (9, 3), "tile": (4, 2), "ic": 8, "oc": 20, "block": (4, 1, 3)},
    "weights in blocks": {"out": (6, 7), "ic": 7, "oc": 53, "block": (3, 2, 3), "w_block": 16},
    "5x5": {"out": (4, 5), "kernel": (5, 5), "tile": (2, 2), "ic": 5, "oc": 18, "block": (4, 2, 2)},
    "one dimension": {
        "images": 2,
        "out": (1, 9),
        "kernel": (1, 3),
        "tile": (1, 4),
        "ic": 6,
        "oc": 17,
        "block": (4, 3, 2),
    },
    "small tiles": {"images": 2, "out": (3, 5), "tile": (2, 2), "ic": 6, "oc": 19, "block": (12, 4, 2)},
}


def geometry(options: dict) -> dict:
    tile, out, images = options.get("tile", (4, 4)), options["out"], options.get("images", 1)
    tiles = images * math.prod(-(-o // m) for o, m in zip(out, tile, strict=True))
    row, kernel = options["ic"] + options.get("gap", 0), options.get("kernel", KERNEL)
    points = tuple(input_size(m, r) for m, r in zip(tile, kernel, strict=True))
    return {"tile": tile, "images": images, "points": points, "kernel": kernel, "tiles": tiles, "row": row}


@native
@targets
@pytest.mark.parametrize("name", SHAPES)
def test_input(name: str, target: Target) -> None:
    options, g = SHAPES[name], geometry(SHAPES[name])
    (height, width), ic = (o + r - 1 for o, r in zip(options["out"], g["kernel"], strict=True)), options["ic"]
    points = math.prod(g["points"])
    channels = ic + options.get("gap", 0)
    size = g["images"] * height * width * channels - options.get("gap", 0)
    spec = WinogradInputSpec(
        g["images"],
        options["out"],
        g["tile"],
        g["kernel"],
        ic,
        (height * width * channels, width * channels, channels),
        (g["tiles"] * g["row"] + 1, g["row"]),
        size,
        (points - 1) * (g["tiles"] * g["row"] + 1) + (g["tiles"] - 1) * g["row"] + ic,
    )
    x = cases.random(np.random.default_rng(len(name)), "float32", size)
    case = Case(name, spec, (x,), spec_reference.expected(spec, x))
    # The rows of the matrix have entries up to 45/16 whose sum of sizes is below 8; twice over, some ten roundings.
    check(case, target, rtol=4 * EPSILON, atol=64 * 10 * EPSILON)


def product_case(name: str, target: Target, expression=cases.plain) -> Case:
    options, g = SHAPES[name], geometry(SHAPES[name])
    rng = np.random.default_rng(len(name))
    ic, oc, (height, width) = options["ic"], options["oc"], options["out"]
    gap = options.get("gap", 0)
    block = options.get("block", (4, 2, 2))
    shape = (math.prod(g["points"]), g["tiles"], g["row"])
    v = cases.random(rng, "float32", math.prod(shape) - gap)
    w = cases.random(rng, "float32", oc, *g["points"], ic)
    w_block = options.get("w_block", 0)
    packed = pack_linear(w, w_block, 1, 1) if w_block else pack_linear(w, lanes_of(target), block[2], 1)
    made, data = expression(rng, oc, "float32")
    operands, arrays = [], []
    for role, values in data:
        if role == "channel":
            operands.append(Operand("float32", (0, 0, 0, 1), oc))
            arrays.append(values)
            continue
        last = () if role == "place" else (oc,)
        full = (g["images"], height, width, *last)
        operands.append(Operand("float32", (*row_major(full), 0)[:4], math.prod(full)))
        arrays.append(cases.random(rng, "float32", math.prod(full)))
    strides = (height * width * (oc + gap), width * (oc + gap), oc + gap)
    spec = WinogradSpec(
        g["images"],
        options["out"],
        g["tile"],
        g["kernel"],
        ic,
        oc,
        row_major(shape)[:2],
        strides,
        made,
        tuple(operands),
        block,
        v.size,
        g["images"] * strides[0] - gap,
        packed.size,
        w_block,
    )
    return Case(name, spec, (v, packed, *arrays), spec_reference.expected(spec, v, w, *arrays))


@native
@targets
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("expression", [cases.bias_relu, cases.residual_scale], ids=lambda e: e.__name__)
def test_product(name: str, expression, target: Target) -> None:
    case = product_case(name, target, expression)
    # Sums of ic products of normal numbers, then an output matrix whose rows' sizes add up to at most 9, twice; the
    # expression multiplies by a normal number, up to 4.
    check(case, target, rtol=8 * EPSILON, atol=4 * 81 * 4 * SHAPES[name]["ic"] ** 0.5 * EPSILON)


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3)])
def test_matrices(m: int, r: int) -> None:
    """Exactly the correlation, and every entry that a kernel uses is a float32."""
    rng = np.random.default_rng(m)
    d, g = rng.integers(-9, 9, input_size(m, r)), rng.integers(-9, 9, r)
    out, weights, data = output_matrix(m, r), weight_matrix(m, r), input_matrix(m, r)
    left = [sum(c * int(v) for c, v in zip(row, g, strict=True)) for row in weights]
    right = [sum(c * int(v) for c, v in zip(row, d, strict=True)) for row in data]
    got = [sum(c * a * b for c, a, b in zip(row, left, right, strict=True)) for row in out]
    assert got == [int(d[i : i + r] @ g) for i in range(m)]
    assert all(float(np.float32(float(c))) == c for row in (*out, *data) for c in row)


@pytest.mark.parametrize(("m", "limit"), [(2, 2.0), (4, 4.0)])
def test_errors_are_those_of_a_direct_sum(m: int, limit: float) -> None:
    """In float32, channel after channel, F(mxm, 3x3) errs at most `limit` times as much as the plain sum."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((60, m + 2, m + 2, 64)), 0).astype(np.float32)
    w = rng.standard_normal((16, 3, 3, 64)).astype(np.float32)
    u = transform_weights(w, (m, m))
    data, out = (np.array(f(m, 3), np.float32) for f in (input_matrix, output_matrix))
    v = np.einsum("bj,najc->nabc", data, np.einsum("ai,nijc->najc", data, x))
    products, direct = np.zeros((60, m + 2, m + 2, 16), np.float32), np.zeros((60, m, m, 16), np.float32)
    for c in range(64):
        products += v[..., c, None] * u[..., c].transpose(1, 2, 0)
        for i, j in np.ndindex(KERNEL):
            direct += x[:, i : i + m, j : j + m, c, None] * w[:, i, j, c]
    got = np.einsum("bj,najo->nabo", out, np.einsum("ai,nijo->najo", out, products))
    exact = sum(
        np.einsum("nabc,oc->nabo", x[:, i : i + m, j : j + m].astype(np.float64), w[:, i, j].astype(np.float64))
        for i, j in np.ndindex(KERNEL)
    )
    assert np.abs(got - exact).max() < limit * np.abs(direct - exact).max()


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "x86-64-v4", "arm"])
def test_sums_stay_in_registers(name: str) -> None:
    """Of the stack arrays only the block's sums and the outputs of one tile are left; the accumulators are not."""
    text = optimized(product_case("odd image", TARGETS[name], cases.bias_relu).spec, TARGETS[name])
    assert text.count(" alloca ") == 2
