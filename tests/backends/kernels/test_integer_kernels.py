"""Integer kernels: exact, and the same bytes for every target (docs/integer-semantics.md)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import kernel_cases as cases
import numpy as np
import pytest
from kernel_harness import SENTINEL, Case, assembly, check, linkable, native_targets, optimized, run_fenced, symbol_of

from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.program import Arg, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.backends.tvm.codegen import compile_assembly
from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.geometry import dot_of
from irc.backends.tvm.kernels.table import build
from irc.backends.tvm.specs import LinearSpec
from irc.targets.catalogue import TARGETS, runs_here
from irc.targets.target import Target

ALIKE = {
    "cortex-m7": "cortex-m4",
    "cortex-m33": "cortex-m4",
    "cortex-m4-nofpu": "cortex-m3",
    "cortex-m33-nofpu": "cortex-m3",
}
"""Targets that get the same text of these kernels as another one, which stands for them here."""
# All that LLVM makes code for; what becomes C source is in tests/backends/c.
DISTINCT = [t for t in TARGETS.values() if t.triple and t.name not in ALIKE]
all_targets = pytest.mark.parametrize("target", DISTINCT, ids=lambda t: t.name)


def _linear(name: str, y: str, **options: object) -> Callable[[Target], Case]:
    ic, kernel = options.setdefault("ic", 8), options.get("kernel", (1, 1))
    terms = ic * kernel[0] * kernel[1]  # type: ignore[operator,index]  # integers
    extra = {k: options.pop(k) for k in ("residual", "swish", "size") if k in options}
    sum_x = bool(options.get("sum_x"))
    expression = cases.requantized(y, terms=terms, sum_x=sum_x, **extra)  # type: ignore[arg-type]  # flags
    return lambda target: cases.linear(
        name,
        target,
        y_dtype=y,
        expression=expression,
        **options,  # type: ignore[arg-type]  # as given
    )


def _depthwise(name: str, y: str, **options: object) -> Callable[[Target], Case]:
    expression = cases.requantized(y, terms=9)
    return lambda target: cases.depthwise(
        name,
        target,
        y_dtype=y,
        expression=expression,
        **options,  # type: ignore[arg-type]  # as given
    )


def _mean_pool(name: str, dtype: str, channels: int, expression: tuple) -> Case:
    return cases.pool(name, kind="sum", x_dtype=dtype, y_dtype=dtype, channels=channels, expression=expression)


def _add(y: str) -> tuple:
    b = ExpressionBuilder()
    total = b.add(
        "add", "float32", b.dequantize(b.operand(0, "uint8"), 0.31, 100), b.dequantize(b.operand(1, "int8"), 0.7, -3)
    )
    low, high, zero = (0, 255, 90) if y == "uint8" else (-128, 127, 5)
    return b.finish(b.requantize(total, y, low, high, zero, 0.77))


def _mul_add() -> tuple:
    """A product and then a sum of reals: what a compiler would like to contract."""
    b = ExpressionBuilder()
    f = "float32"
    x, y = b.dequantize(b.operand(0, "uint8"), 0.31, 100), b.dequantize(b.operand(1, "int8"), 0.7, -3)
    line = b.add("add", f, b.add("mul", f, x, y), b.add("mul", f, y, b.constant(0.37, f)))
    return b.finish(b.requantize(line, "int8", -128, 127, 5, 0.0177))


def _activation(op: str) -> tuple:
    b = ExpressionBuilder()
    f = "float32"
    x, y = b.dequantize(b.operand(0, "uint8"), 0.031, 100), b.dequantize(b.operand(1, "int8"), 0.7, -3)
    return b.finish(b.requantize(b.add("mul", f, y, b.add(op, f, x)), "int8", -128, 127, 5, 0.9))


def _table() -> tuple:
    b = ExpressionBuilder()
    index = b.add("as_uint8", "uint8", b.operand(0, "int8"))
    return b.finish(b.add("table", "uint8", index, params=(1,)))


TWO = [("uint8", (80, 1)), ("int8", (77, 1))]
CASES: dict[str, Callable[[Target], Case]] = {
    "1x1 u8": _linear("1x1 u8", "uint8", x_dtype="uint8", oc=40, ic=20, out=(3, 7)),
    "1x1 i8": _linear("1x1 i8", "int8", x_dtype="int8", oc=17, ic=12, out=(2, 9), tile=(1, 6, 1)),
    "3x3 u8": _linear("3x3 u8", "int8", x_dtype="uint8", kernel=(3, 3), oc=10, ic=4, tile=(2, 3, 2), stride=(2, 1)),
    "3x3 i8": _linear("3x3 i8", "uint8", x_dtype="int8", kernel=(3, 3), oc=5, ic=8, dilation=(1, 2), gap=4),
    "groups": _linear("groups", "uint8", x_dtype="uint8", kernel=(2, 2), oc=5, ic=4, groups=3, images=2),
    "one channel": _linear("one channel", "int8", x_dtype="int8", oc=1, ic=4, out=(1, 13)),
    "groups of 3": _linear("groups of 3", "uint8", x_dtype="uint8", kernel=(2, 2), oc=5, ic=3, groups=3),
    "groups of 6": _linear("groups of 6", "int8", x_dtype="int8", kernel=(1, 2), oc=9, ic=6, groups=2),
    "channels": _linear("channels", "int8", x_dtype="uint8", oc=70, ic=16, out=(2, 5), order="channels"),
    "blocks": _linear("blocks", "uint8", x_dtype="uint8", oc=86, ic=8, tile=(1, 3, 3), block=16, order="channels"),
    "blocks groups": _linear("blocks groups", "int8", x_dtype="uint8", kernel=(2, 1), oc=21, ic=4, groups=2, block=16),
    "sum u8": _linear("sum u8", "uint8", x_dtype="uint8", kernel=(1, 3), oc=18, ic=8, sum_x=True),
    "sum i8": _linear("sum i8", "int8", x_dtype="int8", oc=33, ic=24, sum_x=True, tile=(1, 3, 1)),
    "ahead": _linear("ahead", "int8", x_dtype="uint8", oc=70, ic=64, out=(2, 5), order="channels", ahead=1 << 14),
    "residual": _linear("residual", "int8", x_dtype="uint8", oc=10, ic=16, residual=True),
    "far residual": _linear("far residual", "int8", x_dtype="uint8", oc=64, ic=4, out=(64, 130), residual=True),
    "swish": _linear("swish", "int8", x_dtype="uint8", oc=19, ic=16, swish=True),
    "int4": _linear("int4", "int8", x_dtype="uint8", oc=86, ic=40, out=(3, 7), w_dtype="int4", size=1 / 16),
    "int4 odd": _linear("int4 odd", "uint8", x_dtype="int8", kernel=(3, 2), oc=33, ic=12, w_dtype="int4", size=1 / 16),
    "int4 rows": _linear(
        "int4 rows", "uint8", x_dtype="uint8", kernel=(5, 1), oc=20, ic=4, stride=(2, 1), w_dtype="int4", size=1 / 16
    ),
    "int4 blocks": _linear(
        "int4 blocks", "int8", x_dtype="uint8", kernel=(1, 3), oc=50, ic=4, groups=2, block=16, order="channels",
        w_dtype="int4",
        size=1 / 16,
        ahead=1 << 14,
    ),
    "int4 sum": _linear("int4 sum", "uint8", x_dtype="uint8", oc=18, ic=16, sum_x=True, w_dtype="int4", size=1 / 16),
    "int4 swish": _linear("int4 swish", "int8", x_dtype="uint8", oc=19, ic=16, swish=True, w_dtype="int4", size=1 / 16),
    "int2": _linear("int2", "int8", x_dtype="uint8", kernel=(3, 3), oc=37, ic=20, w_dtype="int2", size=1 / 64),
    "int2 groups": _linear("int2 groups", "int8", x_dtype="int8", oc=9, ic=6, groups=2, w_dtype="int2", size=1 / 64),
    "i16": _linear("i16", "int16", x_dtype="int16", kernel=(3, 3), oc=21, ic=6, size=1 / 4),
    "i16 int4": _linear("i16 int4", "int16", x_dtype="int16", oc=40, ic=12, tile=(1, 3, 1), w_dtype="int4", size=0.02),
    "depthwise int4": _depthwise("depthwise int4", "uint8", x_dtype="uint8", w_dtype="int4", channels=83),
    "depthwise int4 i8": _depthwise(
        "depthwise int4 i8", "int8", x_dtype="int8", w_dtype="int4", channels=21, kernel=(5, 4), dilation=(1, 2)
    ),
    "depthwise int4 wide": _depthwise(
        "depthwise int4 wide", "uint8", x_dtype="uint8", w_dtype="int4", channels=64, out=(3, 5)
    ),
    "depthwise int4 places": _depthwise(
        "depthwise int4 places", "uint8", x_dtype="uint8", w_dtype="int4", channels=8, out=(3, 21)
    ),
    "depthwise i16": _depthwise("depthwise i16", "int16", x_dtype="int16", w_dtype="int8", channels=17),
    "depthwise u8": _depthwise("depthwise u8", "uint8", x_dtype="uint8", w_dtype="int8", channels=17),
    "depthwise i8": _depthwise("depthwise i8", "int8", x_dtype="int8", w_dtype="int8", channels=40, stride=(2, 1)),
    "depthwise w16": _depthwise("depthwise w16", "int8", x_dtype="uint8", w_dtype="int16", channels=10, gap=3),
    "depthwise 5x5": _depthwise(
        "depthwise 5x5", "uint8", x_dtype="uint8", w_dtype="int8", channels=70, kernel=(5, 5),
        dilation=(1, 2),
        tile=(3, 1),
    ),
    "depthwise wide": _depthwise(
        "depthwise wide", "uint8", x_dtype="uint8", w_dtype="int8", channels=90, gap=5, out=(3, 5)
    ),
    "depthwise steps": _depthwise(
        "depthwise steps", "int8", x_dtype="uint8", w_dtype="int8", channels=64, stride=(2, 2), dilation=(1, 2),
        out=(2, 10),
    ),
    "depthwise places": _depthwise(
        "depthwise places", "uint8", x_dtype="uint8", w_dtype="int8", channels=8, out=(3, 21)
    ),
    "depthwise pairs": _depthwise(
        "depthwise pairs", "int8", x_dtype="uint8", w_dtype="int8", channels=32, out=(4, 5), kernel=(2, 3)
    ),
    "max pool": lambda _: cases.pool("max pool", x_dtype="uint8", y_dtype="uint8", channels=37),
    "sum pool": lambda _: _mean_pool("sum pool", "uint8", 21, cases.integer_mean("uint8", 9, 12)),
    "mean pool": lambda _: _mean_pool("mean pool", "int8", 5, cases.integer_mean("int8", None, -9)),
    "add": lambda _: cases.elementwise("add", (3, 77), "uint8", _add("uint8"), TWO),
    "mul add": lambda _: cases.elementwise("mul add", (3, 77), "int8", _mul_add(), TWO),
    "sigmoid": lambda _: cases.elementwise("sigmoid", (3, 77), "int8", _activation("sigmoid"), TWO),
    "tanh": lambda _: cases.elementwise("tanh", (3, 77), "int8", _activation("tanh"), TWO),
    "gelu": lambda _: cases.elementwise("gelu", (3, 77), "int8", _activation("gelu"), TWO),
    "table": lambda _: cases.elementwise(
        "table", (3, 33), "uint8", _table(), [("int8", (40, 1)), ("uint8", (0,))], tables=(1,)
    ),
    "reduce": lambda _: cases.reduce("reduce", "sum", (4, 7, 19), (1,), x_dtype="int32"),
}  # fmt: skip
POLYNOMIAL = frozenset({"swish", "sigmoid", "tanh", "gelu"})
"""Functions whose float32 polynomial may be an ulp away from the double precision reference: one step in a tie."""


@pytest.mark.parametrize(("name", "other"), ALIKE.items())
@pytest.mark.parametrize("kernel", ["1x1 u8", "groups of 3", "depthwise i8", "mul add", "gelu", "int4 odd"])
def test_targets_that_get_the_same_text(name: str, other: str, kernel: str) -> None:
    texts = []
    for target in (TARGETS[name], TARGETS[other]):
        lines = optimized(case(kernel, target).spec, target).splitlines()
        code = [line for line in lines if not line.startswith(("target ", "!"))]
        texts.append(re.sub(r'"target-(cpu|features)"="[^"]*"', "", "\n".join(code)))
    assert texts[0] == texts[1]


@functools.cache
def case(name: str, target: Target) -> Case:
    return CASES[name](target)


@pytest.mark.parametrize("target", native_targets(), ids=lambda t: t.name)
@pytest.mark.parametrize("name", CASES)
def test_exact_and_in_bounds(name: str, target: Target) -> None:
    made = case(name, target)
    if name in POLYNOMIAL:
        got = check_bits(made, target)
        away = np.abs(got.astype(int) - made.expected.astype(int))[made.written]
        assert away.max() <= 1
        assert (away != 0).mean() < 0.02
    else:
        check(made, target)


def check_bits(made: Case, target: Target) -> np.ndarray:
    """All of `check` but the comparison with the reference; the output."""
    results = run_fenced(made, target)
    mask = made.written
    assert len({got.tobytes() for _, got in results}) == 1
    assert all((got[~mask].view(np.uint8) == SENTINEL).all() for _, got in results)
    return results[0][1]


def _program(target: Target) -> tuple[Program, dict[str, np.ndarray]]:
    """One network whose steps are all the kernels; every array is an input."""
    steps, kernels, inputs, outputs = [], {}, [], []
    feeds: dict[str, np.ndarray] = {}
    for number, name in enumerate(CASES):
        made = case(name, target)
        symbol = symbol_of(made.spec)
        kernels[symbol] = linkable(made.spec, target)
        args = []
        for array in made.arrays:
            args.append(Arg("input", 0, len(inputs)))
            inputs.append(Port(f"i{len(inputs)}", array.dtype.name, array.shape))
            feeds[inputs[-1].name] = array
        args.append(Arg("output", 0, number))
        outputs.append(Port(name, made.expected.dtype.name, made.expected.shape))
        steps.append(Step(symbol, tuple(args), True))
    return Program("kernels", target, tuple(inputs), tuple(outputs), tuple(steps), kernels, (), 0, 0), feeds


@functools.cache
def _emulated(target: Target) -> dict[str, np.ndarray]:
    program, feeds = _program(target)
    with Emulated(program, assemble(glue_ll(program), target)) as network:
        return network.run(feeds)


@functools.cache
def _native(name: str, target: Target) -> np.ndarray:
    return check_bits(case(name, target), target)


@pytest.mark.parametrize("name", sorted(POLYNOMIAL))
def test_same_bytes_on_all_native_targets(name: str) -> None:
    """Of the other kernels there is one right result, which is asked for above."""
    found = {t.name: _native(name, t)[case(name, t).written].tobytes() for t in native_targets()}
    assert len(set(found.values())) == 1, f"{name} differs between {list(found)}"


FOREIGN = ("aarch64", "arm", "neoverse-v1", "armv7", "wasm32", "riscv64", "riscv64-v")
"""Targets whose kernels `test_foreign_kernels.py` runs, these among them."""


@pytest.mark.parametrize("target", [t for t in DISTINCT if t.qemu and t.name not in FOREIGN], ids=lambda t: t.name)
def test_same_bytes_on_emulated_targets(target: Target) -> None:
    if missing_tools(target):
        pytest.skip(f"needs {missing_tools(target)}")
    found = _emulated(target)
    for name, output in found.items():
        made = case(name, target)
        if name not in POLYNOMIAL:
            np.testing.assert_array_equal(output[made.written], made.expected[made.written], name)
        for native in native_targets()[-1:]:
            np.testing.assert_array_equal(output[made.written], _native(name, native)[made.written], name)


# Assembly
CONTRACTED = {
    "x86-64": re.compile(r"^\s*vfn?m(add|sub)\w+", re.MULTILINE),
    "aarch64": re.compile(r"^\s*(fn?m(add|sub)|fml[as]l?2?)\s", re.MULTILINE),
    "arm32": re.compile(r"^\s*vfn?m[as]\.f\w+", re.MULTILINE),
    "riscv32": re.compile(r"^\s*(fn?m(add|sub)\.[sd])\s", re.MULTILINE),
    "riscv64": re.compile(r"^\s*(fn?m(add|sub)\.[sd]|vfw?n?m(acc|sac|add|sub)\.\w+)\s", re.MULTILINE),
    "wasm32": re.compile(r"relaxed_n?madd"),
}
CALL = {
    "x86-64": re.compile(r"^\s*(?:callq?|jmp)\s+([\w@*%]+)", re.MULTILINE),
    "aarch64": re.compile(r"^\s*(?:bl|blr)\s+(\w+)", re.MULTILINE),
    "arm32": re.compile(r"^\s*blx?\s+(\w+)", re.MULTILINE),
    "riscv32": re.compile(r"^\s*(?:call|tail|jalr?)\s+(\w+)", re.MULTILINE),
    "riscv64": re.compile(r"^\s*(?:call|tail|jalr?)\s+(\w+)", re.MULTILINE),
    "wasm32": re.compile(r"^\s*(?:return_)?call\s+(\w+)", re.MULTILINE),
}
SOFT_FLOAT = (
    *("irc_soft_", "__aeabi_f", "__aeabi_i2f", "__mulsf3", "__addsf3", "__subsf3", "__divsf3", "__floatsisf"),
    *("__fixsfsi", "__gtsf2", "__ltsf2", "__gesf2", "__lesf2", "__unordsf2"),
)
"""IEEE 754 all of them."""
DOT = {"vpdpbusd": "vpdpbusd", "sdot": r"\bsdot\b", "pmaddwd": "v?pmaddwd|vpdpwssd", "pmaddwd4": "v?pmaddwd"}


@all_targets
@pytest.mark.parametrize("name", CASES)
def test_nothing_that_rounds_differently(name: str, target: Target) -> None:
    """No fused multiply-add of floats, no call (libm's last bits differ between machines), no saturating products."""
    text = assembly(case(name, target).spec, target)
    assert symbol_of(case(name, target).spec) + ":" in text
    assert CONTRACTED[target.arch].findall(text) == []
    # factors stand here as float32; those of networks are packed for machines without an FPU (test_fixed.py)
    harmless = (
        ".L",
        "k_",
        "memset",
        "memcpy",
        "__aeabi_mem",
        "__aeabi_idiv",
        "__aeabi_uidiv",
        *(SOFT_FLOAT if target.fpu == "none" else ()),
    )
    calls = [c for c in CALL[target.arch].findall(text) if not c.startswith(harmless)]
    assert calls == []
    assert not re.search(r"v?pmaddubsw|vpdpbusds", text)
    spec = case(name, target).spec
    if isinstance(spec, LinearSpec):
        dot = dot_of(spec.x_dtype, target, spec.ic)
        assert re.search(DOT.get(dot, ""), text), f"no {dot}"


@pytest.mark.parametrize(
    ("target", "dtype", "channels", "dot"),
    [
        ("x86-64-v4-vnni", "uint8", 8, "vpdpbusd"),
        ("x86-64-v4-vnni", "uint8", 6, "pmaddwd"),
        ("x86-64-v4-vnni", "int8", 8, "pmaddwd"),
        ("x86-64-v3-vnni", "uint8", 4, "vpdpbusd"),
        ("x86-64-v3", "uint8", 4, "pmaddwd4"),
        ("x86-64-v3", "uint8", 6, "pmaddwd"),
        ("x86-64-v4-vnni", "uint8", 3, "widening"),
        ("x86-64", "int8", 2, "pmaddwd"),
        ("arm", "int8", 4, "sdot"),
        ("arm", "uint8", 4, "widening"),
        ("arm", "int8", 6, "widening"),
        ("aarch64", "int8", 4, "vpadal"),
    ],
)
def test_the_widest_way_that_is_right(target: str, dtype: str, channels: int, dot: str) -> None:
    assert dot_of(dtype, TARGETS[target], channels) == dot


def test_the_patterns_find_what_they_look_for() -> None:
    """A float convolution on machines with fused multiply-adds is full of them; log is a call."""
    for name in ("x86-64-v3", "arm"):
        target = TARGETS[name]
        text = compile_assembly(build("kernel", cases.linear("1x1", target).spec, target), target)
        assert CONTRACTED[target.arch].search(text)
        b = ExpressionBuilder()
        log = b.finish(b.add("log", "float32", b.operand(0, "float32")))
        spec = cases.elementwise("log", (5,), "float32", log, [("float32", (1,))]).spec
        assert "logf" in str(CALL[target.arch].findall(compile_assembly(build("kernel", spec, target), target)))


def test_native_targets_are_what_this_machine_runs() -> None:
    assert native_targets() == [t for t in TARGETS.values() if runs_here(t)]
