"""Bytes of stack that functions need at most, read from the assembly text that LLVM makes of them (Arm, RISC-V).

Only the instructions that lower the stack pointer matter: the frame of a function is their sum, what it needs is its
frame and the most that one of the functions it calls needs. Generated code neither recurses nor moves the stack
pointer by what is known at run time only; where an instruction says otherwise there is no bound.

A function that is called through a register was named where the register was loaded (LLVM does so to make calls
short), so every function whose name stands in a body counts as called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_LABEL = re.compile(r"^([A-Za-z_$.\"][\w.$\"]*):")
_TYPE = re.compile(r"^\s*\.type\s+([^\s,]+),\s*[%@]function")
_GLOBAL = re.compile(r"^\s*\.globl\s+(\S+)")
_WORD = re.compile(r"[A-Za-z_.$][\w.$]*")
_NUMBER = r"#?(-?\w+)"
_LITERAL = re.compile(r"^\s*\.(?:long|word)\s+(-?\w+)\s*(?:[@#].*)?$")

ALLOWANCE = 128
"""Bytes taken for a function of libm or the compiler's run-time library, whose code is not known here: what float
arithmetic of libgcc takes on ARMv6-M, rounded up."""
MEMORY_ALLOWANCE = 48
"""The same for memcpy, memmove and memset."""


@dataclass(frozen=True)
class StackUse:
    """`nbytes` for the deepest public function, and the functions outside that may be called (their own stack is an
    allowance)."""

    nbytes: int
    outside: tuple[str, ...]


@dataclass
class _Function:
    name: str
    lines: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def stack_use(assembly: str) -> StackUse | None:
    """The stack of the public functions of an assembly text. None where it has no bound that can be read."""
    functions, public = _functions(assembly)
    frames = {name: _frame(f.lines, _literals(f.lines)) for name, f in functions.items()}
    if any(f is None for f in frames.values()):
        return None
    outside = _outside(assembly, functions)
    needs: dict[str, int] = {}

    def need(name: str, above: tuple[str, ...]) -> int | None:
        if name in above:
            return None
        if name not in needs:
            deepest = max((_allowance(n) for n in functions[name].names & outside), default=0)
            for other in sorted(functions[name].names & set(functions) - {name}):
                found = need(other, (*above, name))
                if found is None:
                    return None
                deepest = max(deepest, found)
            needs[name] = (frames[name] or 0) + deepest
        return needs[name]

    found = [need(name, ()) for name in sorted(public & set(functions))]
    if any(n is None for n in found):
        return None
    reached = {n for f in functions.values() for n in f.names} & outside
    return StackUse(max((n for n in found if n is not None), default=0), tuple(sorted(reached)))


def _allowance(name: str) -> int:
    return MEMORY_ALLOWANCE if "mem" in name else ALLOWANCE


def _functions(assembly: str) -> tuple[dict[str, _Function], set[str]]:
    """Functions by name, and the public names."""
    typed = {m[1] for line in assembly.splitlines() if (m := _TYPE.match(line)) and not m[1].startswith(".L")}
    public: set[str] = set()
    found: dict[str, _Function] = {}
    current: _Function | None = None
    for line in assembly.splitlines():
        if m := _GLOBAL.match(line):
            public.add(m[1])
        label = _LABEL.match(line)
        if label and label[1] in typed:
            current = found[label[1]] = _Function(label[1])
        elif line.lstrip().startswith((".section", ".size")):
            current = None
        elif current is not None and not line.lstrip().startswith((".globl", ".type")):
            current.lines.append(line)
            current.names |= set(_WORD.findall(_without_comment(line)))
    return found, public


def _without_comment(line: str) -> str:
    return re.split(r"\s@|\s#(?=\s)|//", line, maxsplit=1)[0]


def _outside(assembly: str, functions: dict[str, _Function]) -> set[str]:
    """Names that are called and not defined here."""
    called = re.findall(r"^\s*(?:bl|b|call|tail|bx|blx|jal|j)(?:\.w)?\s+([A-Za-z_][\w.$]*)", assembly, re.MULTILINE)
    loaded = re.findall(r"^\s*\.(?:long|word)\s+([A-Za-z_][\w.$]*)", assembly, re.MULTILINE)
    loaded += re.findall(r":(?:lower|upper)16:([A-Za-z_][\w.$]*)", assembly)
    defined = {m[1] for line in assembly.splitlines() if (m := _LABEL.match(line))}
    registers = re.compile(r"^(r\d+|lr|pc|ip|sp|ra|[ast]\d+|zero)$")
    return {n for n in (*called, *loaded) if n not in defined | set(functions) and not registers.match(n)}


def _literals(lines: Iterable[str]) -> dict[str, int]:
    """Constants that the function loads, by label."""
    found, label = {}, ""
    for line in lines:
        if m := _LABEL.match(line):
            label = m[1]
        elif (m := _LITERAL.match(line)) and label:
            value = _number(m[1])
            if value is not None:
                found[label] = value - (1 << 32) if value >= 1 << 31 else value
            label = ""
    return found


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _frame(lines: Iterable[str], literals: dict[str, int]) -> int | None:
    """Bytes by which a function lowers the stack pointer; None where that cannot be read."""
    total = 0
    below: dict[str, int] = {}  # registers that hold an address so many bytes under the stack pointer
    values: dict[str, int] = {}  # registers that hold a known number
    for line in lines:
        text = _without_comment(line).strip()
        if not text or text.startswith(".") or text.endswith(":"):
            continue
        op, _, rest = text.partition("\t")
        op, rest = op.split(".")[0] if not op.startswith("c.") else op[2:], rest.strip()
        if op in ("push", "vpush") or (op in ("stmdb", "vstmdb", "stmfd") and rest.startswith("sp!")):
            total += _registers(rest[rest.index("{") :])
            continue
        args = [a.strip() for a in rest.split(",")]
        if args[0] == "sp" and op in ("sub", "subw", "addi", "add", "addiw", "mov", "and", "andi", "bic", "movs", "mv"):
            lowered = _lowered(op, args[1:], below, values)
            if lowered is None:
                return None
            total += lowered
            continue
        if "[sp, #-" in rest and rest.endswith("]!"):
            total += -int(rest.split("[sp, #")[1].split("]")[0], 0)
            continue
        _follow(op, args, below, values, literals)
    return total


def _lowered(op: str, args: list[str], below: dict[str, int], values: dict[str, int]) -> int | None:
    """Bytes by which `op sp, args` lowers sp; 0 where it raises it."""
    last = args[-1].lstrip("#")
    number = _number(last)
    if op in ("mov", "mv", "movs"):
        return max(0, below.get(args[0], 0))
    if op in ("andi", "and", "bic"):
        return 16 if args[0] == "sp" else None
    amount = number if number is not None else values.get(last)
    if amount is None:
        return None
    if args[0] != "sp" and len(args) > 1:  # from the frame pointer, when the function ends
        return 0
    return max(0, amount if op in ("sub", "subw") else -amount)


def _follow(op: str, args: list[str], below: dict[str, int], values: dict[str, int], literals: dict[str, int]) -> None:
    """What a register holds after an instruction that does not write sp."""
    target = args[0]
    known, under = None, None
    if op in ("ldr", "lw") and len(args) == 2 and args[1] in literals:
        known = literals[args[1]]
    elif op in ("mov", "movs", "movw", "li") and len(args) == 2 and _number(args[1].lstrip("#")) is not None:
        known = int(args[1].lstrip("#"), 0)
    elif op == "lui" and _number(args[1]) is not None:
        known = int(args[1], 0) << 12
    elif op in ("addi", "addiw") and len(args) == 3 and args[1] in values and _number(args[2]) is not None:
        known = values[args[1]] + int(args[2], 0)
    elif op == "rsbs" and len(args) >= 2 and args[1] in values:
        known = -values[args[1]]
    elif op in ("mov", "mv") and len(args) == 2 and args[1] == "sp":
        under = 0
    elif op in ("sub", "subw") and len(args) == 3 and args[1] == "sp" and _number(args[2].lstrip("#")) is not None:
        under = int(args[2].lstrip("#"), 0)
    elif op == "bfc" and target in below:
        under = below[target] + (1 << int(args[2].lstrip("#"), 0)) - 8
    elif op in ("bic", "bics", "and", "lsrs", "lsls") and target in below:
        under = below[target] + (8 if op in ("bic", "bics", "and") else 0)
    values.pop(target, None)
    below.pop(target, None)
    if known is not None:
        values[target] = known
    if under is not None:
        below[target] = under


def _registers(text: str) -> int:
    """Bytes of a list like {r4, r5, lr}, {r4-r7} or {d8-d11}."""
    size = 0
    for part in text.strip("{}").split(","):
        first, _, last = part.strip().partition("-")
        count = int(last.strip()[1:]) - int(first[1:]) + 1 if last else 1
        size += count * {"d": 8, "q": 16}.get(first[0], 4)
    return size
