"""x86-64 instructions as `flow.py` wants them. Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2;
AT&T syntax as LLVM prints it."""

from __future__ import annotations

import re
from collections.abc import Callable

from irc.backends.tvm.counting.flow import Branch, Call, Instruction, Op, Value
from irc.backends.tvm.counting.reading import STACK, Reader, Text, arithmetic, holds, number, op

ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_CLOBBERED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "flags")
_SIZES = {"b": 8, "w": 16, "l": 32, "q": 64}
_F = {bits: arithmetic(bits) for bits in (8, 16, 32, 64)}
_TWO = {
    "add": "add",
    "sub": "sub",
    "and": "and",
    "or": "orr",
    "xor": "eor",
    "shl": "lsl",
    "sal": "lsl",
    "shr": "lsr",
    "sar": "asr",
    "imul": "mul",
}
_THREE = {"andn": "bic", "shlx": "lsl", "shrx": "lsr", "sarx": "asr", "rorx": "ror"}
_ONE = {"inc": ("add", 1), "dec": ("sub", 1), "neg": ("rsb", 0), "not": ("eor", -1)}
_CONDITIONS = {
    "e": "eq",
    "ne": "ne",
    "l": "lt",
    "le": "le",
    "g": "gt",
    "ge": "ge",
    "b": "lo",
    "ae": "hs",
    "a": "hi",
    "be": "ls",
    "s": "mi",
    "ns": "pl",
}
"""As 32-bit Arm names them, after a comparison."""
_SIGNED = ("e", "ne", "l", "le", "g", "ge", "s", "ns")
_EXTENSIONS = {"movzbl": (8, 0), "movzwl": (16, 0), "movslq": (32, 1), "movsbl": (8, 1), "movswl": (16, 1)}
_MEMORY = re.compile(r"(-?\w*)\((%\w+)?(?:,\s*(%\w+)(?:,\s*(\d))?)?\)$")
_NAMES = {
    **{f"{r}{s}": f"r{r}{s}" for r in "abcd" for s in "x"},
    **{f"e{r}x": f"r{r}x" for r in "abcd"},
    **{f"{r}l": f"r{r}x" for r in "abcd"},
    **{f"{p}{r}": f"r{r}" for p in ("e", "") for r in ("si", "di", "bp", "sp")},
    **{f"{r}l": f"r{r}" for r in ("si", "di", "bp", "sp")},
    **{f"r{i}{s}": f"r{i}" for i in range(8, 16) for s in ("d", "w", "b")},
}


def read(text: Text) -> list[str | Instruction]:
    """The instructions and labels of a function."""
    return _Reader(text).lines()


class _Reader(Reader):
    def __init__(self, text: Text) -> None:
        super().__init__(text, depth=8)  # the return address
        self.frame = 0  # where rbp stands, where it is a frame pointer

    def _instruction(self, name: str, args: list[str]) -> Instruction:
        found = self._control(name, args)
        if found is not None:
            return found
        if name in ("pushq", "popq"):
            self.depth += 8 if name == "pushq" else -8
            return Instruction((Op(_register(args[0])),) if name == "popq" and args[0][0] == "%" else ())
        if args and args[-1] == "%rsp":
            self._move_stack(name, args)
            return Instruction()
        if name == "movq" and args == ["%rsp", "%rbp"]:
            self.frame = self.depth
            return Instruction((Op("rbp"),))
        if not args or name.startswith(("v", "prefetch", "nop")):
            return Instruction(self._without_operands(name, args))
        return Instruction(self._computed(name, args))

    # Control
    def _control(self, name: str, args: list[str]) -> Instruction | None:
        if name == "jmp":
            if args[0] in self.text.labels:
                return Instruction(branch=Branch(args[0]))
            return Instruction(call=self._call(args[0], ends=True))
        if name[0] == "j" and name[1:] in _CONDITIONS:
            condition = name[1:]
            return Instruction(branch=Branch(args[0], lambda f: _holds(condition, f), ("flags",)))
        if name == "retq":
            return Instruction(branch=Branch(None))
        if name == "callq":
            return Instruction(call=self._call(args[0]))
        return None

    def _call(self, name: str, *, ends: bool = False) -> Call:
        slots = tuple(f"slot{self.depth - 8 * i}" for i in range(8))
        register = name.startswith("*%")
        called = _register(name[1:]) if register else name.split("@")[0]
        return Call(called, register, (*ARGUMENTS, *slots), _CLOBBERED, ends=ends, slot=self.depth)

    # Stack
    def _move_stack(self, name: str, args: list[str]) -> None:
        amount = number(args[0]) if args[0][0] == "$" else None
        if name == "subq" and amount is not None:
            self.depth += amount
        elif name == "addq" and amount is not None:
            self.depth -= amount
        elif name == "leaq" and args[0].endswith("(%rbp)"):
            self.depth = self.frame - (number(args[0].split("(")[0] or "0") or 0)
        elif name == "movq" and args[0] == "%rbp":
            self.depth = self.frame
        else:  # aligned
            self.depth += 1 << 16

    def _slot(self, text: str) -> str | None:
        """The stack slot of an operand in memory."""
        m = _MEMORY.match(text)
        if m is None or m[3] or m[2] not in ("%rsp", "%rbp") or (m[2] == "%rbp" and not self.frame):
            return None
        return f"slot{(self.depth if m[2] == '%rsp' else self.frame) - int(m[1] or '0', 0)}"

    # Arithmetic
    def _value(self, text: str) -> int | str | None:
        if text[0] == "$":
            return number(text)
        if text[0] == "%":
            return None if text[1:4] in ("xmm", "ymm", "zmm") or text[1] == "k" else _register(text)
        return self._slot(text)

    def _without_operands(self, name: str, args: list[str]) -> tuple[Op, ...]:
        if name in ("cltd", "cqto"):
            bits = 32 if name == "cltd" else 64
            return (Op("rdx", lambda a: -1 & ((1 << bits) - 1) if a >> (bits - 1) & 1 else 0, ("rax",)),)
        if name == "cltq":
            return (Op("rax", lambda a: _extended(a, 32, 64, 1), ("rax",)),)
        if name.startswith(("vucomis", "vcomis", "vptest", "vtest")):
            return (Op("flags"),)
        if args and args[-1][0] == "%" and not args[-1].startswith(("%x", "%y", "%z", "%k")):
            return (Op(_register(args[-1])),)
        return ()

    def _computed(self, name: str, args: list[str]) -> tuple[Op, ...]:
        if name.startswith(("cmp", "test")) and name[-1] in _SIZES and len(args) == 2:
            return (self._compared(name[:-1], args, _SIZES[name[-1]]),)
        target = self._target(args[-1])
        if name.startswith("idiv"):
            return self._divided(args[0], _SIZES[name[-1]])
        if target is None:
            return (Op("flags"),) if not name.startswith("mov") else ()
        if name in _EXTENSIONS:
            width, signed = _EXTENSIONS[name]
            bits = 64 if name == "movslq" else 32
            return (op(target, lambda a: _extended(a, width, bits, signed), self._value(args[0])),)
        if name.startswith("cmov"):
            condition = name[4:-1]
            if condition in _CONDITIONS:
                return (op(target, _chosen(condition), "flags", self._value(args[0]), self._value(args[1])),)
            return (Op(target),)
        if name.startswith("set"):
            condition = name[3:]
            return (Op(target, lambda f: None if (h := _holds(condition, f)) is None else int(h), ("flags",)),)
        base, bits = name[:-1], _SIZES.get(name[-1], 0)
        if not bits:
            return (Op(target), Op("flags"))
        f = _F[bits]
        if base in ("mov", "movabs"):
            exact = bits >= 32 or args[-1][0] != "%"
            return (op(target, f["mov"], self._value(args[0])),) if exact else (Op(target),)
        if base == "lea":
            return (self._address(target, args[0], bits),)
        if base in _TWO:
            return self._two(base, target, args, bits)
        if base in _THREE and len(args) == 3:
            a, b = self._value(args[1]), self._value(args[0])
            if base == "andn":
                a, b = b, a
            return (op(target, f[_THREE[base]], a, b),)
        if base in _ONE and len(args) == 1:
            kind, by = _ONE[base]
            done = op(target, lambda a: f[kind](a, by), self._value(args[0]))
            flags = op("flags", lambda a: ("cmn" if by == 1 and kind == "add" else "cmp", a, by, bits), target)
            return (flags, done) if base in ("inc", "dec") else (done, self._zero(target, bits))
        return (Op(target), Op("flags"))

    def _target(self, text: str) -> str | None:
        value = self._value(text)
        return value if isinstance(value, str) else None

    def _zero(self, target: str, bits: int) -> Op:
        return Op("flags", lambda a: ("cmp", a, 0, bits), (target,))

    def _two(self, base: str, target: str, args: list[str], bits: int) -> tuple[Op, ...]:
        f = _F[bits]
        if base == "xor" and args[0] == args[1]:
            return (op(target, f["mov"], 0), Op("flags", lambda: ("cmp", 0, 0, bits)))
        if len(args) == 1:  # a shift by one
            sources: list[int | str | None] = [target, 1]
        else:
            sources = [self._value(args[-1] if len(args) == 2 else args[1]), self._value(args[0])]
        done = op(target, f[_TWO[base]], *sources)
        if base in ("add", "sub"):
            kind = "cmn" if base == "add" else "cmp"
            return (op("flags", lambda a, b: (kind, f["mov"](a), f["mov"](b), bits), *sources), done)
        return (done, self._zero(target, bits))

    def _compared(self, base: str, args: list[str], bits: int) -> Op:
        mov, both = _F[bits]["mov"], _F[bits]["and"]
        a, b = self._value(args[1]), self._value(args[0])
        if base == "test":
            return op("flags", lambda x, y: ("cmp", both(x, y), 0, bits), a, b)
        return op("flags", lambda x, y: ("cmp", mov(x), mov(y), bits), a, b)

    def _divided(self, by: str, bits: int) -> tuple[Op, ...]:
        f, divisor = _F[bits], self._value(by)
        # the upper half of the dividend is the sign of the lower one: cltd or cqto stands before
        quotient = op("quotient", f["sdiv"], "rax", divisor)
        rest = op("rdx", f["srem"], "rax", divisor)
        return (quotient, rest, Op("rax", lambda a: a, ("quotient",)), Op("flags"))

    def _address(self, target: str, text: str, bits: int) -> Op:
        m = _MEMORY.match(text)
        if m is None or (m[1] and number(m[1]) is None):
            return Op(target)
        offset, scale = int(m[1] or "0", 0), int(m[4] or "1")
        places: list[int | str] = []
        for register in (m[2], m[3]):
            if register in ("%rsp", "%rbp") and (register == "%rsp" or self.frame):
                places.append(STACK - (self.depth if register == "%rsp" else self.frame))
            else:
                places.append(0 if register is None else _register(register))
        mask = (1 << bits) - 1

        def address(a: Value, b: Value) -> Value:
            return (a + b * scale + offset) & mask if isinstance(a, int) and isinstance(b, int) else None

        return op(target, address, *places)


def _holds(condition: str, flags: tuple[str, int, int, int]) -> bool | None:
    if condition not in _CONDITIONS or (flags[0] == "cmn" and condition not in _SIGNED):
        return None  # what a carry is after an addition is not needed by any loop
    return holds(_CONDITIONS[condition], flags[:3], flags[3])


def _chosen(condition: str) -> Callable[..., Value]:
    def choose(flags: Value, a: Value, b: Value) -> Value:
        taken = _holds(condition, flags)
        return None if taken is None else a if taken else b

    return choose


def _extended(a: Value, width: int, bits: int, signed: int) -> Value:
    if not isinstance(a, int):
        return None
    low = a & ((1 << width) - 1)
    low -= (1 << width) if signed and low >> (width - 1) else 0
    return low & ((1 << bits) - 1)


def _register(text: str) -> str:
    text = text.lstrip("%")
    return _NAMES.get(text, text)
