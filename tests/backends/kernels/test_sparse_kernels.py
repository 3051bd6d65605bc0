"""Kernels that pass over zero blocks: the sums of the weights that are left, whatever the pattern."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import kernel_cases as cases
import numpy as np
import pytest
import spec_reference
from kernel_harness import Case, check, compiled, native_targets, run, symbol_of

from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.program import Arg, Port, Program, Step
from irc.backends.tvm.assemble import assemble
from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.plan.lower_sparse import blocks_of, sparse_form
from irc.backends.tvm.plan.sparse_model import choose, units_of
from irc.targets.catalogue import TARGETS
from irc.targets.target import Target


def sparse_case(name: str, target: Target, *, density: float, unit: int, empty: int = -1, **options: object) -> Case:
    """A dense case with blocks of 16 channels by a step taken out, in units of `unit` channels; of `empty`, all."""
    dense = cases.linear(name, target, **options)  # type: ignore[arg-type]  # the case's options
    spec, (x, packed, *operands) = dense.spec, dense.arrays
    blocks = blocks_of(spec, packed, target).copy()  # type: ignore[arg-type]  # a LinearSpec
    groups, channels, steps, _ = blocks.shape
    rng = np.random.default_rng([1, *name.encode()])
    # drawn for each input channel, so that all targets drop the same weights, whatever their steps
    drawn = rng.random((groups, -(-channels // 16), steps * blocks.shape[3] // spec.ic, -(-spec.ic // 4)))
    dropped = drawn.repeat(4, 3)[..., : spec.ic].reshape(groups, -1, steps, blocks.shape[3]) >= density
    if empty >= 0:
        dropped[:, empty] = True
    blocks[dropped.repeat(16, 1)[:, :channels]] = 0
    w = blocks.reshape(1, groups, channels, *spec.kernel, spec.ic)
    choice = choose(spec, target, unit, 1.0)
    tile = replace(
        choice.tile, rows=spec.tile[0], columns=spec.tile[1], vectors=min(spec.tile[2], unit // lanes_of(target))
    )
    made, tables = sparse_form(spec, blocks, replace(choice, tile=tile), target)
    made = replace(made, columns=min(2 * spec.tile[1], spec.out[1]))
    arrays = (x, *(t.reshape(-1) for t in tables), *operands)
    return Case(name, made, arrays, spec_reference.expected(spec, x, w, *operands[: len(spec.operands)]))


def integers(y: str, **options: object) -> Callable[[Target, int], Case]:
    ic, kernel = options.setdefault("ic", 16), options.get("kernel", (1, 1))
    residual = bool(options.pop("residual", False))
    expression = cases.requantized(y, terms=ic * kernel[0] * kernel[1], residual=residual)  # type: ignore[operator,index]  # integers
    return lambda target, unit: sparse_case(
        str(options),
        target,
        unit=unit,
        y_dtype=y,
        expression=expression,
        **options,  # type: ignore[arg-type]  # as given
    )


def floats(**options: object) -> Callable[[Target, int], Case]:
    return lambda target, unit: sparse_case(str(options), target, unit=unit, expression=cases.bias_relu, **options)  # type: ignore[arg-type]  # as given


CASES: dict[str, Callable[[Target, int], Case]] = {
    "1x1": integers("uint8", x_dtype="uint8", oc=80, ic=64, out=(3, 9), density=0.25, tile=(1, 4, 4)),
    "odd channels": integers("int8", x_dtype="uint8", oc=37, ic=20, out=(2, 11), density=0.5, tile=(1, 3, 1)),
    "strides": integers(
        "uint8", x_dtype="uint8", kernel=(3, 3), oc=33, ic=8, out=(4, 5), stride=(2, 2), density=0.3, tile=(2, 5, 1)
    ),
    "dilation": integers("int8", x_dtype="uint8", kernel=(3, 2), oc=16, ic=12, dilation=(2, 1), density=0.4, gap=4),
    "groups": integers("uint8", x_dtype="uint8", kernel=(1, 3), oc=21, ic=8, groups=3, images=2, density=0.5),
    "groups of 6": integers("int8", x_dtype="uint8", kernel=(2, 2), oc=18, ic=6, groups=2, density=0.5),
    "signed": integers("int8", x_dtype="int8", oc=40, ic=32, out=(1, 13), density=0.25, tile=(1, 5, 2)),
    "residual": integers("uint8", x_dtype="uint8", oc=32, ic=32, out=(2, 7), density=0.2, residual=True),
    "empty unit": integers("uint8", x_dtype="uint8", oc=48, ic=16, density=0.5, empty=1),
    "nothing left": integers("uint8", x_dtype="uint8", oc=32, ic=16, density=0.0),
    "ahead": integers("uint8", x_dtype="uint8", oc=64, ic=64, density=0.3, ahead=1 << 14),
    "far weights": integers("uint8", x_dtype="uint8", oc=512, ic=512, out=(1, 3), density=0.6),
    "float": floats(kernel=(3, 3), oc=37, ic=6, out=(3, 9), density=0.3, tile=(1, 5, 2)),
    "float 1x1": floats(oc=64, ic=40, out=(1, 13), density=0.25, tile=(1, 6, 1)),
}  # fmt: skip


@functools.cache
def case(name: str, target: Target, unit: int) -> Case:
    return CASES[name](target, unit)


VARIED = ("1x1", "odd channels", "float 1x1")


def variants(target: Target) -> list[tuple[str, int]]:
    """(case, channels of a unit): 16 of all, and what else the target may choose of some."""
    return [(name, unit) for name in CASES for unit in units_of(target) if unit == 16 or name in VARIED]


NATIVE = [pytest.param(t, *v, id=f"{t.name}-{v[0]}-{v[1]}") for t in native_targets() for v in variants(t)]


@pytest.mark.parametrize(("target", "name", "unit"), NATIVE)
def test_exact_and_in_bounds(target: Target, name: str, unit: int) -> None:
    """Integers are exact; sums of up to 54 floats of size 1 in another order are within 1e-5."""
    check(case(name, target, unit), target, rtol=1e-5, atol=1e-5)


# test_foreign_kernels.py has the targets whose kernels are one module.
LINKED = [t for t in TARGETS.values() if t.qemu and t.linking == "sections"]


@pytest.mark.parametrize("target", LINKED, ids=lambda t: t.name)
def test_same_bytes_on_emulated_targets(target: Target) -> None:
    if missing_tools(target):
        pytest.skip(f"needs {missing_tools(target)}")
    steps, kernels, inputs, outputs = [], {}, [], []
    feeds: dict[str, np.ndarray] = {}
    every = variants(target)
    for number, (name, unit) in enumerate(every):
        made = case(name, target, unit)
        kernels[symbol_of(made.spec)] = compiled(made.spec, target)
        args = []
        for array in made.arrays:
            args.append(Arg("input", 0, len(inputs)))
            inputs.append(Port(f"i{len(inputs)}", array.dtype.name, array.shape))
            feeds[inputs[-1].name] = array
        outputs.append(Port(f"{name} {unit}", made.expected.dtype.name, made.expected.shape))
        steps.append(Step(symbol_of(made.spec), (*args, Arg("output", 0, number)), True))
    program = Program("kernels", target, tuple(inputs), tuple(outputs), tuple(steps), kernels, (), 0, 0)
    with Emulated(program, assemble(glue_ll(program), target)) as network:
        found = network.run(feeds)
    for name, unit in every:
        made, got = case(name, target, unit), found[f"{name} {unit}"]
        if made.expected.dtype.kind == "f":
            np.testing.assert_allclose(got[made.written], made.expected[made.written], rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(got[made.written], made.expected[made.written], name)


def test_zero_weights_are_not_stored() -> None:
    target = native_targets()[-1]
    made = case("1x1", target, 16)
    _x, entries, offsets, starts, *_ = made.arrays
    assert len(offsets) == starts[-1] < 0.4 * 5 * 16
    assert entries.size == len(offsets) * 16 * 4
    assert run(made, target)[made.written].any()
