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

_ALIGNED = """\
#if defined(__GNUC__)
#define IRC_ALIGNED __attribute__((aligned(16)))
#define IRC_APART __attribute__((noinline))
#else
#define IRC_ALIGNED
#define IRC_APART
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


_WINDOW = """\
/* Rows of an image from `row`, `column` on, side by side: kh rows of kw places of `count` channels. */
static IRC_APART void irc_window_@S@(@T@ *IRC_RESTRICT to, const @F@ *x, int32_t row, int32_t column, int32_t kh, int32_t kw,
    int32_t dh, int32_t dw, int32_t height, int32_t width, int32_t sh, int32_t sw, int32_t count@FILL@)
{
    for (int32_t i = 0; i < kh; i++, row += dh) {
        for (int32_t j = 0; j < kw;) {
            const int32_t c = column + j * dw, inside = row >= 0 && row < height && c >= 0 && c < width;
            int32_t k = 0, n = count;
            if (inside && dw == 1 && sw == count) n *= (width - c < kw - j ? width - c : kw - j);
            if (inside) irc_widen_@S@(to, x + (row * sh + c * sw), k = n);
            for (; k < n; k++) to[k] = @VALUE@;
            to += n;
            j += n / count;
        }
    }
}"""


_WIDEN = """\
static void irc_widen_@S@(@T@ *IRC_RESTRICT to, const @F@ *IRC_RESTRICT from, int32_t n)
{
    for (; n >= 16; n -= 16, to += 16, from += 16)
        for (int32_t l = 0; l < 16; l++) to[l] = from[l];
    while (n-- > 0) *to++ = *from++;
}"""


def _window(suffix: str, to: str, source: str, fill: bool, *, widen: bool = False) -> str:
    values = {"S": suffix, "T": to, "F": source, "FILL": ", int32_t fill" if fill else ""}
    values["VALUE"] = f"({to})fill" if fill else "0"
    text = _WIDEN if widen else _WINDOW
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _dot(places: int) -> str:
    """Sums of `places` arrays of 16 * n numbers, each times the same weights; every 16th of acc."""
    sums = ", ".join(f"s{p} = 0" for p in range(places))
    arrays = ["*const x0 = x"] + [f"*const x{p} = x{p - 1} + m" for p in range(1, places)]
    steps = " ".join(f"s{p} += x{p}[i] * w[i];" for p in range(places))
    ends = " ".join(f"acc[{16 * p}] = s{p};" for p in range(places))
    return f"""\
static IRC_APART void irc_dot{places}(const int16_t *x, ptrdiff_t n, const int8_t *w, int32_t *acc)
{{
    const ptrdiff_t m = 16 * n;
    const int16_t {", ".join(arrays)};
    int32_t {sums};
    for (ptrdiff_t i = 0; i < m; i++) {{ {steps} }}
    {ends}
}}"""


_ROWS = """\
/* Sums of an array of 16 * n numbers times four rows of weights. */
static IRC_APART void irc_rows4(const int16_t *x, ptrdiff_t n, const int8_t *w, ptrdiff_t apart, int32_t *acc)
{
    const ptrdiff_t m = 16 * n;
    const int8_t *const w1 = w + apart, *const w2 = w1 + apart, *const w3 = w2 + apart;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (ptrdiff_t i = 0; i < m; i++) { s0 += x[i] * w[i]; s1 += x[i] * w1[i]; s2 += x[i] * w2[i]; s3 += x[i] * w3[i]; }
    acc[0] = s0; acc[1] = s1; acc[2] = s2; acc[3] = s3;
}"""

_HELPERS = {
    "irc_rows4": _ROWS,
    "irc_widen_s8": _window("s8", "int16_t", "int8_t", True, widen=True),
    "irc_widen_f32": _window("f32", "float", "float", False, widen=True),
    "irc_window_s8": _window("s8", "int16_t", "int8_t", True),
    "irc_window_f32": _window("f32", "float", "float", False),
    **{f"irc_dot{n}": _dot(n) for n in (1, 4, 8)},
    "irc_least": "static inline int32_t irc_least(int32_t a, int32_t b) { return a < b ? a : b; }",
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
    """What stands before `code`: headers, macros, and the helpers that it uses, and those that these use."""
    words = set(re.findall(r"\b(?:irc|IRC)_\w+", code))
    while True:
        more = {w for n in words if n in _HELPERS for w in re.findall(r"\b(?:irc|IRC)_\w+", _HELPERS[n])}
        if more <= words:
            break
        words |= more
    out = [PREAMBLE]
    if words & {"IRC_ALIGNED", "IRC_APART"}:
        out.append(_ALIGNED)
    if "IRC_FENCE" in words:
        out.append(_FENCE)
    out += [text for name, text in _HELPERS.items() if name in words]
    return "\n".join([*out, ""])
