"""Arithmetic with constants, and chains of activations."""

from __future__ import annotations

import math

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.types import DType
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, const, is_uniform, op, uniform, var
from irc.rewrite.facts import cannot_widen, is_float, same_type

_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}


class NeutralOperand(Rule):
    """x + 0 = x - 0 = x * 1 = x / 1 = x ** 1 = x, where the constant does not widen the shape."""

    name = "neutral-operand"
    pattern = op("Add|Sub|Mul|Div|Pow", var("x"), const("c"))

    def check(self, m: Match) -> str | None:
        if not is_uniform(m.root.need(1), _NEUTRAL[m.root.op_type]):
            return NOT_A_CANDIDATE
        x, c = m.root.need(0), m.root.need(1)
        if same_type(x, m.root.output):
            return None
        return None if cannot_widen(c, x) else "its constant may widen the shape of the other operand"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m.root.need(0)


class ConstantChain(Rule):
    """(x + a) + b = x + (a + b) and (x * a) * b = x * (a * b), for floating point, when the inner sum has no other use.

    One rounding takes the place of two. Refused where a * b overflows or leaves the normal numbers.
    """

    name = "constant-chain"
    pattern = op("Add|Mul", op("Add|Mul", var("x"), const("a"), name="inner"), const("b"))

    def check(self, m: Match) -> str | None:
        if m.node("inner").op_type != m.root.op_type or not is_float(m["a"]) or m["x"].is_constant:
            return NOT_A_CANDIDATE
        if (shared := m.shared()) is not None:
            return shared
        merged = _merged(m)
        if not np.isfinite(merged).all():
            return "the merged constant overflows"
        if math.prod(merged.shape) > max(m.array("a").size, m.array("b").size):
            return "the merged constant is larger than both"
        return None

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.value(m.root.op_type, [m["x"], edit.constant(_merged(m), m["b"].name)])


def _merged(m: Match) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    a, b = m.array("a"), m.array("b")
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        return (wide_a + wide_b if m.root.op_type == "Add" else wide_a * wide_b).astype(a.dtype)


class Involution(Rule):
    """-(-x) = x, not(not x) = x, 1/(1/x) is left alone (it rounds)."""

    name = "involution"
    pattern = op("Neg|Not", op("Neg|Not", var("x"), name="inner"))

    def check(self, m: Match) -> str | None:
        return None if m.node("inner").op_type == m.root.op_type else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m["x"]


class Idempotent(Rule):
    """f(f(x)) = f(x) for Relu, Abs, Ceil, Floor, Round, Sign; Relu(f(x)) = f(x) where f(x) >= 0; Abs likewise."""

    name = "idempotent"
    pattern = op("Relu|Abs|Ceil|Floor|Round|Sign")

    def check(self, m: Match) -> str | None:
        inner = m.root.need(0).producer
        if inner is None or inner.domain:
            return NOT_A_CANDIDATE
        if inner.op_type == m.root.op_type:
            return None
        nothing = m.root.op_type in ("Relu", "Abs") and is_nonnegative(m.root.need(0))
        return None if nothing else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m.root.need(0)


_NONNEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus")
_KEEPS_SIGN = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum"),
    *("Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Concat", "Add", "Mul"),
)


def is_nonnegative(value: Value, depth: int = 8) -> bool:
    """Whether every element is provably >= 0 (or NaN). Looks at most `depth` nodes up."""
    if value.constant is not None:
        return value.constant.dtype is not DType.STRING and bool((value.numpy() >= 0).all())
    node = value.producer
    if node is None or node.domain or depth == 0:
        return False
    if node.op_type in _NONNEGATIVE:
        return True
    if node.op_type == "Clip":
        low = uniform(node.input(1))
        return low is not None and float(low) >= 0
    if node.op_type not in _KEEPS_SIGN:
        return False
    operands = node.inputs if node.op_type in ("Concat", "Add", "Mul") else node.inputs[:1]
    return all(v is not None and is_nonnegative(v, depth - 1) for v in operands)


class ClipChain(Rule):
    """Clip(Clip(x, a, b), c, d) = Clip(x, max(a, c), min(b, d)) where max(a, c) <= min(b, d). Relu(x) is Clip(x, 0).

    Both sides are then the point of the intersection of the intervals that is nearest to x.
    """

    name = "clip-chain"
    pattern = op("Clip|Relu")

    def check(self, m: Match) -> str | None:
        inner = m.root.need(0).producer
        if inner is None or not inner.is_op("Clip", "Relu"):
            return NOT_A_CANDIDATE
        bounds = _intersection(inner, m.root)
        if bounds is None:
            return "a bound is not one constant number, or the intervals do not overlap"
        x = m.root.need(0)
        return None if len(x.users) == 1 and not x.is_output else f"'{x.name}' has other readers"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        inner = m.root.need(0).producer
        assert inner is not None
        bounds = _intersection(inner, m.root)
        assert bounds is not None
        x = inner.need(0)
        kind = x.tensor.dtype.numpy
        low, high = (
            None if math.isinf(b) else edit.constant(np.array(b, kind), f"{m.root.name}_{side}")
            for b, side in zip(bounds, ("min", "max"), strict=True)
        )
        if high is None and bounds[0] == 0:
            return edit.value("Relu", [x])
        return edit.value("Clip", [x, low, high])


def _interval(node: Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return (0.0, math.inf)
    found = []
    for value, missing in ((node.input(1), -math.inf), (node.input(2), math.inf)):
        number = missing if value is None else uniform(value)
        if number is None:
            return None
        found.append(float(number))
    return (found[0], found[1])


def _intersection(inner: Node, outer: Node) -> tuple[float, float] | None:
    a, b = _interval(inner), _interval(outer)
    if a is None or b is None or a[0] > a[1] or b[0] > b[1]:
        return None
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low <= high else None


class CastChain(Rule):
    """Cast(Cast(x: A -> B) -> C) = Cast(x: A -> C) where every number of A is exactly one of B."""

    name = "cast-chain"
    pattern = op("Cast", op("Cast", var("x")))

    def check(self, m: Match) -> str | None:
        first, second = m["x"].dtype, m.root.need(0).dtype
        if first is None or second is None:
            return NOT_A_CANDIDATE
        return None if _lossless(first, second) else f"{second.value} does not hold every {first.value}"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.like_root([m["x"]])


_FLOAT_INTEGER_BITS = {DType.FLOAT16: 11, DType.BFLOAT16: 8, DType.FLOAT: 24, DType.DOUBLE: 53}
_WIDER_FLOAT = {
    DType.FLOAT16: (DType.FLOAT, DType.DOUBLE),
    DType.BFLOAT16: (DType.FLOAT, DType.DOUBLE),
    DType.FLOAT: (DType.DOUBLE,),
}


def _lossless(a: DType, b: DType) -> bool:
    if a is b:
        return True
    if a is DType.BOOL:
        return b.is_integer or b in _FLOAT_INTEGER_BITS
    if a in _WIDER_FLOAT:
        return b in _WIDER_FLOAT[a]
    if not a.is_integer:
        return False
    signed = not a.value.startswith("u")
    bits = a.bits - signed
    if b in _FLOAT_INTEGER_BITS:
        return bits <= _FLOAT_INTEGER_BITS[b] and (b is not DType.FLOAT16 or bits < 16)
    if not b.is_integer:
        return False
    b_signed = not b.value.startswith("u")
    return bits <= b.bits - b_signed and (b_signed or not signed)


class ConstantWhere(Rule):
    """Where(true, a, b) = a and Where(false, a, b) = b, where the one taken has the shape of the result."""

    name = "constant-where"
    pattern = op("Where", const("c"), var("a"), var("b"))

    def check(self, m: Match) -> str | None:
        if uniform(m["c"]) is None:
            return NOT_A_CANDIDATE
        taken = _taken(m)
        return None if same_type(taken, m.root.output) else "the other operands may widen its shape"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return _taken(m)


def _taken(m: Match) -> Value:
    return m["a"] if bool(uniform(m["c"])) else m["b"]


RULES: tuple[Rule, ...] = (
    NeutralOperand(),
    ConstantChain(),
    Involution(),
    Idempotent(),
    ClipChain(),
    CastChain(),
    ConstantWhere(),
)
