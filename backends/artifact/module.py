"""All kernels and the glue of a network as ONE LLVM module, for the object formats that irc has no linker for.

Kernels of such targets are LLVM IR text. Their functions become internal, private names get a prefix of their own,
declarations and groups of attributes are kept once. The weights do not pass through LLVM: the module has a constant
of their size that begins with `marker`, and `patched` puts the bytes where that is found in the object file, whatever
its format.

LLVM Language Reference, "Module Structure" and "Attribute Groups".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from irc.backends.artifact import elf
from irc.backends.artifact.finish import finished_elf, undefined_symbols
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


def _outside_strings(line: str, change: Callable[[str], str]) -> str:
    """`change` applied to what is no string literal; quoted names count as code."""
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
        data = finished_elf(data, program.target, floats=not MATH_FUNCTIONS.isdisjoint(undefined))
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
