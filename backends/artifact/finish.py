"""What is changed in the ELF object that LLVM makes of a module, so that linkers for bare machines take it.

ELF for the Arm Architecture and "Addenda to, and Errata in, the ABI for the Arm Architecture" (build attributes).
"""

from __future__ import annotations

import struct

from irc.backends.artifact import elf
from irc.backends.artifact.sections import uleb
from irc.errors import InternalError
from irc.targets.target import Target

_SHT_ARM_ATTRIBUTES = 0x70000003
_VFP_ARGS, _COMPATIBLE = 28, 3


def finished_elf(data: bytes, target: Target, *, floats: bool) -> bytes:
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
        tag, at = uleb(body, at)
        if tag in (4, 5, 67):
            at = body.index(b"\0", at) + 1
        else:
            _, at = uleb(body, at)
            if tag == 32:
                at = body.index(b"\0", at) + 1
        if tag != _VFP_ARGS:
            out += body[start:at]
    out += bytes([_VFP_ARGS, _COMPATIBLE])
    attributes = b"\x01" + struct.pack("<I", len(out) + 5) + out
    vendor = section[5:vendor_end]
    return b"A" + struct.pack("<I", 4 + len(vendor) + len(attributes)) + vendor + attributes
