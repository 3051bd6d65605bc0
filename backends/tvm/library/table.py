"""All operators with a definition of ours: (domain, operator) -> definition. No registration: one file, one dict."""

from __future__ import annotations

from irc.backends.tvm.library import elementwise
from irc.backends.tvm.library.elementwise import Definition

OPERATORS: dict[tuple[str, str], Definition] = {
    ("", name): definition for family in (elementwise,) for name, definition in family.OPERATORS.items()
}
