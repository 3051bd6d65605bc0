"""Static libraries: `ar` archives with a symbol index, in the System V / GNU format.

Specification: https://en.wikipedia.org/wiki/Ar_(Unix)#System_V_(or_GNU)_variant, llvm/lib/Object/ArchiveWriter.cpp.
As `ar D` does, times, owners and modes are constants: the same members give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from irc.backends.artifact import elf

MAGIC = b"!<arch>\n"


@dataclass(frozen=True)
class Member:
    """A file of the archive: its name, its contents in pieces, the global symbols that it defines."""

    name: str
    chunks: Sequence[elf.Bytes]
    symbols: tuple[str, ...]


def archive(members: Sequence[Member]) -> list[elf.Bytes]:
    """The archive in pieces."""
    long_names = b"".join(m.name.encode() + b"/\n" for m in members if _is_long(m.name))
    bodies = [elf.total_size(m.chunks) for m in members]
    names = b"".join(s.encode() + b"\0" for m in members for s in m.symbols)
    n_symbols = sum(len(m.symbols) for m in members)
    total = len(MAGIC) + sum(bodies) + 60 * (len(members) + 2) + len(names) + len(long_names) + 16 * n_symbols
    word, index_name = (">Q", "/SYM64/") if total >= 2**32 else (">I", "/")
    width = struct.calcsize(word)

    index_size = width * (1 + n_symbols) + len(names)
    at = len(MAGIC) + 60 + _even(index_size) + (60 + _even(len(long_names)) if long_names else 0)
    offsets = []
    for size in bodies:
        offsets.append(at)
        at += 60 + _even(size)
    index = struct.pack(word, n_symbols)
    index += b"".join(struct.pack(word, at) for m, at in zip(members, offsets, strict=True) for _ in m.symbols)
    out: list[elf.Bytes] = [MAGIC, *_file(index_name, [index + names], index_size)]
    if long_names:
        out += _file("//", [long_names], len(long_names))
    long_at = 0
    for m, size in zip(members, bodies, strict=True):
        if _is_long(m.name):
            out += _file(f"/{long_at}", m.chunks, size)
            long_at += len(m.name.encode()) + 2
        else:
            out += _file(m.name + "/", m.chunks, size)
    return out


def bsd_archive(members: Sequence[Member]) -> list[elf.Bytes]:
    """The archive in pieces, as Apple's linker wants it: BSD's format, members at multiples of 8 bytes.

    Specification: Apple's <mach-o/ranlib.h> and <ar.h>. Symbols are given as the object has them.
    """
    names = [s.encode() + b"\0" for m in members for s in m.symbols]
    text = b"".join(names)
    text += bytes(-len(text) % 8)
    index_name = b"__.SYMDEF SORTED"
    index_size = len(index_name) + 4 + 8 * len(names) + 4 + len(text)
    at, offsets = len(MAGIC) + 60 + index_size, []
    for m in members:
        offsets.append(at)
        at += 60 + _padded_name(m.name, at) + _up8(elf.total_size(m.chunks))
    entries, string = [], 0
    for m, offset in zip(members, offsets, strict=True):
        for symbol in m.symbols:
            entries.append((symbol, struct.pack("<II", string, offset)))
            string += len(symbol.encode()) + 1
    table = b"".join(entry for _, entry in sorted(entries))
    index = index_name + struct.pack("<I", len(table)) + table + struct.pack("<I", len(text)) + text
    out: list[elf.Bytes] = [MAGIC, _bsd_header(len(index_name), index_size), index]
    for m, offset in zip(members, offsets, strict=True):
        name = m.name.encode().ljust(_padded_name(m.name, offset), b"\0")
        size = elf.total_size(m.chunks)
        out += [_bsd_header(len(name), len(name) + _up8(size)), name, *m.chunks, bytes(_up8(size) - size)]
    return out


def _up8(n: int) -> int:
    return -(-n // 8) * 8


def _padded_name(name: str, at: int) -> int:
    """Bytes of a member's name, so that its contents begin at a multiple of 8."""
    start = at + 60 + len(name.encode()) + 1
    return len(name.encode()) + 1 + -start % 8


def _bsd_header(name_bytes: int, size: int) -> bytes:
    return f"{f'#1/{name_bytes}':<16}{0:<12}{0:<6}{0:<6}{644:<8}{size:<10}`\n".encode()


def _is_long(name: str) -> bool:
    return len(name.encode()) > 15


def _even(n: int) -> int:
    return n + n % 2


def _file(name: str, chunks: Sequence[elf.Bytes], size: int) -> list[elf.Bytes]:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{size:<10}`\n".encode()
    if len(header) != 60:
        raise ValueError(f"archive member {name} of {size} bytes does not fit its header")
    return [header, *chunks, *([b"\n"] if size % 2 else [])]
