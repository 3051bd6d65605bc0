"""32-bit Arm instructions (Thumb of Armv6-M to Armv8.1-M, A32) as `flow.py` wants them. Arm Architecture Reference
Manuals, "Instruction descriptions"; UAL syntax as LLVM prints it."""

from __future__ import annotations

import re

from irc.backends.tvm.counting.flow import Branch, Call, Instruction, Op, Value
from irc.backends.tvm.counting.reading import STACK, Text, arithmetic, holds, number, op

_CONDITIONS = ("eq", "ne", "hs", "lo", "cs", "cc", "mi", "pl", "hi", "ls", "ge", "lt", "gt", "le")
_ARITHMETIC = arithmetic(32)
_CLOBBERED = ("r0", "r1", "r2", "r3", "r12", "lr", "flags")
ARGUMENTS = ("r0", "r1", "r2", "r3")
_BINARY = {
    "add": "add",
    "addw": "add",
    "sub": "sub",
    "subw": "sub",
    "rsb": "rsb",
    "mul": "mul",
    "and": "and",
    "orr": "orr",
    "eor": "eor",
    "bic": "bic",
    "orn": "orn",
    "lsl": "lsl",
    "lsr": "lsr",
    "asr": "asr",
    "ror": "ror",
    "udiv": "udiv",
    "sdiv": "sdiv",
}
_LOADS = tuple(f"{op}{size}" for op in ("ldr", "str") for size in ("", "b", "h", "sb", "sh", "d"))
_CONDITIONAL = {*_BINARY, *_LOADS, "mov", "mvn", "movw", "movt", "mla", "mls", "cmp", "cmn", "tst", "pop", "bx", "uxtb"}
_FLAGGED = {*_BINARY, "mov", "mvn", "neg", "rsb", "adc", "sbc"}
_COMPARISONS = ("cmp", "cmn", "tst", "teq")
_KEEP = (
    "str",
    "vst",
    "push",
    "vpush",
    "nop",
    "pld",
    "dsb",
    "isb",
    "dmb",
    "cmp",
    "vcmp",
    "vpt",
    "vpst",
    "it",
    "vctp",
    "bkpt",
)
_MEMORY = re.compile(r"\[(\w+)(?:,\s*#(-?\w+))?\](!?)$")
_ALIASES = {"sb": "r9", "sl": "r10", "fp": "r11", "ip": "r12"}
_TWO = {"umull", "smull", "umlal", "smlal", "ldrd", "umaal", "lsll", "lsrl", "asrl", "vmlalva", "sqrshrl", "uqrshll"}


def read(text: Text) -> list[str | Instruction]:
    """The instructions and labels of a function."""
    return _Reader(text).lines()


class _Reader:
    def __init__(self, text: Text) -> None:
        self.text = text
        self.depth = 0  # bytes of stack in use
        self.deepest = 0
        self.depth_at: dict[str, int] = {}
        self.pending: list[str] = []  # conditions of the instructions behind IT
        self.lowered: set[str] = set()  # registers that were made from the stack pointer

    def lines(self) -> list[str | Instruction]:
        found: list[str | Instruction] = []
        ended = False
        for line in self.text.lines:
            if isinstance(line, str):
                if line in self.depth_at:
                    self.depth = self.depth_at[line]
                elif ended:
                    self.depth = self.deepest
                found.append(line)
                ended = False
                continue
            if ended:
                self.depth = self.deepest
            made = self._instruction(*line)
            self.deepest = max(self.deepest, self.depth)
            found.append(made)
            if made.branch is not None and made.branch.label is not None:
                self.depth_at.setdefault(made.branch.label, self.depth)
            ended = (made.branch is not None and made.branch.holds is None) or (
                made.call is not None and made.call.ends
            )
        return found

    def _instruction(self, name: str, operands: list[str]) -> Instruction:
        name = name.removesuffix(".w").removesuffix(".n")
        if re.fullmatch(r"it[te]{0,3}", name):
            self.pending = [operands[0] if c == "t" else _opposite(operands[0]) for c in name[1:]]
            return Instruction()
        if not self.pending:
            if name[-2:] in _CONDITIONS and name[:-2] in _CONDITIONAL:  # A32
                return _only_if(name[-2:], self._plain(name[:-2], operands))
            return self._plain(name, operands)
        condition = self.pending.pop(0)
        head, dot, tail = name.partition(".")
        made = self._plain(head.removesuffix(condition) + dot + tail, operands)
        return _only_if(condition, made)

    def _plain(self, name: str, args: list[str]) -> Instruction:
        branch = self._branch(name, args)
        if branch is not None:
            return branch
        if name in ("push", "vpush", "pop", "vpop"):
            return self._stack(name, args[0])
        base = name.removesuffix("s") if name.removesuffix("s") in _FLAGGED else name
        sets = base != name
        if args and args[0] == "sp":
            self._move_stack(base, args)
            return Instruction()
        if name in _COMPARISONS:
            return Instruction((self._flags(name, args),))
        if (name.startswith("ldr") and not name.startswith("ldrex")) or (name == "vldr" and _is_single(args[0])):
            return Instruction(self._load(name.lstrip("v"), args))
        if name.startswith("str") or (name == "vstr" and _is_single(args[0])):
            return Instruction(self._store(name.lstrip("v"), args))
        ops = self._arithmetic(base, args)
        if ops is None:
            return Instruction(self._unknown(name, args))
        if sets and base in ("add", "sub", "rsb"):  # compared before the result may replace an operand
            ops = (*self._flags_of(base, args, ops[0]), *ops)
        elif sets:
            ops = (*ops, Op("flags", lambda a: ("nz", a, 0), (ops[0].target,)))
        return Instruction(ops)

    # Control
    def _branch(self, name: str, args: list[str]) -> Instruction | None:
        if name == "b":
            return self._jump(args[0])
        if name[0] == "b" and name[1:] in _CONDITIONS:
            condition = name[1:]
            return Instruction(branch=Branch(args[0], lambda f: holds(condition, f), ("flags",)))
        if name in ("cbz", "cbnz"):
            zero = name == "cbz"
            return Instruction(branch=Branch(args[1], lambda a: _is_zero(a) is zero, (_register(args[0]),)))
        if name == "bl" and args[0] in self.text.labels:  # ARMv6-M's way to a label that lies far away
            return Instruction(branch=Branch(args[0]))
        if name in ("bl", "blx"):
            register = _is_register(args[0])
            called = _register(args[0]) if register else args[0].removeprefix(".L").removesuffix("$local")
            return Instruction(call=Call(called, register, self._passed(), _CLOBBERED, slot=self.depth))
        if name in ("bx", "tbb", "tbh"):
            return Instruction(branch=Branch(None))
        if name in ("dls", "wls", "dlstp.8", "dlstp.16", "dlstp.32", "wlstp.8", "wlstp.16", "wlstp.32"):
            count = Op("lr", _ARITHMETIC["mov"], (_register(args[1]),))
            if name.startswith("dls"):
                return Instruction((count,))
            return Instruction((count,), Branch(args[2], lambda a: a == 0, ("lr",)))
        if name in ("le", "letp"):
            # the size of elements is not known here: loops with tail predication have data of their own
            down = op("lr", _ARITHMETIC["sub"], "lr", 1) if name == "le" else Op("lr")
            return Instruction((down,), Branch(args[-1], lambda a: a != 0, ("lr",)))
        return None

    def _jump(self, label: str) -> Instruction:
        if label in self.text.labels:
            return Instruction(branch=Branch(label))
        label = label.removeprefix(".L").removesuffix("$local")
        return Instruction(call=Call(label, False, self._passed(), _CLOBBERED, ends=True, slot=self.depth))

    def _passed(self) -> tuple[str, ...]:
        return (*ARGUMENTS, *(f"slot{self.depth - 4 * i}" for i in range(8)))

    # Stack
    def _stack(self, name: str, listed: str) -> Instruction:
        registers = _listed(listed)
        size = sum(8 if r[0] == "d" else 4 for r in registers)
        if name in ("push", "vpush"):
            self.depth += size
            ops = tuple(
                Op(f"slot{self.depth - 4 * i}", lambda a: a, (r,)) for i, r in enumerate(registers) if r[0] == "r"
            )
            return Instruction(ops)
        self.depth -= size
        if "pc" in registers:
            return Instruction(branch=Branch(None))
        return Instruction(tuple(Op(r) for r in registers))

    def _move_stack(self, base: str, args: list[str]) -> None:
        amount = number(args[-1])
        if amount is not None and (len(args) == 2 or args[1] == "sp"):
            self.depth += amount if base in ("sub", "subw") else -amount
        elif (amount is None and base in ("sub", "add", "bic", "bfc")) or args[1] in self.lowered:
            self.depth += 1 << 16  # aligned, or large: a place of its own
        # otherwise what the frame pointer kept: the function ends

    def _slot(self, memory: str) -> int | None:
        m = _MEMORY.match(memory)
        if m is None or m[1] != "sp" or m[3]:
            return None
        return self.depth - int(m[2] or "0", 0)

    # Data
    def _value(self, text: str) -> int | str | None:
        """A register's name or a number."""
        if text == "sp":
            return STACK - self.depth
        if _is_register(text):
            return _register(text)
        return None if (n := number(text)) is None else n & 0xFFFFFFFF

    def _flags(self, name: str, args: list[str]) -> Op:
        a, b = self._value(args[0]), self._value(args[1])
        if len(args) > 2:
            return Op("flags")
        if name in ("cmp", "cmn"):
            return op("flags", lambda x, y: (name, x, y), a, b)
        f = _ARITHMETIC["and" if name == "tst" else "eor"]
        return op("flags", lambda x, y: ("nz", f(x, y), 0), a, b)

    def _flags_of(self, base: str, args: list[str], done: Op) -> tuple[Op, ...]:
        a, b = (args[0], args[1]) if len(args) == 2 else (args[1], args[2])
        if len(args) > 3 or done.compute is None:
            return (Op("flags"),)
        x, y = self._value(a), self._value(b)
        if base == "rsb":
            x, y = y, x
        return (op("flags", lambda p, q: ("cmn" if base == "add" else "cmp", p, q), x, y),)

    def _arithmetic(self, base: str, args: list[str]) -> tuple[Op, ...] | None:
        if base in ("mov", "movw") and len(args) == 2:
            if ":lower16:" in args[1]:
                return (_named(_register(args[0]), args[1]),)
            return (op(_register(args[0]), _ARITHMETIC["mov"], self._value(args[1])),)
        if base == "movt":
            target = _register(args[0])
            if ":upper16:" in args[1]:
                return (Op(target, lambda a: a, (target,)),)
            high = (number(args[1]) or 0) << 16
            return (Op(target, lambda a: a & 0xFFFF | high, (target,)),)
        if base in ("mvn", "neg", "clz"):
            f = _ARITHMETIC[base] if base != "neg" else lambda a: _ARITHMETIC["sub"](0, a)
            return (op(_register(args[0]), f, self._value(args[1])),) if len(args) == 2 else None
        if base in _BINARY:
            return self._binary(base, args)
        if base in ("adc", "sbc") and len(args) < 4:
            a, b = (self._value(s) for s in (args[1:] if len(args) == 3 else args))
            return (op(_register(args[0]), _add_with_carry if base == "adc" else _subtract_with_carry, "flags", a, b),)
        if base in ("mla", "mls"):
            sign = 1 if base == "mla" else -1
            values = [self._value(a) for a in args[1:]]
            return (op(_register(args[0]), lambda a, b, c: (c + sign * a * b) & 0xFFFFFFFF, *values),)
        if base in ("uxtb", "uxth", "ubfx", "sxtb", "sxth") and len(args) in (2, 4):
            return (_extracted(base, _register(args[0]), _register(args[1]), args[2:]),)
        if base in ("cset", "csel", "csinc"):
            return (self._chosen(base, args),)
        if base in ("vmov", "vmov.f32"):
            return self._moved(args)
        return None

    def _binary(self, base: str, args: list[str]) -> tuple[Op, ...]:
        target = _register(args[0])
        if args[-1] == "pc":
            return (Op(target, lambda a: a, (target,)),)
        sources = args[1:] if len(args) > 2 else args
        if sources[0] == "sp" and base in ("sub", "subw"):
            self.lowered.add(target)
        f = _ARITHMETIC[_BINARY[base]]
        a, b = self._value(sources[0]), self._value(sources[1])
        if len(sources) == 2:
            return (op(target, f, a, b),)
        kind, _, by = sources[2].partition(" ")
        amount = number(by)
        if kind not in _BINARY or amount is None:
            return (Op(target),)
        shift = _ARITHMETIC[_BINARY[kind]]
        return (op(target, lambda x, y: f(x, shift(y, amount)), a, b),)

    def _chosen(self, base: str, args: list[str]) -> Op:
        condition = args[-1]
        if base == "cset":
            return Op(_register(args[0]), lambda f: _as_int(holds(condition, f)), ("flags",))
        a, b = (0 if r == "zr" else self._value(r) for r in args[1:3])
        more = 1 if base == "csinc" else 0

        def choose(f: Value, x: Value, y: Value) -> Value:
            taken = holds(condition, f)
            return None if taken is None else x if taken else _ARITHMETIC["add"](y, more)

        return op(_register(args[0]), choose, "flags", a, b)

    def _moved(self, args: list[str]) -> tuple[Op, ...] | None:
        """Between core and float registers."""
        half = len(args) // 2
        pairs = list(zip(args[:half], args[half:], strict=False))
        if len(args) % 2 or not all(_is_register(r) or _is_single(r) for r in args):
            return None
        return tuple(Op(_register(t), lambda a: a, (_register(s),)) for t, s in pairs)

    def _load(self, name: str, args: list[str]) -> tuple[Op, ...]:
        targets = [_register(a) for a in (args[:2] if name == "ldrd" else args[:1])]
        memory = args[len(targets)]
        slot = self._slot(memory)
        if name in ("ldr", "ldrd") and slot is not None:
            return tuple(Op(t, lambda a: a, (f"slot{slot - 4 * i}",)) for i, t in enumerate(targets))
        if name == "ldr" and memory in self.text.literals:
            return (self._literal(targets[0], self.text.literals[memory]),)
        return (*_writeback(memory, args[len(targets) + 1 :]), *(Op(t) for t in targets))

    def _literal(self, target: str, text: str) -> Op:
        n = number(text)
        if n is not None:
            return op(target, _ARITHMETIC["mov"], n & 0xFFFFFFFF)
        return _named(target, text)

    def _store(self, name: str, args: list[str]) -> tuple[Op, ...]:
        sources = args[:2] if name == "strd" else args[:1]
        memory = args[len(sources)] if len(args) > len(sources) else ""
        slot = self._slot(memory)
        if name in ("str", "strd") and slot is not None:
            return tuple(Op(f"slot{slot - 4 * i}", lambda a: a, (_register(s),)) for i, s in enumerate(sources))
        return _writeback(memory, args[len(sources) + 1 :])

    def _unknown(self, name: str, args: list[str]) -> tuple[Op, ...]:
        """What an instruction writes of which nothing else matters."""
        ops: list[Op] = []
        if name.startswith(("ldm", "stm", "vldm", "vstm")):
            registers = _listed(args[1])
            size = sum(8 if r[0] == "d" else 4 for r in registers)
            if args[0].endswith("!"):
                base = _register(args[0][:-1])
                ops.append(op(base, _ARITHMETIC["sub" if "db" in name else "add"], base, size))
            if "ld" in name:
                ops += [Op(r) for r in registers]
            return tuple(ops)
        if name.startswith(("vld", "vst")):
            rest = [a for a in args if a.startswith("[")]
            after = args[args.index(rest[0]) + 1 :] if rest else []
            ops += _writeback(rest[0], after, default=32) if rest else ()
        if not name.startswith(_KEEP) and args:
            targets = args[:2] if name in _TWO or (name == "vmov" and len(args) > 2) else args[:1]
            for t in targets:
                ops += [Op(r) for r in _written(t)]
        if name.startswith(("adcs", "sbcs", "vmrs", "subs", "adds", "rsbs", "ands", "muls", "lsls", "lsrs", "asrs")):
            ops.append(Op("flags"))
        return tuple(ops)


def _writeback(memory: str, after: list[str], default: int | None = None) -> tuple[Op, ...]:
    """What an address register is afterwards. `default`: bytes, where `[r]!` has no number."""
    m = _MEMORY.match(memory)
    if m is None or m[1] == "sp":
        return ()
    base = _register(m[1])
    if m[3]:
        amount = int(m[2], 0) if m[2] else default
        return (op(base, _ARITHMETIC["add"], base, amount),)
    if after:
        return (op(base, _ARITHMETIC["add"], base, number(after[0])),)
    return ()


def _add_with_carry(flags: Value, a: Value, b: Value) -> Value:
    carry = holds("hs", flags)
    return None if carry is None else _ARITHMETIC["add"](_ARITHMETIC["add"](a, b), int(carry))


def _subtract_with_carry(flags: Value, a: Value, b: Value) -> Value:
    carry = holds("hs", flags)
    return None if carry is None else _ARITHMETIC["sub"](_ARITHMETIC["sub"](a, b), int(not carry))


def _only_if(condition: str, made: Instruction) -> Instruction:
    """An instruction under IT."""
    branch = made.branch
    if branch is not None:
        if branch.holds is not None:
            return made
        return Instruction(branch=Branch(branch.label, lambda f: holds(condition, f), ("flags",)))
    ops = []
    for o in made.ops:
        compute, count = o.compute, len(o.reads)

        def chosen(flags: Value, old: Value, *values: Value, compute: Value = compute) -> Value:
            taken = holds(condition, flags)
            if taken is None or compute is None:
                return None if taken is not False else old
            return compute(*values) if taken else old

        ops.append(Op(o.target, chosen, ("flags", o.target, *o.reads)) if compute else Op(o.target))
        assert count == len(o.reads)
    return Instruction(tuple(ops), None, made.call)


def _extracted(base: str, target: str, source: str, rest: list[str]) -> Op:
    if rest:
        low, width = (number(r) or 0 for r in rest)
    else:
        low, width = 0, 8 if base.endswith("b") else 16
    half = 1 << (width - 1)

    def take(a: Value) -> Value:
        if not isinstance(a, int):
            return None
        bits = a >> low & ((1 << width) - 1)
        return (bits - 2 * half) & 0xFFFFFFFF if base[0] == "s" and bits >= half else bits

    return Op(target, take, (source,))


def _opposite(condition: str) -> str:
    at = _PAIRS.index(condition)
    return _PAIRS[at ^ 1]


_PAIRS = ("eq", "ne", "hs", "lo", "cs", "cc", "mi", "pl", "hi", "ls", "ge", "lt", "gt", "le")


def _is_zero(a: Value) -> bool:
    return bool(a == 0)


def _as_int(a: bool | None) -> int | None:
    return None if a is None else int(a)


def _is_register(text: str) -> bool:
    return text in _ALIASES or text == "lr" or bool(re.fullmatch(r"r\d+", text))


def _is_single(text: str) -> bool:
    return bool(re.fullmatch(r"s\d+", text))


def _register(text: str) -> str:
    return _ALIASES.get(text, text)


def _named(target: str, text: str) -> Op:
    """`target` gets the name in `:lower16:(name-(.LPC0_0+4))` or `name-...`."""
    found = re.search(r"[A-Za-z_][\w.$]*", re.sub(r":\w+:", "", text))
    name = found[0] if found else text
    return Op(target, lambda: name)


def _listed(text: str) -> list[str]:
    found = []
    for part in text.strip("{} ").split(","):
        first, _, last = part.strip().partition("-")
        if last:
            found += [f"{first[0]}{i}" for i in range(int(first[1:]), int(last.strip()[1:]) + 1)]
        else:
            found.append(_register(first))
    return found


def _written(operand: str) -> list[str]:
    """Names under which a register that is written may be known."""
    found = []
    for r in _listed(operand):
        r = r.partition("[")[0]
        if r[:1] in "dq" and r[1:].isdigit():
            width = 2 if r[0] == "d" else 4
            found += [f"s{width * int(r[1:]) + i}" for i in range(width)]
        found.append(_register(r))
    return found
