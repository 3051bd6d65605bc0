"""Relocation kinds of x86-64 and aarch64: what each one asks for and how its bits are put in place.

Specifications: System V ABI AMD64 supplement, table 4.9; ELF for the Arm 64-bit Architecture (AAELF64), section 5.7.
"""

from __future__ import annotations

import enum
import struct

from irc.backends.artifact import elf
from irc.errors import InternalError


class Wants(enum.Enum):
    """What a relocation refers to."""

    ADDRESS = "address"  # 64-bit absolute: the loader must add the load address
    NEAR = "near"  # a place in this library, relative to the instruction
    CALL = "call"  # a function, which may be outside: through a stub
    GOT = "got"  # the entry of the global offset table that holds the address


_X86 = {
    1: Wants.ADDRESS,  # 64
    2: Wants.NEAR,  # PC32
    24: Wants.NEAR,  # PC64
    4: Wants.CALL,  # PLT32
    9: Wants.GOT,  # GOTPCREL
    41: Wants.GOT,  # GOTPCRELX
    42: Wants.GOT,  # REX_GOTPCRELX
}
_ARM = {
    257: Wants.ADDRESS,  # ABS64
    260: Wants.NEAR,  # PREL64
    261: Wants.NEAR,  # PREL32
    273: Wants.NEAR,  # LD_PREL_LO19
    274: Wants.NEAR,  # ADR_PREL_LO21
    275: Wants.NEAR,  # ADR_PREL_PG_HI21
    276: Wants.NEAR,  # ADR_PREL_PG_HI21_NC
    277: Wants.NEAR,  # ADD_ABS_LO12_NC
    278: Wants.NEAR,  # LDST8_ABS_LO12_NC
    279: Wants.NEAR,  # TSTBR14
    280: Wants.NEAR,  # CONDBR19
    282: Wants.CALL,  # JUMP26
    283: Wants.CALL,  # CALL26
    284: Wants.NEAR,  # LDST16_ABS_LO12_NC
    285: Wants.NEAR,  # LDST32_ABS_LO12_NC
    286: Wants.NEAR,  # LDST64_ABS_LO12_NC
    299: Wants.NEAR,  # LDST128_ABS_LO12_NC
    311: Wants.GOT,  # ADR_GOT_PAGE
    312: Wants.GOT,  # LD64_GOT_LO12_NC
    314: Wants.CALL,  # PLT32
}
_LO12_SHIFT = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4, 312: 3}


def wants(machine: int, kind: int) -> Wants:
    """Raises InternalError for kinds that position independent code has no use for (such as R_X86_64_32)."""
    found = {elf.EM_X86_64: _X86, elf.EM_AARCH64: _ARM}[machine].get(kind)
    if found is None:
        raise InternalError(f"relocation kind {kind} in code that must be position independent")
    return found


def apply(machine: int, code: bytearray, offset: int, kind: int, target: int, place: int) -> None:
    """Writes the reference at `code[offset]`, which will be at address `place`, to the address `target`.

    `target` includes the addend. Raises InternalError when the distance does not fit.
    """
    if machine == elf.EM_X86_64:
        _apply_x86(code, offset, kind, target - place)
    else:
        _apply_arm(code, offset, kind, target, place)


def _apply_x86(code: bytearray, offset: int, kind: int, distance: int) -> None:
    if kind == 24:
        struct.pack_into("<q", code, offset, distance)
    else:
        struct.pack_into("<i", code, offset, _fit(distance, 32, kind))


def _apply_arm(code: bytearray, offset: int, kind: int, target: int, place: int) -> None:
    distance = target - place
    if kind == 260:
        struct.pack_into("<q", code, offset, distance)
        return
    if kind in (261, 314):
        struct.pack_into("<i", code, offset, _fit(distance, 32, kind))
        return
    pages = (target >> 12) - (place >> 12)
    if kind in (282, 283):
        _insert(code, offset, _fit(distance >> 2, 26, kind), 26, 0)
    elif kind in (273, 280):
        _insert(code, offset, _fit(distance >> 2, 19, kind), 19, 5)
    elif kind == 279:
        _insert(code, offset, _fit(distance >> 2, 14, kind), 14, 5)
    elif kind in (274, 275, 276, 311):
        value = distance if kind == 274 else pages
        value = _fit(value, 21, kind) if kind != 276 else value
        _insert(code, offset, value & 3, 2, 29)
        _insert(code, offset, value >> 2, 19, 5)
    else:
        low, shift = target & 0xFFF, _LO12_SHIFT[kind]
        if low & ((1 << shift) - 1):
            raise InternalError(f"relocation kind {kind} to a misaligned address {target:#x}")
        _insert(code, offset, low >> shift, 12, 10)


def _fit(value: int, bits: int, kind: int) -> int:
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise InternalError(f"relocation kind {kind} does not reach: {value:#x} needs more than {bits} bits")
    return value


def _insert(code: bytearray, offset: int, value: int, bits: int, at: int) -> None:
    mask = ((1 << bits) - 1) << at
    (word,) = struct.unpack_from("<I", code, offset)
    struct.pack_into("<I", code, offset, (word & ~mask) | ((value << at) & mask))


STUB_BYTES = 16


def stub(machine: int, place: int, entry: int) -> bytes:
    """Code at address `place` that jumps to the address stored at `entry`."""
    if machine == elf.EM_X86_64:
        distance = struct.pack("<i", _fit(entry - (place + 6), 32, 2))
        return b"\xff\x25" + distance + b"\xcc" * 10  # jmp *entry(%rip)
    # adrp x16, entry; ldr x17, [x16, #lo12]; br x17; nop
    code = bytearray(struct.pack("<IIII", 0x90000010, 0xF9400211, 0xD61F0220, 0xD503201F))
    _apply_arm(code, 0, 275, entry, place)
    _apply_arm(code, 4, 286, entry, place + 4)
    return bytes(code)
