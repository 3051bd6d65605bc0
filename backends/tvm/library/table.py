"""All operators with a definition of ours: (domain, operator) -> definition. No registration: one file, one dict."""

from __future__ import annotations

from irc.backends.tvm.library import (
    conv,
    elementwise,
    fourier,
    gather,
    linear,
    move,
    pool,
    quantize,
    recurrent,
    reduce,
    regions,
    resize,
    sort,
)
from irc.backends.tvm.library.elementwise import Definition

FAMILIES = (conv, elementwise, fourier, gather, linear, move, pool, quantize, recurrent, reduce, regions, resize, sort)

OPERATORS: dict[tuple[str, str], Definition] = {
    ("", name): definition for family in FAMILIES for name, definition in family.OPERATORS.items()
}
