"""What a network takes of a machine's flash and RAM, counted from its finished object and its plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irc.backends.artifact import interface as abi
from irc.backends.artifact.link import Linked
from irc.backends.program import Program

_KINDS = {".text": "code", ".rodata": "constants", ".data.rel.ro": "descriptions"}


@dataclass(frozen=True)
class Footprint:
    """Bytes. Flash: `code`; `constants` that belong to code; `descriptions` (the static data of the header, and what
    unwinds the stack); `weights` as they are stored. RAM: `workspace` with room for inputs and outputs where
    `holds_ports`, one `context`, `stack` (None: no bound is known), `decoded`: what NAME_init takes. `statics` is what
    the library has of memory that is written to: nothing.
    """

    code: int
    constants: int
    descriptions: int
    weights: int
    workspace: int
    context: int
    stack: int | None
    decoded: int
    holds_ports: bool
    statics: int = 0

    @property
    def flash(self) -> int:
        return self.code + self.constants + self.descriptions + self.weights

    @property
    def ram(self) -> int:
        return self.workspace + self.context + (self.stack or 0) + self.decoded + self.statics

    def to_json(self) -> dict[str, Any]:
        """By name, with totals."""
        return {
            "flash": {
                "code": self.code,
                "constants": self.constants,
                "descriptions": self.descriptions,
                "weights": self.weights,
                "total": self.flash,
            },
            "ram": {
                "workspace": self.workspace,
                "context": self.context,
                "stack": self.stack,
                "init_ram": self.decoded,
                "statics": self.statics,
                "total": self.ram,
                "holds_inputs_and_outputs": self.holds_ports,
            },
        }


def footprint(program: Program, linked: Linked) -> Footprint:
    """`linked`: the program's object, whose sections are counted as a linker places them."""
    sizes = dict.fromkeys(("code", "constants", "descriptions", "weights"), 0)
    for section in linked.sections:
        if section.name.startswith(".rodata."):
            sizes["weights"] += section.size
        elif section.size and section.name != ".note.GNU-stack":
            sizes[_KINDS.get(section.name, "descriptions")] += section.size
    return _with_ram(program, sizes)


def ram_alone(program: Program) -> Footprint:
    """The footprint of a program that becomes source code: its flash is the other compiler's."""
    return _with_ram(program, dict.fromkeys(("code", "constants", "descriptions", "weights"), 0))


def _with_ram(program: Program, sizes: dict[str, int]) -> Footprint:
    return Footprint(
        **sizes,
        workspace=program.workspace_bytes,
        context=abi.ctx_words(program) * program.target.pointer_bits // 8,
        stack=program.stack_bytes,
        decoded=abi.init_ram_bytes(program),
        holds_ports=bool(program.input_places or program.output_places),
    )


def memory_facts(program: Program, linked: Linked) -> dict[str, Any]:
    """The "memory" of a manifest: the footprint, the bound below which no placement can be, and the work."""
    known = ("workspace_lower_bound", "macs", "recomputed_macs")
    facts = {name: program.statistics[name] for name in known if name in program.statistics}
    return footprint(program, linked).to_json() | facts
