"""Kernels that differ in numbers only become one function that takes these numbers.

Layers of a network often differ in extents and strides alone. Their texts are compared token by token: where all are
equal but for literals, the literals that differ become parameters, which stand in a table for each kernel. Arrays on
the stack (their sizes are written N...) get the largest size of all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from irc.backends.c.small import either, form

_TOKEN = re.compile(
    r"[A-Za-z_]\w*"
    r"|\(-\d+\)(?![\w.])"
    r"|\([-+]INFINITY\)"
    r"|\(-(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+)f\)"
    r"|(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+)f?"
    r"|\d+\w*"
    r"|\s+|."
)
_INTEGER = re.compile(r"(\d+|\(-\d+\))\Z")
_REAL = re.compile(r"(\(?-?\d[\d.]*(?:e[-+]?\d+)?f\)?|\([-+]INFINITY\))\Z")
_SIZE = re.compile(r"N\d+\Z")
_DEFINITION = re.compile(r"^static ", re.MULTILINE)


_CONSTANTS = re.compile(r"^( +)static (const uint16_t \w+\[\d+\] = \{)(.*\bq\d+\b.*)(\};)$", re.MULTILINE)


@dataclass(frozen=True)
class Merged:
    """A function, the kernels that it stands for (`symbols`) and the numbers to call it with for each of them.
    `integers` and `reals`: whether it takes a table of them, after the kernel's own arguments. `integer_type`: what
    holds all of these integers."""

    name: str
    text: str
    symbols: tuple[str, ...]
    integers: dict[str, tuple[str, ...]]
    integer_type: str
    reals: dict[str, tuple[str, ...]]


def merge(kernels: dict[str, str]) -> list[Merged]:
    """`kernels`: text by symbol. Texts of several functions stay as they are."""
    groups: dict[object, list[tuple[str, list[str]]]] = {}
    for symbol, text in kernels.items():
        if len(_DEFINITION.findall(text)) != 1:
            groups[symbol] = [(symbol, _TOKEN.findall(text))]
            continue
        tokens = _TOKEN.findall(text)
        shape = tuple(_shape(t, symbol) for t in tokens)
        groups.setdefault(shape, []).append((symbol, tokens))
    return [_merged(members) for members in groups.values()]


def _shape(token: str, symbol: str) -> str:
    if token == symbol:
        return "@"
    if _INTEGER.match(token):
        return "#"
    if _REAL.match(token):
        return "%"
    return "N" if _SIZE.match(token) else token


def _merged(members: list[tuple[str, list[str]]]) -> Merged:
    name, first = members[0]
    columns: dict[tuple[str, ...], str] = {}
    tables: dict[str, list[tuple[str, ...]]] = {"#": [], "%": []}
    out = []
    for i, token in enumerate(first):
        values = tuple(tokens[i] for _, tokens in members)
        kind = _shape(token, name)
        if kind == "N":
            out.append(str(max(int(v[1:]) for v in values)))
        elif kind in "#%" and len(set(values)) > 1:
            known = columns.get((kind, *values))
            if known is None:
                known = f"{'q' if kind == '#' else 'r'}{len(tables[kind])}"
                columns[(kind, *values)] = known
                tables[kind].append(values)
            out.append(known)
        else:
            out.append(token)
    text = "".join(out)
    symbols = [symbol for symbol, _ in members]
    found: list[dict[str, tuple[str, ...]]] = []
    narrow = all(-(2**15) <= int(value.strip("()")) < 2**15 for column in tables["#"] for value in column)
    integer_type = "int16_t" if narrow else "int32_t"
    for kind, letter, ctype in (("#", "q", integer_type), ("%", "r", "float")):
        table = tables[kind]
        found.append({s: tuple(column[i] for column in table) for i, s in enumerate(symbols)} if table else {})
        if table:
            text = _with_table(_CONSTANTS.sub(_made_here, text), letter, ctype, len(table))
    return Merged(name, text, tuple(symbols), found[0], integer_type, found[1])


def _with_table(text: str, letter: str, ctype: str, count: int) -> str:
    """The function with one more parameter, whose elements get names at its beginning; where it has two forms, in each
    those that it uses."""
    head, body = text.split("\n{\n", 1)
    local = "float" if ctype == "float" else "int32_t"
    given = [(f"{letter}{i}", f"    const {local} {letter}{i} = {letter}_[{i}];\n") for i in range(count)]

    def named(code: str) -> str:
        used = set(re.findall(rf"\b{letter}\d+\b", code))
        return ("".join(line for name, line in given if name in used) or f"    (void){letter}_;\n") + code

    small, fast = form(body, small=True), form(body, small=False)
    head = head[: head.rindex(")")] + f", const {ctype} *IRC_RESTRICT {letter}_)"
    if small == fast:
        return f"{head}\n{{\n{named(body)}"
    end = "}\n"
    bodies = [named(code.removesuffix(end)).splitlines() for code in (small, fast)]
    return "\n".join([head, "{", *either(*bodies), end])


def _made_here(found: re.Match[str]) -> str:
    """An array of constants of which some are parameters now. C++ wants to be told that they fit."""
    indent, head, numbers, end = found.groups()
    return indent + head + re.sub(r"\bq\d+\b", r"(uint16_t)\g<0>", numbers) + end
