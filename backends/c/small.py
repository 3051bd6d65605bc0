"""Kernels in two forms: a fast one, and a small one where the compiler is asked for small code (-Os)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BOTH = re.compile(r"^#ifdef __OPTIMIZE_SIZE__\n(.*?)^#else\n(.*?)^#endif\n", re.MULTILINE | re.DOTALL)
_FAST = re.compile(r"\birc_(?:tiles\d|fours\d|depthwise)\b")

CONV = """\
/* The small form of convolutions and products: the image and the results without gaps, channels in fours, weights as
   those of the fast forms. */
static IRC_APART void irc_conv_f32(const float *x, const float *w, const float *bias, const float *other, float *y,
    const uint16_t *numbers)
{
    const int32_t kh = numbers[2], kw = numbers[3], height = numbers[8], width = numbers[9];
    const int32_t ic = numbers[10], oc = numbers[11], apart = numbers[12]; /* apart: 1 where channels are apart */
    for (int32_t h = 0; h < numbers[0]; h++) {
        for (int32_t v = 0; v < numbers[1]; v++) {
            const float *first = w;
            for (int32_t o = 0; o < oc; o += 4) {
                const int32_t columns = apart ? oc : oc - (o & ~7) < 8 ? 4 : 8;
                const float *from = first;
                float s[4], s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
                for (int32_t i = 0; i < kh; i++) {
                    for (int32_t j = 0; j < kw; j++) {
                        const int32_t row = h * numbers[4] - numbers[5] + i, column = v * numbers[6] - numbers[7] + j;
                        int32_t n = apart ? 1 : ic;
                        if (row < 0 || row >= height || column < 0 || column >= width) {
                            from += n * columns;
                            continue;
                        }
                        const float *data = x + ((row * width + column) * ic + o * apart);
                        for (; n > 0; n--, data++, from += columns) {
                            s0 += data[0] * from[0];
                            s1 += data[apart] * from[1];
                            s2 += data[2 * apart] * from[2];
                            s3 += data[3 * apart] * from[3];
                        }
                    }
                }
                first = (o & 4) && !apart ? from - 4 : first + 4;
                s[0] = s0;
                s[1] = s1;
                s[2] = s2;
                s[3] = s3;
                for (int32_t c = 0; c < 4; c++) {
                    float t = s[c] + bias[o + c];
                    if (other != NULL) t += *other++;
                    *y++ = numbers[13] && 0.0f > t ? 0.0f : t;
                }
            }
        }
    }
}"""
"""Numbers: extents of the output, kernel, (stride, padding) of rows and of columns, extents of the image, its channels,
those of the output, whether each channel is convolved for itself, whether results below zero become zero."""


def either(small: Sequence[str], fast: Sequence[str]) -> list[str]:
    """The lines of a kernel's body: what stands between its braces."""
    return ["#ifdef __OPTIMIZE_SIZE__", *small, "#else", *fast, "#endif"]


def form(text: str, *, small: bool) -> str:
    """What compilers see of `text`."""
    return _BOTH.sub(r"\1" if small else r"\2", text)


def chosen(texts: dict[str, str]) -> dict[str, str]:
    """Kernels by symbol, with their small forms only where these are all that small code needs: beside the functions of
    fast convolutions they would add to it."""
    if any(_FAST.search(form(text, small=True)) for text in texts.values()):
        return {symbol: form(text, small=False) for symbol, text in texts.items()}
    return texts
