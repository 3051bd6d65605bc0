"""A64 instructions as `flow.py` wants them. Arm Architecture Reference Manual for A-profile, "A64 base instructions";
names and aliases as LLVM prints them."""

from __future__ import annotations

import re
from collections.abc import Callable

from irc.backends.tvm.counting.flow import Branch, Call, Instruction, Op, Value
from irc.backends.tvm.counting.reading import STACK, Reader, Text, arithmetic, holds, number, op

ARGUMENTS = tuple(f"x{i}" for i in range(8))
_CLOBBERED = (*(f"x{i}" for i in range(18)), "x30", "flags")
_F = arithmetic(64)
_F32 = arithmetic(32)
_BINARY = {
    "add": "add",
    "sub": "sub",
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
    "smax": "max",
    "smin": "min",
    "umax": "maxu",
    "umin": "minu",
}
_FLAGGED = {"adds": "add", "subs": "sub", "ands": "and", "bics": "bic"}
_EXTENSIONS = {"sxtw": 32, "uxtw": 32, "sxtb": 8, "uxtb": 8, "sxth": 16, "uxth": 16, "sxtx": 64, "uxtx": 64}
_MEMORY = re.compile(r"\[(\w+)(?:,\s*#?(-?\w+))?\](!?)$")
_STORES = ("str", "stp", "stur", "st1", "st2", "st3", "st4", "prfm", "nop", "dmb", "stnp", "fcmp", "bti", "hint")


def read(text: Text) -> list[str | Instruction]:
    """The instructions and labels of a function."""
    return _Reader(text).lines()


class _Reader(Reader):
    def _instruction(self, name: str, args: list[str]) -> Instruction:
        found = self._control(name, args)
        if found is not None:
            return found
        if args and args[0] == "sp":
            amount = number(args[2]) if len(args) > 2 else None
            if amount is not None and len(args) > 3:
                amount <<= number(args[3].split()[-1]) or 0
            self.depth += 1 << 16 if amount is None else amount if name == "sub" else -amount
            return Instruction()
        memory = next((i for i, a in enumerate(args) if a.startswith("[")), None)
        if memory is not None:
            return Instruction(self._moved(name, args, memory))
        return Instruction(self._computed(name, args))

    # Control
    def _control(self, name: str, args: list[str]) -> Instruction | None:
        if name == "b":
            if args[0] in self.text.labels:
                return Instruction(branch=Branch(args[0]))
            return Instruction(call=self._call(args[0], ends=True))
        if name.startswith("b."):
            condition = name[2:]
            return Instruction(branch=Branch(args[0], lambda f: _holds(condition, f), ("flags",)))
        if name in ("ret", "br"):
            return Instruction(branch=Branch(None))
        if name in ("bl", "blr"):
            return Instruction(call=self._call(args[0], register=name == "blr"))
        if name in ("cbz", "cbnz", "tbz", "tbnz"):
            zero = name.endswith("bz") and not name.endswith("nz")
            mask = 1 << (number(args[1]) or 0) if name[0] == "t" else (1 << _bits(args[0])) - 1
            decided = op("", lambda a: ((a & mask) == 0) is zero if isinstance(a, int) else None, self._value(args[0]))
            return Instruction(branch=Branch(args[-1], decided.compute or (lambda: None), decided.reads))
        return None

    def _call(self, name: str, *, register: bool = False, ends: bool = False) -> Call:
        slots = tuple(f"slot{self.depth - 8 * i}" for i in range(8))
        called = _register(name) if register else name
        return Call(called, register, (*ARGUMENTS, *slots), _CLOBBERED, ends=ends, slot=self.depth)

    # Memory
    def _moved(self, name: str, args: list[str], at: int) -> tuple[Op, ...]:
        m = _MEMORY.match(args[at])
        base = m[1] if m else ""
        if base == "sp":
            return self._on_stack(name, args, at, m[2] if m else None, m[3] == "!" if m else False)
        ops: list[Op] = []
        if m and m[3]:
            ops.append(op(_register(base), _F["add"], _register(base), number(m[2] or "0")))
        elif m and len(args) > at + 1:
            amount = number(args[at + 1])
            register = None if amount is not None or not _is_register(args[at + 1]) else _register(args[at + 1])
            ops.append(op(_register(base), _F["add"], _register(base), amount if amount is not None else register))
        if name.startswith("ld"):
            ops += [Op(_register(a)) for a in args[:at] if _is_register(a)]
        return tuple(ops)

    def _on_stack(self, name: str, args: list[str], at: int, offset: str | None, first: bool) -> tuple[Op, ...]:
        amount = number(offset or "0")
        after = number(args[at + 1]) if len(args) > at + 1 else 0
        if amount is None or after is None:
            return tuple(Op(_register(a)) for a in args[:at] if name.startswith("ld") and _is_register(a))
        if first:
            self.depth -= amount
            amount = 0
        ops = []
        for i, a in enumerate(args[:at]):
            if not _is_register(a):
                continue
            slot = f"slot{self.depth - amount - i * _bits(a) // 8}"
            if name in ("str", "stp", "stur"):
                ops.append(op(slot, _F["mov"], self._value(a)))
            elif name in ("ldr", "ldp", "ldur"):
                ops.append(Op(_register(a), lambda v: v, (slot,)))
            elif name.startswith("ld"):
                ops.append(Op(_register(a)))
        self.depth -= after
        return tuple(ops)

    # Arithmetic
    def _value(self, text: str) -> int | str | None:
        if text in ("xzr", "wzr"):
            return 0
        if text == "sp":
            return STACK - self.depth
        if _is_register(text):
            return _register(text)
        n = number(text)
        return None if n is None else n & ((1 << 64) - 1)

    def _operands(self, texts: list[str], bits: int) -> tuple[list[int | str | None], Callable[..., Value]]:
        """The operands, and what is done to the last one (a shift, an extension) before it is used."""
        last = texts[-1].split()
        if not (last and (last[0] in _BINARY or last[0] in _EXTENSIONS)) or len(texts) < 2:
            return [self._value(t) for t in texts], lambda b: b
        amount = number(last[1]) or 0 if len(last) > 1 else 0
        values = [self._value(t) for t in texts[:-1]]
        if last[0] in _BINARY:
            shift = (_F if bits == 64 else _F32)[_BINARY[last[0]]]
            return values, lambda b: shift(b, amount)
        width, signed = _EXTENSIONS[last[0]], last[0][0] == "s"

        def extended(b: Value) -> Value:
            if not isinstance(b, int):
                return None
            low = b & ((1 << width) - 1)
            low -= (1 << width) if signed and low >> (width - 1) else 0
            return low << amount & ((1 << bits) - 1)

        return values, extended

    def _computed(self, name: str, args: list[str]) -> tuple[Op, ...]:
        if not args:
            return ()
        if name in ("cmp", "cmn", "tst"):
            return (self._compared(name, args),)
        if not _is_register(args[0]):
            return ()
        bits, target = _bits(args[0]), _register(args[0])
        f = _F if bits == 64 else _F32
        if name in _FLAGGED:
            kind = _FLAGGED[name]
            compared = self._compared({"adds": "cmn", "subs": "cmp"}.get(name, "tst"), args[1:])
            return (compared, self._two(kind, target, args[1:], bits))
        if name in _BINARY and len(args) > 2:
            return (self._two(name, target, args[1:], bits),)
        if name == "mov" and len(args) == 2:
            return (op(target, f["mov"], self._value(args[1])),)
        if name in ("movk", "movz"):
            shift = number(args[2].split()[-1]) or 0 if len(args) > 2 else 0
            n = (number(args[1]) or 0) << shift
            if name == "movz":
                return (op(target, f["mov"], n),)
            keep = ~(0xFFFF << shift)
            return (op(target, lambda a: (a & keep) | n if isinstance(a, int) else None, target),)
        if name in ("mvn", "neg", "clz") and len(args) == 2:
            g = f[name] if name != "neg" else (lambda a: f["sub"](0, a))
            return (op(target, g, self._value(args[1])),)
        if name in ("madd", "msub", "smaddl", "umaddl"):
            sign = -1 if name == "msub" else 1
            values = [self._value(a) for a in args[1:]]
            narrow = name.endswith("l")

            def sum_(a: Value, b: Value, c: Value) -> Value:
                if not all(isinstance(v, int) for v in (a, b, c)):
                    return None
                if narrow and name[0] == "s":
                    a, b = _F32["signed"](a & 0xFFFFFFFF), _F32["signed"](b & 0xFFFFFFFF)
                return (c + sign * a * b) & ((1 << bits) - 1)

            return (op(target, sum_, *values),)
        if name in ("smull", "umull", "smulh", "umulh", "smnegl"):
            return (_product(name, target, [self._value(a) for a in args[1:]]),)
        if name in ("ubfiz", "ubfx", "sbfiz", "sbfx", "sxtw", "sxth", "sxtb", "uxtb", "uxth", "uxtw", "bfi", "bfxil"):
            return (self._field(name, target, args, bits),)
        if name in ("csel", "csinc", "cset", "cinc", "csneg", "csinv", "csetm"):
            return (self._chosen(name, target, args, f),)
        if name in ("adrp", "adr"):
            symbol = args[1].split(":")[-1].split("+")[0]
            return (Op(target, lambda: symbol),)
        return (Op(target),)

    def _two(self, kind: str, target: str, texts: list[str], bits: int) -> Op:
        if ":lo12:" in texts[-1]:
            return Op(target, lambda a: a, (_register(texts[0]),))
        values, last = self._operands(texts, bits)
        if len(values) != 2:
            return Op(target)
        g = (_F if bits == 64 else _F32)[_BINARY[kind]]
        mask = (1 << bits) - 1

        def compute(a: Value, b: Value) -> Value:
            a = a & mask if isinstance(a, int) else a
            b = b & mask if isinstance(b, int) else b
            return g(a, last(b))

        return op(target, compute, *values)

    def _compared(self, name: str, texts: list[str]) -> Op:
        bits = _bits(texts[0])
        values, last = self._operands(texts, bits)
        if len(values) != 2:
            return Op("flags")
        mask = (1 << bits) - 1

        def flags(a: Value, b: Value) -> Value:
            b = last(b)
            if not isinstance(a, int) or not isinstance(b, int):
                return None
            a, b = a & mask, b & mask
            return ("nz", a & b, 0, bits) if name == "tst" else (name, a, b, bits)

        return op("flags", flags, *values)

    def _field(self, name: str, target: str, args: list[str], bits: int) -> Op:
        if len(args) == 2:
            low, width, up = 0, {"b": 8, "h": 16, "w": 32}[name[-1]], 0
        else:
            first, width = (number(a) or 0 for a in args[2:4])
            low, up = (0, first) if name.endswith("iz") else (first, 0)
        if name.startswith("bf"):
            return Op(target)

        def take(a: Value) -> Value:
            if not isinstance(a, int):
                return None
            found = a >> low & ((1 << width) - 1)
            found -= (1 << width) if name[0] == "s" and found >> (width - 1) else 0
            return found << up & ((1 << bits) - 1)

        return op(target, take, self._value(args[1]))

    def _chosen(self, name: str, target: str, args: list[str], f: dict[str, Callable[..., Value]]) -> Op:
        condition = args[-1]
        if name in ("cset", "csetm"):
            one = 1 if name == "cset" else f["mvn"](0)
            return Op(target, lambda flags: _either(_holds(condition, flags), one, 0), ("flags",))
        a, b = (self._value(t) for t in (args[1:3] if name != "cinc" else (args[1], args[1])))
        changes: dict[str, Callable[[Value], Value]] = {
            "csel": lambda v: v,
            "csinc": lambda v: f["add"](v, 1),
            "csneg": lambda v: f["sub"](0, v),
            "csinv": lambda v: f["mvn"](v),
        }
        if name == "cinc":
            return op(target, lambda g, x: _either(_holds(condition, g), f["add"](x, 1), x), "flags", a)
        change = changes[name]
        return op(target, lambda g, x, y: _either(_holds(condition, g), x, change(y)), "flags", a, b)


def _product(name: str, target: str, values: list[int | str | None]) -> Op:
    """The whole product of 32-bit numbers, or the upper half of that of 64-bit ones."""
    bits = 64 if name.endswith("h") else 32
    signed = (_F if bits == 64 else _F32)["signed"]

    def multiplied(a: Value, b: Value) -> Value:
        if not isinstance(a, int) or not isinstance(b, int):
            return None
        a, b = (v & ((1 << bits) - 1) for v in (a, b))
        product = signed(a) * signed(b) if name[0] == "s" else a * b
        return (product >> 64 if bits == 64 else -product if "neg" in name else product) & ((1 << 64) - 1)

    return op(target, multiplied, *values)


def _holds(condition: str, flags: tuple[str, int, int, int]) -> bool | None:
    return holds(condition, flags[:3], flags[3])


def _either(taken: bool | None, a: Value, b: Value) -> Value:
    return None if taken is None else a if taken else b


def _is_register(text: str) -> bool:
    return bool(re.fullmatch(r"[xw](\d+|zr)", text))


def _bits(text: str) -> int:
    return 32 if text[0] == "w" else 128 if text[0] == "q" else 64


def _register(text: str) -> str:
    return "x" + text[1:] if _is_register(text) else text
