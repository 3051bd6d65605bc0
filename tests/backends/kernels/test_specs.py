"""Specifications and expressions as data: exact text form, content addresses, sharing."""

from __future__ import annotations

import dataclasses
import math

import kernel_cases as cases
import numpy as np
import pytest

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.reference import evaluate
from irc.backends.tvm.specs import FillSpec, LibrarySpec, LinearSpec, RowsSpec, Spec, from_json, key, to_json
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

V3, V4, ARM = TARGETS["x86-64-v3"], TARGETS["x86-64-v4"], TARGETS["arm"]


def specs() -> list[Spec]:
    b = ExpressionBuilder()
    odd = b.finish(b.add("clip", "float32", b.operand(0, "float32"), params=(-math.inf, 0.1)))
    requantized = cases.requantized("uint8", terms=9, residual=True)
    return [
        cases.linear("a", V3, x_dtype="uint8", y_dtype="uint8", expression=requantized, groups=2).spec,
        cases.depthwise("b", V3, expression=cases.bias_relu).spec,
        cases.pool("c", expression=cases.mean(None), kind="sum").spec,
        cases.elementwise("d", (3, 4), "float32", odd, [("float32", (4, 1))]).spec,
        cases.rows("e", "softmax", (2,), 5, operands=("column",)).spec,
        cases.reduce("f", "max", (3, 4), (1,)).spec,
        FillSpec("float32", (1, 2, 3, 4), (24, 12, 4), (0, 0, 1, 1, 1), 5e-324, 24),
        LibrarySpec(b"\x00\xff model \n"),
    ]


@pytest.mark.parametrize("spec", specs(), ids=lambda s: type(s).__name__)
def test_round_trip_is_exact(spec: Spec) -> None:
    text = to_json(spec)
    again = from_json(text)
    assert again == spec
    assert type(again) is type(spec)
    assert hash(again) == hash(spec)
    assert to_json(again) == text
    assert "\n" not in text, "one line of a request"


@pytest.mark.parametrize(
    "value", [0.1, -0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, float(np.float32(0.1))]
)
def test_floats_keep_every_bit(value: float) -> None:
    spec = RowsSpec("softmax", "float32", "float32", (1,), 3, (3,), (3,), epsilon=value)
    again = from_json(to_json(spec))
    assert isinstance(again, RowsSpec)
    assert again.epsilon.hex() == value.hex()


def test_the_address_covers_all_that_code_depends_on() -> None:
    spec = cases.linear("a", V3).spec
    assert isinstance(spec, LinearSpec)
    seen = {key(spec, V3, "code")}
    others: list[tuple[Spec, Target, str]] = [
        (spec, V4, "code"),
        (spec, ARM, "code"),
        (spec, V3, "other code"),
        (spec, dataclasses.replace(V3, features=("+avx512f",)), "code"),
        (spec, dataclasses.replace(V3, dot="widening"), "code"),
        (spec, dataclasses.replace(V3, vector_bytes=16), "code"),
        (dataclasses.replace(spec, tile=(1, 3, 2)), V3, "code"),
        (dataclasses.replace(spec, order="channels"), V3, "code"),
        (dataclasses.replace(spec, x_size=spec.x_size + 1), V3, "code"),
    ]
    for other in others:
        address = key(*other)
        assert address not in seen
        seen.add(address)
    assert key(from_json(to_json(spec)), V3, "code") in seen


def test_what_does_not_change_code_does_not_change_the_address() -> None:
    spec = cases.linear("a", V3).spec
    assert key(spec, dataclasses.replace(V3, description="other words", linker="ld"), "c") == key(spec, V3, "c")


# Expressions
def test_equal_instructions_are_shared() -> None:
    b = ExpressionBuilder()
    x = b.operand(0, "float32")
    assert b.operand(0, "float32") == x
    assert b.add("exp", "float32", x) == b.add("exp", "float32", x)
    assert b.add("exp", "float32", x) != b.add("log", "float32", x)
    assert b.operand(0, "int8") != x
    assert len(b.instrs) == 4


def test_the_two_zeros_are_two_constants() -> None:
    b = ExpressionBuilder()
    x = b.operand(0, "float32")
    total = b.add("mul", "float32", x, b.constant(0.0, "float32"))
    negative = b.add("mul", "float32", x, b.constant(-0.0, "float32"))
    assert total != negative
    result = evaluate(b.finish(negative), [np.ones(1, np.float32)])
    assert np.signbit(result[0])


def test_finish_drops_what_is_not_needed_and_keeps_order() -> None:
    b = ExpressionBuilder()
    x, unused = b.operand(0, "float32"), b.operand(1, "float32")
    y = b.add("exp", "float32", x)
    b.add("mul", "float32", y, unused)
    z = b.add("add", "float32", y, x)
    made = b.finish(z)
    assert [i.op for i in made] == ["operand", "exp", "add"]
    assert made[2].args == (1, 0)
    for place, instr in enumerate(made):
        assert all(a < place for a in instr.args)


def test_requantize_clamps_rounds_to_even_and_adds_the_zero_point_last() -> None:
    b = ExpressionBuilder()
    q = b.finish(b.requantize(b.operand(0, "float32"), "uint8", 0, 255, 3))
    x = np.array([0.5, 1.5, 2.5, -0.5, -3.5, -2.5, 252.4, 252.5, 1e9, -1e9], np.float32)
    #  0.5 + 3 would round to 4: the zero point is no part of the rounding
    np.testing.assert_array_equal(evaluate(q, [x]), [3, 5, 5, 3, 0, 1, 255, 255, 255, 0])
