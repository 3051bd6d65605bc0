"""All kernels and the glue of a network as ONE LLVM module, for the object formats that irc has no linker for.

Kernels of such targets are LLVM IR text. Their functions become internal, private names get a prefix of their own,
declarations and groups of attributes are kept once. The weights do not pass through LLVM: the module has a constant
of their size that begins with `marker`, and `patched` puts the bytes where that is found in the object file, whatever
its format.

LLVM Language Reference, "Module Structure" and "Attribute Groups"; ELF for the Arm Architecture and "Addenda to, and
Errata in, the ABI for the Arm Architecture" (build attributes).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from irc.backends.artifact import elf
from irc.backends.artifact.outside import MATH_FUNCTIONS, OUTSIDE
from irc.backends.artifact.sections import SectionSize, section_sizes
from irc.backends.program import Program
from irc.errors import InternalError
from irc.targets.target import Target

MARKER_BYTES = 64
"""Constants up to this size pass as text."""

_SHARED = re.compile(r"__(truncsfhf2|extendhfsf2)\Z|irc_soft_")
"""Helpers of which one definition serves all kernels: conversions of half precision, which LLVM's code generator calls
by these names, and float32 arithmetic in integers."""

_OUTSIDE = re.compile(r"llvm\.|irc_soft_|__\w+|_GLOBAL_OFFSET_TABLE_$")
_STRING = re.compile(r'"[^"]*"')
_GLOBAL = re.compile(r'@("[^"]*"|[\w.$-]+)')
_GROUP = re.compile(r"#(\d+)\b")
_ATTRIBUTES = re.compile(r"^attributes #(\d+) = \{(.*)\}\s*$")
_DEFINE = re.compile(r"^define .*?@(\"[^\"]*\"|[\w.$-]+)\(")
_DECLARE = re.compile(r"^declare .*?@(\"[^\"]*\"|[\w.$-]+)\(")
_VARIABLE = re.compile(r"^@(\"[^\"]*\"|[\w.$-]+) = ")
_LINKAGE = re.compile(
    r"^define ((?:private|internal|weak_odr|weak|linkonce_odr|linkonce|external) )?"
    r"((?:dso_local|hidden|protected|dllexport|local_unnamed_addr|unnamed_addr) )*"
)


@dataclass
class _Merged:
    """The module while texts join it."""

    attributes: dict[str, int] = field(default_factory=dict)
    declarations: dict[str, str] = field(default_factory=dict)
    defined: set[str] = field(default_factory=set)
    body: list[str] = field(default_factory=list)
    layout: str = ""

    def group(self, text: str) -> int:
        return self.attributes.setdefault(text.strip(), len(self.attributes))


def merged_text(kernels: Mapping[str, bytes], glue: str, target: Target, layout: str) -> str:
    """One module of the kernels' texts (symbol -> UTF-8) and the glue's. `layout`: of data, where no text says it.

    Raises InternalError for text that cannot be merged: a name defined twice, a named type, two data layouts.
    """
    merged = _Merged()
    for number, symbol in enumerate(sorted(kernels)):
        _add(merged, kernels[symbol].decode(), f"k{number}.", keep={symbol}, internal=True, where=symbol)
    _add(merged, glue, "", keep=None, internal=False, where="glue")
    missing = [name for name in sorted(_called(merged.body)) if name not in merged.defined | set(merged.declarations)]
    if missing:
        raise InternalError("the module refers to names that it does not declare", got=", ".join(missing[:5]))
    _refuse_foreign(set(merged.declarations) - merged.defined)
    head = [f'target datalayout = "{merged.layout or layout}"']
    declared = [line for name, line in sorted(merged.declarations.items()) if name not in merged.defined]
    groups = [f"attributes #{number} = {{ {text} }}" for text, number in merged.attributes.items()]
    head += [f'target triple = "{target.triple}"', ""]
    return "\n".join([*head, *merged.body, "", *declared, "", *groups, ""])


def _refuse_foreign(names: Collection[str]) -> None:
    """Raises InternalError unless these names are all to be had: libm, memcpy, memset, memmove, what the compiler of
    every C program brings along (`__aeabi_idiv` and the like), intrinsics of LLVM, functions of `soft.py`."""
    for name in sorted(names):
        if name not in OUTSIDE and not _OUTSIDE.match(name):
            raise InternalError(f"undefined symbol {name}", expected="functions of libm, memcpy, memset, memmove")


def _plain(name: str) -> str:
    return name[1:-1] if name.startswith('"') else name


def _called(lines: Sequence[str]) -> set[str]:
    names: set[str] = set()
    for line in lines:
        names.update(_plain(m) for m in _GLOBAL.findall(_without_strings(line)))
    return names


def _without_strings(line: str) -> str:
    """`line` without the contents of strings, but for quoted names."""
    return re.sub(r'(?<!@)"[^"]*"', '""', line)


def _add(merged: _Merged, text: str, prefix: str, *, keep: set[str] | None, internal: bool, where: str) -> None:
    """Adds one text. `keep`: names that stay as they are; None: all."""
    lines = [line for line in text.splitlines() if not _is_head(line)]
    _take_layout(merged, text, where)
    own = _own_names(lines)
    groups = {m[1]: merged.group(m[2]) for line in lines if (m := _ATTRIBUTES.match(line))}
    renamed = set() if keep is None else {n for n in own if n not in keep and not _SHARED.match(n)}
    skipping = False
    for line in lines:
        if skipping:
            skipping = line != "}"
            continue
        if _ATTRIBUTES.match(line):
            continue
        if line.startswith("%") and " = type " in line:
            raise InternalError("a named type in generated code", where=where, got=line[:80])
        line = _renumbered(_renamed(line, renamed, prefix), groups)
        if m := _DECLARE.match(line):
            merged.declarations.setdefault(_plain(m[1]), line)
            continue
        if m := _DEFINE.match(line) or _VARIABLE.match(line):
            name = _plain(m[1])
            if name in merged.defined:
                if _SHARED.match(name):
                    skipping = True
                    continue
                raise InternalError(f"{name} is defined twice", where=where)
            merged.defined.add(name)
            if internal and line.startswith("define "):
                line = _LINKAGE.sub("define internal ", line, count=1).replace(" comdat ", " ")
        if line or (merged.body and merged.body[-1]):
            merged.body.append(line)


def _is_head(line: str) -> bool:
    return line.startswith(("target ", "source_filename", "!", ";"))


def _take_layout(merged: _Merged, text: str, where: str) -> None:
    found = re.search(r'^target datalayout = "(.*)"', text, re.MULTILINE)
    if found is None:
        return
    if merged.layout and found[1] != merged.layout:
        raise InternalError("two data layouts", where=where, expected=merged.layout, got=found[1])
    merged.layout = found[1]


def _own_names(lines: Sequence[str]) -> set[str]:
    return {_plain(m[1]) for line in lines if (m := _DEFINE.match(line) or _VARIABLE.match(line))}


def _renamed(line: str, names: set[str], prefix: str) -> str:
    if not names or "@" not in line:
        return line

    def change(m: re.Match[str]) -> str:
        name = _plain(m[1])
        return f'@"{prefix}{name}"' if name in names else m[0]

    return _outside_strings(line, lambda part: _GLOBAL.sub(change, part))


def _renumbered(line: str, groups: Mapping[str, int]) -> str:
    if "#" not in line:
        return line
    return _outside_strings(line, lambda part: _GROUP.sub(lambda m: f"#{groups[m[1]]}", part))


def _outside_strings(line: str, change: object) -> str:
    """`change` applied to what is no string literal; quoted names count as code."""
    assert callable(change)
    out, at = [], 0
    for m in _STRING.finditer(line):
        if m.start() and line[m.start() - 1] == "@":
            continue
        out += [change(line[at : m.start()]), m[0]]
        at = m.end()
    return "".join([*out, change(line[at:])])


# Weights


def marker(program: Program) -> bytes:
    """What the weights begin with until they are put in: never by chance in an object."""
    seed = f"weights of {program.name}".encode()
    return hashlib.sha512(seed).digest()[:MARKER_BYTES]


def weights_constant(program: Program, symbol: str, size: int, data: bytes | None, align: int) -> str:
    """The definition of the weights. `data`: them, where they are so few that they pass as text."""
    section = f', section ".rodata.{symbol}"' if program.target.object_format == "elf" else ""
    if data is not None:
        return f'@{symbol} = internal constant [{size} x i8] c"{_text(data)}"{section}, align {align}'
    rest = size - MARKER_BYTES
    kind = f"<{{ [{MARKER_BYTES} x i8], [{rest} x i8] }}>"
    mark = f'[{MARKER_BYTES} x i8] c"{_text(marker(program))}"'
    zeros = f"[{rest} x i8] zeroinitializer"
    return f"@{symbol} = internal constant {kind} <{{ {mark}, {zeros} }}>{section}, align {align}"


def _text(data: bytes) -> str:
    return "".join(f"\\{b:02X}" for b in data)


@dataclass(frozen=True)
class ModuleObject:
    """A finished object file in pieces, and the sizes of its sections."""

    chunks: tuple[elf.Bytes, ...]
    sections: tuple[SectionSize, ...]


def patched(program: Program, data: bytes, weights: elf.Section | None) -> ModuleObject:
    """The object `data` of a module with its weights in place. Raises InternalError unless they have one place."""
    if program.target.object_format == "elf":
        undefined = undefined_symbols(data)
        _refuse_foreign(undefined)
        data = _finished_elf(data, program.target, floats=not MATH_FUNCTIONS.isdisjoint(undefined))
    sizes = section_sizes(data, program.target.object_format)
    if weights is None or weights.size <= MARKER_BYTES:
        return ModuleObject((data,), sizes)
    mark = marker(program)
    at = data.find(mark)
    if at < 0 and not any(a.space == "weights" for s in program.steps for a in s.args):
        return ModuleObject((data,), sizes)
    if at < 0 or data.find(mark, at + 1) >= 0 or any(data[at + MARKER_BYTES : at + weights.size]):
        raise InternalError("the weights have no place of their own in the object", where=program.name)
    view = memoryview(data)
    return ModuleObject((view[:at], *weights.chunks, view[at + weights.size :]), sizes)


# ELF


_SHT_ARM_ATTRIBUTES = 0x70000003
_VFP_ARGS, _COMPATIBLE = 28, 3


def _finished_elf(data: bytes, target: Target, *, floats: bool) -> bytes:
    """The object as bare machines want it: constants that hold addresses stay with the constants, as there is no
    loader; tables for unwinding, which say of every function that it cannot be unwound, are left out; on 32-bit Arm
    the object goes with callers that pass floats either way, unless it passes `floats` to functions of libm itself."""
    if "linux" in target.triple:
        return data
    wide = data[4] == 2
    head = bytearray(data)
    offset, count, names_at = _section_table(data, wide)
    entry = 64 if wide else 40
    for i in range(count):
        at = offset + i * entry
        name, kind = struct.unpack_from("<II", data, at)
        flags_at = at + 8
        flags, _, file_at, size = struct.unpack_from("<4Q" if wide else "<4I", data, flags_at)
        text = _name(data, names_at + name)
        if text.startswith(".rodata") and flags & elf.SHF_WRITE:
            struct.pack_into("<Q" if wide else "<I", head, flags_at, flags & ~elf.SHF_WRITE)
        if text.startswith((".ARM.exidx", ".rel.ARM.exidx")):
            struct.pack_into("<I", head, at + 4, elf.SHT_NULL)
            struct.pack_into("<I", head, flags_at, 0)
        if target.arch == "arm32" and kind == _SHT_ARM_ATTRIBUTES and not floats:
            new = _any_float_abi(data[file_at : file_at + size])
            head += bytes(-len(head) % 4)
            struct.pack_into("<II", head, at + 16, len(head), len(new))
            head += new
    return bytes(head)


def _section_table(data: bytes, wide: bool) -> tuple[int, int, int]:
    """Offset and count of section headers, offset of their names."""
    if wide:
        (offset,) = struct.unpack_from("<Q", data, 40)
        count, index = struct.unpack_from("<HH", data, 60)
        (names,) = struct.unpack_from("<Q", data, offset + 64 * index + 24)
    else:
        (offset,) = struct.unpack_from("<I", data, 32)
        count, index = struct.unpack_from("<HH", data, 48)
        (names,) = struct.unpack_from("<I", data, offset + 40 * index + 16)
    return offset, count, names


def _name(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def undefined_symbols(data: bytes) -> tuple[str, ...]:
    """Names that an ELF object leaves to the linker."""
    wide = data[4] == 2
    offset, count, _ = _section_table(data, wide)
    entry = 64 if wide else 40
    found = []
    for i in range(count):
        at = offset + i * entry
        if struct.unpack_from("<I", data, at + 4)[0] != 2:  # SHT_SYMTAB
            continue
        begin, size = struct.unpack_from("<QQ" if wide else "<II", data, at + (24 if wide else 16))
        (link,) = struct.unpack_from("<I", data, at + (40 if wide else 24))
        (names,) = struct.unpack_from("<Q" if wide else "<I", data, offset + entry * link + (24 if wide else 16))
        for symbol in range(begin, begin + size, 24 if wide else 16):
            (name,) = struct.unpack_from("<I", data, symbol)
            (section,) = struct.unpack_from("<H", data, symbol + (6 if wide else 14))
            if name and section == 0:
                found.append(_name(data, names + name))
    return tuple(sorted(found))


def _any_float_abi(section: bytes) -> bytes:
    """Build attributes of Arm with Tag_ABI_VFP_args = 3: compatible with both ways of passing floats."""
    if section[:1] != b"A":
        raise InternalError("unknown build attributes")
    vendor_end = section.index(b"\0", 5) + 1
    if section[vendor_end] != 1:  # Tag_File
        raise InternalError("unknown build attributes", got=str(section[vendor_end]))
    body, at, out = section[vendor_end + 5 :], 0, bytearray()
    while at < len(body):
        start = at
        tag, at = _uleb(body, at)
        if tag in (4, 5, 67):
            at = body.index(b"\0", at) + 1
        else:
            _, at = _uleb(body, at)
            if tag == 32:
                at = body.index(b"\0", at) + 1
        if tag != _VFP_ARGS:
            out += body[start:at]
    out += bytes([_VFP_ARGS, _COMPATIBLE])
    attributes = b"\x01" + struct.pack("<I", len(out) + 5) + out
    vendor = section[5:vendor_end]
    return b"A" + struct.pack("<I", 4 + len(vendor) + len(attributes)) + vendor + attributes


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
