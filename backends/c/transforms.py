"""Winograd's transforms along one axis, as C functions: a constant matrix times columns of numbers (`tvm/winograd.py`).

A column has its numbers `from` apart; `n` columns lie side by side, a multiple of four. Results are `to` apart and may
take the place of what was read. Columns are handled four at a time where the compiler has vectors (`helpers.py`).
"""

from __future__ import annotations

from fractions import Fraction

from irc.backends.c.numbers import real
from irc.backends.tvm.winograd import Matrix, Term, input_matrix, output_matrix, product

COLUMNS = """\
/* Neighbouring columns of a transform. */
#ifdef IRC_VECTORS
typedef irc_v4 irc_columns4;
typedef irc_u4 irc_memory4;
#else
typedef float irc_columns4;
typedef float irc_memory4;
#endif
#define IRC_FROM(p) (*(const irc_memory4 *)(p))
#define IRC_TO(p) (*(irc_memory4 *)(p))
"""

_FUNCTION = """\
static IRC_APART void {name}(const float *x, ptrdiff_t from, float *y, ptrdiff_t to, int32_t n)
{{
    enum {{ many = sizeof(irc_columns4) / sizeof(float) }};
    for (; n > 0; n -= many, x += many, y += many) {{
        {lines}
    }}
}}"""

_SIZES = ((2, 3), (4, 3), (2, 5), (3, 2), (5, 2), (3, 4))
"""(outputs, taps) of the tiles that there are."""


class _Text(str):
    """A term of C that can be added to others."""

    def __add__(self, other: str) -> _Text:
        return _Text(f"{self} + {other}")

    def __sub__(self, other: str) -> _Text:
        return _Text(f"{self} - {other}")


def input_name(size: int) -> str:
    return f"irc_winograd_in{size}"


def output_name(outputs: int, size: int) -> str:
    return f"irc_winograd_out{outputs}_{size}"


def transforms() -> dict[str, str]:
    """The functions by their names."""
    found = {}
    for outputs, taps in _SIZES:
        size = outputs + taps - 1
        found[input_name(size)] = _function(input_name(size), input_matrix(outputs, taps))
        found[output_name(outputs, size)] = _function(output_name(outputs, size), output_matrix(outputs, taps))
    return found


def _function(name: str, matrix: Matrix) -> str:
    lines: list[str] = []

    def let(term: Term) -> Term:
        lines.append(f"const irc_columns4 t{len(lines)} = {term};")
        return _Text(f"t{len(lines) - 1}")

    def times(term: Term, factor: Fraction) -> Term:
        return _Text(f"{term} * {real(float(factor), 'float32')}")

    values = [let(_Text(f"IRC_FROM(x + {i} * from)" if i else "IRC_FROM(x)")) for i in range(len(matrix[0]))]
    results = product(matrix, values, let, times)
    lines += [f"IRC_TO(y + {i} * to) = {term};" if i else f"IRC_TO(y) = {term};" for i, term in enumerate(results)]
    return _FUNCTION.format(name=name, lines="\n        ".join(lines))
