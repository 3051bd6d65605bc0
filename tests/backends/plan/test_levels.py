"""Libraries with kernels for several levels: which are taken, that all read the same memory, and where each may run."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from in_process import glue_of, open_program, program_of
from onnx import TensorProto, helper

from irc.backends.artifact.features import levels_here, target_facts
from irc.backends.artifact.levels import requirements
from irc.backends.artifact.write import write_artifact
from irc.backends.program import Program
from irc.backends.tvm.plan.levels import planning_target, versions_of
from irc.errors import InternalError, OptionError
from irc.evaluation.oracle import Oracle
from irc.frontend import load_model
from irc.ir.graph import Model
from irc.targets.catalogue import TARGETS, levels_of, runs_here

TARGET = TARGETS["x86-64"]
pytestmark = pytest.mark.skipif(not runs_here(TARGET), reason="this CPU is no x86-64")


def float_model(folder: Path) -> Model:
    """A convolution whose channels are no multiple of any vector, a depthwise one, a product, a softmax."""
    rng = np.random.default_rng(7)
    data = {
        "a": rng.standard_normal((37, 5, 3, 3)) * 0.15,
        "b": rng.standard_normal((37, 1, 3, 3)) * 0.3,
        "c": rng.standard_normal((37, 11)) * 0.3,
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["x1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x1"], ["x2"]),
        helper.make_node("Conv", ["x2", "b"], ["x3"], group=37, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["x3"], ["x4"]),
        helper.make_node("Flatten", ["x4"], ["x5"]),
        helper.make_node("MatMul", ["x5", "c"], ["x6"]),
        helper.make_node("Softmax", ["x6"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (2, 5, 9, 7)), ("y", (2, 11)))]
    weights = [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in data.items()]
    graph = helper.make_graph(nodes, "levels", ports[:1], ports[1:], weights)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return load_model(path)


@functools.cache
def built(folder: Path) -> tuple[Model, Program]:
    model = float_model(folder)
    return model, program_of(model, TARGET, name="net")


@pytest.fixture(scope="module")
def model_and_program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Program]:
    return built(tmp_path_factory.mktemp("levels"))


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 5, 9, 7)).astype(np.float32)}


def test_each_level_computes_the_network(model_and_program: tuple[Model, Program]) -> None:
    model, program = model_and_program
    wanted = Oracle(model).run(feed())["y"]
    with open_program(program) as network:
        here = levels_here(target_facts(TARGET))
        assert network.level == here[-1], "the best one is taken"
        for level in here:
            network.use_level(level)
            assert network.level == level
            # sums of some hundred products give logits of size 1 to 5, and these values up to 1
            np.testing.assert_allclose(network.run(feed())["y"], wanted, atol=1e-6)


def test_levels_differ_in_kernels_only(model_and_program: tuple[Model, Program]) -> None:
    program = model_and_program[1]
    assert program.levels == levels_of(TARGET)
    for step in program.steps:
        assert len(step.variants) == len(program.levels)
        assert step.symbol == step.variants[0]
        assert set(step.variants) <= set(program.kernels)
        # float kernels do not care for dot products
        assert step.variants[1] == step.variants[2]
        assert step.variants[3] == step.variants[4]
        assert len(set(step.variants)) == 3


def test_the_loader_refuses_levels_that_are_not_there(model_and_program: tuple[Model, Program]) -> None:
    model, program = model_and_program
    with open_program(program) as network, pytest.raises(OptionError, match="no kernels for 'arm'"):
        network.use_level("arm")
    with open_program(program_of(model, TARGETS["x86-64-v3"])) as network:
        assert network.level is None
        with pytest.raises(OptionError, match="compiled for one target"):
            network.use_level("x86-64-v3")


def test_c_functions_refuse_wrong_levels(model_and_program: tuple[Model, Program]) -> None:
    program = model_and_program[1]
    with open_program(program) as network:
        library, ctx = network._library, network._ctx
        assert library is not None
        best = library.net_level(None)
        assert TARGET.upgrades[best - 1] == network.level if best else network.level == TARGET.name
        for wrong in (-1, len(program.levels), 31, 1 << 30):
            assert library.net_set_level(ctx, ctypes.c_int(wrong)) != 0
        assert library.net_set_level(None, 0) != 0
        assert library.net_set_level(ctypes.create_string_buffer(128), 0) != 0, "not initialised"
        assert library.net_level(ctx) == best


def test_bits_of_each_level(model_and_program: tuple[Model, Program]) -> None:
    """The baseline asks for nothing, and a level of the AVX-512 family for all that the AVX2 one does."""
    program = model_and_program[1]
    found = dict(zip((t.name for t in program.levels), requirements(program), strict=True))
    assert found["x86-64"] == {}
    for name, mask in found["x86-64-v3"].items():
        assert found["x86-64-v4-vnni"][name] & mask == mask
    assert found["x86-64-v3"]["xcr0"] == 0x06
    assert found["x86-64-v4"]["xcr0"] == 0xE6
    assert found["x86-64-v3-vnni"]["a71"] == 1 << 4
    odd = dataclasses.replace(TARGETS["x86-64-v3"], features=("+avx512fp16",))
    with pytest.raises(InternalError, match="avx512_fp16"):
        requirements(dataclasses.replace(program, levels=(TARGET, odd)))


def test_the_plan_is_one(model_and_program: tuple[Model, Program]) -> None:
    """Tiles follow the level; everything else of a kernel is the plan's."""
    planned = planning_target(TARGET)
    assert planned.upgrades == TARGET.upgrades
    assert planned.vector_bytes == max(t.vector_bytes for t in levels_of(TARGET))
    from irc.backends.tvm.build import plan_of

    for call in plan_of(model_and_program[0], TARGET).calls:
        for spec, level in versions_of(call.spec, TARGET):
            assert type(spec) is type(call.spec)
            if hasattr(spec, "tile"):
                assert dataclasses.replace(spec, tile=call.spec.tile) == call.spec  # type: ignore[call-arg,union-attr,arg-type]  # kernels with tiles
                count = int(np.prod(spec.tile))
                assert count <= level.vector_registers, "accumulators stay in registers"


MAIN = """
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
static net_ctx ctx;
static char workspace[NET_WORKSPACE_BYTES] __attribute__((aligned(NET_WORKSPACE_ALIGN)));
int main(int argc, char **argv)
{
    static float x[NET_INPUT_0_ELEMENTS], y[NET_OUTPUT_0_ELEMENTS];
    const void *inputs[1] = {x};
    void *outputs[1] = {y};
    FILE *file = fopen(argv[1], "rb");
    if (argc < 2 || !file || fread(x, 1, sizeof x, file) != sizeof x) return 1;
    if (net_init(&ctx, NULL, 0) || net_run(&ctx, inputs, outputs, workspace)) return 2;
    printf("%d\\n", net_level(&ctx));
    for (int i = 0; i < NET_OUTPUT_0_ELEMENTS; i++) printf("%a\\n", (double)y[i]);
    return 0;
}
"""
# Processors as qemu's user mode can be told to be; the level that each has.
CPUS = {"qemu64": "x86-64", "Nehalem": "x86-64", "Haswell": "x86-64-v3"}


@pytest.fixture(scope="module")
def binary(model_and_program: tuple[Model, Program], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or shutil.which("qemu-x86_64") is None:
        pytest.skip("needs gcc and qemu-x86_64")
    folder = tmp_path_factory.mktemp("binary")
    program = model_and_program[1]
    write_artifact(program, folder / "net", manifest={}, glue_object=glue_of(program))
    (folder / "main.c").write_text(MAIN)
    feed()["x"].tofile(folder / "x")
    flags = ["-static", "-O1", f"-I{folder}/net/include", f"-L{folder}/net/lib"]
    command = ["gcc", folder / "main.c", *flags, "-lnet", "-lm", "-o", folder / "run"]
    subprocess.run(command, check=True, timeout=100)
    return folder / "run"


@pytest.mark.parametrize("cpu", CPUS)
def test_older_processors_get_their_kernels(cpu: str, binary: Path, model_and_program: tuple[Model, Program]) -> None:
    """An instruction above the level that was taken would end the emulated program."""
    level, *values = subprocess.run(
        ["qemu-x86_64", "-cpu", cpu, binary, binary.parent / "x"],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout.split()
    assert [t.name for t in levels_of(TARGET)][int(level)] == CPUS[cpu]
    got = np.array([float.fromhex(v) for v in values], np.float32)
    if CPUS[cpu] not in levels_here(target_facts(TARGET)):
        pytest.skip("the result of this level needs this CPU to have it")
    with open_program(model_and_program[1]) as network:
        network.use_level(CPUS[cpu])
        assert got.tobytes() == network.run(feed())["y"].tobytes()
