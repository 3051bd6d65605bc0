"""Options of a pass as text: `sparsity=0.5 pattern=block layers=conv1,conv2`.

The fields of the pass's dataclass are its options; a dash in an option name stands for an underscore of the field.
A value is one or more atoms joined by commas; an atom is a bare word or a JSON string. Types are taken from the
annotations: int, float, bool, str, Literal, tuple[...], and unions of them (`int | None`). Only options that differ
from their default are printed, and what is printed parses back to an equal pass.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from irc.errors import OptionError, suggest
from irc.pipeline.contract import Pass

_BARE = re.compile(r'[^\s{}()",=*]+')


@dataclasses.dataclass(frozen=True)
class Atom:
    """One word of a value. `quoted`: it was written as a JSON string, so it is a str and nothing else."""

    text: str
    quoted: bool = False


class BadValue(Exception):
    """`expected` describes the values that fit."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


@functools.cache
def option_types(pass_class: type[Pass]) -> dict[str, Any]:
    """Field name -> resolved annotation."""
    return typing.get_type_hints(pass_class)


def fields(pass_class: type[Pass]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields that are options. Raises TypeError when the class is no dataclass (a defect of the pass)."""
    if not dataclasses.is_dataclass(pass_class):
        raise TypeError(f"pass '{pass_class.name}' must be a frozen dataclass")
    return tuple(f for f in dataclasses.fields(pass_class) if f.init)


def build(pass_class: type[Pass], options: Sequence[tuple[str, tuple[Atom, ...]]]) -> Pass:
    """A pass from its parsed options. Raises OptionError naming the pass and the option."""
    where = f"pass '{pass_class.name}'"
    known = {f.name.replace("_", "-"): f for f in fields(pass_class)}
    values: dict[str, Any] = {}
    for name, atoms in options:
        field = known.get(name.replace("_", "-"))
        if field is None:
            hint = suggest(name, known) if known else "no options: this pass has none"
            raise OptionError(f"unknown option '{name}'", where=where, hint=hint)
        if field.name in values:
            raise OptionError(f"option '{name}' is given twice", where=where)
        try:
            values[field.name] = convert(atoms, option_types(pass_class)[field.name])
        except BadValue as bad:
            got = ",".join(a.text for a in atoms) or "()"
            raise OptionError(
                f"option '{name}' has a bad value",
                where=where,
                expected=bad.expected,
                got=f"'{got}'",
                hint=_nearest(got, option_types(pass_class)[field.name]),
            ) from None
    missing = [k for k, f in known.items() if f.name not in values and _default(f) is dataclasses.MISSING]
    if missing:
        raise OptionError(
            f"option '{missing[0]}' is required", where=where, hint=f"{pass_class.name}{{{missing[0]}=...}}"
        )
    try:
        return pass_class(**values)
    except (ValueError, TypeError) as error:  # a check in __post_init__
        raise OptionError(str(error), where=where) from error


def convert(atoms: tuple[Atom, ...], annotation: Any) -> Any:
    """The value that `atoms` mean for this type. Raises BadValue."""
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(atoms, get_args(annotation))
    if origin is tuple:
        return _convert_tuple(atoms, get_args(annotation))
    if len(atoms) != 1:
        raise BadValue(describe(annotation))
    if origin is Literal:
        return _convert_literal(atoms[0], annotation)
    return _convert_scalar(atoms[0], annotation)


def _convert_union(atoms: tuple[Atom, ...], members: tuple[Any, ...]) -> Any:
    # From the narrowest to the widest: otherwise `str` would swallow every number.
    order = [type(None), bool, int, float]
    for member in sorted(members, key=lambda m: order.index(m) if m in order else 9 if m is str else 5):
        try:
            return convert(atoms, member)
        except BadValue:
            continue
    raise BadValue(" or ".join(describe(m) for m in members))


def _convert_tuple(atoms: tuple[Atom, ...], members: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(members) == 2 and members[1] is Ellipsis:
        return tuple(convert((a,), members[0]) for a in atoms)
    if len(members) != len(atoms):
        raise BadValue(describe(tuple[members]))  # type: ignore[valid-type]  # built from run-time arguments
    return tuple(convert((a,), m) for a, m in zip(atoms, members, strict=True))


def _convert_literal(atom: Atom, annotation: Any) -> Any:
    for choice in get_args(annotation):
        if atom == _atom(choice) or (isinstance(choice, str) and atom.text == choice):
            return choice
    raise BadValue(describe(annotation))


def _convert_scalar(atom: Atom, annotation: Any) -> Any:
    if annotation is str:
        return atom.text
    if atom.quoted:
        raise BadValue(describe(annotation))
    if annotation is type(None) and atom.text == "none":
        return None
    if annotation is bool and atom.text in ("true", "false"):
        return atom.text == "true"
    if annotation in (int, float):
        try:
            return annotation(atom.text)
        except ValueError:
            raise BadValue(describe(annotation)) from None
    if annotation not in (type(None), bool):
        raise TypeError(f"options of type {annotation} have no text form")
    raise BadValue(describe(annotation))


def describe(annotation: Any) -> str:
    """The values of a type, in words."""
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(m) for m in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(_atom(c).text for c in get_args(annotation))
    if origin is tuple:
        members = get_args(annotation)
        if len(members) == 2 and members[1] is Ellipsis:
            return f"a list such as a,b of ({describe(members[0])})"
        return ",".join(f"({describe(m)})" for m in members)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return words.get(annotation, str(annotation))


def _nearest(got: str, annotation: Any) -> str:
    return suggest(got, [_atom(c).text for c in get_args(annotation)]) if get_origin(annotation) is Literal else ""


def _atom(value: Any) -> Atom:
    if value is None:
        return Atom("none")
    if isinstance(value, bool):
        return Atom("true" if value else "false")
    if isinstance(value, str):
        return Atom(value, quoted=not _is_plain(value))
    if isinstance(value, int | float):
        return Atom(repr(value))
    raise TypeError(f"option value {value!r} has no text form")


def _is_plain(text: str) -> bool:
    """Whether this string can stand without quotes and still be read as a string by every type."""
    if not _BARE.fullmatch(text) or text in ("none", "true", "false"):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def _value_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_value_text(v) for v in value) if value else "()"
    atom = _atom(value)
    return json.dumps(atom.text) if atom.quoted else atom.text


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def non_default(p: Pass) -> Iterator[tuple[str, Any]]:
    """(option name, value) of every option that differs from its default, in the order of the fields."""
    for field in fields(type(p)):
        value = getattr(p, field.name)
        default = _default(field)
        if default is dataclasses.MISSING or value != default or type(value) is not type(default):
            yield field.name.replace("_", "-"), value


def pass_text(p: Pass) -> str:
    """The text form of one pass: `prune{sparsity=0.5 pattern=block}`."""
    options = " ".join(f"{name}={_value_text(value)}" for name, value in non_default(p))
    return f"{p.name}{{{options}}}" if options else p.name
