"""Requantization in integers has the bits of float32, ties included, and calls nothing in its loops."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from kernel_harness import Case, assembly, check, linkable, native_targets, symbol_of
from tvm import tirx

from irc.backends.artifact import elf
from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.qemu import Emulated, missing_tools
from irc.backends.artifact.shared import shared_chunks
from irc.backends.program import Arg, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.fixed import chain_of, pack_factors, packed_scales, unpack_factors
from irc.backends.tvm.kernels import fixed
from irc.backends.tvm.kernels.builder import KernelBuilder
from irc.backends.tvm.magnitude import magnitudes
from irc.backends.tvm.reference import evaluate
from irc.backends.tvm.specs import ElementwiseSpec, Operand, PoolSpec
from irc.ir.types import Array
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target

F = "float32"
NO_FPU = [t for t in TARGETS.values() if t.fpu == "none"]


def here() -> Target:
    """This machine without its FPU."""
    return replace(native_targets()[0], name="fixed", fpu="none", vector_bytes=4, upgrades=())


def case_of(name: str, expression: Expression, arrays: list[Array]) -> Case:
    size, dtype = arrays[0].size, expression[-1].dtype
    operands = tuple(Operand(a.dtype.name, (1,), size) for a in arrays)
    spec = ElementwiseSpec(dtype, (size,), (1,), expression, operands, size)
    return Case(name, spec, tuple(arrays), evaluate(expression, arrays))


def near_ties(rng: np.random.Generator, size: int, bound: int) -> Array:
    """Reals at distances of 2**-24 to 1 from halves, and some anywhere."""
    halves = rng.integers(-bound, bound, size) + 0.5
    away = rng.normal(size=size) * np.exp2(rng.uniform(-24, 0, size))
    return np.where(rng.random(size) < 0.8, halves + away, rng.normal(size=size) * bound)


def scaled_sums(rng: np.random.Generator, fraction: int, bound: int, size: int) -> tuple[Array, Array]:
    """int32 sums and the words of their factors: all magnitudes, many with few bits (exact ties), extreme sums."""
    m = np.exp2(rng.uniform(max(-fraction - 1, -22), min(4, 29 - fraction), size)).astype(np.float32)
    few = (m.view(np.int32) & -(1 << rng.integers(0, 24, size))).astype(np.int32).view(np.float32)
    m = np.where(rng.random(size) < 0.5, few, m)
    limits = np.floor((2.0**31 - 1) / np.exp2(fraction + 1 + np.frexp(m)[1].astype(np.float64)))
    limits = np.minimum(limits, 2.0**31 - 1)
    sums = np.clip(np.rint(near_ties(rng, size, bound) / m.astype(np.float64)), -limits, limits)
    sums = np.where(rng.random(size) < 0.02, np.copysign(limits, sums), sums).astype(np.int32)
    words = pack_factors(m, fraction, limits)
    assert words is not None
    kept = words != 0
    np.testing.assert_array_equal(unpack_factors(words, fraction)[kept], m[kept])
    return sums, words


def scale(dtype: str, low: int, high: int, zero: int, fraction: int) -> Expression:
    b = ExpressionBuilder()
    factor = b.add("unpack", F, b.operand(1, "int32"), params=(fraction,))
    product = b.add("scale", F, b.add("cast", F, b.operand(0, "int32")), factor)
    return b.finish(b.requantize(product, dtype, low, high, zero))


SCALES = [
    ("int8", -128, 127, -3, 16),
    ("int8", -128, 127, -128, 13),
    ("uint8", 0, 255, 0, 10),
    ("int8", -5, 90, -5, 7),
    ("int8", -128, 127, 127, 20),
    ("int16", -32768, 32767, 11, 12),
]


@pytest.fixture(params=[True, False], ids=["long product", "short products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target with and without 64-bit products. Its name keeps the two apart in the harness."""
    monkeypatch.setattr(fixed, "has_long_multiply", lambda target: request.param)
    return replace(here(), name=f"fixed {request.param}")


@pytest.mark.parametrize("parameters", SCALES, ids=lambda p: f"{p[0]} {p[4]}")
def test_scaled_sums_round_as_float32(parameters: tuple[str, int, int, int, int], products: Target) -> None:
    rng = np.random.default_rng(parameters[4])
    bound = 40000 if parameters[0] == "int16" else 300
    sums, words = scaled_sums(rng, parameters[4], bound, 1 << 18)
    check(case_of("scale", scale(*parameters), [sums, words]), products)


def every_pair() -> tuple[Array, Array]:
    all_bytes = np.arange(-128, 128, dtype=np.int8)
    return np.repeat(all_bytes, 256), np.tile(all_bytes, 256)


def of_two(
    op: str, first: tuple[float, int], second: tuple[float, int], out: float, zero: int, after: str
) -> Expression:
    b = ExpressionBuilder()
    value = b.add(op, F, b.dequantize(b.operand(0, "int8"), *first), b.dequantize(b.operand(1, "int8"), *second))
    if after:
        value = b.add(after, F, value, params=(0.0, 6.0) if after == "clip" else ())
    return b.finish(b.requantize(value, "int8", -128, 127, zero, float(np.float32(1 / out))))


PAIRS = {
    "add": of_two("add", (0.031, -3), (0.0717, 4), 0.093, 7, ""),
    "add of equal steps": of_two("add", (0.125, -128), (0.125, 4), 0.25, -128, ""),  # half of all sums are ties
    "add, relu": of_two("add", (0.31, 0), (0.0017, 0), 0.31, -128, "relu"),
    "sub, clip": of_two("sub", (0.05, 100), (0.1, -100), 0.05, -20, "clip"),
    "mul": of_two("mul", (0.0123, -100), (0.5, 3), 0.4, -128, ""),
    "mul, relu": of_two("mul", (0.25, 1), (0.5, -1), 16.0, 5, "relu"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_of_bytes(name: str, products: Target) -> None:
    check(case_of(name, PAIRS[name], list(every_pair())), products)


def residual(step: float, zero: int, out: float, fraction: int) -> Expression:
    b = ExpressionBuilder()
    factor = b.add("unpack", F, b.operand(1, "int32"), params=(fraction,))
    product = b.add("scale", F, b.add("cast", F, b.operand(0, "int32")), factor)
    total = b.add("add", F, product, b.dequantize(b.operand(2, "int8"), step, zero))
    return b.finish(b.requantize(b.add("relu", F, total), "int8", -128, 127, -128, float(np.float32(1 / out))))


def residual_case(size: int) -> Case:
    rng = np.random.default_rng(5)
    m = np.exp2(rng.uniform(-15, -9, size)).astype(np.float32)
    packed = packed_scales(m, np.full(size, 2.0**20), False)
    assert packed is not None
    q = rng.integers(-128, 128, size).astype(np.int8)
    real = near_ties(rng, size, 300) * 0.043 - (q.astype(np.float64) + 7) * 0.029
    sums = np.clip(np.rint(real / m), -(2**20), 2**20).astype(np.int32)
    return case_of("residual", residual(0.029, -7, 0.043, packed[1]), [sums, packed[0], q])


def test_residual_after_a_scaled_sum(products: Target) -> None:
    check(residual_case(1 << 18), products)


def real_case(zero: int, factor: float, size: int) -> Case:
    """Reals of all magnitudes, NaN and infinities, which are kept from numpy's conversions."""
    rng = np.random.default_rng(17)
    b = ExpressionBuilder()
    expression = b.finish(b.requantize(b.operand(0, F), "int8", -128, 127, zero, factor))
    near = near_ties(rng, size, 300) / factor
    x = np.where(rng.random(size) < 0.9, near, rng.normal(size=size) * np.exp2(rng.uniform(-130, 127, size)))
    x = x.astype(np.float32)
    made = case_of(f"real {factor}", expression, [x])
    x[:6] = 0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan
    made.expected[:6] = zero, zero, 127, -128, -128, -128
    return made


REALS = [(0, 1.0), (-128, 255.0), (7, 0.0123), (127, float(np.float32(1 / 0.043)))]


@pytest.mark.parametrize("parameters", REALS, ids=str)
def test_reals_round_as_float32(parameters: tuple[int, float], products: Target) -> None:
    check(real_case(*parameters, 1 << 18), products)


def mean_pool(target: Target) -> Case:
    """8x8 places, as it ends a network: sums that are ties by 64."""
    b = ExpressionBuilder()
    total = b.add("sub", F, b.add("cast", F, b.add("accumulator", "int32")), b.constant(64 * -7.0, F))
    real = b.add("scale", F, total, b.constant(0.3 / 64, F))
    expression = b.finish(b.requantize(real, "int8", -128, 127, 4, float(np.float32(1 / 0.3))))
    x = np.random.default_rng(3).integers(-128, 128, (8, 8, 256)).astype(np.int8)
    x[:, :, ::4] &= -2  # means with few bits
    spec = PoolSpec(
        "sum", "int8", "int8", 1, (8, 8), (1, 1), (8, 8), 256, (x.size, 8 * 256, 256), (256, 256, 256),
        expression=expression, x_size=x.size, y_size=256,
    )  # fmt: skip
    sums = x.astype(np.int32).sum((0, 1))
    return Case("mean pool", spec, (x.reshape(-1),), evaluate(expression, [], sums.astype(np.int32)))


def test_means_round_as_float32(products: Target) -> None:
    check(mean_pool(products), products)


def test_factors_that_fit_no_word_are_refused() -> None:
    limits = np.array([2.0**20])
    for factor in (-0.5, np.nan, np.inf, 3e4, 1e-9 * 2**30):
        assert pack_factors(np.array([factor], np.float32), 16, limits) is None, factor
    below_a_half = pack_factors(np.array([4e-7], np.float32), 16, limits)
    assert below_a_half is not None
    assert below_a_half[0] == 0
    assert pack_factors(np.array([4e-7], np.float32), 16, limits, alone=False) is None, "something may be added"


@pytest.mark.parametrize("case", [*PAIRS, "residual"])
def test_the_slow_path_is_rare(case: str, products: Target) -> None:
    """Residuals have factors above 1, of which the upper half of a product has no room for all."""
    made = residual_case(64).spec.expression if case == "residual" else PAIRS[case]
    chain = chain_of(made, len(made) - 1, magnitudes(made, np.inf, ()))
    assert chain is not None
    values = [tirx.Var(f"v{i}", "int32") for i in range(len(made))]
    _, fraction, guard = fixed.guarded(KernelBuilder("rare", products), chain, values)
    assert (2 * guard + 1) / 2**fraction < 0.1  # of the elements


# The slow path itself
_EACH = """
define void @each(i32 %what, ptr %a, ptr %b, ptr %c, i64 %n) {
  br label %loop
loop:
  %i = phi i64 [ 0, %0 ], [ %i2, %next ]
  %pa = getelementptr i32, ptr %a, i64 %i
  %pb = getelementptr i32, ptr %b, i64 %i
  %pc = getelementptr i32, ptr %c, i64 %i
  %x = load i32, ptr %pa
  %y = load i32, ptr %pb
  switch i32 %what, label %float [ i32 1, label %mul
    i32 2, label %add
    i32 3, label %round ]
float:
  %f = call i32 @irc_soft_float(i32 %x)
  br label %next
mul:
  %m = call i32 @irc_soft_mul(i32 %x, i32 %y)
  br label %next
add:
  %s = call i32 @irc_soft_add(i32 %x, i32 %y)
  br label %next
round:
  %r = call i32 @irc_soft_round(i32 %x)
  br label %next
next:
  %v = phi i32 [ %f, %float ], [ %m, %mul ], [ %s, %add ], [ %r, %round ]
  store i32 %v, ptr %pc
  %i2 = add i64 %i, 1
  %more = icmp ult i64 %i2, %n
  br i1 %more, label %loop, label %end
end:
  ret void
}
"""


@pytest.fixture(scope="module")
def soft():
    """(number of the function, a, b) -> its results, all arrays of int32."""
    target = native_targets()[0]
    data = assemble(f'target triple = "{target.triple}"\n' + _EACH, target)
    fd = os.memfd_create("soft")
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.writelines(shared_chunks(elf.read_object(data), target))
    library = ctypes.CDLL(f"/proc/self/fd/{fd}")

    def run(what: int, a: Array, b: Array) -> Array:
        out = np.zeros(a.size, np.int32)
        pointers = [ctypes.c_void_p(v.ctypes.data) for v in (a, b, out)]
        library.each(what, *pointers, ctypes.c_int64(a.size))
        return out

    return run


def floats(rng: np.random.Generator, size: int) -> Array:
    """Bits of normal float32 numbers, many with few bits."""
    mantissa = rng.integers(0, 1 << 23, size) & -(1 << rng.integers(0, 24, size))
    return (
        (rng.integers(0, 2, size) << 31 | rng.integers(64, 191, size) << 23 | mantissa).astype(np.uint32).view(np.int32)
    )


def test_soft_functions_have_the_bits_of_float32(soft) -> None:
    rng = np.random.default_rng(0)
    size = 1 << 19
    ints = (rng.integers(-(2**31), 2**31, size) >> rng.integers(0, 32, size)).astype(np.int32)
    ints[:4] = 0, -(2**31), 2**31 - 1, -1
    np.testing.assert_array_equal(soft(0, ints, ints), ints.astype(np.float32).view(np.int32))
    x, y = floats(rng, size), floats(rng, size)
    np.testing.assert_array_equal(soft(1, x, y), (x.view(F) * y.view(F)).view(np.int32))
    exponent = np.clip((x >> 23 & 255) + rng.integers(-28, 29, size), 1, 250)
    near = (y & ~(255 << 23) | exponent << 23).astype(np.int32)
    near[::16] = x[::16] ^ -(2**31)
    want = x.view(F) + near.view(F)
    got = soft(2, x, near).view(F)
    np.testing.assert_array_equal(got, want)
    reals = (rng.integers(-(2**23), 2**23, size) / np.exp2(rng.integers(0, 27, size))).astype(np.float32)
    np.testing.assert_array_equal(soft(3, reals.view(np.int32), x), np.rint(reals).astype(np.int32))
    huge = np.array([3e7, -1e20], np.float32).view(np.int32)
    np.testing.assert_array_equal(soft(3, huge, huge), [2**24, -(2**24)])


# Other machines
def foreign_cases(target: Target) -> list[Case]:
    rng = np.random.default_rng(9)
    scaled = [case_of(f"scale {p[0]} {p[4]}", scale(*p), list(scaled_sums(rng, p[4], 300, 4096))) for p in SCALES[:5]]
    pairs = [case_of(name, e, [a[::7].copy() for a in every_pair()]) for name, e in PAIRS.items()]
    reals = [real_case(*p, 4096) for p in REALS]
    return [*scaled, *pairs, *reals, residual_case(4096), mean_pool(target)]


@pytest.mark.parametrize("target", NO_FPU, ids=lambda t: t.name)
def test_machines_without_an_fpu(target: Target) -> None:
    if missing_tools(target):
        pytest.skip(f"needs {missing_tools(target)}")
    steps, kernels, inputs, outputs, feeds = [], {}, [], [], {}
    cases = foreign_cases(target)
    for number, made in enumerate(cases):
        kernels[symbol_of(made.spec)] = linkable(made.spec, target)
        args = []
        for array in made.arrays:
            args.append(Arg("input", 0, len(inputs)))
            inputs.append(Port(f"i{len(inputs)}", array.dtype.name, array.shape))
            feeds[inputs[-1].name] = array
        outputs.append(Port(made.name, made.expected.dtype.name, made.expected.shape))
        steps.append(Step(symbol_of(made.spec), (*args, Arg("output", 0, number)), True))
    program = Program("fixed", target, tuple(inputs), tuple(outputs), tuple(steps), kernels, (), 0, 0)
    with Emulated(program, assemble(glue_ll(program), target)) as network:
        found = network.run(feeds)
    for made in cases:
        np.testing.assert_array_equal(found[made.name], made.expected, made.name)


CALLS = re.compile(r"^\s*(?:blx?|call|tail|jalr?)\s+(\w+)", re.MULTILINE)


@pytest.mark.parametrize("target", NO_FPU, ids=lambda t: t.name)
def test_no_float_and_no_call_but_the_slow_path(target: Target) -> None:
    called = {made.name: set(CALLS.findall(assembly(made.spec, target))) for made in foreign_cases(target)}
    for name, functions in called.items():
        assert all(f.startswith("irc_soft_") for f in functions if not f.startswith(".L")), name
    assert called["residual"] >= {"irc_soft_mul", "irc_soft_add", "irc_soft_round"}
    assert called["sub, clip"] == set(), "factors that are powers of two leave nothing near a half but halves"


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m7", "cortex-m33"])
def test_one_conversion_where_there_is_an_fpu(target: str) -> None:
    made = case_of("add", PAIRS["add"], list(every_pair()))
    text = assembly(made.spec, TARGETS[target])
    assert "vcvtr.s32.f32" in text
    assert "ssat" in text
    assert not CALLS.findall(text)
