"""The network's relocatable object -> a shared library, with no linker, compiler or toolchain.

Layout, each part in pages of its own and mapped from the file as it is (weights are read when they are used):

    read      ELF header, program headers, .dynsym .dynstr .hash .rela.dyn, .rodata
    execute   .text, .plt (stubs `jump through .got`; the loader fills .got when it loads: no lazy binding)
    relro     .data.rel.ro .dynamic .got: written by the loader, then read-only
    read      weights

Specification: System V ABI, chapter 5 (https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.intro.html) and the
processor supplements.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from irc.backends.artifact import elf, relocate
from irc.backends.artifact.elf import ObjectFile, Relocation, Section, Symbol, align_up
from irc.backends.artifact.outside import MEMORY_FUNCTIONS
from irc.backends.artifact.pool import FUNCTIONS as THREAD_FUNCTIONS
from irc.backends.artifact.relocate import Wants
from irc.errors import InternalError
from irc.targets.target import Target

PT_LOAD, PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 1, 2, 0x6474E551, 0x6474E552
PF_X, PF_W, PF_R = 1, 2, 4
DT_NULL, DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_RELAENT = 0, 1, 4, 5, 6, 7, 8, 9
DT_STRSZ, DT_SYMENT, DT_SONAME, DT_FLAGS, DT_FLAGS_1, DT_RELACOUNT = 10, 11, 14, 30, 0x6FFFFFFB, 0x6FFFFFF9
DF_BIND_NOW, DF_1_NOW = 8, 1
_PAGE = {elf.EM_X86_64: 4096, elf.EM_AARCH64: 65536}  # the largest pages that kernels use
_RELATIVE = {elf.EM_X86_64: 8, elf.EM_AARCH64: 1027}
_GLOB_DAT = {elf.EM_X86_64: 6, elf.EM_AARCH64: 1025}
_DYN = struct.Struct("<QQ")


def shared_library(obj: bytes | ObjectFile, target: Target, soname: str = "") -> bytes:
    """The library as one bytes object (`shared_chunks` writes without a copy)."""
    return elf.joined(shared_chunks(obj, target, soname))


def shared_chunks(obj: bytes | ObjectFile, target: Target, soname: str = "") -> list[elf.Bytes]:
    """The library in pieces. Its global symbols are those of `obj`.

    Raises InternalError when the object is not position independent.
    """
    if isinstance(obj, bytes):
        obj = elf.read_object(obj)
    if obj.machine != elf.MACHINES[target.arch]:
        raise InternalError("object for another machine", where=f"target {target.name}")
    return _Linker(obj, soname).link()


def code_bytes(chunks: Sequence[elf.Bytes]) -> int:
    """Length of the part of a library that comes before its weights (all of what is mapped, where it has none)."""
    head = elf.joined(chunks[:1])
    count = elf.EHDR.unpack_from(head)[10]
    parts = [elf.PHDR.unpack_from(row) for row in chunks[1 : 1 + count]]
    *_, last = [p for p in parts if p[0] == PT_LOAD]
    _, flags, offset, _, _, size, _, _ = last
    return int(offset if flags == PF_R else offset + size)


@dataclass(eq=False)
class _Segment:
    flags: int
    sections: list[Section]
    address: int = 0
    offset: int = 0
    size: int = 0


@dataclass
class _Linker:
    obj: ObjectFile
    soname: str
    address: dict[int, int] = field(default_factory=dict)  # id(section) -> address
    offset: dict[int, int] = field(default_factory=dict)  # id(section) -> place in the file
    got: dict[int, int] = field(default_factory=dict)  # id(symbol) -> number of its entry
    stubs: dict[int, int] = field(default_factory=dict)
    got_symbols: list[Symbol] = field(default_factory=list)
    stub_symbols: list[Symbol] = field(default_factory=list)

    def link(self) -> list[elf.Bytes]:
        machine = self.obj.machine
        self._scan()
        exported = [s for s in self.obj.symbols if s.binding == elf.STB_GLOBAL and s.defined]
        imported = [s for s in self.obj.symbols if not s.defined]
        dynamic_symbols = [*imported, *exported]
        strings = elf.StringTable()
        names = [strings.add(s.name) for s in dynamic_symbols]
        needed = [strings.add(n) for n in _needed(imported)]
        soname = strings.add(self.soname)

        n_rela = self._count_dynamic()
        sym_bytes = (1 + len(dynamic_symbols)) * elf.SYM.size
        self.dynsym = _blank(".dynsym", elf.SHT_DYNSYM, 0, 8, sym_bytes, elf.SYM.size)
        self.dynstr = Section(".dynstr", elf.SHT_STRTAB, elf.SHF_ALLOC)
        self.dynstr.append(strings.data())
        self.hash = Section(".hash", elf.SHT_HASH, elf.SHF_ALLOC, 8, 4)
        self.hash.append(_hash_table([s.name for s in dynamic_symbols]))
        self.rela = _blank(".rela.dyn", elf.SHT_RELA, 0, 8, n_rela * elf.RELA.size, elf.RELA.size)
        self.plt = _blank(
            ".plt", elf.SHT_PROGBITS, elf.SHF_EXECINSTR, 16, len(self.stub_symbols) * relocate.STUB_BYTES, 16
        )
        n_dynamic = 8 + len(needed) + bool(self.soname) + 3
        self.dynamic = _blank(".dynamic", elf.SHT_DYNAMIC, elf.SHF_WRITE, 8, n_dynamic * _DYN.size, _DYN.size)
        self.gotsec = _blank(".got", elf.SHT_PROGBITS, elf.SHF_WRITE, 8, len(self.got_symbols) * 8, 8)

        segments = self._layout()
        contents, relocations = self._contents()
        contents[id(self.dynsym)] = self._dynsym(dynamic_symbols, names)
        relocations.sort(key=lambda r: (r[1] & 0xFFFFFFFF) != _RELATIVE[machine])  # relative ones first: DT_RELACOUNT
        n_relative = sum((r[1] & 0xFFFFFFFF) == _RELATIVE[machine] for r in relocations)
        number = {id(s): i for i, s in enumerate(dynamic_symbols, 1)}
        packed = [elf.RELA.pack(at, number.get(sym, 0) << 32 | kind, add) for at, kind, sym, add in relocations]
        contents[id(self.rela)] = b"".join(packed)
        contents[id(self.dynamic)] = self._dynamic_table(needed, soname, n_relative, n_dynamic)
        return self._file(segments, contents)

    def _kept(self) -> list[Section]:
        return [s for s in self.obj.sections if s.flags & elf.SHF_ALLOC]

    def _scan(self) -> None:
        """Which symbols need a stub or an entry of the global offset table."""
        for section in self._kept():
            for r in section.relocations:
                want = relocate.wants(self.obj.machine, r.kind)
                if want is Wants.CALL and not r.symbol.defined:
                    self._entry(self.stubs, self.stub_symbols, r.symbol)
                    self._entry(self.got, self.got_symbols, r.symbol)
                elif want is Wants.GOT:
                    self._entry(self.got, self.got_symbols, r.symbol)
                elif want is Wants.NEAR and not r.symbol.defined:
                    raise InternalError(f"{r.symbol.name} is outside and cannot be reached directly")
                elif want is Wants.ADDRESS and not section.flags & elf.SHF_WRITE:
                    raise InternalError(f"absolute address in read-only section {section.name}")

    def _entry(self, table: dict[int, int], order: list[Symbol], symbol: Symbol) -> None:
        if id(symbol) not in table:
            table[id(symbol)] = len(order)
            order.append(symbol)

    def _count_dynamic(self) -> int:
        absolute = sum(
            relocate.wants(self.obj.machine, r.kind) is Wants.ADDRESS for s in self._kept() for r in s.relocations
        )
        return absolute + len(self.got_symbols)

    def _layout(self) -> list[_Segment]:
        """Addresses and file offsets. They agree modulo the page size, so the file has no gaps of whole pages."""
        kept = self._kept()
        weights = [s for s in kept if s.name.startswith(".rodata.")]
        code = [s for s in kept if s.flags & elf.SHF_EXECINSTR]
        writable = [s for s in kept if s.flags & elf.SHF_WRITE]
        plain = [s for s in kept if s not in weights and s not in code and s not in writable]
        segments = [
            _Segment(PF_R, [self.dynsym, self.dynstr, self.hash, self.rela, *plain]),
            _Segment(PF_R | PF_X, [*code, self.plt]),
            _Segment(PF_R | PF_W, [*writable, self.dynamic, self.gotsec]),
            _Segment(PF_R, weights),
        ]
        segments = [s for s in segments if s.sections]
        page = _PAGE[self.obj.machine]
        n_headers = len(segments) + 3
        offset = elf.EHDR.size + n_headers * elf.PHDR.size
        address = offset
        for i, segment in enumerate(segments):
            if i:
                largest = max(s.align for s in segment.sections)
                offset = align_up(offset, 4096 if segment.sections == weights else largest)
                address = align_up(address, page) + offset % page
            segment.address, segment.offset = (address, offset) if i else (0, 0)
            for section in segment.sections:
                step = align_up(address, section.align) - address
                address, offset = address + step, offset + step
                self.address[id(section)], self.offset[id(section)] = address, offset
                address, offset = address + section.size, offset + section.size
            segment.size = offset - segment.offset
        return segments

    def _where(self, symbol: Symbol) -> int:
        assert symbol.section is not None
        return self.address[id(symbol.section)] + symbol.value

    def _contents(self) -> tuple[dict[int, elf.Bytes], list[tuple[int, int, int, int]]]:
        """Relocated bytes of the sections that have relocations, and what is left to the loader:
        (address, kind, id of symbol or 0, addend)."""
        machine = self.obj.machine
        contents: dict[int, elf.Bytes] = {}
        dynamic: list[tuple[int, int, int, int]] = []
        for section in self._kept():
            if not section.relocations:
                continue
            code = bytearray(section.data())
            for r in section.relocations:
                self._relocate(section, code, r, dynamic)
            contents[id(section)] = code
        got, plt = self.address[id(self.gotsec)], self.address[id(self.plt)]
        table = bytearray(self.gotsec.size)
        for i, s in enumerate(self.got_symbols):
            at = got + 8 * i
            if s.defined:
                dynamic.append((at, _RELATIVE[machine], 0, self._where(s)))
            else:
                dynamic.append((at, _GLOB_DAT[machine], id(s), 0))
        contents[id(self.gotsec)] = table
        stubs = [
            relocate.stub(machine, plt + relocate.STUB_BYTES * i, got + 8 * self.got[id(s)])
            for i, s in enumerate(self.stub_symbols)
        ]
        contents[id(self.plt)] = b"".join(stubs)
        return contents, dynamic

    def _relocate(
        self, section: Section, code: bytearray, r: Relocation, dynamic: list[tuple[int, int, int, int]]
    ) -> None:
        machine = self.obj.machine
        want = relocate.wants(machine, r.kind)
        place = self.address[id(section)] + r.offset
        if want is Wants.ADDRESS:
            if r.symbol.defined:
                dynamic.append((place, _RELATIVE[machine], 0, self._where(r.symbol) + r.addend))
            else:  # R_X86_64_64 and R_AARCH64_ABS64 mean the same to the loader
                dynamic.append((place, r.kind, id(r.symbol), r.addend))
            return
        if want is Wants.GOT:
            target = self.address[id(self.gotsec)] + 8 * self.got[id(r.symbol)]
        elif r.symbol.defined:
            target = self._where(r.symbol)
        else:
            target = self.address[id(self.plt)] + relocate.STUB_BYTES * self.stubs[id(r.symbol)]
        relocate.apply(machine, code, r.offset, r.kind, target + r.addend, place)

    def _dynsym(self, symbols: list[Symbol], names: list[int]) -> bytes:
        rows = [bytes(elf.SYM.size)]
        for s, name in zip(symbols, names, strict=True):
            info = elf.STB_GLOBAL << 4 | s.kind
            if s.defined:
                # Any index that is not SHN_UNDEF will do; the section headers of this file are numbered from 1.
                rows.append(elf.SYM.pack(name, info, 0, self._number(s.section), self._where(s), s.size))
            else:
                rows.append(elf.SYM.pack(name, info, 0, 0, 0, 0))
        return b"".join(rows)

    def _ordered(self) -> list[Section]:
        return sorted(self._all(), key=lambda s: self.offset[id(s)])

    def _all(self) -> list[Section]:
        made = [self.dynsym, self.dynstr, self.hash, self.rela, self.plt, self.dynamic, self.gotsec]
        return [s for s in (*made, *self._kept()) if s.size]

    def _number(self, section: Section | None) -> int:
        return next(i for i, s in enumerate(self._ordered(), 1) if s is section)

    def _dynamic_table(self, needed: list[int], soname: int, n_relative: int, rows: int) -> bytes:
        at = self.address
        table = [(DT_NEEDED, n) for n in needed]
        if self.soname:
            table.append((DT_SONAME, soname))
        table += [
            (DT_HASH, at[id(self.hash)]),
            (DT_STRTAB, at[id(self.dynstr)]),
            (DT_SYMTAB, at[id(self.dynsym)]),
            (DT_STRSZ, self.dynstr.size),
            (DT_SYMENT, elf.SYM.size),
        ]
        if self.rela.size:
            table += [(DT_RELA, at[id(self.rela)]), (DT_RELASZ, self.rela.size), (DT_RELAENT, elf.RELA.size)]
            table.append((DT_RELACOUNT, n_relative))
        table += [(DT_FLAGS, DF_BIND_NOW)]
        assert len(table) < rows
        table += [(DT_NULL, 0)] * (rows - len(table))
        return b"".join(_DYN.pack(*row) for row in table)

    def _file(self, segments: list[_Segment], contents: dict[int, elf.Bytes]) -> list[elf.Bytes]:
        page = _PAGE[self.obj.machine]
        programs, dynamic = [], self.dynamic
        for segment in segments:
            memory = segment.size
            if segment.flags & PF_W:
                # Up to the end of its page, so that the whole part becomes read-only after loading.
                memory = align_up(segment.address + segment.size, page) - segment.address
                relro = elf.PHDR.pack(
                    PT_GNU_RELRO, PF_R, segment.offset, segment.address, segment.address, segment.size, memory, 1
                )
            programs.append(
                elf.PHDR.pack(
                    PT_LOAD, segment.flags, segment.offset, segment.address, segment.address, segment.size, memory, page
                )
            )
        where, place = self.address[id(dynamic)], self.offset[id(dynamic)]
        programs.append(elf.PHDR.pack(PT_DYNAMIC, PF_R | PF_W, place, where, where, dynamic.size, dynamic.size, 8))
        programs += [relro, elf.PHDR.pack(PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16)]

        ordered = self._ordered()
        extra, extra_rows = self._symbol_table(ordered)
        strings = elf.StringTable()
        name_at = [strings.add(s.name) for s in (*ordered, *extra)] + [strings.add(".shstrtab")]
        out: list[elf.Bytes] = []
        rows = [bytes(elf.SHDR.size)]
        at = elf.EHDR.size + sum(map(len, programs))
        for s, name in zip(ordered, name_at, strict=False):
            start = self.offset[id(s)]
            body = contents.get(id(s))
            out += [bytes(start - at), *([body] if body is not None else s.chunks)]
            at = start + s.size
            link = next((i for i, x in enumerate(ordered, 1) if x is _linked(self, s)), 0)
            info = 1 if s is self.dynsym else 0
            where = self.address[id(s)]
            rows.append(elf.SHDR.pack(name, s.kind, s.flags, where, start, s.size, link, info, s.align, s.entsize))
        for s, name, (link, info) in zip(extra, name_at[len(ordered) :], extra_rows, strict=False):
            start = align_up(at, s.align)
            out += [bytes(start - at), *s.chunks]
            at = start + s.size
            rows.append(elf.SHDR.pack(name, s.kind, 0, 0, start, s.size, link, info, s.align, s.entsize))
        rows.append(elf.SHDR.pack(name_at[-1], elf.SHT_STRTAB, 0, 0, at, len(strings.data()), 0, 0, 1, 0))
        out.append(strings.data())
        at += len(strings.data())
        shoff = align_up(at, 8)
        out += [bytes(shoff - at), *rows]
        header = elf.EHDR.pack(
            *(elf.IDENT, elf.ET_DYN, self.obj.machine, 1, 0, elf.EHDR.size, shoff, 0, elf.EHDR.size),
            *(elf.PHDR.size, len(programs), elf.SHDR.size, len(rows), len(rows) - 1),
        )
        return [header, *programs, *out]

    def _symbol_table(self, ordered: list[Section]) -> tuple[list[Section], list[tuple[int, int]]]:
        """.symtab and .strtab with the local functions: profilers and debuggers show kernels by name."""
        strings = elf.StringTable()
        number = {id(s): i for i, s in enumerate(ordered, 1)}
        rows = [bytes(elf.SYM.size)]
        for s in self.obj.symbols:
            if s.section is not None and s.kind == elf.STT_FUNC and id(s.section) in number:
                name = strings.add(s.name)
                shndx = number[id(s.section)]
                rows.append(elf.SYM.pack(name, elf.STT_FUNC, 0, shndx, self._where(s), s.size))
        symtab = Section(".symtab", elf.SHT_SYMTAB, 0, 8, elf.SYM.size)
        symtab.append(b"".join(rows))
        strtab = Section(".strtab", elf.SHT_STRTAB)
        strtab.append(strings.data())
        return [symtab, strtab], [(len(ordered) + 2, len(rows)), (0, 0)]


def _linked(linker: _Linker, section: Section) -> Section | None:
    """The section that `sh_link` of `section` names."""
    if section in (linker.hash, linker.rela):
        return linker.dynsym
    return linker.dynstr if section in (linker.dynsym, linker.dynamic) else None


def _blank(name: str, kind: int, flags: int, align: int, size: int, entsize: int) -> Section:
    """A section whose contents come later; only its size is needed for the layout."""
    return Section(name, kind, elf.SHF_ALLOC | flags, align, entsize, [], size)


def _needed(imported: list[Symbol]) -> list[str]:
    """Libraries, in the order in which the loader looks: libm, libpthread (a part of libc since glibc 2.34), libc."""
    names = {_library(s.name) for s in imported}
    return sorted(names, reverse=True)


def _library(name: str) -> str:
    if name.startswith("pthread_"):
        return "libpthread.so.0"
    return "libc.so.6" if name in MEMORY_FUNCTIONS | THREAD_FUNCTIONS else "libm.so.6"


def _hash_table(names: list[str]) -> bytes:
    """DT_HASH: bucket heads and chains over the dynamic symbols (number 0 is the null symbol)."""
    n_buckets = max(1, len(names))
    buckets, chains = [0] * n_buckets, [0] * (len(names) + 1)
    for i, name in enumerate(names, 1):
        b = _elf_hash(name) % n_buckets
        chains[i], buckets[b] = buckets[b], i
    return struct.pack(f"<II{n_buckets}I{len(chains)}I", n_buckets, len(chains), *buckets, *chains)


def _elf_hash(name: str) -> int:
    h = 0
    for byte in name.encode():
        h = (h << 4) + byte
        high = h & 0xF0000000
        h ^= high >> 24
        h &= ~high & 0xFFFFFFFF
    return h
