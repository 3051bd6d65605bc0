"""TIR functions, as `KernelBuilder` and the library make them, printed as C99 that is C++ too.

Every vector becomes a loop over its lanes, which compilers turn back into instructions of the machine where there are
any. The text has no undefined behaviour: signed numbers are shifted to the left as unsigned ones, bits change their
type through memcpy, and narrow results are cast. Helper functions (`irc_...`) are defined in `helpers.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx

from irc.backends.c.numbers import ctype, integer, real
from irc.errors import UnsupportedError

Expr = Any
Stmt = Any

_BINARY = {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "Div": "/",
    "Mod": "%",
    "EQ": "==",
    "NE": "!=",
    "LT": "<",
    "LE": "<=",
    "GT": ">",
    "GE": ">=",
    "And": "&&",
    "Or": "||",
    "BitwiseAnd": "&",
    "BitwiseOr": "|",
    "BitwiseXor": "^",
}
_CALLED = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_LOGIC = frozenset({"==", "!=", "<", "<=", ">", ">=", "&&", "||"})
_LIBM = {
    "llvm.sqrt": "sqrt",
    "llvm.floor": "floor",
    "llvm.ceil": "ceil",
    "llvm.trunc": "trunc",
    "llvm.fabs": "fabs",
    "llvm.rint": "rint",
    "llvm.nearbyint": "rint",
    "llvm.roundeven": "rint",
    "llvm.round": "round",
    "llvm.exp": "exp",
    "llvm.log": "log",
    "llvm.pow": "pow",
    "llvm.copysign": "copysign",
    "llvm.fma": "fma",
}
"""Intrinsics of LLVM -> functions of libm (rounding is to even: the default mode)."""
_FUNCTIONS = frozenset(
    (
        *("exp", "exp2", "exp10", "log", "log2", "log10", "log1p", "expm1", "pow", "sqrt", "erf", "hypot"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        *("floor", "ceil", "trunc", "round", "nearbyint", "fmod", "copysign", "ldexp"),
    )
)
"""Operators of TIR that are functions of libm."""


class Printer:
    """Prints one function. Names come from the variables' own, made unique and harmless."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self._names: dict[Any, str] = {}
        self._taken: set[str] = set()
        self._lines: list[str] = []
        self._depth = 1
        self._lane = ""  # the loop variable of the lane that is printed

    def function(self, function: Any) -> str:
        """The whole definition, of internal linkage."""
        apart = function.attrs is None or bool(function.attrs.get("tirx.noalias", True))
        qualifier = "IRC_RESTRICT " if apart else ""
        parameters = []
        for p in function.params:
            kind = pointee(p)
            if kind is None:  # (part, parts) of kernels whose work may be shared
                self._names[p] = "0" if str(p.name) == "part" else "1"
                continue
            parameters.append((self._name(p), kind))
        self._statement(function.body)
        written = self._written(function.body)
        body = drop_unused(self._lines)
        text = "\n".join(body)
        declared = []
        for name, kind in parameters:
            constant = "" if name in written else "const "
            declared.append(f"{constant}{kind} *{qualifier}{name}")
        unused = [f"    (void){n};" for n, _ in parameters if not re.search(rf"\b{n}\b", text)]
        head = f"static void {self.symbol}({', '.join(declared) or 'void'})"
        return "\n".join([head, "{", *unused, *body, "}", ""])

    def fragment(self, function: Any, depth: int) -> list[str]:
        """The statements of a function whose parameters keep their names: a part of a kernel that is written in C."""
        self._depth = depth
        for p in function.params:
            self._names[p] = str(p.name)
            self._taken.add(str(p.name))
        self._statement(function.body)
        return drop_unused(self._lines)

    def _written(self, body: Stmt) -> set[str]:
        found: set[str] = set()

        def look(node: Any) -> None:
            if isinstance(node, tirx.BufferStore):
                found.add(self._buffer(node.buffer))

        visit(body, look)
        return found

    def _name(self, variable: Any) -> str:
        known = self._names.get(variable)
        if known is not None:
            return known
        base = re.sub(r"\W", "_", str(variable.name)) or "v"
        base = base if base[0].isalpha() else "v" + base
        name, n = base + "_", 0
        while name in self._taken:
            n += 1
            name = f"{base}_{n}"
        self._taken.add(name)
        self._names[variable] = name
        return name

    def _put(self, text: str) -> None:
        self._lines.append("    " * self._depth + text)

    # Statements

    def _statement(self, s: Stmt) -> None:
        kind = type(s).__name__
        handler: Callable[[Stmt], None] | None = getattr(self, f"_on_{kind.lower()}", None)
        if handler is None:
            raise UnsupportedError(f"statement {kind} has no C form")
        handler(s)

    def _on_seqstmt(self, s: Stmt) -> None:
        for child in s.seq:
            self._statement(child)

    def _on_declbuffer(self, s: Stmt) -> None:
        if s.data is None:
            return
        if call_name(s.data) != "tirx.buffer_data":
            self._names[s.buffer] = self._expr(s.data)
            return
        other = s.data.args[0]  # the memory of another buffer
        if str(other.dtype) != str(s.buffer.dtype):
            raise UnsupportedError(f"memory that is {other.dtype} and {s.buffer.dtype} has no C form")
        self._names[s.buffer] = self._name(other)

    def _on_allocbuffer(self, s: Stmt) -> None:
        size = math.prod(int(d) for d in s.buffer.shape)
        self._put(f"{ctype(s.buffer.dtype)} {self._name(s.buffer)}[N{max(size, 1)}];")

    def _on_bind(self, s: Stmt) -> None:
        kind = pointee(s.var)
        if kind is not None and call_name(s.value).endswith(".address_of") and literal(s.value.args[0].indices[0]) == 0:
            self._names[s.var] = self._buffer(s.value.args[0].source)  # another name of the same memory
            return
        if kind is not None:
            self._put(f"{kind} *{self._name(s.var)} = {self._expr(s.value)};")
            return
        dtype, lanes = kind_of(s.var)
        name = self._name(s.var)
        if lanes == 1:
            self._put(f"const {ctype(dtype)} {name} = {bare(self._expr(s.value))};")
            return
        self._put(f"{ctype(dtype)} {name}[{lanes}];")
        self._by_lanes(lanes, lambda lane: f"{name}[{lane}] = {bare(self._expr(s.value))};")

    def _by_lanes(self, lanes: int, line: Callable[[str], str]) -> None:
        """One loop over the lanes; a line for each where they do not all do the same."""
        before = self._lane
        try:
            self._lane = "l"
            self._put(f"for (int l = 0; l < {lanes}; l++) {line('l')}")
        except _Apart:
            for i in range(lanes):
                self._lane = str(i)
                self._put(line(str(i)))
        finally:
            self._lane = before

    def _on_bufferstore(self, s: Stmt) -> None:
        (index,) = s.indices
        lanes = kind_of(index)[1]
        target = self._buffer(s.buffer)

        def line(lane: str) -> str:
            return f"{target}[{bare(self._expr(index))}] = {bare(self._expr(s.value))};"

        if lanes == 1:
            self._put(line(""))
        else:
            self._by_lanes(lanes, line)

    def _on_for(self, s: Stmt) -> None:
        name = self._name(s.loop_var)
        kind = ctype(kind_of(s.loop_var)[0])
        low, extent = self._expr(s.min), self._expr(s.extent)
        high = extent if literal(s.min) == 0 else self._sum(s.min, s.extent)
        self._put(f"for ({kind} {name} = {bare(low)}; {name} < {high}; {name}++) {{")
        self._depth += 1
        self._statement(s.body)
        self._depth -= 1
        self._put("}")

    def _sum(self, low: Expr, extent: Expr) -> str:
        a, b = literal(low), literal(extent)
        if a is not None and b is not None:
            return str(a + b)
        return f"({self._expr(low)} + {self._expr(extent)})"

    def _on_while(self, s: Stmt) -> None:
        self._put(f"while ({bare(self._expr(s.condition))}) {{")
        self._depth += 1
        self._statement(s.body)
        self._depth -= 1
        self._put("}")

    def _on_break(self, s: Stmt) -> None:
        self._put("break;")

    def _on_continue(self, s: Stmt) -> None:
        self._put("continue;")

    def _on_ifthenelse(self, s: Stmt) -> None:
        self._put(f"if ({bare(self._expr(s.condition))}) {{")
        self._depth += 1
        self._statement(s.then_case)
        self._depth -= 1
        if s.else_case is not None:
            self._put("} else {")
            self._depth += 1
            self._statement(s.else_case)
            self._depth -= 1
        self._put("}")

    def _on_attrstmt(self, s: Stmt) -> None:
        self._statement(s.body)

    def _on_assertstmt(self, s: Stmt) -> None:
        return

    def _on_evaluate(self, s: Stmt) -> None:
        value = s.value
        if literal(value) is not None:
            return
        name = call_name(value)
        if name in ("tirx.call_llvm_intrin", "tirx.call_llvm_pure_intrin"):
            if intrinsic_name(value) == "llvm.prefetch":
                return
            raise UnsupportedError(f"{intrinsic_name(value)} has no C form")
        if name in ("tirx.break_loop", "tirx.continue_loop"):
            self._put("break;" if "break" in name else "continue;")
            return
        self._put(bare(self._expr(value)) + ";")

    # Expressions

    def _buffer(self, buffer: Any) -> str:
        return self._name(buffer)

    def _expr(self, e: Expr) -> str:
        kind = type(e).__name__
        if kind == "Var":
            name = self._name(e)
            return f"{name}[{self._lane}]" if pointee(e) is None and kind_of(e)[1] > 1 else name
        if kind == "IntImm":
            return integer(int(e.value), kind_of(e)[0])
        if kind == "FloatImm":
            return real(float(e.value), kind_of(e)[0])
        if kind in _BINARY:
            return self._binary(_BINARY[kind], e.a, e.b, e)
        handler = getattr(self, f"_expr_{kind.lower()}", None)
        if handler is None:
            raise UnsupportedError(f"expression {kind} has no C form")
        text: str = handler(e)
        return text

    def _binary(self, op: str, a: Expr, b: Expr, whole: Expr) -> str:
        dtype = kind_of(whole)[0]
        if op == "%" and dtype.startswith("float"):
            return f"fmod{'f' if dtype == 'float32' else ''}({self._expr(a)}, {self._expr(b)})"
        text = f"({self._expr(a)} {op} {self._expr(b)})"
        return text if op in _LOGIC else narrowed(text, dtype)

    def _expr_ramp(self, e: Expr) -> str:
        stride = literal(e.stride)
        return f"({self._expr(e.base)} + {self._lane}{'' if stride == 1 else f' * {self._expr(e.stride)}'})"

    def _expr_broadcast(self, e: Expr) -> str:
        return self._expr(e.value)

    def _expr_tensorload(self, e: Expr) -> str:
        (index,) = e.indices
        return f"{self._buffer(e.source)}[{bare(self._expr(index))}]"

    def _expr_max(self, e: Expr) -> str:
        return self._extreme("max", e)

    def _expr_min(self, e: Expr) -> str:
        return self._extreme("min", e)

    def _extreme(self, op: str, e: Expr) -> str:
        dtype = kind_of(e)[0]
        wide = dtype if dtype.startswith("float") or dtype.endswith("64") or dtype == "uint32" else "int32"
        return narrowed(f"irc_{op}_{wide}({bare(self._expr(e.a))}, {bare(self._expr(e.b))})", dtype)

    def _expr_not(self, e: Expr) -> str:
        return f"(!{self._expr(e.a)})"

    def _expr_select(self, e: Expr) -> str:
        return f"({self._expr(e.condition)} ? {self._expr(e.true_value)} : {self._expr(e.false_value)})"

    def _expr_let(self, e: Expr) -> str:
        self._names[e.var] = self._expr(e.value)
        return self._expr(e.body)

    def _expr_cast(self, e: Expr) -> str:
        dtype, source = kind_of(e)[0], kind_of(e.value)[0]
        if dtype == "bool":
            return f"({self._expr(e.value)} != 0)"
        if dtype == source:
            return self._expr(e.value)
        return f"(({ctype(dtype)}){self._expr(e.value)})"

    def _expr_floordiv(self, e: Expr) -> str:
        return f"irc_floordiv({bare(self._expr(e.a))}, {bare(self._expr(e.b))})"

    def _expr_floormod(self, e: Expr) -> str:
        return f"irc_floormod({bare(self._expr(e.a))}, {bare(self._expr(e.b))})"

    def _expr_shuffle(self, e: Expr) -> str:
        number = literal(e.indices[self._number() if kind_of(e)[1] > 1 else 0])
        assert number is not None
        for vector in e.vectors:
            lanes = kind_of(vector)[1]
            if number < lanes:
                return self._at_lane(vector, number)
            number -= lanes
        raise UnsupportedError("a shuffle takes lanes that are not there")

    def _number(self) -> int:
        """The lane that is printed, where it has to be a number."""
        if not self._lane.isdigit():
            raise _Apart
        return int(self._lane)

    def _at_lane(self, e: Expr, lane: int) -> str:
        before, self._lane = self._lane, str(lane)
        try:
            return self._expr(e)
        finally:
            self._lane = before

    def _expr_lshift(self, e: Expr) -> str:
        return self._left(e.a, e.b, kind_of(e)[0])

    def _left(self, a: Expr, b: Expr, dtype: str) -> str:
        """Of unsigned numbers: for signed ones C defines it only while nothing is lost."""
        unsigned = "uint64_t" if dtype.endswith("64") else "uint32_t"
        moved = f"(({unsigned}){self._expr(a)} << {self._expr(b)})"
        return moved if dtype in ("uint32", "uint64") else f"(({ctype(dtype)}){moved})"

    def _expr_rshift(self, e: Expr) -> str:
        return narrowed(f"({self._expr(e.a)} >> {self._expr(e.b)})", kind_of(e)[0])

    def _expr_bitwisenot(self, e: Expr) -> str:
        operand = e.a if hasattr(e, "a") else e.args[0]
        return narrowed(f"(~{self._expr(operand)})", kind_of(e)[0])

    def _expr_call(self, e: Expr) -> str:
        name = call_name(e)
        short = name.rsplit(".", 1)[-1]
        if short == "address_of":
            return f"(&{self._expr(e.args[0])})"
        dtype = kind_of(e)[0]
        if short in _CALLED:
            return self._binary(_CALLED[short], e.args[0], e.args[1], e)
        if short == "bitwise_not":
            return self._expr_bitwisenot(e)
        if short == "shift_left":
            return self._left(e.args[0], e.args[1], dtype)
        if short == "shift_right":
            return narrowed(f"({self._expr(e.args[0])} >> {self._expr(e.args[1])})", dtype)
        if short == "if_then_else":
            return f"({self._expr(e.args[0])} ? {self._expr(e.args[1])} : {self._expr(e.args[2])})"
        if short in ("likely", "ret"):
            return self._expr(e.args[0])
        if short == "reinterpret":
            return self._reinterpret(e)
        if short in ("call_llvm_pure_intrin", "call_llvm_intrin"):
            return self._intrinsic(e)
        if short in ("call_pure_extern", "call_extern"):
            return self._plain_call(str(e.args[0].value), e.args[1:])
        if short in _FUNCTIONS:
            called = {"nearbyint": "rint"}.get(short, short)
            return self._plain_call(called + ("f" if dtype == "float32" else ""), e.args)
        if short in ("fabs", "abs"):
            return self._plain_call("fabsf" if dtype == "float32" else "fabs", e.args)
        if short == "isnan":
            return f"(isnan({self._expr(e.args[0])}) != 0)"
        raise UnsupportedError(f"{name} has no C form")

    def _plain_call(self, name: str, args: Sequence[Expr]) -> str:
        return f"{name}({', '.join(bare(self._expr(a)) for a in args)})"

    def _intrinsic(self, e: Expr) -> str:
        name, dtype = intrinsic_name(e), kind_of(e)[0]
        if name == "llvm.arithmetic.fence":
            return f"IRC_FENCE({bare(self._expr(e.args[1]))})"
        function = _LIBM.get(name)
        if function is None:
            raise UnsupportedError(f"{name} has no C form")
        return self._plain_call(function + ("f" if dtype == "float32" else ""), e.args[1:])

    def _reinterpret(self, e: Expr) -> str:
        (value,) = e.args
        dtype, lanes = kind_of(e)
        source, source_lanes = kind_of(value)
        if lanes != source_lanes:
            return self._parts(value, dtype, lanes)
        if dtype == source:
            return self._expr(value)
        if dtype.startswith("float") or source.startswith("float"):
            integer_type = source if dtype.startswith("float") else dtype
            real_type = dtype if dtype.startswith("float") else source
            if integer_type[-2:] != real_type[-2:]:
                raise UnsupportedError(f"bits of {source} as {dtype} have no C form")
            if dtype.startswith("float"):
                return f"irc_{dtype}_of_bits((uint{dtype[-2:]}_t){self._expr(value)})"
            return f"(({ctype(dtype)})irc_bits_of_{source}({bare(self._expr(value))}))"
        return f"(({ctype(dtype)}){self._expr(value)})"

    def _parts(self, value: Expr, dtype: str, lanes: int) -> str:
        """Bits of narrow numbers as those of wider ones, the first lowest, or the other way round."""
        source, source_lanes = kind_of(value)
        if source.startswith("float") or dtype.startswith("float") or max(width(source), width(dtype)) > 32:
            raise UnsupportedError(f"vectors of {source} as {dtype} have no C form")
        lane = self._number() if lanes > 1 else 0
        if lanes > source_lanes:
            ratio = lanes // source_lanes
            whole = f"(uint32_t){self._at_lane(value, lane // ratio)}"
            return f"(({ctype(dtype)})({whole} >> {width(dtype) * (lane % ratio)}))"
        ratio, bits = source_lanes // lanes, width(source)
        parts = [f"(uint32_t)(uint{bits}_t){self._at_lane(value, lane * ratio + i)}" for i in range(ratio)]
        return f"(({ctype(dtype)})({' | '.join(f'{p} << {bits * i}' if i else p for i, p in enumerate(parts))}))"


class _Apart(Exception):
    """The lanes of a vector do different things."""


def width(dtype: str) -> int:
    """Bits of a number of this type."""
    return int("".join(c for c in dtype if c.isdigit()))


def drop_unused(lines: list[str]) -> list[str]:
    """Without declarations of variables that nobody reads: compilers would warn."""
    declaration = re.compile(r"^ *const \w+ (\w+) = ")
    text = "\n".join(lines)
    counts: dict[str, int] = {}
    for word in re.findall(r"[A-Za-z_]\w*", text):
        counts[word] = counts.get(word, 0) + 1
    changed = True
    while changed:
        changed, kept = False, []
        for line in lines:
            found = declaration.match(line)
            if found is not None and counts[found[1]] == 1:
                changed = True
                for word in re.findall(r"[A-Za-z_]\w*", line):
                    counts[word] -= 1
            else:
                kept.append(line)
        lines = kept
    return [part for line in lines for part in _mentioned(line, lines)]


def _mentioned(line: str, lines: list[str]) -> list[str]:
    """A declaration of an array that is never read, followed by a mention of it."""
    found = re.match(r"^( *)\w+ (\w+)\[\w+\];$", line)
    if found is None:
        return [line]
    name = found[2]
    for other in lines:
        for use in re.finditer(rf"\b{name}\b", other):
            written = use.start() == len(other) - len(other.lstrip()) and "] = " in other
            if other is not line and not written:
                return [line]
    return [line, f"{found[1]}(void){name};"]


def visit(node: Any, look: Callable[[Any], None]) -> None:
    """Calls `look` for every statement."""
    look(node)
    for name in ("seq", "body", "then_case", "else_case"):
        child = getattr(node, name, None)
        if child is None:
            continue
        for c in child if name == "seq" else (child,):
            visit(c, look)


def pointee(variable: Any) -> str | None:
    """C type that a pointer variable points to; None where it is a number."""
    kind = variable.ty
    return ctype(kind.element_type.dtype) if isinstance(kind, tvm.ir.PointerType) else None


def kind_of(e: Expr) -> tuple[str, int]:
    """Element type and lanes of an expression."""
    name, _, lanes = str(e.ty.dtype).partition("x")
    return name, int(lanes or 1)


def literal(e: Expr) -> int | None:
    return int(e.value) if type(e).__name__ == "IntImm" else None


def narrowed(text: str, dtype: str) -> str:
    """C computes in int at least: what is narrower is cast back."""
    return f"(({ctype(dtype)}){text})" if dtype in ("int8", "uint8", "int16", "uint16") else text


def bare(text: str) -> str:
    """Without the parentheses around all of it."""
    if not text.startswith("(") or not text.endswith(")"):
        return text
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1]


def call_name(e: Expr) -> str:
    return str(getattr(getattr(e, "op", None), "name", ""))


def intrinsic_name(e: Expr) -> str:
    return str(tvm.target.codegen.llvm_get_intrinsic_name(int(e.args[0].value)))
