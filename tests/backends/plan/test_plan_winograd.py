"""Which convolutions go through Winograd transforms, and that their networks compute what onnxruntime computes."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from in_process import glue_of, open_program, program_of

from irc.backends.artifact.features import levels_here, target_facts
from irc.backends.artifact.load import Network
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.program import Program
from irc.backends.tvm.plan.make import make_plan
from irc.backends.tvm.plan.winograd_model import Choice, Shape, choose
from irc.backends.tvm.specs import LinearSpec, WinogradInputSpec, WinogradSpec
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import TARGETS, runs_here
from irc.targets.target import Target

AVX512 = TARGETS["x86-64-v4"]


def block(shape: tuple[int, ...], oc: int, kernel: tuple[int, ...] = (3, 3), **attributes: object) -> Model:
    """Convolution, bias, residual and ReLU: one kernel."""
    b = GraphBuilder("block")
    x = b.input("x", "float32", list(shape))
    pads = [k // 2 for k in kernel] * 2
    y = b.conv(x, weights(oc, shape[1], *kernel), weights(oc, seed=1), **{"pads": pads, **attributes})
    if oc == shape[1] and not attributes:
        y = b.op("Add", y, x)
    b.output(b.op("Relu", y), name="y")
    return b.build()


def specs(model: Model, target: Target) -> list[object]:
    return [call.spec for call in make_plan(clone(model).graph, target).calls]


def uses(model: Model, target: Target = AVX512) -> bool:
    return any(isinstance(s, WinogradSpec) for s in specs(model, target))


def tile(shape: Shape, target: Target = AVX512) -> tuple[int, int] | None:
    found: Choice | None = choose(shape, target)
    return None if found is None else found.tile


def test_the_model_chooses_tiles() -> None:
    """Large images take large tiles; small deep ones pay for each byte of weights; thin ones stay direct."""
    assert tile(Shape(1, (56, 56), (3, 3), 64, 64)) == (4, 4)
    assert tile(Shape(1, (7, 7), (3, 3), 512, 512)) == (2, 2)
    assert tile(Shape(16, (7, 7), (3, 3), 512, 512)) == (4, 4), "many images share the weights"
    assert tile(Shape(1, (1, 400), (1, 3), 128, 128)) == (1, 4)
    assert tile(Shape(1, (28, 28), (5, 5), 64, 64)) == (2, 2)
    assert tile(Shape(1, (112, 112), (3, 3), 3, 32)) is None, "transforms cost more than three channels save"
    assert tile(Shape(1, (1, 1), (3, 3), 512, 512)) is None, "no tile fits"
    assert tile(Shape(1, (28, 28), (1, 1), 64, 64)) is None
    assert tile(Shape(1, (28, 28), (7, 7), 64, 64)) is None, "no transform is exact enough"


def test_only_plain_float_convolutions() -> None:
    image = (1, 32, 24, 24)
    assert uses(block(image, 32))
    assert not uses(block(image, 32, strides=[2, 2]))
    assert not uses(block(image, 32, dilations=[2, 2]))
    assert not uses(block(image, 32, (1, 1)))
    b = GraphBuilder("groups")
    x = b.input("x", "float32", [1, 64, 24, 24])
    b.output(b.conv(x, weights(64, 32, 3, 3), pads=[1, 1, 1, 1], group=2), name="y")
    assert not uses(b.build())


def test_small_machines_keep_small_weights() -> None:
    model = block((1, 32, 24, 24), 32)
    assert uses(model, AVX512)
    assert not uses(model, replace(AVX512, l2_bytes=128 * 1024))
    assert not uses(model, replace(AVX512, vector_registers=8))


def test_large_images_are_cut_into_strips() -> None:
    """The transformed input, 2.25 times the image, is never whole in memory; all strips share few kernels."""
    model = block((1, 64, 130, 200), 64)
    found = specs(model, AVX512)
    inputs = [s for s in found if isinstance(s, WinogradInputSpec)]
    assert len(inputs) > 4
    assert sum(s.out[0] for s in inputs) == 130
    assert all(s.v_size * 4 <= 2.5 * AVX512.l2_bytes for s in inputs)
    assert len({s for s in found if isinstance(s, WinogradSpec)}) <= 2
    assert not any(isinstance(s, LinearSpec) for s in found)


NETWORKS = {
    "odd image": block((1, 64, 13, 11), 64),
    "odd channels": block((1, 37, 16, 18), 37),
    "two images": block((2, 48, 10, 9), 70),
    "tiny images": block((6, 64, 4, 4), 64),
    "no padding": block((1, 32, 20, 17), 40, pads=[0, 0, 0, 0]),
    "one side": block((1, 32, 15, 15), 32, pads=[0, 2, 1, 0]),
    "5x5": block((1, 32, 14, 15), 32, (5, 5)),
    "one dimension": block((2, 64, 101), 64, (3,)),
    "1x3": block((1, 64, 6, 40), 64, (1, 3)),
    "strips": block((1, 24, 150, 90), 24),
}


def feed(model: Model) -> dict[str, np.ndarray]:
    shape = model.graph.inputs[0].static_shape()
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


@functools.cache
def wanted(name: str) -> np.ndarray:
    return Oracle(NETWORKS[name]).run(feed(NETWORKS[name]))["y"]


def built(name: str, target: Target) -> Program:
    program = program_of(NETWORKS[name], target)
    assert any("F(" in step.label for step in program.steps), "this is about Winograd"
    return program


def largest_error(name: str, network: Network | Emulated) -> float:
    got = network.run(feed(NETWORKS[name]))["y"]
    return float(np.abs(got - wanted(name)).max() / np.abs(wanted(name)).max())


native = [t for t in TARGETS.values() if runs_here(t) and not t.upgrades]
_widths = {t.vector_bytes: t for t in reversed(native)}


@pytest.mark.skipif(not native, reason="no built-in target runs on this machine")
@pytest.mark.parametrize("target", _widths.values(), ids=lambda t: t.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_against_onnxruntime(name: str, target: Target) -> None:
    """Sums of some 300 products in another order, and transforms whose matrices have entries up to 45/16."""
    with open_program(built(name, target)) as network:
        assert largest_error(name, network) < 1e-5


def test_all_levels_of_a_library_read_the_same_weights() -> None:
    target = TARGETS["x86-64"]
    if not runs_here(target):
        pytest.skip("this CPU is no x86-64")
    with open_program(built("odd channels", target)) as network:
        for level in levels_here(target_facts(target)):
            network.use_level(level)
            assert largest_error("odd channels", network) < 1e-5


def test_arm() -> None:
    target = TARGETS["aarch64"]
    if missing_tools(target):
        pytest.skip(f"needs {missing_tools(target)}")
    program = built("odd image", target)
    with Emulated(program, glue_of(program)) as network:
        assert largest_error("odd image", network) < 1e-5
