"""What hand-written kernels of M4 class do after their sums: every form that the packer takes, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from kernel_harness import linkable, symbol_of

from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.qemu import Emulated, missing_tools
from irc.backends.program import Arg, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.plan.small_pack import Packed, pack_conv, pack_depthwise
from irc.backends.tvm.reference import evaluate
from irc.backends.tvm.small_epilogue import canonical, epilogue_of
from irc.backends.tvm.specs import Operand, SmallConvSpec, SmallDepthwiseSpec
from irc.targets import get_target

M4 = get_target("cortex-m4")
F = "float32"


@dataclass
class Chain:
    """An expression in the making, with the kinds of its operands: "channel" or "element"."""

    b: ExpressionBuilder = field(default_factory=ExpressionBuilder)
    roles: list[tuple[str, str]] = field(default_factory=list)
    value: int = -1

    def operand(self, role: str, dtype: str) -> int:
        self.roles.append((role, dtype))
        return self.b.operand(len(self.roles) - 1, dtype)

    def sums(self, *, bias: bool = True) -> Chain:
        b, total = self.b, self.b.add("accumulator", "int32")
        if bias:
            total = b.add("add", "int32", total, self.operand("channel", "int32"))
        self.value = b.add("scale", F, b.add("cast", F, total), self.operand("channel", F))
        return self

    def channel(self, op: str) -> Chain:
        self.value = self.b.add(op, F, self.value, self.operand("channel", F))
        return self

    def residual(self, zero: int = -128, *, first: bool = False) -> Chain:
        other = self.b.dequantize(self.operand("element", "int8"), 0.0237, zero)
        self.value = self.b.add("add", F, *((other, self.value) if first else (self.value, other)))
        return self

    def real_residual(self) -> Chain:
        self.value = self.b.add("add", F, self.value, self.operand("element", F))
        return self

    def clip(self, low: float, high: float) -> Chain:
        self.value = self.b.add("clip", F, self.value, params=(low, high))
        return self

    def relu(self) -> Chain:
        self.value = self.b.add("relu", F, self.value)
        return self

    def round(self, zero: int, low: int = -128, high: int = 127) -> Chain:
        q = self.b.requantize(self.value, "int8", low, high, zero, 41.7)
        self.value = self.b.dequantize(q, 0.024, zero)
        return self

    def leaky(self) -> Chain:
        b, value = self.b, self.value
        scaled = b.add("mul", F, value, b.constant(0.1, F))
        self.value = b.add("select", F, b.add("less", "int8", value, b.constant(0.0, F)), scaled, value)
        return self

    def hard_swish(self) -> Chain:
        b, value = self.b, self.value
        line = b.add("add", F, b.add("mul", F, value, b.constant(float(np.float32(1 / 6)), F)), b.constant(0.5, F))
        self.value = b.add("mul", F, value, b.add("clip", F, line, params=(0.0, 1.0)))
        return self

    def quantize(self, zero: int = -128, factor: float = 39.3, low: int = -128, high: int = 127) -> Chain:
        self.value = self.b.requantize(self.value, "int8", low, high, zero, factor)
        return self

    def quantize_unsigned(self, zero: int, low: int, high: int, factor: float = 39.3) -> Chain:
        self.value = self.b.requantize(self.value, "uint8", low, high, zero, factor)
        return self

    def finish(self) -> Expression:
        return self.b.finish(self.value)


CHAINS: dict[str, Callable[[], Chain]] = {
    "bytes": lambda: Chain().sums().quantize(3, 1.0),
    "unsigned bytes": lambda: Chain().sums().quantize_unsigned(131, 0, 255, 1.0),
    "unsigned": lambda: Chain().sums().quantize_unsigned(128, 0, 255),
    "unsigned residual": lambda: Chain().sums().residual().relu().quantize_unsigned(17, 5, 200),
    "no bias": lambda: Chain().sums(bias=False).quantize(-4),
    "real": lambda: Chain().sums(),
    "real relu": lambda: Chain().sums().relu(),
    "real clip": lambda: Chain().sums().clip(-0.5, 1.25),
    "real addend": lambda: Chain().sums().channel("add"),
    "real residual": lambda: Chain().sums().residual(7),
    "real of reals": lambda: Chain().sums().real_residual().relu(),
    "addend": lambda: Chain().sums().channel("add").quantize(5),
    "normalized": lambda: Chain().sums().channel("mul").channel("add").relu().quantize(),
    "residual": lambda: Chain().sums().residual().relu().quantize(),
    "residual first": lambda: Chain().sums().residual(9, first=True).relu().quantize(),
    "residual without zero": lambda: Chain().sums().residual(0).quantize(-7, low=-100, high=90),
    "residual clip": lambda: Chain().sums().residual(-3).clip(-2.0, 2.5).quantize(2),
    "residual saturated": lambda: Chain().sums().residual(-3).quantize(2, 3000.0),
    "rounded residual": lambda: Chain().sums().round(4).residual(9).relu().quantize(),
    "rounded with bounds": lambda: Chain().sums().relu().round(-9, -9, 100).residual(-128).quantize(11),
    "two residuals": lambda: Chain().sums().residual(1).channel("mul").residual(2).quantize(),
    "relu before": lambda: Chain().sums().relu().residual(5).relu().quantize(),
    "leaky": lambda: Chain().sums().leaky().quantize(-20),
    "leaky residual": lambda: Chain().sums().leaky().residual().quantize(-20),
    "real leaky": lambda: Chain().sums().leaky(),
    "hard swish": lambda: Chain().sums().hard_swish().quantize(-110),
    "real hard swish": lambda: Chain().sums().hard_swish(),
    "rounded": lambda: Chain().sums().round(4).leaky().quantize(),
}

SHAPES = {  # ic (0: depthwise), oc, out, kernel, pads, stride
    "even places": (8, 8, (2, 4), (1, 1), 0, 1),
    "odd places": (12, 8, (3, 3), (1, 1), 0, 1),
    "window": (5, 12, (3, 4), (3, 3), 1, 1),
    "one place": (16, 20, (1, 1), (1, 1), 0, 1),
    "few channels": (16, 6, (1, 1), (1, 1), 0, 1),
    "odd channels": (3, 7, (2, 3), (3, 3), 1, 1),
    "depthwise": (0, 8, (4, 5), (3, 3), 1, 1),
    "depthwise of every other": (0, 4, (3, 4), (3, 3), 1, 2),
}


Made = Packed[SmallConvSpec] | Packed[SmallDepthwiseSpec]


def make(shape: str, chain: str) -> tuple[Made, list[np.ndarray], np.ndarray]:
    """(the kernel, arrays in its order, the result)."""
    inputs, oc, out, kernel, pad, step = SHAPES[shape]
    ic = inputs or oc
    rng = np.random.default_rng([*shape.encode(), *chain.encode()])
    image = ((out[0] - 1) * step + kernel[0] - 2 * pad, (out[1] - 1) * step + kernel[1] - 2 * pad)
    x = rng.integers(-128, 128, (*image, ic)).astype(np.int8)
    w = rng.integers(-127, 128, (oc, *kernel, inputs or 1)).astype(np.int8)
    fill = -9
    made = CHAINS[chain]()
    expression = made.finish()
    size = math.prod(out) * oc
    strides = (size, out[1] * oc, oc, 1)
    spread = 1 / (math.sqrt(w[0].size) * 74 * 74)
    values, given, operands, elements = [], [], [], []
    for role, dtype in made.roles:
        if role == "element":
            data = rng.integers(-128, 128, size) if dtype == "int8" else rng.normal(0, 1, size)
            elements.append(data.astype(dtype))
            values.append(elements[-1].reshape(*out, oc))
            given.append(None)
            operands.append(Operand(dtype, strides, size))
            continue
        first = dtype == F and not any(v.dtype == F and v.ndim == 1 for v in values)
        data = (
            rng.integers(-9000, 9000, oc) if dtype == "int32" else rng.uniform(0.5, 2.0, oc) * (spread if first else 1)
        )
        if "bytes" in chain and first:
            data = data * 40
        given.append(data.astype(dtype))
        values.append(given[-1])
        operands.append(Operand(dtype, (0, 0, 0, 1), oc))
    padded = np.pad(x.astype(np.int64), ((pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (0, 1))[::step, ::step]  # [h, w, ic, kh, kw]
    form = "hwikl,okli->hwo" if inputs else "hwokl,okli->hwo"
    sums = np.einsum(form, windows, w.astype(np.int64)).astype(np.int32)
    expected = evaluate(expression, values, sums).reshape(-1)
    shared = {
        "stride": (step, step), "pads": (pad, pad), "fill": fill, "expression": expression, "operands": tuple(operands),
        "x_size": x.size, "y_size": size,
    }  # fmt: skip
    lie = ((x.size, image[1] * ic, ic), strides[:3])
    packed: Made
    if inputs:
        conv = SmallConvSpec(expression[-1].dtype, 1, image, out, kernel, ic, oc, *lie, **shared)
        packed = pack_conv(conv, w, given, M4)
    else:
        depthwise = SmallDepthwiseSpec(expression[-1].dtype, 1, image, out, kernel, oc, *lie, **shared)
        packed = pack_depthwise(depthwise, np.ascontiguousarray(w[..., 0].transpose(1, 2, 0)), given, M4)
    return packed, [x.reshape(-1), *elements], expected


def cases() -> list[tuple[str, str]]:
    """Residuals want channels in fours, and depthwise convolutions have bytes as results."""
    return [
        (shape, chain)
        for shape, (ic, oc, *_) in SHAPES.items()
        for chain, build in CHAINS.items()
        if oc % 4 == 0 or all(role == "channel" for role, _ in build().roles)
        if ic > 0 or not chain.startswith("real")
    ]


def test_all_forms_take_the_written_kernels() -> None:
    others = [case for case in cases() if not make(*case)[0].spec.way.startswith(("pairs", "rows"))]
    assert others == []


@pytest.mark.parametrize("chain", ["bytes", "unsigned bytes"])
def test_bare_bytes_are_rounded_by_integers(chain: str) -> None:
    assert any("fixed" in make(shape, chain)[0].spec.way for shape in SHAPES)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_canonical_form_is_the_same_epilogue(chain: str) -> None:
    found = epilogue_of(
        CHAINS[chain]().finish(), {i for i, (role, _) in enumerate(CHAINS[chain]().roles) if role == "channel"}
    )
    assert found is not None
    expression, count = canonical(found)
    again = epilogue_of(expression, range(count))
    assert again is not None
    assert canonical(again) == (expression, count)
    assert [type(s) for s in again.steps] == [type(s) for s in found.steps]


def test_exact_on_the_board() -> None:
    """All kernels are one network, whose arrays are inputs."""
    if missing_tools(M4):
        pytest.skip(f"needs {missing_tools(M4)}")
    steps, kernels, inputs, outputs, expected = [], {}, [], [], {}
    feeds: dict[str, np.ndarray] = {}
    workspace = 0
    for shape, chain in cases():
        packed, (x, *elements), wanted = make(shape, chain)
        name = f"{shape}: {chain}"
        arrays = [x, packed.weights, *elements]
        args = []
        for array in arrays:
            args.append(Arg("input", 0, len(inputs)))
            inputs.append(Port(f"i{len(inputs)}", array.dtype.name, array.shape))
            feeds[inputs[-1].name] = array
        args.append(Arg("output", 0, len(outputs)))
        outputs.append(Port(f"o{len(outputs)}", wanted.dtype.name, wanted.shape))
        expected[outputs[-1].name] = (name, wanted)
        if packed.spec.scratch:
            args.append(Arg("workspace", 0))
            workspace = max(workspace, packed.spec.scratch)
        kernels[symbol_of(packed.spec)] = linkable(packed.spec, M4)
        steps.append(Step(symbol_of(packed.spec), tuple(args), False))
    program = Program("pairs", M4, tuple(inputs), tuple(outputs), tuple(steps), kernels, (), 0, workspace, M4.alignment)
    with Emulated(program, assemble(glue_ll(program), M4)) as network:
        found = network.run(feeds)
    for port, (name, wanted) in expected.items():
        np.testing.assert_array_equal(found[port].view(np.uint8), wanted.view(np.uint8), name)
        if "saturated" not in name:
            assert len(np.unique(wanted)) > min(8, wanted.size // 3), name
