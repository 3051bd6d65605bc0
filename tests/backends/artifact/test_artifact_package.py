"""The CMake package and the pkg-config file name what a program has to be linked with besides."""

from __future__ import annotations

import dataclasses

import pytest
import toy

from irc.backends.artifact.package import cmake_config, pkg_config
from irc.targets import get_target


@pytest.mark.parametrize(
    ("target", "threads", "flags", "libraries"),
    [
        ("aarch64", 1, "-lnet -lm", "m"),
        ("aarch64", 2, "-lnet -lm -lpthread", "m;pthread"),
        ("windows-x86-64", 1, "-lnet", ""),  # its C library has the functions of libm
    ],
)
def test_libraries(target, threads, flags, libraries):
    program = dataclasses.replace(toy.chain("copy"), target=get_target(target), threads=threads)
    assert pkg_config(program).endswith(f" {flags}\n")
    assert f'INTERFACE_LINK_LIBRARIES "{libraries}")' in cmake_config(program)
