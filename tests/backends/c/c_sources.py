"""Compiles the C source of a network in several ways and runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from irc.backends.artifact.header import header_text
from irc.backends.artifact.load import Network
from irc.backends.c.source import source_text
from irc.backends.program import Program

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
COMPILERS = {
    "vectors": ("gcc", "-std=c99", "-O2", *STRICT),
    "small": ("gcc", "-std=c99", "-Os", "-DIRC_NO_VECTORS", *STRICT),
    "small, checked": ("g++", "-Os", "-x", "c++", *STRICT, "-fsanitize=undefined", "-fno-sanitize-recover=undefined"),
    "checked": ("gcc", "-std=c99", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"),
    "c++": ("g++", "-O1", "-x", "c++", *STRICT),
}


def run_compiled(
    program: Program, way: str, feeds: Mapping[str, np.ndarray], folder: Path, need_tool: Callable[..., str]
) -> dict[str, np.ndarray]:
    """Outputs of a program called "net", compiled as COMPILERS[way]. In "checked" undefined behaviour ends it."""
    compiler, *flags = COMPILERS[way]
    (folder / "net.h").write_text(header_text(program))
    (folder / "net.c").write_text(source_text(program))
    command = [need_tool(compiler), *flags, "-shared", "-fPIC", "-o", "libnet.so", "net.c", "-lm"]
    subprocess.run(command, check=True, cwd=folder)
    network = Network(folder / "libnet.so", "net")
    network.poison = True
    got = dict(network.run(feeds))
    network.close()
    return got
