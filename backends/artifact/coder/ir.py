"""Writes functions of LLVM IR as one writes C: variables, expressions, `if_` and `while_`.

Variables are memory on the stack (nothing here is optimized); loops that have to be fast are written as text.
Numbers are unsigned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_WIDTHS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64}


@dataclass(frozen=True)
class Value:
    """Something that was computed, or a constant."""

    f: Function
    type: str
    text: str

    def _binary(self, op: str, other: Value | int) -> Value:
        return self.f.compute(f"{op} {self.type} {self.text}, {_text(other)}", self.type)

    def __add__(self, other: Value | int) -> Value:
        return self._binary("add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._binary("mul", other)

    def __floordiv__(self, other: Value | int) -> Value:
        return self._binary("udiv", other)

    def signed_division(self, other: Value | int) -> Value:
        """As in C: towards zero."""
        return self._binary("sdiv", other)

    def __and__(self, other: Value | int) -> Value:
        return self._binary("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self._binary("or", other)

    def __xor__(self, other: Value | int) -> Value:
        return self._binary("xor", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._binary("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        return self._binary("lshr", other)

    def negated(self) -> Value:
        return self.f.compute(f"sub {self.type} 0, {self.text}", self.type)

    def _compare(self, op: str, other: Value | int) -> Value:
        return self.f.compute(f"icmp {op} {self.type} {self.text}, {_text(other)}", "i1")

    def __lt__(self, other: Value | int) -> Value:
        return self._compare("ult", other)

    def __gt__(self, other: Value | int) -> Value:
        return self._compare("ugt", other)

    def __ge__(self, other: Value | int) -> Value:
        return self._compare("uge", other)

    def equals(self, other: Value | int) -> Value:
        return self._compare("eq", other)

    def differs(self, other: Value | int) -> Value:
        return self._compare("ne", other)

    def choose(self, yes: Value | int, no: Value | int) -> Value:
        """`yes` where this bit is set."""
        kind = yes.type if isinstance(yes, Value) else no.type if isinstance(no, Value) else "i32"
        return self.f.compute(f"select i1 {self.text}, {kind} {_text(yes)}, {kind} {_text(no)}", kind)

    def least(self, other: Value) -> Value:
        return (self < other).choose(self, other)

    def to(self, kind: str) -> Value:
        """The same number in another width."""
        if kind == self.type:
            return self
        op = "zext" if _WIDTHS[kind] > _WIDTHS[self.type] else "trunc"
        return self.f.compute(f"{op} {self.type} {self.text} to {kind}", kind)

    # Pointers

    def at(self, offset: Value | int) -> Value:
        """The address `offset` bytes further."""
        kind = offset.type if isinstance(offset, Value) else "i32"
        return self.f.compute(f"getelementptr i8, ptr {self.text}, {kind} {_text(offset)}", "ptr")

    def load(self, kind: str, offset: Value | int = 0) -> Value:
        """Of any alignment."""
        place = self.at(offset) if isinstance(offset, Value) or offset else self
        return self.f.compute(f"load {kind}, ptr {place.text}, align 1", kind)

    def store(self, value: Value | int, offset: Value | int = 0, kind: str = "i32") -> None:
        place = self.at(offset) if isinstance(offset, Value) or offset else self
        kind = value.type if isinstance(value, Value) else kind
        self.f.line(f"store {kind} {_text(value)}, ptr {place.text}, align 1")

    def minus(self, other: Value) -> Value:
        """Bytes between two addresses."""
        w = self.f.word
        a, b = (self.f.compute(f"ptrtoint ptr {v.text} to {w}", w) for v in (self, other))
        return a - b


@dataclass(frozen=True)
class Variable:
    """Memory on the stack."""

    f: Function
    type: str
    text: str

    def get(self) -> Value:
        return self.f.compute(f"load {self.type}, ptr {self.text}", self.type)

    def set(self, value: Value | int) -> None:
        self.f.line(f"store {self.type} {_text(value)}, ptr {self.text}")


class Function:
    """`define internal RESULT @NAME(TYPE %a0, ...)`. `word`: the integer as wide as a pointer."""

    def __init__(self, name: str, parameters: Sequence[str], result: str = "void", *, word: str = "i64") -> None:
        self.word = word
        kinds = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(parameters))
        self.parameters = [Value(self, kind, f"%a{i}") for i, kind in enumerate(parameters)]
        self._head = f"define internal {result} @{name}({kinds}) noinline nounwind minsize optsize {{"
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._result = result
        self._ended = False

    def lines(self) -> list[str]:
        """The text of the function."""
        if not self._ended:
            self.line("ret void" if self._result == "void" else "unreachable")
        return [self._head, *self._slots, *self._lines, "}", ""]

    def name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def line(self, text: str) -> None:
        if not self._ended:
            self._lines.append(f"  {text}")

    def compute(self, text: str, kind: str) -> Value:
        name = self.name()
        self.line(f"%{name} = {text}")
        return Value(self, kind, f"%{name}")

    def constant(self, number: int, kind: str = "i32") -> Value:
        return Value(self, kind, str(number))

    def variable(self, start: Value | int = 0, kind: str = "i32") -> Variable:
        kind = start.type if isinstance(start, Value) else kind
        made = Variable(self, kind, f"%{self.name()}")
        self._slots.append(f"  {made.text} = alloca {kind}")
        made.set(start)
        return made

    def memory(self, bytes: int) -> Value:
        """Bytes on the stack."""
        name = f"%{self.name()}"
        self._slots.append(f"  {name} = alloca [{bytes} x i8], align 8")
        return Value(self, "ptr", name)

    def call(self, name: str, arguments: Sequence[Value | int], result: str = "void") -> Value:
        texts = ", ".join(f"{a.type} {a.text}" if isinstance(a, Value) else f"i32 {a}" for a in arguments)
        if result != "void":
            return self.compute(f"call {result} @{name}({texts})", result)
        self.line(f"call void @{name}({texts})")
        return Value(self, "void", "")

    def fill(self, place: Value, byte: Value | int, count: Value | int) -> None:
        self.line(f"call void @llvm.memset.p0.i32(ptr {place.text}, i8 {_text(byte)}, i32 {_text(count)}, i1 false)")

    def move(self, to: Value, source: Value, count: Value | int) -> None:
        self.line(f"call void @llvm.memmove.p0.p0.i32(ptr {to.text}, ptr {source.text}, i32 {_text(count)}, i1 false)")

    def give(self, value: Value | int | None = None) -> None:
        """Return."""
        self.line("ret void" if value is None else f"ret {self._result} {_text(value)}")
        self._ended = True

    def _label(self, name: str) -> None:
        self.line(f"br label %{name}")
        self._lines.append(f"{name}:")
        self._ended = False

    @contextmanager
    def if_(self, condition: Value) -> Iterator[None]:
        yes, no = self.name(), self.name()
        self.line(f"br i1 {condition.text}, label %{yes}, label %{no}")
        self._lines.append(f"{yes}:")
        yield
        self._label(no)

    @contextmanager
    def while_(self, condition: Callable[[], Value]) -> Iterator[None]:
        test, body, end = self.name(), self.name(), self.name()
        self._label(test)
        self.line(f"br i1 {condition().text}, label %{body}, label %{end}")
        self._lines.append(f"{body}:")
        yield
        self.line(f"br label %{test}")
        self._lines.append(f"{end}:")
        self._ended = False

    @contextmanager
    def for_(self, count: Value | int, start: Value | int = 0) -> Iterator[Value]:
        """Numbers from `start` up to `count` (not included)."""
        i = self.variable(start)
        with self.while_(lambda: i.get() < count):
            number = i.get()
            yield number
            i.set(number + 1)


def _text(value: Value | int) -> str:
    return value.text if isinstance(value, Value) else str(value)


DECLARATIONS = [
    "declare void @llvm.memset.p0.i32(ptr, i8, i32, i1)",
    "declare void @llvm.memmove.p0.p0.i32(ptr, ptr, i32, i1)",
]
