"""Requantization at the edges: overflow, NaN, ties, clamps tighter than the type, incomplete groups of vectors."""

from __future__ import annotations

import re
from collections.abc import Callable

import kernel_cases as cases
import numpy as np
import pytest
from kernel_harness import Case, assembly, check, native_targets

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.specs import ElementwiseSpec, Operand
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

natively = pytest.mark.parametrize("target", native_targets(), ids=lambda t: t.name)

EDGES = np.array(
    [
        *(np.nan, np.inf, -np.inf, 2.0**31, -(2.0**31), 2.0**40, -(2.0**40), 3e38, -3e38, 32767.5, -32768.5, 65536.0),
        *(0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 254.5, 255.5, 127.5, 126.5, -128.5, -127.5, 0.0, -0.0, 1e-30),
        *range(-150, 300, 7),
    ],
    np.float32,
)


def _levels(x: np.ndarray, low: int, high: int, zero: int, dtype: str) -> np.ndarray:
    """docs/integer-semantics.md, word for word."""
    clamped = np.minimum(np.maximum(np.nan_to_num(x, nan=-np.inf, posinf=np.inf), low - zero), high - zero)
    return (np.rint(clamped).astype(np.int64) + zero).astype(dtype)


@natively
@pytest.mark.parametrize(
    ("dtype", "low", "high", "zero"),
    [
        *(("uint8", 0, 255, 0), ("uint8", 0, 255, 128), ("uint8", 17, 200, 17)),
        *(("int8", -128, 127, 0), ("int8", -128, 127, -100), ("int8", -20, 90, -20), ("int8", -128, 127, 100)),
    ],
)
def test_reals_of_any_size(target: Target, dtype: str, low: int, high: int, zero: int) -> None:
    b = ExpressionBuilder()
    expression = b.finish(b.requantize(b.operand(0, "float32"), dtype, low, high, zero))
    n = EDGES.size
    spec = ElementwiseSpec(dtype, (n,), (1,), expression, (Operand("float32", (1,), n),), n)
    check(Case("edges", spec, (EDGES,), _levels(EDGES, low, high, zero, dtype)), target)


def _epilogue(
    dtype: str, low: int, high: int, zero: int, *, spread: float = 0.02, relu: bool = False
) -> Callable[..., tuple[Expression, list[tuple[str, np.ndarray]]]]:
    """acc + bias, times a factor per channel, [Relu], requantized."""

    def make(rng: np.random.Generator, channels: int, _: str) -> tuple[Expression, list[tuple[str, np.ndarray]]]:
        b = ExpressionBuilder()
        acc = b.add("add", "int32", b.add("accumulator", "int32"), b.operand(0, "int32"))
        value = b.add("scale", "float32", b.add("cast", "float32", acc), b.operand(1, "float32"))
        if relu:
            value = b.add("relu", "float32", value)
        factors = (rng.uniform(0.1, 1.0, channels) * spread).astype(np.float32)
        data = [("channel", cases.random(rng, "int32", channels)), ("channel", factors)]
        return b.finish(b.requantize(value, dtype, low, high, zero, 0.5)), data

    return make


EPILOGUES = {
    "u8": _epilogue("uint8", 0, 255, 0),
    "u8 relu": _epilogue("uint8", 0, 255, 0, relu=True),
    "u8 relu above": _epilogue("uint8", 0, 255, 30, relu=True),
    "u8 relu6": _epilogue("uint8", 0, 120, 0),
    "u8 zero": _epilogue("uint8", 0, 255, 200),
    "i8": _epilogue("int8", -128, 127, 0),
    "i8 relu": _epilogue("int8", -100, 127, -100),
    "i8 zero": _epilogue("int8", -128, 127, -128),
    "u8 beyond int16": _epilogue("uint8", 0, 255, 77, spread=3e-2),
    "u8 beyond int32": _epilogue("uint8", 0, 255, 77, spread=1e9),
    "i8 beyond int32": _epilogue("int8", -128, 127, -77, spread=1e9),
}


@natively
@pytest.mark.parametrize("name", EPILOGUES)
def test_sums_of_any_size(name: str, target: Target) -> None:
    """Tiles of four vectors and a group that is not whole; the reference is numpy's, by definition."""
    dtype = "int8" if name.startswith("i8") else "uint8"
    made = cases.linear(
        name,
        target,
        x_dtype="uint8",
        y_dtype=dtype,
        ic=8,
        oc=88,
        out=(1, 5),
        tile=(1, 3, 4),
        expression=EPILOGUES[name],
    )
    check(made, target)


@natively
@pytest.mark.parametrize("tile", [(1, 1, 1), (1, 5, 1), (1, 2, 2), (1, 3, 3), (1, 1, 5), (2, 3, 2)])
def test_groups_of_vectors(tile: tuple[int, int, int], target: Target) -> None:
    """However vectors and places share the registers, each byte goes to its place."""
    made = cases.linear(
        "groups", target, x_dtype="uint8", y_dtype="uint8", ic=4, oc=90, out=(3, 5), tile=tile, gap=4,
        expression=EPILOGUES["u8 zero"],
    )  # fmt: skip
    check(made, target)


def test_saturation_is_the_clamp() -> None:
    """Where the factors are known to be small, AVX-512 code has neither minimum nor maximum of reals."""
    target = TARGETS["x86-64-v4-vnni"]
    made = cases.linear(
        "u8", target, x_dtype="uint8", y_dtype="uint8", ic=8, oc=64, out=(1, 4), tile=(1, 4, 4),
        expression=EPILOGUES["u8 relu"],
    )  # fmt: skip
    text = assembly(made.spec, target)
    assert "vpackuswb" in text
    assert "vcvtps2dq" in text
    assert not re.search(r"v(min|max)ps", text)
