"""The ways in which C kernels of bytes compute: each gives the bytes of the definition."""

from __future__ import annotations

import subprocess
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


class Changed(Network):
    """Weights with a change."""

    def weights(self, shape: Any, axis: int, **options: Any) -> Any:
        _, w, scale = super().weights(shape, axis, **options)
        w = w.astype(np.int8)
        self.change(w)
        value = self.b.dequantize(w, scale.astype(np.float32), np.zeros(len(w), np.int8), axis=axis)
        return value, w.astype(np.int64), scale

    def change(self, w: np.ndarray) -> None:
        raise NotImplementedError


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


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_the_definition(name: str, tmp_path: Path, need_tool: Callable[..., str]) -> None:
    """Compiled so that undefined behaviour ends the process."""
    compiler = need_tool("gcc")
    kind, build, mark = CASES[name]
    b = GraphBuilder("networks")
    made = kind(b, name)
    build(made)
    program = program_of(b.build(), TARGETS["c"], name="net")
    source = source_text(program)
    assert mark in source
    (tmp_path / "net.h").write_text(header_text(program))
    (tmp_path / "net.c").write_text(source)
    command = [compiler, *CHECKED, "-fno-sanitize-recover=undefined", "-shared", "-fPIC", "-o", "libnet.so", "net.c"]
    subprocess.run([*command, "-lm"], check=True, cwd=tmp_path)
    network = Loaded(tmp_path / "libnet.so", "net")
    network.poison = True
    got = network.run(made.feeds)
    network.close()
    for port, wanted in made.results:
        np.testing.assert_array_equal(got[port], wanted, port)
