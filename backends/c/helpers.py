"""The functions that printed kernels call: only those that a source uses are put into it."""

from __future__ import annotations

import re

from irc.backends.c.small import CONV, form
from irc.backends.c.transforms import COLUMNS, transforms

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

_GENERAL = """\
/* Of functions that are not made again for known arguments: comparisons with known numbers become branches or masks. */
#if defined(__GNUC__) && !defined(__clang__)
#define IRC_GENERAL __attribute__((noinline, noclone))
#else
#define IRC_GENERAL
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


_WINDOW_BYTES = """\
/* Rows of an image from `row`, `column` on, side by side: kh rows of kw places of `count` channels. */
static IRC_APART void irc_window_s8(int16_t *IRC_RESTRICT to, const int8_t *x, int32_t row, int32_t column, int32_t kh,
    int32_t kw, int32_t dh, int32_t dw, int32_t height, int32_t width, int32_t sh, int32_t sw, int32_t count,
    int32_t fill)
{
    for (int32_t i = 0; i < kh; i++, row += dh) {
        for (int32_t j = 0; j < kw;) {
            const int32_t c = column + j * dw, beside = row < 0 || row >= height;
            int32_t n = count;
            if (beside) n *= kw - j;
            if (!beside && c >= 0 && c < width) {
                if (dw == 1 && sw == count) n *= (width - c < kw - j ? width - c : kw - j);
                irc_widen_s8(to, x + (row * sh + c * sw), n);
            } else {
                irc_fill(to, n, (int16_t)fill);
            }
            to += n;
            j += n / count;
        }
    }
}"""

_FILL = """\
static void irc_fill(int16_t *to, int32_t n, int16_t value)
{
    for (; n >= 16; n -= 16, to += 16)
        for (int32_t l = 0; l < 16; l++) to[l] = value;
    while (n-- > 0) *to++ = value;
}"""

_WIDEN = """\
static void irc_widen_s8(int16_t *IRC_RESTRICT to, const int8_t *IRC_RESTRICT from, int32_t n)
{
    for (; n >= 16; n -= 16, to += 16, from += 16)
        for (int32_t l = 0; l < 16; l++) to[l] = from[l];
    while (n-- > 0) *to++ = *from++;
}"""

_WINDOW_REAL = """\
/* Rows of an image from `row`, `column` on, kh rows of kw places of `count` channels: where they are in the image, or,
   where some lie outside, side by side at `to`, with zeros. *apart: how far the rows are from each other. */
static IRC_APART const float *irc_window_f32(float *to, const float *x, int32_t row, int32_t column, int32_t kh,
    int32_t kw, int32_t dh, int32_t dw, int32_t height, int32_t width, int32_t sh, int32_t sw, int32_t count,
    ptrdiff_t *apart)
{
    const float *const window = to;
    const int32_t below = row + (kh - 1) * dh, beside = column + (kw - 1) * dw;
    *apart = dh * sh;
    if ((kw == 1 || (dw == 1 && sw == count)) && row >= 0 && column >= 0 && below < height && beside < width)
        return x + (row * sh + column * sw);
    *apart = kw * count;
    for (int32_t h = row; h <= below; h += dh) {
        for (int32_t v = column; v <= beside; v += dw) {
            if (h >= 0 && h < height && v >= 0 && v < width)
                memcpy(to, x + (h * sh + v * sw), (size_t)count * sizeof(*to));
            else
                memset(to, 0, (size_t)count * sizeof(*to));
            to += count;
        }
    }
    return window;
}"""


def _dot(places: int, apart: int) -> str:
    """Sums of `places` arrays of 16 * n numbers, `apart` numbers apart, each times the same `rows` rows of weights;
    every 16th of acc. A known distance makes one address of those of all arrays."""
    sums = ", ".join(f"s{p} = 0" for p in range(places))
    steps = " ".join(f"s{p} += x[i{f' + {p * apart}' if p else ''}] * w[i];" for p in range(places))
    ends = " ".join(f"acc[{16 * p}] = s{p};" for p in range(places))
    name = f"irc_dot{places}_{apart}" if apart else f"irc_dot{places}"
    return f"""\
static IRC_APART void {name}(const int16_t *x, ptrdiff_t n, const int8_t *w, ptrdiff_t length, int32_t rows,
    int32_t *acc)
{{
    const ptrdiff_t m = 16 * n;
    if (n <= 0) return; /* never: compilers need not keep zeros for it */
    for (; rows > 0; rows--, w += length, acc++) {{
        int32_t {sums};
        for (ptrdiff_t i = 0; i < m; i++) {{ {steps} }}
        {ends}
    }}
}}"""


DISTANCES = (*range(64, 1024, 64), *(2**n for n in range(10, 25)))
"""How far windows may be from another: few distances, for each of which there is a function, and little unused."""

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

_VECTORS = """\
/* Vectors of four where the machine has them and small code was not asked for; define IRC_NO_VECTORS to do without. */
#if defined(__GNUC__) && !defined(__OPTIMIZE_SIZE__) && !defined(IRC_NO_VECTORS) && \\
    (defined(__SSE2__) || defined(__ARM_NEON) || defined(__wasm_simd128__) || defined(__VSX__))
#define IRC_VECTORS
typedef float irc_v4 __attribute__((vector_size(16)));
typedef float irc_u4 __attribute__((vector_size(16), aligned(4), may_alias));
#endif
"""


def _tiles(places: int) -> str:
    each = range(places)
    declared = ", ".join(f"a{p} = zero, b{p} = zero" for p in each)
    arrays = ", ".join(f"*x{p} = x[{p}]" for p in each)
    steps = "\n                ".join(f"a{p} += u * x{p}[i]; b{p} += v * x{p}[i];" for p in each)
    again = "\n                ".join(f"a{p} += u1 * x{p}[i + 1]; b{p} += v1 * x{p}[i + 1];" for p in each)
    rows = " ".join(f"x{p} += apart[{p}];" for p in each)
    ends = "\n        ".join(f"*(irc_u4 *)(y[{p}] + o) = a{p}; *(irc_u4 *)(y[{p}] + o + 4) = b{p};" for p in each)
    return f"""\
/* Sums over rows of n numbers, apart[] from each other, of {places} arrays times columns of weights, 8 at a time:
   y[][o...end - 1]. */
#ifdef IRC_VECTORS
static IRC_APART void irc_tiles{places}(const float *const *x, const ptrdiff_t *apart, const float *w, int32_t n,
    int32_t rows, float *const *y, int32_t o, int32_t end)
{{
    const irc_v4 zero = {{0.0f, 0.0f, 0.0f, 0.0f}};
    for (; o < end; o += 8) {{
        irc_v4 {declared};
        const float {arrays};
        for (int32_t j = rows;;) {{
            ptrdiff_t i = 0;
            for (; i + 2 <= n; i += 2, w += 16) {{
                const irc_v4 u = *(const irc_u4 *)w, v = *(const irc_u4 *)(w + 4);
                {steps}
                const irc_v4 u1 = *(const irc_u4 *)(w + 8), v1 = *(const irc_u4 *)(w + 12);
                {again}
            }}
            if (i < n) {{
                const irc_v4 u = *(const irc_u4 *)w, v = *(const irc_u4 *)(w + 4);
                {steps}
                w += 8;
            }}
            if (--j == 0) break;
            {rows}
        }}
        {ends}
    }}
}}
#else
#define irc_tiles{places}(x, apart, w, n, rows, y, o, end) irc_columns(x, {places}, apart, w, n, rows, y, o, end)
#endif"""


def _fours(places: int) -> str:
    return f"""\
/* The same for columns of which 4 are left at the end. */
#ifdef IRC_VECTORS
static void irc_fours{places}(const float *const *x, const ptrdiff_t *apart, const float *w, int32_t n, int32_t rows,
    float *const *y, int32_t o, int32_t end)
{{
    irc_tiles{places}(x, apart, w, n, rows, y, o, end - 4);
    w += (ptrdiff_t)(end - 4 - o) * n * rows;
    for (int32_t p = 0; p < {places}; p++) {{
        const float *from = w, *data = x[p];
        irc_v4 a = {{0.0f, 0.0f, 0.0f, 0.0f}};
        for (int32_t j = rows;;) {{
            for (int32_t i = 0; i < n; i++, from += 4) a += *(const irc_u4 *)from * data[i];
            if (--j == 0) break;
            data += apart[p];
        }}
        *(irc_u4 *)(y[p] + end - 4) = a;
    }}
}}
#else
#define irc_fours{places}(x, apart, w, n, rows, y, o, end) irc_columns(x, {places}, apart, w, n, rows, y, o, end)
#endif"""


_COLUMNS = """\
#ifndef IRC_VECTORS
static IRC_APART void irc_columns(const float *const *x, int32_t places, const ptrdiff_t *apart, const float *w,
    int32_t n, int32_t rows, float *const *y, int32_t o, int32_t end)
{
    while (o < end) {
        const int32_t columns = end - o < 8 ? 4 : 8;
        for (int32_t k = 0; k < places * columns; k += 4) {
            const int32_t p = k / columns, c = k % columns;
            const float *from = w + c, *data = x[p];
            float *const to = y[p] + o + c;
            float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
            for (int32_t j = rows;;) {
                for (int32_t i = n; i > 0; i--, from += columns) {
                    const float t = *data++;
                    s0 += t * from[0];
                    s1 += t * from[1];
                    s2 += t * from[2];
                    s3 += t * from[3];
                }
                if (--j == 0) break;
                data += apart[p] - n;
            }
            to[0] = s0;
            to[1] = s1;
            to[2] = s2;
            to[3] = s3;
        }
        o += columns;
        w += (ptrdiff_t)columns * n * rows;
    }
}
#endif"""

_REST = """\
/* The same for fewer columns. */
static IRC_APART void irc_rest(const float *const *x, const ptrdiff_t *apart, const float *w, int32_t n, int32_t rows,
    float *const *y, int32_t o, int32_t places, int32_t columns)
{
    for (int32_t p = 0; p < places; p++) {
        for (int32_t c = 0; c < columns; c++) {
            const float *from = w + c, *data = x[p];
            float s = 0.0f;
            for (int32_t j = rows;;) {
                for (int32_t i = 0; i < n; i++, from += columns) s += data[i] * *from;
                if (--j == 0) break;
                data += apart[p];
            }
            y[p][o + c] = s;
        }
    }
}"""

_FINISH = """\
/* Sums, plus biases, plus other numbers where there are any, clamped. */
static IRC_GENERAL void irc_finish(float *y, const float *IRC_RESTRICT bias, const float *IRC_RESTRICT other, float low,
    float high, int32_t n)
{
#ifdef IRC_VECTORS
    for (; n >= 8; n -= 8, y += 8, bias += 8) {
        if (other != NULL) {
            for (ptrdiff_t i = 0; i < 8; i++) y[i] += other[i];
            other += 8;
        }
        for (ptrdiff_t i = 0; i < 8; i++) {
            float t = y[i] + bias[i];
            t = low > t ? low : t;
            y[i] = high < t ? high : t;
        }
    }
#endif
    for (; n > 0; n--, y++, bias++) {
        float t = *y + *bias;
        if (other != NULL) t += *other++;
        t = low > t ? low : t;
        *y = high < t ? high : t;
    }
}"""

_DEPTHWISE3 = """\
#ifdef IRC_VECTORS
/* Windows of 3 x 3 inside of the image: `places` of them, `step` from each other, all of their channels. */
static IRC_APART void irc_depthwise3(const float *x, const float *w, int32_t places, int32_t step, int32_t sh,
    int32_t sw, int32_t count, float *y, int32_t apart)
{
    for (int32_t c = 0; c < count; c += 4, x += 4, y += 4, w += 4) {
        irc_v4 u[9];
        for (int32_t i = 0; i < 9; i++) u[i] = *(const irc_u4 *)(w + i * count);
        const float *p = x, *q = x + sh, *r = q + sh;
        float *to = y;
        for (int32_t n = places; n > 0; n--, p += step, q += step, r += step, to += apart) {
            irc_v4 s = u[0] * *(const irc_u4 *)p;
            s += u[1] * *(const irc_u4 *)(p + sw);
            s += u[2] * *(const irc_u4 *)(p + 2 * sw);
            s += u[3] * *(const irc_u4 *)q;
            s += u[4] * *(const irc_u4 *)(q + sw);
            s += u[5] * *(const irc_u4 *)(q + 2 * sw);
            s += u[6] * *(const irc_u4 *)r;
            s += u[7] * *(const irc_u4 *)(r + sw);
            s += u[8] * *(const irc_u4 *)(r + 2 * sw);
            *(irc_u4 *)to = s;
        }
    }
}
#endif"""

_DEPTHWISE = """\
/* Sums of the taps of windows that are inside of the image, for each channel: `places` windows, `step` columns
   from each other. */
static IRC_APART void irc_depthwise(const float *x, const float *w, int32_t row, int32_t column, int32_t step,
    int32_t places, int32_t kh, int32_t kw, int32_t dh, int32_t dw, int32_t height, int32_t width, int32_t sh,
    int32_t sw, int32_t count, float *y, int32_t apart)
{
    int32_t i0 = 0, i1 = kh;
    while (i0 < i1 && row + i0 * dh < 0) i0++;
    while (i1 > i0 && row + (i1 - 1) * dh >= height) i1--;
    for (; places > 0; places--, column += step, y += apart) {
        int32_t j0 = 0, j1 = kw, c = 0;
#ifdef IRC_VECTORS
        if (kh == 3 && kw == 3 && i1 - i0 == 3 && count % 4 == 0 && column >= 0 && column + 2 * dw < width) {
            const int32_t most = (width - 1 - 2 * dw - column) / step + 1, n = most < places ? most : places;
            irc_depthwise3(x + (row * sh + column * sw), w, n, step * sw, dh * sh, dw * sw, count, y, apart);
            places -= n - 1;
            column += (n - 1) * step;
            y += (n - 1) * apart;
            continue;
        }
#endif
        while (j0 < j1 && column + j0 * dw < 0) j0++;
        while (j1 > j0 && column + (j1 - 1) * dw >= width) j1--;
        const float *const from = x + ((row + i0 * dh) * sh + (column + j0 * dw) * sw);
        const float *const weights = w + (i0 * kw + j0) * count;
#ifdef IRC_VECTORS
        for (; c + 8 <= count; c += 8) {
            irc_v4 a = {0.0f, 0.0f, 0.0f, 0.0f}, b = a;
            for (ptrdiff_t i = 0; i < i1 - i0; i++) {
                const float *p = from + i * dh * sh + c, *q = weights + i * kw * count + c;
                for (ptrdiff_t j = j0; j < j1; j++, p += dw * sw, q += count) {
                    a += *(const irc_u4 *)p * *(const irc_u4 *)q;
                    b += *(const irc_u4 *)(p + 4) * *(const irc_u4 *)(q + 4);
                }
            }
            *(irc_u4 *)(y + c) = a;
            *(irc_u4 *)(y + c + 4) = b;
        }
#endif
        for (; c < count; c++) {
            float s = 0.0f;
            for (int32_t i = 0; i < i1 - i0; i++) {
                const float *p = from + i * dh * sh + c, *q = weights + i * kw * count + c;
                for (int32_t j = j0; j < j1; j++, p += dw * sw, q += count) s += *p * *q;
            }
            y[c] = s;
        }
    }
}"""

_HELPERS = {
    "irc_conv_f32": CONV,
    "irc_columns": _COLUMNS,
    "irc_tiles1": _tiles(1),
    "irc_tiles4": _tiles(4),
    "irc_rest": _REST,
    "irc_fours1": _fours(1),
    "irc_fours4": _fours(4),
    **transforms(),
    "irc_finish": _FINISH,
    "irc_depthwise3": _DEPTHWISE3,
    "irc_depthwise": _DEPTHWISE,
    "irc_rows4": _ROWS,
    "irc_fill": _FILL,
    "irc_widen_s8": _WIDEN,
    "irc_window_s8": _WINDOW_BYTES,
    "irc_window_f32": _WINDOW_REAL,
    "irc_dot1": _dot(1, 0),
    **{f"irc_dot{n}_{apart}": _dot(n, apart) for n in (4, 8, 9) for apart in DISTANCES},
    "irc_hidden": (
        "/* A number that compilers do not know: comparisons with known ones become branches, which they cannot do for "
        "several\n   values at once. */\n"
        "static float irc_hidden(float x) { volatile float y = x; return y; }"
    ),
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


def _words(code: str) -> set[str]:
    """Names of ours that `code` uses, and of the helpers that it needs."""
    words = set(re.findall(r"\b(?:irc|IRC)_\w+", code))
    while True:
        more = {w for n in words if n in _HELPERS for w in re.findall(r"\b(?:irc|IRC)_\w+", _HELPERS[n])}
        if more <= words:
            return words
        words |= more


def preamble(code: str) -> str:
    """What stands before `code`: headers, macros, and the helpers that it uses, and those that these use."""
    small, fast = _words(form(code, small=True)), _words(form(code, small=False))
    words = small | fast
    out = [PREAMBLE]
    if words & {"IRC_ALIGNED", "IRC_APART"}:
        out.append(_ALIGNED)
    if words & {"IRC_VECTORS", "IRC_TO"}:
        out.append(_VECTORS)
    if "IRC_GENERAL" in words:
        out.append(_GENERAL)
    if "IRC_TO" in words:
        out.append(COLUMNS)
    if "IRC_FENCE" in words:
        out.append(_FENCE)
    for name in (n for n in _HELPERS if n in words):
        if name in small and name in fast:
            out.append(_HELPERS[name])
        else:
            out.append(f"#if{'' if name in small else 'n'}def __OPTIMIZE_SIZE__\n{_HELPERS[name]}\n#endif")
    return "\n".join([*out, ""])
