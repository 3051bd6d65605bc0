"""What takes how many bytes in an object file of any format: its sections under common names.

Formats: System V ABI chapter 4 (ELF), Microsoft "PE Format" (COFF), Apple's mach-o/loader.h, WebAssembly 1.0 chapter 5
(Binary Format).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from irc.errors import InternalError
from irc.targets.target import ObjectFormat


@dataclass(frozen=True)
class SectionSize:
    """`name`: .text (code), .rodata (constants), .rodata.NAME_weights, .data.rel.ro (constants that hold addresses),
    or as the format calls it."""

    name: str
    size: int


def section_sizes(data: bytes, kind: ObjectFormat) -> tuple[SectionSize, ...]:
    """Sections that a linker places in memory; empty ones left out."""
    if kind == "elf":
        found = _elf(data)
    elif kind == "coff":
        found = _coff(data)
    elif kind == "macho":
        found = _macho(data)
    elif kind == "wasm":
        found = _wasm(data)
    else:
        raise InternalError(f"no sections in {kind}")
    return tuple(s for s in found if s.size)


def _common(name: str) -> str:
    """.text.NAME_run is .text; weights keep their own name."""
    if name.startswith(".text"):
        return ".text"
    if name.startswith(".rodata.") and name.endswith("_weights"):
        return name
    if name.startswith((".rodata", ".rdata")):
        return ".rodata"
    return ".data.rel.ro" if name.startswith(".data.rel.ro") else name


def _elf(data: bytes) -> list[SectionSize]:
    wide = data[4] == 2
    (offset,) = struct.unpack_from("<Q" if wide else "<I", data, 40 if wide else 32)
    count, index = struct.unpack_from("<HH", data, 60 if wide else 48)
    entry, field = (64, "<4Q") if wide else (40, "<4I")
    names = struct.unpack_from(field, data, offset + entry * index + 8)[2]
    found = []
    for i in range(count):
        at = offset + i * entry
        name, _ = struct.unpack_from("<II", data, at)
        flags, _, _, size = struct.unpack_from(field, data, at + 8)
        if flags & 2:  # SHF_ALLOC
            text = data[names + name : data.index(b"\0", names + name)].decode()
            found.append(SectionSize(_common(text), size))
    return found


def _coff(data: bytes) -> list[SectionSize]:
    count, optional = struct.unpack_from("<H", data, 2)[0], struct.unpack_from("<H", data, 16)[0]
    found = []
    for i in range(count):
        at = 20 + optional + 40 * i
        name = data[at : at + 8].rstrip(b"\0").decode(errors="replace")
        (size,) = struct.unpack_from("<I", data, at + 16)
        found.append(SectionSize(_common(name), size))
    return found


_MACHO = {"__text": ".text", "__const": ".rodata", "__cstring": ".rodata"}


def _macho(data: bytes) -> list[SectionSize]:
    (commands,) = struct.unpack_from("<I", data, 16)
    at, found = 32, []
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 0x19:  # LC_SEGMENT_64
            (sections,) = struct.unpack_from("<I", data, at + 64)
            for i in range(sections):
                here = at + 72 + 80 * i
                name, segment = (data[here + o : here + o + 16].rstrip(b"\0").decode() for o in (0, 16))
                (length,) = struct.unpack_from("<Q", data, here + 40)
                common = ".data.rel.ro" if segment == "__DATA" else _MACHO.get(name, ".rodata")
                found.append(SectionSize(common, length))
        at += size
    return found


def _wasm(data: bytes) -> list[SectionSize]:
    at, found = 8, []
    while at < len(data):
        kind = data[at]
        size, at = uleb(data, at + 1)
        if kind in (10, 11):
            found.append(SectionSize(".text" if kind == 10 else ".rodata", size))
        at += size
    return found


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """A number in LEB128 at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
