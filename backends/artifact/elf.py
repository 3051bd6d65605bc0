"""ELF64 little-endian relocatable objects: records, reader, writer.

Specification: System V ABI, chapter 4 (https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.intro.html).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from irc.errors import InternalError

Bytes = bytes | bytearray | memoryview
"""What `bytes.join` and `file.write` take without a copy."""

EM_X86_64, EM_AARCH64 = 62, 183
MACHINES = {"x86-64": EM_X86_64, "aarch64": EM_AARCH64}

ET_REL, ET_DYN = 1, 3
SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_HASH, SHT_DYNAMIC, SHT_NOTE, SHT_NOBITS = range(9)
SHT_REL, SHT_DYNSYM, SHT_GROUP, SHT_SYMTAB_SHNDX = 9, 11, 17, 18
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_MERGE, SHF_STRINGS, SHF_INFO_LINK, SHF_TLS = 1, 2, 4, 0x10, 0x20, 0x40, 0x400
STB_LOCAL, STB_GLOBAL, STB_WEAK = range(3)
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = range(5)
STV_DEFAULT, STV_INTERNAL, STV_HIDDEN, STV_PROTECTED = range(4)
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON, SHN_XINDEX = 0, 0xFF00, 0xFFF1, 0xFFF2, 0xFFFF

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
PHDR = struct.Struct("<IIQQQQQQ")
SYM = struct.Struct("<IBBHQQ")
RELA = struct.Struct("<QQq")
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)


@dataclass(eq=False)
class Symbol:
    """A name for a place. `section` None with `absolute` False: undefined here."""

    name: str
    section: Section | None = None
    value: int = 0
    size: int = 0
    binding: int = STB_LOCAL
    kind: int = STT_NOTYPE
    visibility: int = STV_DEFAULT
    absolute: bool = False

    @property
    def defined(self) -> bool:
        return self.section is not None or self.absolute


@dataclass(eq=False)
class Relocation:
    """Put the address of `symbol` + `addend` at `offset` of the section, in the way `kind` says (psABI number)."""

    offset: int
    kind: int
    symbol: Symbol
    addend: int


@dataclass(eq=False)
class Section:
    """Contents are a list of chunks, so that weights are never copied."""

    name: str
    kind: int = SHT_PROGBITS
    flags: int = 0
    align: int = 1
    entsize: int = 0
    chunks: list[Bytes] = field(default_factory=list)
    size: int = 0
    relocations: list[Relocation] = field(default_factory=list)

    def append(self, data: Bytes, align: int = 1, fill: bytes = b"\0") -> int:
        """Adds `data` at the next multiple of `align`; gives its offset. `fill` must divide the gap evenly."""
        start = align_up(self.size, align)
        gap = start - self.size
        if gap:
            self.chunks.append(fill * (gap // len(fill)) + bytes(gap % len(fill)))
        self.chunks.append(data)
        self.size = start + size_of(data)
        self.align = max(self.align, align)
        return start

    def data(self) -> bytes:
        """The contents in one piece (a copy)."""
        return b"".join(self.chunks)


@dataclass(eq=False)
class ObjectFile:
    machine: int
    sections: list[Section] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)


def align_up(n: int, align: int) -> int:
    return -(-n // align) * align


def size_of(data: Bytes) -> int:
    return data.nbytes if isinstance(data, memoryview) else len(data)


class StringTable:
    """A .strtab: names, each once."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {"": 0}
        self._data = bytearray(1)

    def add(self, name: str) -> int:
        at = self._at.get(name)
        if at is None:
            at = self._at[name] = len(self._data)
            self._data += name.encode() + b"\0"
        return at

    def data(self) -> bytes:
        return bytes(self._data)


# Reader


_TABLES = {SHT_NULL, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_GROUP, SHT_SYMTAB_SHNDX}
"""Sections that describe the others: they become records, and are made anew by the writer."""


def read_object(data: bytes, where: str = "object") -> ObjectFile:
    """Reads a relocatable object. Section contents are views of `data`. Raises InternalError on anything else."""
    try:
        return _read(memoryview(data))
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise InternalError("not a readable ELF64 relocatable object", where=where, got=str(error)) from error


def _read(data: memoryview) -> ObjectFile:
    ident, kind, machine, _, _, _, shoff, _, _, _, _, _, shnum, shstrndx = EHDR.unpack_from(data, 0)
    if ident[:7] != IDENT[:7] or kind != ET_REL:
        raise ValueError("wrong header")
    first = SHDR.unpack_from(data, shoff) if shoff else None
    if first and shnum == 0:  # more sections than the header can say
        shnum = first[5]
    if first and shstrndx == SHN_XINDEX:
        shstrndx = first[6]
    headers = [SHDR.unpack_from(data, shoff + i * SHDR.size) for i in range(shnum)]

    def body(i: int) -> memoryview:
        _, kind, _, _, offset, size, *_ = headers[i]
        if kind == SHT_NOBITS:
            return memoryview(b"")
        if offset + size > len(data):
            raise ValueError(f"section {i} reaches beyond the end of the file")
        return data[offset : offset + size]

    names = bytes(body(shstrndx))
    sections = [
        Section(_name(names, h[0]), h[1], h[2], max(1, h[8]), h[9], [body(i)], h[5]) for i, h in enumerate(headers)
    ]
    symbols: list[Symbol] = []
    for i, h in enumerate(headers):
        if h[1] == SHT_SYMTAB:
            wide = [j for j, x in enumerate(headers) if x[1] == SHT_SYMTAB_SHNDX and x[6] == i]
            symbols = _read_symbols(body(i), bytes(body(h[6])), sections, body(wide[0]) if wide else None)
    for i, h in enumerate(headers):
        if h[1] == SHT_REL:
            raise ValueError("relocations without addends")
        if h[1] == SHT_RELA:
            for offset, info, addend in RELA.iter_unpack(body(i)):
                relocation = Relocation(offset, info & 0xFFFFFFFF, symbols[info >> 32], addend)
                sections[h[7]].relocations.append(relocation)
    return ObjectFile(machine, [s for s in sections if s.kind not in _TABLES], symbols[1:])


def _read_symbols(table: memoryview, names: bytes, sections: list[Section], wide: memoryview | None) -> list[Symbol]:
    symbols = []
    for i, (name, info, other, shndx, value, size) in enumerate(SYM.iter_unpack(table)):
        if shndx == SHN_XINDEX and wide is not None:
            shndx = struct.unpack_from("<I", wide, 4 * i)[0]
        elif shndx == SHN_COMMON:
            raise ValueError(f"common symbol {_name(names, name)}")
        absolute = shndx == SHN_ABS
        section = None if absolute or shndx == SHN_UNDEF else sections[shndx]
        text = _name(names, name)
        symbols.append(Symbol(text, section, value, size, info >> 4, info & 15, other & 3, absolute))
    return symbols


def _name(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


# Writer


def write_object(obj: ObjectFile) -> list[Bytes]:
    """The file as chunks to be written one after the other. The same object gives the same bytes."""
    symbols = sorted(obj.symbols, key=lambda s: s.binding != STB_LOCAL)  # locals first; the sort is stable
    index = {id(s): i for i, s in enumerate(symbols, 1)}
    number = {id(s): i for i, s in enumerate(obj.sections, 1)}
    tables = [s for s in obj.sections if s.relocations]
    symtab_number = 1 + len(obj.sections) + len(tables)
    names, section_names = StringTable(), StringTable()

    symtab = bytearray(SYM.size)
    for symbol in symbols:
        shndx = SHN_ABS if symbol.absolute else number[id(symbol.section)] if symbol.section else SHN_UNDEF
        info = symbol.binding << 4 | symbol.kind
        symtab += SYM.pack(names.add(symbol.name), info, symbol.visibility, shndx, symbol.value, symbol.size)
    n_local = 1 + sum(s.binding == STB_LOCAL for s in symbols)

    rows: list[tuple[Section, list[Bytes], int, int, int]] = [(s, s.chunks, s.size, 0, 0) for s in obj.sections]
    for s in tables:
        data = b"".join(RELA.pack(r.offset, index[id(r.symbol)] << 32 | r.kind, r.addend) for r in s.relocations)
        header = Section(".rela" + s.name, SHT_RELA, SHF_INFO_LINK, 8, RELA.size)
        rows.append((header, [data], len(data), symtab_number, number[id(s)]))
    rows.append((Section(".symtab", SHT_SYMTAB, 0, 8, SYM.size), [symtab], len(symtab), symtab_number + 1, n_local))
    rows.append((Section(".strtab", SHT_STRTAB), [names.data()], len(names.data()), 0, 0))
    strings = Section(".shstrtab", SHT_STRTAB)
    name_at = [section_names.add(row[0].name) for row in rows] + [section_names.add(strings.name)]
    rows.append((strings, [section_names.data()], len(section_names.data()), 0, 0))

    out: list[Bytes] = []
    headers = bytearray(SHDR.size)
    at = EHDR.size
    for (s, chunks, size, link, info), name in zip(rows, name_at, strict=True):
        start = align_up(at, s.align)
        headers += SHDR.pack(name, s.kind, s.flags, 0, start, size, link, info, s.align, s.entsize)
        if s.kind == SHT_NOBITS:
            continue
        out += [bytes(start - at), *chunks]
        at = start + size
    shoff = align_up(at, 8)
    out += [bytes(shoff - at), headers]
    count = len(rows) + 1
    ehdr = EHDR.pack(IDENT, ET_REL, obj.machine, 1, 0, 0, shoff, 0, EHDR.size, 0, 0, SHDR.size, count, count - 1)
    return [ehdr, *out]


def total_size(chunks: Iterable[Bytes]) -> int:
    return sum(size_of(c) for c in chunks)


def joined(chunks: Sequence[Bytes]) -> bytes:
    """One bytes object (a copy of everything)."""
    return b"".join(chunks)
