"""A small builder for TIR functions over raw pointers: straight-line code, loops, local accumulators.

Everything that is known at compile time is decided in Python: unrolling is a Python loop, a tile that does not exist
is not emitted. So the TIR that comes out needs no scheduling passes, and what LLVM sees is what was written here.
Vectors are TIR values with lanes; indices count elements of flat buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType

from irc.targets.target import Target

Expr = Any  # a TIR expression; tvm ships no usable annotations
Buffer = Any

_MANY = 64  # items that are shared out evenly enough, whatever the number of threads


def vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


class KernelBuilder:
    """Builds one kernel `void symbol(T0* p0, ..., int32 part, int32 parts)`. Where the target has no threads the last
    two are missing, and everything is the share of part 0 of 1."""

    def __init__(self, symbol: str, target: Target | None = None) -> None:
        self.symbol = symbol
        self.target = target  # None: nothing is supposed of the machine
        self._params: list[Any] = []
        self._declared: list[Any] = []
        self._is_shared = False
        self._blocks: list[list[Any]] = [[]]
        self._count = 0
        self._is_alone = target is not None and not target.threads
        self.part = const(0, "int32") if self._is_alone else tirx.Var("part", "int32")
        self.parts = const(1, "int32") if self._is_alone else tirx.Var("parts", "int32")

    def _name(self, base: str) -> str:
        self._count += 1
        return f"{base}{self._count}"

    # Parameters and memory
    def pointer(self, name: str, dtype: str, size: int, *, shared: bool = False) -> Buffer:
        """A pointer parameter, seen as a flat buffer of `size` elements.

        `shared`: its memory may be that of other shared parameters, so that no load of one of them may move behind a
        store to another. Without it parameters point to memory of their own.
        """
        variable = tirx.Var(name, PointerType(tvm.ir.PrimType(dtype), "global"))
        self._params.append(variable)
        buffer = self._declare(name, dtype, size, variable)
        if not shared:
            return buffer
        # TVM tells LLVM that memory of different parameters is different, but supposes nothing of bound pointers.
        self._is_shared = True
        address = tirx.address_of(self.load(buffer, 0))
        bound = tirx.Var(name + "_shared", address.ty)
        self._declared.append(tirx.Bind(bound, address))
        return self._declare(name, dtype, size, bound)

    def _declare(self, name: str, dtype: str, size: int, variable: Expr) -> Buffer:
        buffer = tirx.decl_buffer((max(size, 1),), dtype, name + "_", data=variable)
        self._declared.append(tirx.DeclBuffer(buffer, data=variable))
        return buffer

    def local(self, size: int, dtype: str, name: str = "acc") -> Buffer:
        """Stack memory. With constant indices only, LLVM keeps it in registers."""
        buffer = tirx.decl_buffer((size,), dtype, self._name(name), scope="local")
        self.emit(tirx.AllocBuffer(buffer))
        return buffer

    def load(self, buffer: Buffer, index: Expr, lanes: int = 1) -> Expr:
        return tirx.BufferLoad(buffer, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)])

    def store(self, buffer: Buffer, index: Expr, value: Expr, lanes: int = 1) -> None:
        self.emit(tirx.BufferStore(buffer, value, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)]))

    def unknown(self, count: int) -> Expr:
        """`count` as a number that LLVM's optimizer does not know: a loop of so many steps stays a loop. It costs an
        instruction or two before the loop. In C source it is the number itself."""
        if self.target is not None and self.target.arch == "c":
            return count
        bits = reinterpret(const(count, "int32"), "float32")  # of no meaning as a float
        return self.let(reinterpret(intrinsic("llvm.arithmetic.fence", "float32", bits), "int32"), "n")

    def prefetch(self, buffer: Buffer, index: Expr) -> None:
        """Asks for the cache line of an element to be brought to the second-level cache; it need not exist."""
        address = tirx.address_of(self.load(buffer, index))
        hint = [tirx.const(v, "int32") for v in (0, 2, 1)]  # to read, second-level, data
        self.emit(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *hint)))

    # Statements
    def emit(self, stmt: Any) -> None:
        self._blocks[-1].append(stmt)

    def let(self, value: Expr, name: str = "t") -> Expr:
        """Name a value: computed once, used often."""
        variable = tirx.Var(self._name(name), value.ty)
        self.emit(tirx.Bind(variable, value))
        return variable

    @contextmanager
    def block(self) -> Iterator[list[Any]]:
        statements: list[Any] = []
        self._blocks.append(statements)
        try:
            yield statements
        finally:
            self._blocks.pop()

    @contextmanager
    def loop(self, extent: Expr, name: str = "i", start: Expr = 0) -> Iterator[Expr]:
        """A serial loop from `start` over `extent` steps; with extent 1 (a Python int) there is no loop."""
        if isinstance(extent, int) and extent == 1:
            yield start if not isinstance(start, int) else tirx.const(start, "int32")
            return
        variable = tirx.Var(self._name(name), "int32")
        with self.block() as body:
            yield variable
        if not body:
            return
        low = tirx.const(start, "int32") if isinstance(start, int) else start
        high = tirx.const(extent, "int32") if isinstance(extent, int) else extent
        self.emit(tirx.For(variable, low, high, tirx.ForKind.SERIAL, sequence(body)))

    @contextmanager
    def work(self, total: int, name: str = "w") -> Iterator[Expr]:
        """The loop that is shared out: items [total*part/parts, total*(part+1)/parts)."""
        if self._is_alone:
            with self.loop(total, name) as item:
                yield item
            return
        low = self.let(tirx.truncdiv(self.part * total, self.parts), "low")
        high = self.let(tirx.truncdiv((self.part + 1) * total, self.parts), "high")
        with self.loop(high - low, name, start=low) as item:
            yield item

    @contextmanager
    def shares(
        self, outer: int, inner: int, by_outer: bool, name: str = "w", *, many: int = _MANY
    ) -> Iterator[tuple[Expr, Expr, Expr]]:
        """The loop over `outer` x `inner` items that are shared out: (outer index, first inner index, one past the
        last).

        A part gets neighbours: along the outer index, and where the border of a share falls the inner ones up to
        there; or the other way round (`by_outer` False: every outer index, and about the same inner ones of each).
        `many` outer items are even enough on their own: the inner range is then all of it, as numbers.
        """
        if self._is_alone or (by_outer and (outer >= many or inner == 1)):
            with self.work(outer, name) as o:
                yield o, 0, inner
            return
        low = self.let(tirx.truncdiv(self.part * (outer * inner), self.parts), "low")
        high = self.let(tirx.truncdiv((self.part + 1) * (outer * inner), self.parts), "high")
        if by_outer:
            first = self.let(tirx.truncdiv(low, const(inner, "int32")), "first")
            end = tirx.truncdiv(high + (inner - 1), const(inner, "int32"))
            with self.loop(end - first, name, start=first) as o:
                before = self.let(o * inner, "o")
                begin = self.let(tirx.Max(low - before, const(0, "int32")), "from")
                yield o, begin, self.let(tirx.Min(high - before, const(inner, "int32")), "to")
        else:
            with self.loop(outer, name) as o:
                begin = self.let(tirx.truncdiv(low - o + (outer - 1), const(outer, "int32")), "from")
                yield o, begin, self.let(tirx.truncdiv(high - o + (outer - 1), const(outer, "int32")), "to")

    @contextmanager
    def between(self, first: int, count: int, low: Expr, high: Expr, name: str = "i") -> Iterator[Expr]:
        """A loop over those of the items first .. first + count - 1 that lie in [low, high), counted from `first`."""
        if isinstance(low, int) and isinstance(high, int):
            with self.loop(count, name) as item:
                yield item
            return
        begin = self.let(tirx.Max(low - first, const(0, "int32")), "from")
        end = tirx.Min(high - first, const(count, "int32"))
        with self.loop(tirx.Max(end - begin, const(0, "int32")), name, start=begin) as item:
            yield item

    @contextmanager
    def when(self, condition: Expr | None) -> Iterator[None]:
        """Under a condition; None: always."""
        if condition is None:
            yield
            return
        with self.block() as body:
            yield
        if body:
            self.emit(tirx.IfThenElse(condition, sequence(body), None))

    @contextmanager
    def first_part(self) -> Iterator[None]:
        """For kernels that do not share their work."""
        with self.when(None if self._is_alone else self.part == 0):
            yield

    def finish(self) -> tirx.PrimFunc:
        body = sequence([*self._declared, *self._blocks[0]])
        shares = [] if self._is_alone else [self.part, self.parts]
        func = tirx.PrimFunc([*self._params, *shares], body)
        return func.with_attr("global_symbol", self.symbol).with_attr("tirx.noalias", not self._is_shared)


def sequence(statements: Sequence[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def const(value: float, dtype: str, lanes: int = 1) -> Expr:
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def broadcast(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def cast(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    return tirx.Cast(vector_type(dtype, lanes), value)


def reinterpret(value: Expr, dtype: str) -> Expr:
    return tirx.reinterpret(dtype, value)


def intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    """A call of the LLVM intrinsic `name` without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, name, *args)
