"""All objects of a network and its weights -> ONE relocatable object, as `ld -r` would with a garbage collector.

Starting from the public functions, only sections that are reached through relocations are kept, so DWARF, unwind
tables and unused weak helpers (`__truncsfhf2`, ...) fall away. Kernels and weights become local symbols: two networks
link into one program whatever their kernels are called. What stays undefined is checked against a short list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from irc.backends.artifact import elf, module
from irc.backends.artifact.contents import public_symbols, weights_section, weights_symbol
from irc.backends.artifact.elf import ObjectFile, Relocation, Section, Symbol
from irc.backends.artifact.module import ModuleObject
from irc.backends.artifact.outside import OUTSIDE
from irc.backends.artifact.pool import FUNCTIONS as THREAD_FUNCTIONS
from irc.backends.program import Program
from irc.errors import InternalError, UnsupportedError

Linked = ObjectFile | ModuleObject

MAX_BYTES = 2**31 - 2**24
"""32-bit displacements reach every byte of a network below this size."""

_GOT_KINDS = {
    elf.EM_X86_64: {9, 41, 42},
    elf.EM_AARCH64: {309, 311, 312, 313},
}
_ABSOLUTE = {elf.EM_X86_64: 1, elf.EM_AARCH64: 257}  # R_X86_64_64, R_AARCH64_ABS64: the loader writes there
_TEXT_FILL = {elf.EM_X86_64: b"\xcc", elf.EM_AARCH64: b"\x1f\x20\x03\xd5"}  # int3; nop


def link_object(program: Program, glue_object: bytes, *, threads: bool = False) -> bytes:
    """The network as one relocatable object file."""
    return elf.joined(object_chunks(link(program, glue_object, threads=threads)))


def object_chunks(linked: Linked) -> Sequence[elf.Bytes]:
    """The object file in pieces."""
    return linked.chunks if isinstance(linked, ModuleObject) else elf.write_object(linked)


def link(program: Program, glue_object: bytes, *, threads: bool = False) -> Linked:
    """Merges kernels, glue and weights; where `glue_object` is a module with all kernels, adds the weights.

    These are referred to, not copied. `threads`: keeps the thread pool even where the program does not ask for one,
    for libraries whose number of threads is chosen when they are loaded.

    Raises InternalError when something is undefined, defined twice, writable or for another machine, and
    UnsupportedError when the network is too large for 32-bit displacements.
    """
    if program.weights_bytes > MAX_BYTES:
        raise UnsupportedError(
            "the weights are too large",
            where=program.name,
            expected="less than 2 GB",
            got=f"{program.weights_bytes} bytes",
        )
    if program.target.linking == "module":
        return module.patched(program, glue_object, weights_section(program))
    machine = elf.MACHINES[program.target.arch]
    objects = [("glue", elf.read_object(glue_object, "glue"))]
    seen: dict[bytes, str] = {}
    for symbol in sorted(program.kernels):
        data = program.kernels[symbol]
        if seen.setdefault(data, symbol) == symbol:
            objects.append((symbol, elf.read_object(data, f"kernel {symbol}")))
    for where, obj in objects:
        if obj.machine != machine:
            raise InternalError("object for another machine", where=where, expected=str(machine), got=str(obj.machine))
    weights = weights_section(program)
    merger = _Merger(machine, _definitions(objects))
    if weights is not None:
        merger.defined[weights_symbol(program)] = Symbol(
            weights_symbol(program), weights, 0, weights.size, elf.STB_GLOBAL, elf.STT_OBJECT
        )
    return merger.merge(public_symbols(program, threads=threads), objects, weights)


def _definitions(objects: list[tuple[str, ObjectFile]]) -> dict[str, Symbol]:
    """Global name -> the definition that wins: the strong one, else the first weak one."""
    defined: dict[str, Symbol] = {}
    for where, obj in objects:
        for s in obj.symbols:
            if s.binding == elf.STB_LOCAL or not s.defined:
                continue
            other = defined.get(s.name)
            if other is None or (other.binding == elf.STB_WEAK and s.binding == elf.STB_GLOBAL):
                defined[s.name] = s
            elif s.binding == elf.STB_GLOBAL and other.binding == elf.STB_GLOBAL:
                raise InternalError(f"symbol {s.name} is defined twice", where=where)
    return defined


@dataclass
class _Merger:
    machine: int
    defined: dict[str, Symbol]
    placed: dict[int, tuple[Section, int]] = field(default_factory=dict)  # id(input section) -> output, offset
    renamed: dict[int, Symbol] = field(default_factory=dict)  # id(input symbol) -> output symbol
    undefined: dict[str, Symbol] = field(default_factory=dict)
    section_symbols: dict[int, Symbol] = field(default_factory=dict)

    def merge(
        self, public: tuple[str, ...], objects: list[tuple[str, ObjectFile]], weights: Section | None
    ) -> ObjectFile:
        for name in public:
            if name not in self.defined:
                raise InternalError(f"the glue does not define {name}")
        live = self._reach([self.defined[name] for name in public])
        out = self._place(objects, weights, live)
        self._name_symbols(public, objects)
        for _, obj in objects:
            for section in obj.sections:
                if id(section) in self.placed:
                    self._relocate(section)
        named = sorted(self.renamed.values(), key=lambda s: s.binding != elf.STB_LOCAL)  # as objects have them
        symbols = [*self.section_symbols.values(), *named]
        symbols += [self.undefined[name] for name in sorted(self.undefined)]
        stack = Section(".note.GNU-stack", elf.SHT_PROGBITS)  # says that the stack need not be executable
        return ObjectFile(self.machine, [*out, stack], symbols)

    def resolve(self, symbol: Symbol) -> Symbol | None:
        """The definition that `symbol` means. None: a function of libc or libm."""
        if symbol.binding == elf.STB_LOCAL:
            return symbol
        found = self.defined.get(symbol.name)
        if found is None and symbol.name not in OUTSIDE | THREAD_FUNCTIONS:
            raise InternalError(
                f"undefined symbol {symbol.name}", expected="functions of libm, memcpy, memset, memmove, the pool's"
            )
        return found

    def _reach(self, roots: list[Symbol]) -> set[int]:
        live: set[int] = set()
        todo = [s.section for s in roots if s.section]
        while todo:
            section = todo.pop()
            if id(section) in live:
                continue
            live.add(id(section))
            for r in section.relocations:
                target = self.resolve(r.symbol)
                if target is not None and target.section is not None:
                    todo.append(target.section)
        return live

    def _place(self, objects: list[tuple[str, ObjectFile]], weights: Section | None, live: set[int]) -> list[Section]:
        alloc = elf.SHF_ALLOC
        text = Section(".text", elf.SHT_PROGBITS, alloc | elf.SHF_EXECINSTR, 16)
        rodata = Section(".rodata", elf.SHT_PROGBITS, alloc, 1)
        relro = Section(".data.rel.ro", elf.SHT_PROGBITS, alloc | elf.SHF_WRITE, 8)
        constants: dict[tuple[bytes, int], int] = {}  # equal constant pools are kept once
        for where, obj in objects:
            for section in obj.sections:
                if id(section) not in live:
                    continue
                self._check(section, where)
                if section.flags & elf.SHF_EXECINSTR:
                    at = text.append(section.data(), section.align, _TEXT_FILL[self.machine])
                    self.placed[id(section)] = (text, at)
                elif any(r.kind == _ABSOLUTE[self.machine] for r in section.relocations):
                    self.placed[id(section)] = (relro, relro.append(section.data(), section.align))
                elif section.relocations:  # jump tables
                    self.placed[id(section)] = (rodata, rodata.append(section.data(), section.align))
                else:
                    key = (section.data(), section.align)
                    if key not in constants:
                        constants[key] = rodata.append(key[0], section.align)
                    self.placed[id(section)] = (rodata, constants[key])
        if weights is not None and id(weights) in live:
            self.placed[id(weights)] = (weights, 0)
        elif weights is not None:
            weights = None  # no step uses them
        return [s for s in (text, rodata, relro, weights) if s is not None and s.size]

    def _check(self, section: Section, where: str) -> None:
        name = section.name
        if section.kind != elf.SHT_PROGBITS or not section.flags & elf.SHF_ALLOC or section.flags & elf.SHF_TLS:
            raise InternalError(
                f"section {name} of an unexpected kind is used", where=where, got=f"type {section.kind}"
            )
        if section.flags & elf.SHF_WRITE and not name.startswith(".data.rel.ro"):
            raise InternalError(f"writable section {name}", where=where, expected="code and constants only")

    def _name_symbols(self, public: tuple[str, ...], objects: list[tuple[str, ObjectFile]]) -> None:
        """Keeps public names, local functions (for profilers) and the architecture's mapping symbols ($x, $d)."""
        for _, obj in objects:
            for s in obj.symbols:
                if s.section is None or id(s.section) not in self.placed:
                    continue
                if s.binding != elf.STB_LOCAL and self.defined[s.name] is not s:
                    continue  # another object's definition won
                mapping = s.kind == elf.STT_NOTYPE and s.name.startswith("$")
                if s.name in public or s.kind == elf.STT_FUNC or mapping:
                    self._output_symbol(s, public=s.name in public)

    def _output_symbol(self, s: Symbol, *, public: bool = False) -> Symbol:
        known = self.renamed.get(id(s))
        if known is None:
            assert s.section is not None
            section, at = self.placed[id(s.section)]
            binding = elf.STB_GLOBAL if public else elf.STB_LOCAL
            known = Symbol(s.name, section, at + s.value, s.size, binding, s.kind)
            self.renamed[id(s)] = known
        return known

    def _relocate(self, source: Section) -> None:
        section, at = self.placed[id(source)]
        for r in source.relocations:
            target = self.resolve(r.symbol)
            symbol, addend = self._target(r, target)
            section.relocations.append(Relocation(at + r.offset, r.kind, symbol, addend))

    def _target(self, r: Relocation, target: Symbol | None) -> tuple[Symbol, int]:
        if target is None:
            name = r.symbol.name
            known = self.undefined.setdefault(name, Symbol(name, binding=elf.STB_GLOBAL))
            return known, r.addend
        if target.section is None:
            raise InternalError(f"relocation against absolute symbol {target.name}")
        if id(target) in self.renamed:
            return self.renamed[id(target)], r.addend
        if r.kind in _GOT_KINDS[self.machine]:  # a GOT entry holds a symbol: it cannot take an addend
            return self._output_symbol(target), r.addend
        section, at = self.placed[id(target.section)]
        symbol = self.section_symbols.get(id(section))
        if symbol is None:
            symbol = Symbol("", section, kind=elf.STT_SECTION)
            self.section_symbols[id(section)] = symbol
        return symbol, r.addend + at + target.value
