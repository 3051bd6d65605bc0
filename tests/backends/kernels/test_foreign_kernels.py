"""Kernels of processors that this machine does not have: exact integers, floats within the native tests' tolerances.

All kernels of a target run in one program (`foreign_kernels.py`).
"""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
import test_sparse_kernels as sparse
from foreign_kernels import missing, run_foreign
from kernel_harness import SENTINEL, Case, native_targets
from test_attention_kernels import REAL, attention_case
from test_float_kernels import DEPTHWISE, ELEMENTWISE, EPSILON, LINEAR, POOLS, REDUCE, _sum_of_two
from test_functions import SPECIAL
from test_integer_kernels import CASES, FOREIGN, POLYNOMIAL, _native, case
from test_winograd_kernels import SHAPES, product_case

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.specs import ElementwiseSpec, Operand
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

foreign = pytest.mark.parametrize("target", [TARGETS[n] for n in FOREIGN], ids=lambda t: t.name)


def outputs(made: list[Case], target: Target) -> list[np.ndarray]:
    """What the kernels wrote; nothing beside it."""
    if reason := missing(target):
        pytest.skip(reason)
    found = run_foreign(made, target)
    for c, got in zip(made, found, strict=True):
        assert (got[~c.written].view(np.uint8) == SENTINEL).all(), f"{c.name} writes between its results"
    return found


@foreign
def test_integers_are_exact(target: Target) -> None:
    made = [case(name, target) for name in CASES]
    for name, c, got in zip(CASES, made, outputs(made, target), strict=True):
        if name not in POLYNOMIAL:
            np.testing.assert_array_equal(got[c.written], c.expected[c.written], name)
        for native in native_targets()[-1:]:
            np.testing.assert_array_equal(got[c.written], _native(name, native)[c.written], name)


def _floats(target: Target) -> list[tuple[Case, float, float]]:
    """(case, rtol, atol), with the reasons of the tests that run them natively."""
    found = []

    def sums(c: Case, terms: int, scale: float) -> None:
        found.append((c, 4 * EPSILON, 4 * terms * EPSILON * scale))

    for name, options in LINEAR.items():
        kernel = options.get("kernel", (1, 1))
        sums(cases.linear(name, target, **options), options.get("ic", 8) * kernel[0] * kernel[1], 4.0)
    sums(cases.product("product", target, columns=10), 7, 1.0)
    for name, options in DEPTHWISE.items():
        sums(cases.depthwise(name, target, **options), 9, 4.0)
    for name, options in POOLS.items():
        sums(cases.pool(name, **options), 30, 1.0)
    for name, (shape, axes) in REDUCE.items():
        sums(cases.reduce(name, "sum", shape, axes), int(np.prod([shape[i] for i in axes])), 1.0)
    for name, (shape, operands, y_strides) in ELEMENTWISE.items():
        found.append((cases.elementwise(name, shape, "float32", _sum_of_two(), operands, y_strides), 0.0, 0.0))
    for kind, atol in (("softmax", 1e-9), ("log_softmax", 2e-6), ("layer_norm", 3e-6), ("rms_norm", 3e-6)):
        found.append((cases.rows(kind, kind, (2, 3), 37), 3e-6, atol))
    for name, (batch, rows, keys, width, columns, options) in REAL.items():
        if name in ("odd", "causal", "width not contiguous"):
            found.append((attention_case(batch, rows, keys, width, columns, **options), 3e-6, 3e-6))
    for name in ("odd image", "narrow", "5x5"):
        atol = 4 * 81 * 4 * SHAPES[name]["ic"] ** 0.5 * EPSILON
        found.append((product_case(name, target, cases.bias_relu), 8 * EPSILON, atol))
    found += [(sparse.case(name, target, 16), 1e-5, 1e-5) for name in ("1x1", "groups of 6", "signed", "float")]
    return found


@foreign
def test_floats(target: Target) -> None:
    made = _floats(target)
    for (c, rtol, atol), got in zip(made, outputs([c for c, _, _ in made], target), strict=True):
        exact = c.expected.dtype.kind in "iu"
        tolerances = {} if exact else {"rtol": rtol, "atol": atol}
        np.testing.assert_allclose(got[c.written], c.expected[c.written], err_msg=c.name, **tolerances)


@foreign
def test_a_requantized_nan_is_the_lowest_value(target: Target) -> None:
    b = ExpressionBuilder()
    q = b.finish(b.requantize(b.operand(0, "float32"), "uint8", 0, 255, 10, 2.0))
    spec = ElementwiseSpec("uint8", (17,), (1,), q, (Operand("float32", (1,), 17),), 17)
    (got,) = outputs([Case("nan", spec, (SPECIAL,), np.zeros(17, np.uint8))], target)
    assert (got[0], got[1], got[2], got[14]) == (0, 255, 0, 13)
    np.testing.assert_array_equal(got[3:7], 10)
