"""Constant arrays as C text: exact, and fast to write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irc.backends.c.numbers import ctype, integer, real
from irc.ir.types import Array


def array_text(name: str, array: Array) -> str:
    """`static const` array of the numbers of `array`, exact."""
    return "".join(array_chunks(name, array))


def array_chunks(name: str, array: Array) -> Sequence[str]:
    """The same in pieces. Types without a C type are written as their bits."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype == np.bool_:
        flat = flat.view(np.uint8)
    if flat.dtype.kind not in "iuf" or flat.dtype == np.float16:
        flat = flat.view(f"uint{8 * flat.dtype.itemsize}")
    kind = ctype(flat.dtype.name)
    out = [f"static const {kind} {name}[{max(flat.size, 1)}] = {{\n"]
    if flat.size == 0:
        out.append("0\n")
    step = 65536
    for first in range(0, flat.size, step):
        out.append(_numbers(flat[first : first + step]))
    out.append("};\n")
    return out


_BYTES = {"int8": [str(i - 128) for i in range(256)], "uint8": [str(i) for i in range(256)]}


def _numbers(piece: Array) -> str:
    """Comma separated, some to a line."""
    dtype = piece.dtype.name
    if dtype in _BYTES:
        table = _BYTES[dtype]
        shift = 128 if dtype == "int8" else 0
        words = [table[i] for i in (piece.astype(np.int16) + shift).tolist()]
    elif dtype.startswith("float"):
        words = [real(v, dtype) for v in piece.tolist()]
    elif dtype in ("int16", "uint16"):
        words = [str(v) for v in piece.tolist()]
    else:
        words = [integer(v, dtype) for v in piece.tolist()]
    per_line = {1: 32, 2: 20}.get(piece.dtype.itemsize, 8)
    lines = [",".join(words[i : i + per_line]) for i in range(0, len(words), per_line)]
    return ",\n".join(lines) + ",\n"
