"""Reals to bytes on Cortex-M4: ties, NaN, infinities, numbers that no int32 holds, and ranges of any length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_harness import linkable, symbol_of

from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.qemu import Emulated, missing_tools
from irc.backends.program import Arg, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.kernels.table import instructions
from irc.backends.tvm.reference import evaluate
from irc.backends.tvm.specs import ElementwiseSpec, Operand
from irc.targets import get_target

M4 = get_target("cortex-m4")

FORMS = {  # low, high, zero point, factor
    "all bytes": (-128, 127, 0, 1.0),
    "image": (-128, 127, -128, 255.0),
    "bounds": (-100, 90, 17, 3.3),
    "above": (-128, 127, 127, 0.01),
}


def spec_of(form: str, size: int) -> ElementwiseSpec:
    low, high, zero, factor = FORMS[form]
    b = ExpressionBuilder()
    expression = b.finish(b.requantize(b.operand(0, "float32"), "int8", low, high, zero, factor))
    return ElementwiseSpec("int8", (size,), (1,), expression, (Operand("float32", (1,), size),), size)


def reals(form: str, size: int, *, strange: bool) -> np.ndarray:
    rng = np.random.default_rng([*form.encode(), size])
    factor = FORMS[form][3]
    x = np.where(rng.random(size) < 0.3, rng.integers(-140, 140, size) + 0.5, rng.normal(0, 90, size)) / factor
    x = x.astype(np.float32)
    if strange:
        x[rng.random(size) < 0.1] = np.nan
        x[rng.random(size) < 0.05] = rng.choice([np.inf, -np.inf, 3e9, -3e20, 1e-40])
        x[:3] = np.inf, -np.inf, np.nan
    return x


def expected(spec: ElementwiseSpec, x: np.ndarray) -> np.ndarray:
    wanted = evaluate(spec.expression, [np.nan_to_num(x, nan=-np.inf, posinf=np.inf, neginf=-np.inf)])
    return np.where(np.isnan(x), np.int8(spec.expression[-1].params[0]), wanted)


CASES = [(form, size, strange) for form in FORMS for size in (3, 8, 61, 256) for strange in (False, True)]


def test_exact_on_the_board() -> None:
    if missing_tools(M4):
        pytest.skip(f"needs {missing_tools(M4)}")
    steps, kernels, inputs, outputs, wanted = [], {}, [], [], {}
    feeds: dict[str, np.ndarray] = {}
    for number, (form, size, strange) in enumerate(CASES):
        spec, x = spec_of(form, size), reals(form, size, strange=strange)
        inputs.append(Port(f"i{number}", "float32", (size,)))
        outputs.append(Port(f"o{number}", "int8", (size,)))
        feeds[f"i{number}"], wanted[f"o{number}"] = x, expected(spec, x)
        kernels[symbol_of(spec)] = linkable(spec, M4)
        steps.append(Step(symbol_of(spec), (Arg("input", 0, number), Arg("output", 0, number)), False))
    program = Program("quantize", M4, tuple(inputs), tuple(outputs), tuple(steps), kernels, (), 0, 0, M4.alignment)
    with Emulated(program, assemble(glue_ll(program), M4)) as network:
        found = network.run(feeds)
    for number, case in enumerate(CASES):
        np.testing.assert_array_equal(found[f"o{number}"], wanted[f"o{number}"], str(case))


def test_other_ranges_and_cores_have_other_kernels() -> None:
    spec = spec_of("image", 64)
    assert instructions("k", spec, M4) is not None
    assert instructions("k", spec, get_target("cortex-m4-nofpu")) is None
    b = ExpressionBuilder()
    real = b.add("relu", "float32", b.operand(0, "float32"))
    other = b.finish(b.requantize(real, "int8", -128, 127, 3, 1.0))
    assert instructions("k", replace(spec, expression=other), M4) is None
    assert instructions("k", replace(spec, shape=(8, 8), y_strides=(1, 8)), M4) is None
