"""Float kernels of every family against numpy, between forbidden pages, for several splits of the work."""

from __future__ import annotations

import dataclasses

import kernel_cases as cases
import numpy as np
import pytest
from kernel_harness import SENTINEL, Case, check, compiled, native_targets, optimized, run_fenced

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.plan.views import row_major
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

EPSILON = 2.0**-24  # largest relative error of one rounding to float32

pytestmark = pytest.mark.skipif(not native_targets(), reason="no built-in target runs on this machine")
# Float code depends on the vectors only: one target per width.
_widths = {t.vector_bytes: t for t in reversed(native_targets())}
targets = pytest.mark.parametrize("target", _widths.values(), ids=lambda t: t.name)
best_target = pytest.mark.parametrize("target", native_targets()[-1:], ids=lambda t: t.name)


def test_the_harness_finds_accesses_outside() -> None:
    """One element less than the kernel needs, at either end, ends the child process."""
    target = native_targets()[-1]
    case = cases.linear("short", target)
    x, *rest = case.arrays
    with pytest.raises(AssertionError, match="access outside the arrays"):
        run_fenced(dataclasses.replace(case, arrays=(x[:-1], *rest)), target)
    with pytest.raises(AssertionError, match="access outside the arrays"):
        run_fenced(dataclasses.replace(case, expected=case.expected[:-1]), target)
    function = case.spec
    wrong = dataclasses.replace(case, spec=dataclasses.replace(function, oc=function.oc - 1))
    results = run_fenced(case, target)
    assert (results[0][1][~wrong.written].view(np.uint8) != SENTINEL).any(), "a mask that is too small is noticed"


def check_sums(case: Case, target: Target, terms: int, scale: float = 1.0) -> None:
    """A float32 sum of n products of standard normal numbers errs by some n roundings of partial sums of size sqrt(n),
    which add up as a random walk: n * 2**-24. Four times that, and 2 ulp of the result for its expression."""
    check(case, target, rtol=4 * EPSILON, atol=4 * terms * EPSILON * scale)


# Linear
LINEAR = {
    "1x1": {"ic": 17, "oc": 40, "out": (3, 7)},
    "1x1 oc1": {"ic": 3, "oc": 1, "out": (2, 9), "tile": (1, 6, 1)},
    "1x1 ic1": {"ic": 1, "oc": 5, "out": (1, 13)},
    "3x3": {"kernel": (3, 3), "ic": 5, "oc": 17, "out": (4, 7), "tile": (1, 3, 2), "expression": cases.bias_relu},
    "3x3 rows": {"kernel": (3, 3), "ic": 3, "oc": 10, "out": (5, 3), "tile": (2, 3, 2)},
    "stride": {"kernel": (3, 2), "stride": (2, 3), "ic": 4, "oc": 33, "expression": cases.residual_scale},
    "dilation": {"kernel": (2, 3), "dilation": (3, 2), "ic": 3, "oc": 10, "out": (3, 4), "expression": cases.silu},
    "groups": {"kernel": (3, 3), "groups": 3, "ic": 2, "oc": 5, "images": 2, "expression": cases.bias_relu},
    "groups wide": {"groups": 2, "ic": 3, "oc": 17, "out": (2, 3), "expression": cases.residual_scale},
    "channels": {"ic": 9, "oc": 70, "out": (1, 11), "order": "channels", "tile": (1, 5, 1), "images": 2},
    "channels rows": {"kernel": (2, 2), "ic": 3, "oc": 49, "out": (5, 4), "order": "channels", "tile": (2, 4, 1)},
    "blocks": {"ic": 9, "oc": 70, "out": (1, 11), "tile": (1, 2, 3), "block": 16, "images": 2},
    "blocks channels": {"kernel": (2, 1), "ic": 3, "oc": 52, "tile": (1, 4, 1), "block": 16, "order": "channels"},
    "gap": {"kernel": (1, 2), "ic": 5, "oc": 19, "gap": 3, "out": (2, 5), "expression": cases.bias_relu},
    "three rows": {"kernel": (3, 1), "ic": 2, "oc": 34, "out": (7, 2), "tile": (3, 2, 2), "images": 2},
}  # fmt: skip


@targets
@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str, target: Target) -> None:
    options = LINEAR[name]
    case = cases.linear(name, target, **options)
    kernel = options.get("kernel", (1, 1))
    # residual_scale multiplies by a normal number: up to 4
    check_sums(case, target, options.get("ic", 8) * kernel[0] * kernel[1], 4.0)


@targets
@pytest.mark.parametrize("columns", [1, 10, 16, 37])
def test_product_of_computed_factors(columns: int, target: Target) -> None:
    """The second factor is given with the documented slack of one vector, and not a byte more."""
    case = cases.product(f"product{columns}", target, columns=columns, w_shared=columns == 10)
    check_sums(case, target, 7)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "x86-64-v4", "arm"])
@pytest.mark.parametrize("oc", [2, 10, 18, 40])
def test_sums_stay_in_registers(oc: int, name: str) -> None:
    """The accumulator is an array that LLVM has to split into registers, also where the last vector of channels is
    written in pieces: no stack memory is left, and code stays small."""
    target = TARGETS[name]
    for tile in ((2, 3, 2), (1, 3, 3)):
        options = {"kernel": (3, 3), "ic": 16, "oc": oc, "out": (5, 3), "tile": tile}
        spec = cases.linear("sums", target, expression=cases.bias_relu, **options).spec
        assert "alloca" not in optimized(spec, target)
        assert len(compiled(spec, target)) < 16000


# Depthwise
DEPTHWISE = {
    "c1": {"channels": 1},
    "c3": {"channels": 3, "kernel": (2, 3), "stride": (2, 1), "expression": cases.bias_relu},
    "c17": {"channels": 17, "dilation": (2, 1), "out": (2, 7), "tile": (3, 1), "gap": 2},
    "c40": {"channels": 40, "stride": (2, 2), "tile": (4, 2), "expression": cases.residual_scale},
    "c70": {"channels": 70, "kernel": (1, 5), "tile": (1, 4), "expression": cases.silu},
}


@targets
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name: str, target: Target) -> None:
    check_sums(cases.depthwise(name, target, **DEPTHWISE[name]), target, 9, 4.0)


# Pool
POOLS = {
    "max": {},
    "max wide": {"channels": 150, "kernel": (2, 2), "stride": (2, 2), "pads": (0, 1)},
    "max dilated": {"channels": 3, "dilation": (2, 2), "pads": (2, 1)},
    "max u8": {"channels": 77, "x_dtype": "uint8", "y_dtype": "uint8", "gap": 3},
    "max i8": {"channels": 5, "x_dtype": "int8", "y_dtype": "int8", "stride": (2, 1)},
    "sum": {"kind": "sum", "channels": 17},
    "mean all": {"kind": "sum", "channels": 40, "kernel": (2, 3), "expression": cases.mean(6)},
    "mean inside": {"kind": "sum", "channels": 10, "expression": cases.mean(None)},
    "global": {"kind": "sum", "channels": 33, "kernel": (5, 6), "pads": (0, 0), "expression": cases.mean(30)},
}  # fmt: skip


@best_target
@pytest.mark.parametrize("name", POOLS)
def test_pool(name: str, target: Target) -> None:
    check_sums(cases.pool(name, **POOLS[name]), target, 30)


# Rows
@targets
@pytest.mark.parametrize("width", [1, 3, 10, 17, 1001])
@pytest.mark.parametrize("kind", ["softmax", "log_softmax", "layer_norm", "rms_norm"])
def test_rows(kind: str, width: int, target: Target) -> None:
    b = ExpressionBuilder()
    value = b.add("accumulator", "float32")
    if kind.endswith("norm"):
        value = b.add("mul", "float32", value, b.operand(0, "float32"))
        value = b.add("add", "float32", value, b.operand(1, "float32"))
    operands = ("column", "element") if kind.endswith("norm") else ()
    case = cases.rows(f"{kind}{width}", kind, (2, 3), width, expression=b.finish(value), operands=operands, gap=1)
    # exponentials and sums of `width` terms below 1e-6 relative; log-probabilities are around log(width)
    atol = {"softmax": 1e-9, "log_softmax": 2e-6}.get(kind, 3e-6)
    check(case, target, rtol=3e-6, atol=atol)


@best_target
def test_rows_of_quantized_data(target: Target) -> None:
    q = ExpressionBuilder()
    prologue = q.finish(q.dequantize(q.operand(0, "uint8"), 0.05, 128))
    case = cases.rows("quantized", "softmax", (3,), 21, x_dtype="uint8", prologue=prologue)
    check(case, target, rtol=3e-6, atol=1e-9)


# Reductions
REDUCE = {
    "last": ((7, 21), (1,)),
    "first": ((9, 37), (0,)),
    "middle": ((3, 5, 18), (1,)),
    "outer and inner": ((4, 3, 5, 6), (0, 3)),
    "spatial": ((2, 5, 7, 10), (1, 2)),
    "all": ((3, 19), (0, 1)),
    "one column": ((5, 1), (1,)),
}


@best_target
@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("name", REDUCE)
def test_reduce(name: str, kind: str, target: Target) -> None:
    shape, axes = REDUCE[name]
    terms = int(np.prod([shape[i] for i in axes]))
    case = cases.reduce(f"{kind} {name}", kind, shape, axes)
    if kind == "prod":
        check(case, target, rtol=terms * 2 * EPSILON)
    else:
        check_sums(case, target, terms)


@best_target
@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod"])
def test_reduce_integers_exactly(kind: str, target: Target) -> None:
    check(cases.reduce(f"int {kind}", kind, (5, 6, 19), (0, 2), x_dtype="int32"), target)


@best_target
def test_reduce_with_prologue(target: Target) -> None:
    b = ExpressionBuilder()
    x = b.operand(0, "float32")
    square = b.finish(b.add("mul", "float32", x, x))
    e = ExpressionBuilder()
    root = e.finish(e.add("sqrt", "float32", e.add("accumulator", "float32")))
    check_sums(cases.reduce("l2", "sum", (6, 23), (1,), prologue=square, expression=root), target, 23)


# Elementwise
def _sum_of_two(dtype: str = "float32") -> tuple:
    b = ExpressionBuilder()
    return b.finish(b.add("add", dtype, b.operand(0, dtype), b.operand(1, dtype)))


ELEMENTWISE = {
    "rows": ((5, 19), [("float32", (19, 1)), ("float32", (19, 1))], None),
    "broadcast row": ((5, 19), [("float32", (19, 1)), ("float32", (0, 1))], None),
    "broadcast column": ((5, 19), [("float32", (19, 1)), ("float32", (1, 0))], None),
    "transposed": ((5, 19), [("float32", (1, 5)), ("float32", (19, 1))], None),
    "gaps": ((3, 4, 7), [("float32", (40, 10, 1)), ("float32", (28, 7, 1))], (44, 11, 1)),
    "odd steps": ((3, 4, 7), [("float32", (56, 14, 2)), ("float32", (3, 0, 12))], (70, 14, 2)),
    "short rows": ((4, 3, 5, 7), [("float32", (105, 35, 7, 1)), ("float32", (150, 50, 9, 1))], (120, 40, 8, 1)),
    "long": ((9001,), [("float32", (1,)), ("float32", (0,))], None),
    "long strided": ((4097,), [("float32", (3,)), ("float32", (1,))], None),
    "one": ((1,), [("float32", (0,)), ("float32", (0,))], None),
}


@best_target
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str, target: Target) -> None:
    shape, operands, y_strides = ELEMENTWISE[name]
    check(cases.elementwise(name, shape, "float32", _sum_of_two(), operands, y_strides), target)


PLANES = {
    "three": ((2, 37, 3), "float32", (37 * 3, 3, 1), 0),
    "four": ((37, 4), "float32", (4, 1), 0),
    "two": ((3, 50, 2), "float32", (100, 2, 1), 0),
}


@targets
@pytest.mark.parametrize("name", PLANES)
def test_planes_to_pixels(name: str, target: Target) -> None:
    """Few channels, innermost in the output and outermost in an operand: shuffled in registers."""
    shape, dtype, y_strides, gap = PLANES[name]
    columns = shape[-2]
    planes = (*(s * shape[-1] for s in row_major(shape[:-1])[:-1]), 1, columns)
    broadcast = (*[0] * (len(shape) - 1), 1)
    case = cases.elementwise(
        name, shape, dtype, _sum_of_two(), [(dtype, planes), (dtype, broadcast)], y_strides, gap=gap
    )
    check(case, target)


@targets
@pytest.mark.parametrize("fill", [0.0, 77.0])
def test_planes_to_pixels_with_a_gap(fill: float, target: Target) -> None:
    """Three channels and a filled fourth, as integer convolutions want their input."""
    b = ExpressionBuilder()
    q = b.finish(b.requantize(b.operand(0, "float32"), "uint8", 0, 255, 110, 40.0))
    operands = [("float32", (37 * 3, 1, 37))]
    case = cases.elementwise("gap", (2, 37, 3), "uint8", q, operands, (38 * 4, 4, 1), gap=1, fill=fill)
    results = [got for _, got in run_fenced(case, target)]
    gaps = np.ones(case.expected.size, bool)
    exact = dataclasses.replace(case, spec=dataclasses.replace(case.spec, gap=0))  # type: ignore[type-var]  # a dataclass
    inside = exact.written
    gaps[~case.written | inside] = False
    for got in results:
        np.testing.assert_array_equal(got[inside], case.expected[inside])
        assert set(got[gaps].tolist()) <= {int(fill), SENTINEL}
        assert (got[~case.written] == SENTINEL).all()


@best_target
def test_scalar_shape(target: Target) -> None:
    check(cases.elementwise("scalar", (), "float32", _sum_of_two(), [("float32", ()), ("float32", ())]), target)


@targets
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_copies_of_other_types(dtype: str, target: Target) -> None:
    b = ExpressionBuilder()
    copy = b.finish(b.operand(0, dtype))
    check(cases.elementwise(f"copy {dtype}", (3, 77), dtype, copy, [(dtype, (80, 1))]), target)
    check(cases.elementwise(f"turn {dtype}", (3, 77), dtype, copy, [(dtype, (1, 3))]), target)
    for shape, strides in (((33, 19), (1, 33)), ((2, 16, 5), (90, 1, 17)), ((3, 7, 6), (1, 9, 70))):
        check(cases.elementwise(f"turn {dtype} {shape}", shape, dtype, copy, [(dtype, strides)]), target)


# Fill
@best_target
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_fill(dtype: str, target: Target) -> None:
    value = 3.0 if dtype != "int8" else -3.0
    check(cases.fill("border", dtype, (2, 5, 7, 19), (1, 2, 3, 4, 19), value), target)
    check(cases.fill("channels", dtype, (2, 3, 4, 8), (0, 0, 3, 4, 5), value), target)
    check(cases.fill("both", dtype, (3, 4, 5, 6), (2, 0, 2, 4, 3), value), target)
    check(cases.fill("nothing", dtype, (1, 2, 2, 3), (0, 0, 2, 2, 3), value), target)
