"""What the object of a network holds besides code: its weights as a section, and which names it shows."""

from __future__ import annotations

import numpy as np

from irc.backends.artifact import elf, levels, pool
from irc.backends.artifact.elf import Section
from irc.backends.program import Blob, Program
from irc.errors import InternalError

CODED_ALIGNMENT = 4
"""Bytes: the decoder reads words."""


def weights_symbol(program: Program) -> str:
    """The name of the weights inside the object (local after linking)."""
    return f"{program.name}_weights"


def weights_section(program: Program) -> Section | None:
    """The weights at their offsets, as views of the plan's arrays, or coded. None when there are none."""
    if not program.weights_bytes:
        return None
    if program.coded is not None:
        coded = Section(f".rodata.{weights_symbol(program)}", elf.SHT_PROGBITS, elf.SHF_ALLOC, CODED_ALIGNMENT)
        coded.append(program.coded.data)
        return coded
    section = Section(f".rodata.{weights_symbol(program)}", elf.SHT_PROGBITS, elf.SHF_ALLOC, program.alignment)
    for blob in sorted(program.weights, key=lambda b: b.offset):
        if blob.offset < section.size:
            raise InternalError("weights overlap", where=f"{program.name}: {blob.name or 'weight'} at {blob.offset}")
        if blob.offset > section.size:
            section.append(bytes(blob.offset - section.size))
        section.append(_raw(blob))
    if section.size > program.weights_bytes:
        raise InternalError("weights reach beyond their section", where=program.name)
    section.append(bytes(program.weights_bytes - section.size))
    return section


def _raw(blob: Blob) -> elf.Bytes:
    flat = np.ascontiguousarray(blob.data).reshape(-1)
    return flat.view(np.uint8).data if flat.size else b""


def public_symbols(program: Program, *, threads: bool = False) -> tuple[str, ...]:
    """The only names that the finished object shows to linkers. `threads`: with a pool even where the program asks for
    none, as in shared libraries, whose number of threads is chosen when they are loaded."""
    kinds: tuple[str, ...] = ("init", "init_checked", "deinit", "set_parallel", "run", "info", "inputs", "outputs")
    if program.threads > 1 or (threads and pool.has_pool(program.target)):
        kinds += ("set_threads", "threads")
    kinds += levels.symbols(program)
    return tuple(f"{program.name}_{k}" for k in kinds)
