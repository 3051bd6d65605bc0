"""C source of whole quantized networks: without warnings, as C and as C++, and the bytes of the definition."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_process import program_of
from quantized_networks import NETWORKS, Network, build_networks

from irc.backends.artifact.header import header_text
from irc.backends.artifact.load import Network as Loaded
from irc.backends.c.source import source_text
from irc.backends.program import Program
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.targets.catalogue import TARGETS

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
CONTRACTED = ("-std=gnu99", "-O3", "-mavx2", "-mfma", "-ffp-contract=fast")


@functools.cache
def networks() -> tuple[Model, list[Network]]:
    return build_networks()


@functools.cache
def program() -> Program:
    return program_of(clone(networks()[0]), TARGETS["c"], name="net")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.h and net.c of all networks."""
    path = tmp_path_factory.mktemp("c")
    (path / "net.h").write_text(header_text(program()))
    (path / "net.c").write_text(source_text(program()))
    return path


def compile_library(folder: Path, compiler: str, *flags: str) -> Loaded:
    library = folder / f"lib{abs(hash(flags))}.so"
    command = [compiler, *flags, "-shared", "-fPIC", "-o", str(library), str(folder / "net.c"), "-lm"]
    subprocess.run(command, check=True, cwd=folder)
    return Loaded(library, "net")


def check_bytes(network: Loaded) -> None:
    feeds = {name: data for n in networks()[1] for name, data in n.feeds.items()}
    network.poison = True
    got = network.run(feeds)
    for n in networks()[1]:
        for name, wanted in n.results:
            np.testing.assert_array_equal(got[name], wanted, name)
    network.close()


def test_all_networks_are_there() -> None:
    assert len(networks()[1]) == len(NETWORKS)


def test_c99_without_warnings_gives_the_defined_bytes(folder: Path, need_tool: Callable[..., str]) -> None:
    check_bytes(compile_library(folder, need_tool("gcc"), "-std=c99", "-O2", *STRICT))


def test_small_code_gives_the_defined_bytes(folder: Path, need_tool: Callable[..., str]) -> None:
    check_bytes(compile_library(folder, need_tool("gcc"), "-std=c99", "-Os", "-DIRC_NO_VECTORS", *STRICT))


def test_products_are_not_contracted(folder: Path, need_tool: Callable[..., str]) -> None:
    """Where the compiler may fuse products with additions, and the machine can."""
    if "fma" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no fused multiply-add")
    check_bytes(compile_library(folder, need_tool("gcc"), *CONTRACTED))


def test_it_is_cpp_as_well(folder: Path, need_tool: Callable[..., str]) -> None:
    command = [need_tool("g++"), "-x", "c++", "-O0", "-Wall", "-Wextra", "-Werror", "-c", "net.c", "-o", "cpp.o"]
    subprocess.run(command, check=True, cwd=folder)
