"""A user's own target: a TOML file that names a target of the table and what differs from it.

    base = "cortex-m4"
    description = "our sensor board, STM32G4"
    ram_bytes = "128k"
    flash_bytes = "512k"

Any field of `Target` may stand there; `name` is the file's name where it does not. What of it is LLVM's (`cpu`,
`features`, and what `dot` needs of them) is checked when something is compiled.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from irc.errors import OptionError, suggest
from irc.targets.sizes import parse_size
from irc.targets.table import CATALOGUE
from irc.targets.target import Target

ENDING = ".toml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_FEATURE = re.compile(r"[+-][a-z0-9][a-z0-9._-]*\Z")
_FIXED = ("arch", "linking", "object_format", "pointer_bits", "small", "threads", "activations")
"""What the code generator of the base stands on."""
_OWN = ("base", "plain", "upgrades")
"""What relates targets of the table to each other. A user's target stands for itself."""
_OF_KIND = ("dot", "runner")
"""What some target of the same kind has to have: nothing else is known to work."""
_POWERS = {"vector_bytes": (4, 64), "alignment": (1, 4096)}


def read_target(path: str | Path, known: Mapping[str, Target]) -> Target:
    """The target of a file. `known`: what `base` may name. Raises OptionError, with file and field."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError("cannot read the target", where=str(path), got=error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError("the target is no TOML file", where=str(path), got=str(error)) from error
    base = data.pop("base", None)
    if not isinstance(base, str) or base not in known:
        raise OptionError(
            "a target starts from one of the table",
            where=f"{path}: base",
            expected="the name of a target",
            got="nothing" if base is None else repr(base),
            hint=suggest(base, known) if isinstance(base, str) else 'base = "cortex-m4", say',
        )
    named = {"name": path.stem, **data}
    if named["name"] in known:
        raise OptionError(
            "a target of this name exists", where=f"{path}: name", got=repr(named["name"]), hint="another name"
        )
    return made_of(named, known[base], str(path))


def made_of(data: Mapping[str, Any], base: Target, where: str) -> Target:
    """`base` with the fields of `data` in the place of its own. Raises OptionError."""
    kinds = get_type_hints(Target)
    allowed = sorted(kinds.keys() - set(_OWN))
    values = asdict(base)
    for name, value in data.items():
        if name not in allowed:
            raise OptionError(f"targets have no field '{name}'", where=where, hint=suggest(name, allowed))
        values[name] = _value(name, value, kinds[name], f"{where}: {name}")
    if not _NAME.match(values["name"]):
        raise OptionError(
            "a target's name is a word",
            where=f"{where}: name",
            expected="letters, digits and . - _",
            got=repr(values["name"]),
            hint=f'name = "{base.name}-board" in the file',
        )
    made = Target(**{**values, "base": base.base or base.name, "plain": "", "upgrades": ()})
    for name in _FIXED:
        if getattr(made, name) != getattr(base, name):
            raise OptionError(
                f"'{name}' follows from the base",
                where=f"{where}: {name}",
                expected=repr(getattr(base, name)),
                got=repr(getattr(made, name)),
                hint="another base",
            )
    _check_kind(made, base, where)
    return made


def _check_kind(made: Target, base: Target, where: str) -> None:
    """Raises OptionError where no target of this architecture has what `made` has."""
    kind = [t for t in (base, *CATALOGUE) if (t.arch, t.small) == (made.arch, made.small)]
    for name in _OF_KIND:
        choices = {getattr(t, name) for t in kind}
        if name == "runner":
            choices.add("")
        _choice(getattr(made, name), tuple(sorted(choices)), f"{where}: {name}")


def target_record(target: Target) -> dict[str, Any]:
    """The whole target for manifests, as JSON has it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(target).items()}


def target_of_record(record: Mapping[str, Any], known: Mapping[str, Target]) -> Target:
    """The target that `target_record` wrote; fields of a newer irc are left out. Raises OptionError."""
    names = {field.name for field in fields(Target)}
    base = known.get(str(record.get("base") or record.get("name")))
    if base is None:
        raise OptionError(f"there is no target '{record.get('name')}'", hint=suggest(str(record.get("name")), known))
    if not record.get("base"):
        return base
    wanted = {name: value for name, value in record.items() if name in names - set(_OWN)}
    return made_of(wanted, base, f"target {record.get('name')}")


def _value(name: str, value: Any, kind: Any, where: str) -> Any:
    """`value` as the field's type has it."""
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind), where)
    if kind == tuple[str, ...]:
        return _strings(name, value, where)
    if kind is int:
        return _number(name, value, where)
    if not isinstance(value, kind):
        raise OptionError("a value of another type", where=where, expected=kind.__name__, got=repr(value))
    return value


def _choice(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value not in choices:
        words = [str(c) for c in choices if c]
        raise OptionError(
            "not one of the values", where=where, expected=", ".join(words), got=repr(value),
            hint=suggest(str(value), words),
        )  # fmt: skip
    return value


def _strings(name: str, value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise OptionError("a value of another type", where=where, expected="a list of strings", got=repr(value))
    wrong = [v for v in value if name == "features" and not _FEATURE.match(v)]
    if wrong:
        raise OptionError("features begin with + or -", where=where, expected="such as '+dsp'", got=repr(wrong[0]))
    return tuple(value)


def _number(name: str, value: Any, where: str) -> int:
    """Numbers, and sizes such as "64k" (of 1024 bytes)."""
    if isinstance(value, str) and name.endswith("_bytes"):
        return _in_range(name, parse_size(value, where), where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        expected = 'bytes, or a size such as "64k"' if name.endswith("_bytes") else "a number from 0"
        raise OptionError("a value of another type", where=where, expected=expected, got=repr(value))
    return _in_range(name, value, where)


def _in_range(name: str, value: int, where: str) -> int:
    low, high = _POWERS.get(name, (0, 0))
    if high and (value & (value - 1) or not low <= value <= high):
        raise OptionError("not a power of two in range", where=where, expected=f"{low} to {high}", got=str(value))
    if name == "vector_registers" and not 4 <= value <= 64:
        raise OptionError("out of range", where=where, expected="4 to 64", got=str(value))
    return value
