"""Scalar expressions: what a kernel does to each element after (or instead of) its reduction.

An expression is a tuple of instructions in SSA order; the last one is the result. It is data (hashable, printable):
part of a kernel's specification, hence of its cache key. `irc.backends.tvm.kernels.emit` turns it into vector code.

Integer semantics live here: `requantize` is the only way from real values to integers, `dequantize` the only way back,
and both are defined to give the same bits on every target (docs/integer-semantics.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

Number = int | float


@dataclass(frozen=True)
class Instr:
    """`dtype` result = `op`(results of `args`; `params`)."""

    op: str
    dtype: str
    args: tuple[int, ...] = ()
    params: tuple[Number, ...] = ()


Expression = tuple[Instr, ...]


@dataclass
class ExpressionBuilder:
    """Appends instructions, sharing equal ones."""

    instrs: list[Instr] = field(default_factory=list)
    _known: dict[tuple[Instr, str], int] = field(default_factory=dict)

    def add(self, op: str, dtype: str, *args: int, params: tuple[Number, ...] = ()) -> int:
        instr = Instr(op, dtype, args, params)
        key = (instr, repr(params))  # 0.0 == -0.0, but they are not the same constant
        index = self._known.get(key)
        if index is None:
            index = self._known[key] = len(self.instrs)
            self.instrs.append(instr)
        return index

    def operand(self, number: int, dtype: str) -> int:
        """The element of operand `number` that belongs to this output element."""
        return self.add("operand", dtype, params=(number,))

    def constant(self, value: Number, dtype: str) -> int:
        return self.add("constant", dtype, params=(value,))

    def dtype(self, index: int) -> str:
        return self.instrs[index].dtype

    def dequantize(self, q: int, scale: float, zero_point: int) -> int:
        """float32(q - zero_point) * scale, the product rounded on its own (never fused into an FMA)."""
        return self.add("dequantize", "float32", q, params=(scale, zero_point))

    def requantize(self, x: int, dtype: str, low: int, high: int, zero_point: int, scale: float = 1.0) -> int:
        """clamp(x * scale, low - zp, high - zp) rounded half to even, plus zp as an integer."""
        return self.add("requantize", dtype, x, params=(low, high, zero_point, scale))

    def finish(self, result: int) -> Expression:
        """The expression whose last instruction is `result`, without what it does not need."""
        needed = {result}
        for i in range(result, -1, -1):
            if i in needed:
                needed.update(self.instrs[i].args)
        order = sorted(needed)
        place = {old: new for new, old in enumerate(order)}
        return tuple(
            Instr(n.op, n.dtype, tuple(place[a] for a in n.args), n.params) for n in (self.instrs[i] for i in order)
        )


SCALAR_ONLY = frozenset(
    [
        *("table", "log", "softplus", "pow", "mod"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    ]
)
"""Operations that exist for single elements only (lookups, libm). Elementwise kernels and reductions can be scalar;
others never hold them."""


def needs_scalar(expression: Expression) -> bool:
    """Whether some instruction exists for single elements only."""
    return any(i.op in SCALAR_ONLY for i in expression)
