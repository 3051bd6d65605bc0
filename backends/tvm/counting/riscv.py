"""RISC-V instructions (RV32IM, RV64IM with Zba and Zbb) as `flow.py` wants them. The RISC-V Instruction Set Manual,
Volume I; names and pseudoinstructions as LLVM prints them."""

from __future__ import annotations

import re
from collections.abc import Callable

from irc.backends.tvm.counting.flow import Branch, Call, Instruction, Op, Value
from irc.backends.tvm.counting.reading import STACK, Reader, Text, arithmetic, number, op

ARGUMENTS = tuple(f"a{i}" for i in range(8))
_CLOBBERED = (*ARGUMENTS, *(f"t{i}" for i in range(7)), "ra")
_BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and": "and",
    "or": "orr",
    "xor": "eor",
    "andn": "bic",
    "orn": "orn",
    "sll": "lsl",
    "srl": "lsr",
    "sra": "asr",
    "div": "sdiv",
    "divu": "udiv",
    "slt": "lt",
    "sltu": "ltu",
    "max": "max",
    "min": "min",
    "maxu": "maxu",
    "minu": "minu",
    "rem": "srem",
    "remu": "urem",
    "mulh": "mulh",
    "mulhu": "mulhu",
}
_IMMEDIATE = {
    "addi": "add",
    "andi": "and",
    "ori": "orr",
    "xori": "eor",
    "slli": "lsl",
    "srli": "lsr",
    "srai": "asr",
    "slti": "lt",
    "sltiu": "ltu",
}
_AGAINST_ZERO = {"beqz": "beq", "bnez": "bne", "bltz": "blt", "bgez": "bge", "blez": "ble", "bgtz": "bgt"}
_STORES = ("sw", "sd", "sb", "sh", "fsw", "fsd", "vs", "nop", "fence", "vse", "ecall", "vsetivli")
_MEMORY = re.compile(r"(-?\w+)?\(sp\)$")


def read(text: Text, bits: int) -> list[str | Instruction]:
    """The instructions and labels of a function of a machine with registers of so many bits."""
    return _Reader(text, bits).lines()


class _Reader(Reader):
    def __init__(self, text: Text, bits: int) -> None:
        super().__init__(text)
        self.bits = bits
        self.word = bits // 8
        self.f = arithmetic(bits)

    def _instruction(self, name: str, args: list[str]) -> Instruction:
        found = self._control(name, args)
        if found is not None:
            return found
        if args and args[0] == "sp":
            amount = number(args[-1])
            self.depth += 1 << 16 if amount is None else -amount
            return Instruction()
        if len(args) == 2 and (m := _MEMORY.match(args[1])):
            slot = f"slot{self.depth - int(m[1] or '0', 0)}"
            if name in ("sw", "sd"):
                return Instruction((op(slot, self.f["mov"], self._value(args[0])),))
            if name in ("lw", "ld"):
                return Instruction((Op(args[0], lambda a: a, (slot,)),))
        if name.startswith(_STORES) or not args:
            return Instruction()
        return Instruction((self._computed(name, args),))

    def _value(self, text: str) -> int | str | None:
        if text == "zero":
            return 0
        if text == "sp":
            return STACK - self.depth
        n = number(text)
        if n is not None:
            return n & ((1 << self.bits) - 1)
        return None if "%" in text else text

    def _control(self, name: str, args: list[str]) -> Instruction | None:
        if name == "j":
            return Instruction(branch=Branch(args[0]))
        if name in ("ret", "jr"):
            return Instruction(branch=Branch(None))
        if name in ("call", "tail", "jalr"):
            called = args[-1].split("@")[0]
            slots = tuple(f"slot{self.depth - self.word * i}" for i in range(8))
            ends = name == "tail"
            call = Call(called, name == "jalr", (*ARGUMENTS, *slots), _CLOBBERED, ends=ends, slot=self.depth)
            return Instruction(call=call)
        name, operands = (_AGAINST_ZERO[name], [args[0], "zero"]) if name in _AGAINST_ZERO else (name, args[:2])
        compare = _COMPARISONS.get(name)
        if compare is None:
            return None
        seen = self.f["mov"] if name.endswith("u") else self.f["signed"]
        a, b = (self._value(o) for o in operands)

        def decided(x: Value, y: Value) -> Value:
            return compare(seen(x), seen(y)) if isinstance(x, int) and isinstance(y, int) else None

        made = op("", decided, a, b)
        return Instruction(branch=Branch(args[-1], made.compute or (lambda: None), made.reads))

    def _computed(self, name: str, args: list[str]) -> Op:
        target = args[0]
        if name == "li":
            return op(target, self.f["mov"], self._value(args[1]))
        if name in ("lui", "auipc", "la", "lla"):
            n = number(args[-1])
            if name == "lui" and n is not None:
                return op(target, self.f["mov"], self._extended(n << 12, 32))
            symbol = re.sub(r"%\w+\(|\)", "", args[-1])
            return Op(target, lambda: symbol)
        if name == "mv":
            return op(target, self.f["mov"], self._value(args[1]))
        if name in ("neg", "negw", "not", "seqz", "snez", "sltz", "sgtz", "zext.b", "sext.w", "zext.h"):
            return op(target, self._unary(name), self._value(args[1]))
        if name == "addi" and "%" in args[-1]:
            return op(target, self.f["add"], self._value(args[1]), 0)
        kind = _BINARY.get(name) or _IMMEDIATE.get(name)
        if kind in self.f and len(args) == 3:
            return op(target, self.f[kind], self._value(args[1]), self._value(args[2]))
        kind = _BINARY.get(name[:-1]) or _IMMEDIATE.get(name[:-1])
        if name[-1] == "w" and kind in self.f and len(args) == 3:
            return op(target, self._word(kind), self._value(args[1]), self._value(args[2]))
        if m := re.fullmatch(r"sh([123])add", name):
            shift = int(m[1])
            return op(target, lambda a, b: self.f["add"](self.f["lsl"](a, shift), b), *map(self._value, args[1:]))
        return Op(target)

    def _word(self, kind: str) -> Callable[..., Value]:
        """An operation on the lower 32 bits of 64-bit registers."""
        compute = _WORDS[kind]

        def computed(a: Value, b: Value) -> Value:
            if not isinstance(a, int) or not isinstance(b, int):
                return None
            return self._extended(compute(a & 0xFFFFFFFF, b & 0xFFFFFFFF), 32)

        return computed

    def _extended(self, a: int, bits: int) -> int:
        a &= (1 << bits) - 1
        return (a - (1 << bits) if a >> (bits - 1) else a) & ((1 << self.bits) - 1)

    def _unary(self, name: str) -> Value:
        mask = (1 << self.bits) - 1
        found: dict[str, Callable[[int], int]] = {
            "neg": lambda a: -a & mask,
            "not": lambda a: ~a & mask,
            "negw": lambda a: self._extended(-a, 32),
            "sltz": lambda a: int(self.f["signed"](a) < 0),
            "sgtz": lambda a: int(self.f["signed"](a) > 0),
            "seqz": lambda a: int(a == 0),
            "snez": lambda a: int(a != 0),
            "zext.b": lambda a: a & 0xFF,
            "zext.h": lambda a: a & 0xFFFF,
            "sext.w": lambda a: self._extended(a, 32),
        }
        computed = found[name]
        return lambda a: computed(a) if isinstance(a, int) else None


_WORDS = arithmetic(32)
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "beq": lambda a, b: a == b,
    "bne": lambda a, b: a != b,
    "blt": lambda a, b: a < b,
    "bge": lambda a, b: a >= b,
    "bgt": lambda a, b: a > b,
    "ble": lambda a, b: a <= b,
    "bltu": lambda a, b: a < b,
    "bgeu": lambda a, b: a >= b,
    "bgtu": lambda a, b: a > b,
    "bleu": lambda a, b: a <= b,
}
