"""Types and literals of C."""

from __future__ import annotations

import math
from typing import Any

from irc.errors import UnsupportedError

_TYPES = {
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    **{f"{sign}int{n}": f"{sign}int{n}_t" for sign in ("", "u") for n in (8, 16, 32, 64)},
}


def ctype(dtype: Any) -> str:
    name = str(dtype)
    if name not in _TYPES:
        raise UnsupportedError(f"C has no type {name}")
    return _TYPES[name]


def integer(value: int, dtype: str) -> str:
    """A literal. Numbers in parentheses and without suffix are what `merge.py` makes parameters of."""
    if dtype == "uint32":
        return f"{value}u"
    if dtype == "uint64":
        return f"{value}ull"
    if dtype == "int64" and not -(2**31) < value < 2**31:
        return "(-9223372036854775807ll - 1)" if value == -(2**63) else f"({value}ll)"
    if value == -(2**31):
        return "(-2147483647 - 1)"
    return str(value) if value >= 0 else f"({value})"


def real(value: float, dtype: str) -> str:
    """A literal that reads back as the same number: 9 (17) digits are enough for float (double)."""
    if math.isnan(value):
        return "((float)NAN)" if dtype == "float32" else "((double)NAN)"
    if math.isinf(value):
        text = "((float)INFINITY)" if dtype == "float32" else "((double)INFINITY)"
        return text if value > 0 else f"(-{text})"
    text = f"{value:.9g}" if dtype == "float32" else f"{value:.17g}"
    if "." not in text and "e" not in text:
        text += ".0"
    text += "f" if dtype == "float32" else ""
    return f"({text})" if text.startswith("-") else text
