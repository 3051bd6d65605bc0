"""How a compiled program is run to be checked: in process, under an emulator, or as a host twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from irc.backends.artifact.features import levels_here, target_facts
from irc.backends.program import Program
from irc.errors import OptionError
from irc.ir.types import Array
from irc.targets import get_target, runs_here
from irc.targets.target import Target

Where = Literal["target", "host-equivalent"]
Feed = dict[str, Array]
Run = Callable[[Feed], dict[str, Array]]
Build = Callable[[Target], Program]
"""Compiles the same model for another target."""


@dataclass(frozen=True)
class Execution:
    """A way to run a program. `detail` in words for reports ("in process", "qemu-aarch64"); `slow`: emulated.
    `levels`: ways to run the kernels of each level that this machine has, where the program holds several.
    `instructions`: how many the last run executed, where the emulator tells."""

    run: Run
    where: Where
    detail: str
    close: Callable[[], None]
    slow: bool = False
    levels: Mapping[str, Run] = field(default_factory=dict)
    instructions: Callable[[], int | None] = lambda: None


def glue_object(program: Program, cache_dir: Path | None) -> bytes:
    """The entry functions of a program as an object file; nothing where they are part of a C source."""
    if program.target.linking == "source":
        return b""
    from irc.backends.artifact.glue import glue_ll
    from irc.backends.tvm.build import assemble_glue

    return assemble_glue(glue_ll(program), program.target, cache_dir=cache_dir)


def measure_stack(program: Program, cache_dir: Path | None) -> None:
    """Sets `stack_bytes`, `outside` and `instructions` of a program that becomes one module; others have no bound of
    the stack that is known."""
    if program.target.linking != "module":
        return
    from irc.backends.artifact.glue import glue_ll
    from irc.backends.tvm.build import assembled, run_instructions

    facts = assembled(glue_ll(program), program.target, cache_dir=cache_dir).info
    program.stack_bytes = facts.get("stack_bytes")
    program.outside = tuple(facts.get("outside", ()))
    program.instructions = facts.get("instructions")
    if "kernels" in facts:
        program.instructions = run_instructions([facts["kernels"].get(s.symbol) for s in program.steps])


def in_process(program: Program, *, cache_dir: Path | None = None, threads: int | None = None) -> Execution:
    """Load the program's machine code into this process."""
    from irc.backends.artifact.load import load_program

    network = load_program(program, glue_object(program, cache_dir), threads=threads)
    best = network.level
    if best is None:
        return Execution(network.run, "target", "in process", network.close)

    def run_at(level: str) -> Run:
        def run(feed: Feed) -> dict[str, Array]:
            network.use_level(level)
            return network.run(feed)

        return run

    levels = {name: run_at(name) for name in levels_here(target_facts(program.target))}
    return Execution(levels[best], "target", f"in process, {best}", network.close, levels=levels)


def emulated(program: Program, *, cache_dir: Path | None = None) -> Execution:
    """Link the program for its target and run it under an emulator. Raises OptionError where a tool is missing."""
    from irc.backends.artifact.qemu import Emulated

    target = program.target
    network = Emulated(program, glue_object(program, cache_dir))
    detail = f"{target.qemu} -cpu {target.qemu_cpu}" if target.qemu_cpu else target.qemu or target.runner
    return Execution(network.run, "target", detail, network.close, slow=True, instructions=lambda: network.instructions)


def execution(
    program: Program, build: Build, *, cache_dir: Path | None = None, threads: int | None = None
) -> Execution:
    """The nearest thing to the real machine that there is here. Raises IrcError where there is none."""
    if runs_here(program.target):
        return in_process(program, cache_dir=cache_dir, threads=threads)
    if program.target.runner == "cc":
        return compiled_source(program, build, cache_dir=cache_dir)
    from irc.backends.artifact.machines import missing_tools

    reason = missing_tools(program.target)
    return host_twin(build, reason, cache_dir=cache_dir) if reason else emulated(program, cache_dir=cache_dir)


def compiled_source(program: Program, build: Build, *, cache_dir: Path | None = None) -> Execution:
    """The program's C source, compiled by this machine's compiler; its host twin where that cannot be done."""
    from irc.backends.c.compiled import compiler, open_program, reason_against

    reason = reason_against(program)
    if reason:
        return host_twin(build, reason, cache_dir=cache_dir)
    network = open_program(program)
    return Execution(network.run, "target", f"compiled by {Path(compiler()).name} for this machine", network.close)


def host_twin(build: Build, reason: str = "", *, cache_dir: Path | None = None) -> Execution:
    """The same model compiled for this machine: the same plan and integer semantics, so integer results are the
    target's bit for bit. Raises OptionError on a machine that irc has no target for.
    """
    native = get_target("native")
    try:
        twin = in_process(build(native), cache_dir=cache_dir)
    except OptionError as error:
        raise error.at(f"a check on this machine in place of the target ({reason})") from None
    detail = f"the same model compiled for {native.name}"
    return Execution(twin.run, "host-equivalent", f"{detail}; {reason}" if reason else detail, twin.close)
