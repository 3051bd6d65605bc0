"""Memory of microcontrollers: outputs over dying inputs, ports in the workspace, and figures that tools confirm."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "plan"))
from quantized_networks import Network

from irc.backends.artifact.footprint import Footprint, footprint
from irc.backends.artifact.link import link, object_chunks
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.program import Program
from irc.backends.tvm.build import build_program
from irc.backends.tvm.plan import memory
from irc.driver.runners import glue_object, measure_stack
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model
from irc.targets import get_target

M4 = get_target("cortex-m4")
needs_board = pytest.mark.skipif(bool(missing_tools(M4)), reason=missing_tools(M4) or "there")


def images(seed: int) -> tuple[Model, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Convolutions of random shapes in a chain, with an addition of an older image; bytes in, bytes out."""
    b = GraphBuilder(f"images{seed}")
    n = Network(b, f"n{seed}")
    size, channels = 7 + seed % 4, 3 + 2 * (seed % 3)
    x = n.bytes((1, channels, size, size + 2), "int8", 0.05, 3)
    y = n.conv(x, 8, (3, 3), "int8", -3, pads=(1, 1, 1, 1), stride=1 + seed % 2, activation="relu")
    z = n.conv(y, 8, (3, 3), "int8", 5, pads=(1, 1, 1, 1), group=8)
    z = n.conv(z, 8, (1, 1), "int8", -7)
    z = n.add(z, y, "int8", 0.07, 1)
    z = n.conv(z, 12, (1, 1), "int8", 2, activation="relu")
    z = n.conv(z, 12, (3, 3), "int8", 0, pads=(0, 1, 1, 0), stride=2, group=12)
    n.output(n.conv(z, 5, (2, 2), "int8", 9))
    return b.build(), n.feeds, dict(n.results)


@functools.cache
def built(seed: int, cache: Path) -> Program:
    program = build_program(images(seed)[0], M4, name="net", cache_dir=cache, workers=1)
    measure_stack(program, cache)
    return program


@functools.cache
def emulated(seed: int, cache: Path) -> Emulated:
    return Emulated(built(seed, cache), glue_object(built(seed, cache), cache))


seeds = pytest.mark.parametrize("seed", [2, 3])


@needs_board
@seeds
def test_results_are_the_same_wherever_the_ports_lie(seed: int, kernel_cache: Path) -> None:
    _, feeds, expected = images(seed)
    for inside in (False, True):
        found = emulated(seed, kernel_cache).run(feeds, inside=inside)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


@needs_board
def test_overlaps_change_nothing_but_the_size(monkeypatch: pytest.MonkeyPatch, kernel_cache: Path) -> None:
    together = built(2, kernel_cache)  # before overlaps are taken away
    monkeypatch.setattr(memory, "overlaps", lambda calls, storages: {})
    model, feeds, expected = images(2)
    apart = build_program(model, M4, name="net", cache_dir=kernel_cache, workers=1)
    assert apart.workspace_bytes > together.workspace_bytes
    with Emulated(apart, glue_object(apart, kernel_cache)) as network:
        for name, values in network.run(feeds, inside=True).items():
            np.testing.assert_array_equal(values, expected[name])


@needs_board
def test_strips_give_the_same_bits_in_less_memory(kernel_cache: Path) -> None:
    model, feeds, expected = images(2)
    whole = built(2, kernel_cache).workspace_bytes
    limit = whole * 9 // 10
    program = build_program(model, M4, name="net", cache_dir=kernel_cache, workers=1, workspace_limit=limit)
    assert program.workspace_bytes < whole
    assert program.statistics["patched"]["strips"] > 1
    assert (
        program.statistics["macs"] - program.statistics["recomputed_macs"] == built(2, kernel_cache).statistics["macs"]
    )
    with Emulated(program, glue_object(program, kernel_cache)) as network:
        for name, values in network.run(feeds, inside=True).items():
            np.testing.assert_array_equal(values, expected[name])


def test_ports_lie_inside_the_workspace(kernel_cache: Path) -> None:
    program = built(2, kernel_cache)
    for ports, places in ((program.inputs, program.input_places), (program.outputs, program.output_places)):
        assert len(ports) == len(places)
        for port, place in zip(ports, places, strict=True):
            assert place is not None
            assert place % program.alignment == 0
            assert place + port.nbytes <= program.workspace_bytes


def small_footprint(seed: int, cache: Path) -> tuple[Footprint, bytes]:
    linked = link(built(seed, cache), glue_object(built(seed, cache), cache))
    return footprint(built(seed, cache), linked), b"".join(bytes(c) for c in object_chunks(linked))


@needs_board
@seeds
def test_the_stack_is_what_the_board_shows(seed: int, kernel_cache: Path) -> None:
    emulated(seed, kernel_cache).run(images(seed)[1])
    used, bound = emulated(seed, kernel_cache).stack_bytes, built(seed, kernel_cache).stack_bytes
    assert used is not None
    assert bound is not None
    # Every function of this network is called in every run, so that the bound is reached.
    assert used == bound
    found = small_footprint(seed, kernel_cache)[0]
    assert found.ram == found.workspace + found.context + bound


@needs_board
def test_instructions_are_counted_and_repeat(kernel_cache: Path) -> None:
    network, feeds = emulated(2, kernel_cache), images(2)[1]
    counts = []
    for _ in range(2):
        network.run(feeds)
        assert network.instructions is not None
        counts.append(network.instructions)
    # The timer ticks every 40 instructions, so that two runs may differ by one tick.
    assert abs(counts[0] - counts[1]) <= 40
    # An instruction multiplies at most two pairs (SMLAD); a plain loop takes some ten for one.
    macs = int(built(2, kernel_cache).statistics["macs"])
    assert macs / 2 < counts[0] < 40 * macs


@pytest.mark.skipif(not shutil.which("arm-none-eabi-size"), reason="not found: arm-none-eabi-size")
def test_flash_is_what_size_shows(tmp_path: Path, kernel_cache: Path) -> None:
    found, data = small_footprint(2, kernel_cache)
    (tmp_path / "net.o").write_bytes(data)
    text = subprocess.run(["arm-none-eabi-size", str(tmp_path / "net.o")], capture_output=True, text=True, check=True)
    flash, initialised, zeroed = map(int, re.findall(r"\d+", text.stdout.splitlines()[1])[:3])
    assert flash + initialised == pytest.approx(found.flash, rel=0.02)
    assert (initialised, zeroed) == (0, 0) == (found.statics, 0)
