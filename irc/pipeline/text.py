"""The pipeline grammar, text -> elements.

    pipeline := [ element { "," element } ]
    element  := name [ "{" { option } "}" ] | "(" pipeline ")" "*" | preset name
    option   := name "=" value | name                  (`name` alone means `name=true`)
    value    := atom { "," atom } | "()"               (several atoms, or "()", are a tuple)
    atom     := bare word | JSON string

`( ... )*` repeats its passes until none of them changes the model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from irc.errors import OptionError, suggest
from irc.pipeline import options, table
from irc.pipeline.contract import Pass
from irc.pipeline.options import Atom, pass_text
from irc.pipeline.presets import PRESETS

_TOKEN = re.compile(r'\s*(?:(?P<word>[^\s{}()",=*]+)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<sign>[{}(),=*]))')


@dataclass(frozen=True)
class Repeat:
    """Passes that run again and again until a whole round changes nothing."""

    passes: tuple[Element, ...]

    def __str__(self) -> str:
        return f"({','.join(element_text(e) for e in self.passes)})*"


Element = Pass | Repeat


def element_text(element: Element) -> str:
    return str(element) if isinstance(element, Repeat) else pass_text(element)


def parse(text: str) -> tuple[Element, ...]:
    """The elements of a pipeline text. Raises OptionError that quotes the place."""
    return _Parser(text).pipeline()


class _Parser:
    """Recursive descent over the tokens; a token is (kind, text, position)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        self.at = 0
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error("cannot be read", position)
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind], match.start(kind)))
            position = match.end()
        self.tokens.append(("end", "", len(text)))

    def _error(self, what: str, position: int, expected: str = "") -> OptionError:
        place = self.text[position : position + 20] or "its end"
        return OptionError(f"pipeline text {what} at '{place}'", where=f"pipeline '{self.text}'", expected=expected)

    def _peek(self, text: str) -> bool:
        kind, found, _ = self.tokens[self.at]
        return kind == "sign" and found == text

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self.at += 1
            return True
        return False

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise self._error("is wrong", self.tokens[self.at][2], expected=f"'{text}'")

    def _word(self, what: str) -> str:
        kind, found, position = self.tokens[self.at]
        if kind != "word":
            raise self._error("is wrong", position, expected=what)
        self.at += 1
        return found

    def pipeline(self) -> tuple[Element, ...]:
        elements = self._elements()
        if self.tokens[self.at][0] != "end":
            raise self._error("is wrong", self.tokens[self.at][2], expected="',' between passes")
        return elements

    def _elements(self) -> tuple[Element, ...]:
        if self.tokens[self.at][0] == "end" or self._peek(")"):
            return ()
        found = [*self._element()]
        while self._take(","):
            found.extend(self._element())
        return tuple(found)

    def _element(self) -> tuple[Element, ...]:
        if self._take("("):
            inner = self._elements()
            self._need(")")
            self._need("*")
            return (Repeat(inner),)
        name = self._word("the name of a pass")
        if self._take("{"):
            return (self._with_options(name),)
        if name in PRESETS:
            return _Parser(PRESETS[name]).pipeline()
        return (options.build(self._class(name), ()),)

    def _class(self, name: str) -> type[Pass]:
        known = {*table.known_passes(), *PRESETS}
        if name not in known:
            raise OptionError(
                f"unknown pass or preset '{name}'", where=f"pipeline '{self.text}'", hint=suggest(name, known)
            )
        return table.pass_class(name)

    def _with_options(self, name: str) -> Pass:
        if name in PRESETS:
            raise OptionError(f"preset '{name}' takes no options", hint=f"its passes written out: {PRESETS[name]}")
        found: list[tuple[str, tuple[Atom, ...]]] = []
        while not self._take("}"):
            option = self._word("an option name or '}'")
            found.append((option, self._value() if self._take("=") else (Atom("true"),)))
        return options.build(self._class(name), found)

    def _value(self) -> tuple[Atom, ...]:
        if self._take("("):
            self._need(")")
            return ()
        atoms = [self._atom()]
        while self._take(","):
            atoms.append(self._atom())
        return tuple(atoms)

    def _atom(self) -> Atom:
        kind, found, position = self.tokens[self.at]
        if kind not in ("word", "string"):
            raise self._error("is wrong", position, expected="a value")
        self.at += 1
        if kind == "word":
            return Atom(found)
        try:
            return Atom(json.loads(found), quoted=True)
        except ValueError:
            raise self._error("has a bad string", position, expected="a JSON string") from None
