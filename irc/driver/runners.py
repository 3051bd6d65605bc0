"""How a compiled program is run to be checked: in process, under an emulator, or as a host twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from irc.backends.program import Program
from irc.errors import OptionError
from irc.ir.types import Array
from irc.targets import get_target, runs_here
from irc.targets.target import Target

Where = Literal["target", "host-equivalent"]
Feed = dict[str, Array]
Build = Callable[[Target], Program]
"""Compiles the same model for another target."""


@dataclass(frozen=True)
class Execution:
    """A way to run a program. `detail` in words for reports ("in process", "qemu-aarch64")."""

    run: Callable[[Feed], dict[str, Array]]
    where: Where
    detail: str
    slow: bool = False


def in_process(program: Program, *, threads: int = 1) -> Execution:
    """Load the program's machine code into this process."""
    from irc.backends.artifact.glue import glue_ll
    from irc.backends.artifact.load import load_program
    from irc.backends.tvm.assemble import assemble

    network = load_program(program, assemble(glue_ll(program), program.target), threads=threads)
    return Execution(lambda feed: dict(network.run(feed)), "target", "in process")


def execution(program: Program, build: Build) -> Execution:
    """The nearest thing to the real machine that there is here. Raises IrcError where there is none."""
    if runs_here(program.target):
        return in_process(program)
    try:
        return emulated(program)
    except OptionError:  # no emulator or no linker for the target: the caller is told through `where`
        return host_twin(build)


def host_twin(build: Build) -> Execution:
    """The same model and plan compiled for this machine. Integer results are the target's bit for bit."""
    twin = in_process(build(get_target("native")))
    return Execution(twin.run, "host-equivalent", f"the same model compiled for {get_target('native').name}")
