"""The ways in which C kernels of bytes compute: each gives the bytes of the definition."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import program_of
from quantized_networks import Network

from irc.backends.artifact.header import header_text
from irc.backends.artifact.load import Network as Loaded
from irc.backends.c.source import source_text
from irc.ir.builder import GraphBuilder
from irc.targets.catalogue import TARGETS

CHECKED = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsanitize=undefined")


class Changed(Network, ABC):
    """Weights with a change."""

    def weights(self, shape: Any, axis: int, **options: Any) -> Any:
        _, w, scale = super().weights(shape, axis, **options)
        w = w.astype(np.int8)
        self.change(w)
        value = self.b.dequantize(w, scale.astype(np.float32), np.zeros(len(w), np.int8), axis=axis)
        return value, w.astype(np.int64), scale

    @abstractmethod
    def change(self, w: np.ndarray) -> None: ...


class Sparse(Changed):
    """Some output channels have no weights, and one only the first."""

    def change(self, w: np.ndarray) -> None:
        w[::3] = 0
        w[1, 5:] = 0


class Wide(Changed):
    """With -128, of which two products do not fit 16 bits."""

    def change(self, w: np.ndarray) -> None:
        w[3] = -128


def narrow(n: Network) -> None:
    x = n.conv(n.bytes((2, 5, 13, 11), "int8", 0.02, 3), 32, (1, 1), "int8", -20, stride=2, activation="relu")
    n.output(n.conv(x, 16, (1, 1), "int8", 7))


def narrow_and_added(n: Network) -> None:
    x = n.conv(n.bytes((1, 16, 8, 8), "int8", 0.02, 3), 16, (1, 1), "int8", -20)
    n.output(n.add(x, n.conv(x, 16, (1, 1), "int8", 7), "int8", 0.5, -4))


def wide_weights(n: Network) -> None:
    n.output(n.conv(n.bytes((1, 6, 9, 9), "int8", 0.02, 0), 16, (1, 1), "int8", 7))


def without_weights(n: Network) -> None:
    n.output(n.conv(n.bytes((1, 20, 6, 7), "int8", 0.02, 3), 21, (3, 3), "int8", -20, pads=(1, 1, 1, 1)))


def depthwise(n: Network) -> None:
    """Rows that windows share, and rows that they do not."""
    x = n.bytes((2, 16, 13, 11), "int8", 0.02, 3)
    for kernel, more in (
        ((3, 3), {"pads": (1, 1, 1, 1)}),
        ((3, 2), {"stride": 2}),
        ((5, 5), {"stride": 2, "pads": (2, 1, 2, 1)}),
        ((3, 3), {"dilation": 2}),
        ((2, 3), {"stride": 3}),
        ((5, 4), {"dilation": 2, "pads": (4, 3, 4, 3)}),
    ):
        n.output(n.conv(x, 16, kernel, "int8", 5, group=16, **more))


CASES: dict[str, tuple[type[Network], Callable[[Network], None], str]] = {
    "narrow": (Network, narrow, "x4 * ws"),
    "narrow_and_added": (Network, narrow_and_added, "x15 * ws"),
    "wide_weights": (Wide, wide_weights, "irc_dot"),
    "without_weights": (Sparse, without_weights, "irc_dot"),
    "depthwise": (Network, depthwise, "line2"),
}


def loaded(kind: type[Network], build: Callable[[Network], None], compiler: str, folder: Path) -> tuple[Any, ...]:
    """(what was built, its program, its C source, the library of it, compiled so that undefined behaviour ends the
    process)."""
    b = GraphBuilder("networks")
    made = kind(b, "ways")
    build(made)
    program = program_of(b.build(), TARGETS["c"], name="net")
    source = source_text(program)
    (folder / "net.h").write_text(header_text(program))
    (folder / "net.c").write_text(source)
    command = [compiler, *CHECKED, "-fno-sanitize-recover=undefined", "-shared", "-fPIC", "-o", "libnet.so", "net.c"]
    subprocess.run([*command, "-lm"], check=True, cwd=folder)
    network = Loaded(folder / "libnet.so", "net")
    network.poison = True
    return made, program, source, network


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_the_definition(name: str, tmp_path: Path, need_tool: Callable[..., str]) -> None:
    kind, build, mark = CASES[name]
    made, _, source, network = loaded(kind, build, need_tool("gcc"), tmp_path)
    assert mark in source
    got = network.run(made.feeds)
    network.close()
    for port, wanted in made.results:
        np.testing.assert_array_equal(got[port], wanted, port)


def image(n: Network) -> None:
    """An image of three planes, which lie side by side for the layers."""
    x = n.conv(n.bytes((1, 3, 12, 10), "int8", 0.02, 3), 8, (3, 3), "int8", -20, pads=(1, 1, 1, 1))
    n.output(n.conv(x, 6, (1, 1), "int8", 7))


def test_inputs_and_outputs_lie_in_the_workspace(tmp_path: Path, need_tool: Callable[..., str]) -> None:
    made, program, _, network = loaded(Network, image, need_tool("gcc"), tmp_path)
    sources, results, place, workspace = network._new_frame()
    (port,), (output,) = program.inputs, program.outputs
    (into,), (out_of,) = program.input_places, program.output_places
    workspace.fill(0xFF)
    workspace[into : into + port.nbytes] = made.feeds[port.name].view(np.uint8).ravel()
    sources[0], results[0] = place.value + into, place.value + out_of
    assert network._run(network._ctx, sources, results, place) == 0
    got = workspace[out_of : out_of + output.nbytes].copy()
    network.close()
    ((_, wanted),) = made.results
    np.testing.assert_array_equal(got, wanted.view(np.uint8).ravel())
