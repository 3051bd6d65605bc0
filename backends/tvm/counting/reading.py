"""What the readers of instruction sets share: functions of an assembly text, operands, arithmetic."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from irc.backends.tvm.counting.flow import Function, Instruction, Op, Value

_LABEL = re.compile(r"^([A-Za-z_$.\"][\w.$\"]*):")
_TYPE = re.compile(r"^\s*\.type\s+([^\s,]+),\s*[%@]function")
_LITERAL = re.compile(r"^\s*\.(?:long|word|xword|quad)\s+(.*)$")
_COMMENT = re.compile(r"\s@.*$|\s#\s.*$|\s//.*$")
_SPLIT = re.compile(r",\s*(?![^\[{(]*[\]})])")

STACK = 0x60000000
"""Where the stack pointer stands when a function is entered: any address is as good."""


@dataclass
class Text:
    """The lines of one function: instructions as (name, operands), labels as text, and its literals by label."""

    name: str
    lines: list[str | tuple[str, list[str]]] = field(default_factory=list)
    literals: dict[str, str] = field(default_factory=dict)

    @cached_property
    def labels(self) -> set[str]:
        return {line for line in self.lines if isinstance(line, str)}


class Reader(ABC):
    """Reads a function line by line. `depth`: bytes of its frame at this line, which name its stack slots."""

    def __init__(self, text: Text, depth: int = 0) -> None:
        self.text, self.depth = text, depth

    def lines(self) -> list[str | Instruction]:
        """The instructions and labels, in order."""
        found: list[str | Instruction] = []
        body, ended = self.depth, False
        for line in self.text.lines:
            if ended:  # behind a return lies the body again
                self.depth, ended = body, False
            if isinstance(line, str):
                found.append(line)
                continue
            made = self._instruction(*line)
            body = max(body, self.depth)
            returns = made.branch is not None and made.branch.label is None
            ended = returns or (made.call is not None and made.call.ends)
            found.append(made)
        return found

    @abstractmethod
    def _instruction(self, name: str, args: list[str]) -> Instruction: ...


def functions(assembly: str) -> dict[str, Text]:
    """The functions of an assembly text (ELF directives), by name."""
    typed = {m[1] for line in assembly.splitlines() if (m := _TYPE.match(line)) and not m[1].startswith(".L")}
    found: dict[str, Text] = {}
    current: Text | None = None
    label = ""
    for line in assembly.splitlines():
        if m := _LABEL.match(line):
            label = m[1]
            if label in typed:
                current = found[label] = Text(label)
            elif current is not None:
                current.lines.append(label)
            continue
        if line.lstrip().startswith((".section", ".size")):
            current = None
        text = _COMMENT.sub("", line).strip()
        if current is None or not text or text.startswith(("@", "//", "#")):
            continue
        if m := _LITERAL.match(text):
            current.literals.setdefault(label, m[1].strip())
        elif not text.startswith("."):
            name, _, rest = text.replace("\t", " ").partition(" ")
            current.lines.append((name, [a.strip() for a in _SPLIT.split(rest.strip())] if rest.strip() else []))
    return found


def number(text: str) -> int | None:
    """An immediate operand."""
    try:
        return int(text.lstrip("#$"), 0)
    except ValueError:
        return None


def op(target: str, compute: Function | None, *operands: int | str | None) -> Op:
    """An `Op` whose operands are registers or numbers; None: an operand that is not known."""
    if compute is None or any(o is None for o in operands):
        return Op(target)
    reads = tuple(o for o in operands if isinstance(o, str))
    if len(reads) == len(operands):
        return Op(target, compute, reads)

    def filled(*values: Value) -> Value:
        rest = iter(values)
        return compute(*(next(rest) if isinstance(o, str) else o for o in operands))

    return Op(target, filled, reads)


def arithmetic(bits: int) -> dict[str, Callable[..., Value]]:
    """Operations on integers of so many bits, kept as numbers from 0 on. A name stays what it is when something is
    added to it: addresses of functions."""
    mask = (1 << bits) - 1

    def signed(a: int) -> int:
        return a - (1 << bits) if a >> (bits - 1) else a

    def number_only(f: Callable[..., int]) -> Callable[..., Value]:
        return lambda *v: f(*v) & mask if all(isinstance(x, int) for x in v) else None

    found: dict[str, Callable[[int, int], int]] = {
        "sub": lambda a, b: a - b,
        "rsb": lambda a, b: b - a,
        "mul": lambda a, b: a * b,
        "and": lambda a, b: a & b,
        "orr": lambda a, b: a | b,
        "eor": lambda a, b: a ^ b,
        "bic": lambda a, b: a & ~b,
        "orn": lambda a, b: a | ~b,
        "lsl": lambda a, b: a << (b & 255) if b & 255 < bits else 0,
        "lsr": lambda a, b: a >> (b & 255),
        "asr": lambda a, b: signed(a) >> min(b & 255, bits - 1),
        "ror": lambda a, b: a >> (b % bits) | a << (bits - b % bits),
        "udiv": lambda a, b: a // b if b else 0,
        "sdiv": lambda a, b: (signed(a) - int(math.fmod(signed(a), signed(b)))) // signed(b) if b else 0,
        "srem": lambda a, b: int(math.fmod(signed(a), signed(b))) if b else a,
        "urem": lambda a, b: a % b if b else a,
        "mulh": lambda a, b: signed(a) * signed(b) >> bits,
        "mulhu": lambda a, b: a * b >> bits,
        "max": lambda a, b: max(signed(a), signed(b)),
        "min": lambda a, b: min(signed(a), signed(b)),
        "maxu": max,
        "minu": min,
        "lt": lambda a, b: int(signed(a) < signed(b)),
        "ltu": lambda a, b: int(a < b),
    }
    made = {name: number_only(f) for name, f in found.items()}

    def add(a: Value, b: Value) -> Value:
        if isinstance(a, str):
            return a
        return (a + b) & mask if isinstance(b, int) else None

    made["add"] = add
    made["mov"] = lambda a: a & mask if isinstance(a, int) else a
    made["mvn"] = number_only(lambda a: ~a)
    made["clz"] = number_only(lambda a: bits - a.bit_length())
    made["signed"] = lambda a: signed(a)
    return made


def holds(condition: str, flags: tuple[str, int, int], bits: int = 32) -> bool | None:
    """Whether an Arm condition holds after a comparison ("cmp", a, b), an addition ("cmn", a, b) or an operation
    ("nz", result, 0), of which only sign and zero are known."""
    kind, a, b = flags
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    mask, half = (1 << bits) - 1, 1 << (bits - 1)
    result = (a - b if kind == "cmp" else a + b) & mask
    negative, zero = result >= half, result == 0
    simple = {"eq": zero, "ne": not zero, "mi": negative, "pl": not negative}
    if condition in simple:
        return simple[condition]
    if kind == "nz":  # C is not known, V is kept
        return None
    carry = a >= b if kind == "cmp" else a + b > mask
    sa, sb = (x - (1 << bits) if x >= half else x for x in (a, b))
    exact = sa - sb if kind == "cmp" else sa + sb
    less = exact < 0  # N != V
    return {
        "hs": carry,
        "cs": carry,
        "lo": not carry,
        "cc": not carry,
        "hi": carry and not zero,
        "ls": not carry or zero,
        "ge": not less,
        "lt": less,
        "gt": not less and not zero,
        "le": less or zero,
    }.get(condition)
