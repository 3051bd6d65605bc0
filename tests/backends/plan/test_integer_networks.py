"""Whole quantized networks: the bytes that docs/integer-semantics.md defines, the same on every target."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from in_process import glue_of, open_program, program_of
from quantized_networks import NETWORKS, Network, build_networks

from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import TARGETS, get_target, host_features, runnable_levels, runs_here
from irc.targets.target import Target


@functools.cache
def networks() -> tuple[Model, list[Network]]:
    return build_networks()


def feeds() -> dict[str, np.ndarray]:
    return {name: data for n in networks()[1] for name, data in n.feeds.items()}


def outputs(target: Target) -> dict[str, dict[str, np.ndarray]]:
    """By the level of instructions that the library was told to use; targets of one level have one, ""."""
    program = program_of(clone(networks()[0]), target)
    if not runs_here(target):
        with Emulated(program, glue_of(program)) as emulated:
            return {"": emulated.run(feeds())}
    with open_program(program) as network:
        if not target.upgrades:
            return {"": network.run(feeds())}
        found = {}
        for level in runnable_levels(target.arch, host_features()):
            network.use_level(level)
            assert network.level == level
            found[level] = network.run(feeds())
        return found


@functools.cache
def smooth_outputs() -> dict[str, np.ndarray]:
    """What this machine makes of the networks that have float32 polynomials."""
    model, made = build_networks(SMOOTH)
    with open_program(program_of(model, get_target("native"))) as network:
        return network.run({name: data for n in made for name, data in n.feeds.items()})


SMOOTH = tuple(n.name for n in networks()[1] if n.near)
# Targets that are objects for others' linkers do not run here; tests/backends/c runs the C source.
RUNNING = [t for t in TARGETS.values() if t.runner not in ("", "cc")]


@pytest.mark.parametrize("target", RUNNING, ids=lambda t: t.name)
def test_bytes_are_the_defined_ones(target: Target) -> None:
    """All networks are one program, which is compiled once for each target and runs at all of its levels."""
    if not runs_here(target):
        if target.runner == "process":
            pytest.skip(f"this CPU does not run {target.name}")
        if missing_tools(target):
            pytest.skip(f"needs {missing_tools(target)}")
    for level, got in outputs(target).items():
        for network in networks()[1]:
            for name, wanted in network.results:
                assert got[name].dtype == wanted.dtype
                np.testing.assert_array_equal(got[name], wanted, f"{level} {name}")
                assert len(np.unique(wanted)) > 5, "the data say something"
            for name, near in network.near:
                np.testing.assert_array_equal(got[name], smooth_outputs()[name], f"{level} {name}")
                away = np.abs(got[name].astype(int) - near.astype(int))
                assert away.max() <= 1
                assert (away != 0).mean() < 0.02


@functools.cache
def onnxruntime_outputs() -> dict[str, np.ndarray]:
    """As the standard defines the nodes: float operators between conversions, nothing fused."""
    import onnxruntime

    from irc.export import to_bytes

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_bytes(networks()[0]), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds()), strict=True))


@pytest.mark.parametrize("number", range(len(NETWORKS)), ids=list(NETWORKS))
def test_the_definition_is_within_a_step_of_onnxruntime(number: int) -> None:
    """A rounding turned in one layer moves the next layers' sums by a step of their input: two steps at most here, and
    few elements (small outputs: 6 % may be one of 18; with small weights a step of the input is more of a sum)."""
    for name, wanted in networks()[1][number].results:
        other = onnxruntime_outputs()[name]
        if wanted.dtype.kind == "f":
            step = np.min(np.diff(np.unique(wanted)))
            away = np.rint((wanted - other) / step)
        else:
            away = wanted.astype(int) - other.astype(int)
        assert np.abs(away).max() <= 2
        assert (away != 0).mean() < 0.08
