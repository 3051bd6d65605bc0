"""Linear kernels whose weights are stored in 8 or 16 bits."""

from __future__ import annotations

import re

import kernel_cases as cases
import numpy as np
import pytest
from kernel_harness import Case, assembly, check, native_targets

from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.plan.pack import pack_linear
from irc.backends.tvm.specs import LinearSpec
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

EPSILON = 2.0**-24  # largest relative error of one rounding to float32

pytestmark = pytest.mark.skipif(not native_targets(), reason="no built-in target runs on this machine")
_widths = {t.vector_bytes: t for t in reversed(native_targets())}
targets = pytest.mark.parametrize("target", _widths.values(), ids=lambda t: t.name)
kinds = pytest.mark.parametrize("kind", ["float16", "bfloat16"])

LINEAR = {
    "vector": {"ic": 37, "oc": 70, "out": (1, 1), "tile": (1, 1, 3), "order": "channels"},
    "3x3": {"kernel": (3, 3), "ic": 5, "oc": 17, "out": (4, 7), "tile": (1, 3, 2), "expression": cases.bias_relu},
    "groups": {"kernel": (3, 3), "groups": 3, "ic": 2, "oc": 5, "images": 2, "expression": cases.bias_relu},
    "blocks": {"ic": 9, "oc": 70, "out": (1, 11), "tile": (1, 2, 3), "block": 16, "images": 2},
}  # fmt: skip


@targets
@kinds
@pytest.mark.parametrize("name", LINEAR)
def test_sums(name: str, kind: str, target: Target) -> None:
    options = LINEAR[name]
    case = cases.linear(name, target, w_dtype=kind, **options)
    terms = options["ic"] * options.get("kernel", (1, 1))[0] ** 2
    # a sum of n products of normal numbers errs by some n roundings of its partial sums; four times that
    check(case, target, rtol=4 * EPSILON, atol=4 * terms * EPSILON)


@targets
@kinds
def test_every_finite_number_is_widened_exactly(kind: str, target: Target) -> None:
    """Subnormal ones and both signs: 1 * w, for all w."""
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    values = cases.from_bits(bits, kind)
    finite = np.isfinite(values)
    if kind == "bfloat16":  # float32's own subnormal numbers may count as zero in products
        finite &= (values == 0) | (np.abs(values) >= np.finfo(np.float32).tiny)
    bits, values = bits[finite], values[finite]
    packed = pack_linear(bits.reshape(-1, 1, 1, 1), lanes_of(target), 2, 1)
    spec = LinearSpec(
        "float32",
        "float32",
        (1, 1),
        (1, 1),
        (1, 1),
        1,
        len(bits),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
        (0, 0),
        tile=(1, 1, 2),
        x_size=1,
        y_size=len(bits),
        w_size=packed.size,
        w_dtype=kind,
    )
    case = Case("all", spec, (np.ones(1, np.float32), packed), values + np.float32(0))
    check(case, target, rtol=0, atol=0)


WITH_FLOAT16 = [t for t in TARGETS.values() if t.arch in ("x86-64", "aarch64")]


@pytest.mark.parametrize("target", WITH_FLOAT16, ids=lambda t: t.name)
def test_machines_widen_float16_by_an_instruction(target: Target) -> None:
    """All but the oldest x86, which does it in integers; nobody calls a function."""
    spec = cases.linear("vector", target, w_dtype="float16", **LINEAR["vector"]).spec
    text = assembly(spec, target)
    assert not re.search(r"(call\w*|bl)\s+\S*extendhf", text)
    if target.arch == "aarch64":
        assert "fcvtl" in text
    else:
        assert ("vcvtph2ps" in text) == (target.vector_bytes > 16)


@targets
@pytest.mark.parametrize("name", LINEAR)
def test_bytes_are_widened(name: str, target: Target) -> None:
    """Whole numbers: the scale is the expression's."""
    options = LINEAR[name]
    case = cases.linear(name, target, w_dtype="int8", **options)
    terms = options["ic"] * options.get("kernel", (1, 1))[0] ** 2
    # as above, of products with numbers up to 128
    check(case, target, rtol=4 * EPSILON, atol=4 * 128 * terms * EPSILON)
