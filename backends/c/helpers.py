"""The functions that printed kernels call: only those that a source uses are put into it."""

from __future__ import annotations

import re

PREAMBLE = """\
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) || defined(_MSC_VER)
#define IRC_RESTRICT __restrict
#elif defined(__cplusplus)
#define IRC_RESTRICT
#else
#define IRC_RESTRICT restrict
#endif
"""

_FENCE = """\
/* A product that is added to something is rounded first: the same bits with and without fused multiply-adds. */
#if defined(__clang__) || !defined(__GNUC__)
#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off)
#else
#pragma STDC FP_CONTRACT OFF
#endif
#define IRC_FENCE(x) (x)
#elif __GNUC__ >= 12
#define IRC_FENCE(x) __builtin_assoc_barrier(x)
#else
#pragma GCC optimize("fp-contract=off")
#define IRC_FENCE(x) (x)
#endif
"""


def _extremes() -> dict[str, str]:
    found = {}
    for dtype, kind in (
        ("float32", "float"),
        ("float64", "double"),
        ("int32", "int32_t"),
        ("uint32", "uint32_t"),
        ("int64", "int64_t"),
        ("uint64", "uint64_t"),
    ):
        for op, sign in (("max", ">"), ("min", "<")):
            name = f"irc_{op}_{dtype}"
            found[name] = f"static inline {kind} {name}({kind} a, {kind} b) {{ return a {sign} b ? a : b; }}"
    return found


def _bits() -> dict[str, str]:
    found = {}
    for real, kind, bits in (("float32", "float", "uint32_t"), ("float64", "double", "uint64_t")):
        found[f"irc_bits_of_{real}"] = (
            f"static inline {bits} irc_bits_of_{real}({kind} x) {{ {bits} y; memcpy(&y, &x, sizeof y); return y; }}"
        )
        found[f"irc_{real}_of_bits"] = (
            f"static inline {kind} irc_{real}_of_bits({bits} x) {{ {kind} y; memcpy(&y, &x, sizeof y); return y; }}"
        )
    return found


_HELPERS = {
    **_extremes(),
    **_bits(),
    "irc_floordiv": (
        "static inline int32_t irc_floordiv(int32_t a, int32_t b) "
        "{ return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }"
    ),
    "irc_floormod": (
        "static inline int32_t irc_floormod(int32_t a, int32_t b) "
        "{ int32_t r = a % b; return r != 0 && (r < 0) != (b < 0) ? r + b : r; }"
    ),
}


def preamble(code: str) -> str:
    """What stands before `code`: headers, macros, and the helpers that it uses."""
    words = set(re.findall(r"\b(?:irc|IRC)_\w+", code))
    out = [PREAMBLE]
    if "IRC_FENCE" in words:
        out.append(_FENCE)
    out += [text for name, text in _HELPERS.items() if name in words]
    return "\n".join([*out, ""])
