"""Transposes move past elementwise operators, so that pairs meet and cancel.

A Transpose commutes with every function of single elements: T(f(x)) = f(T(x)). Moving one is worth nothing by itself,
so it only moves where it meets another one (which transpose-chain then merges) or where two become one.
"""

from __future__ import annotations

from irc.ir import ops
from irc.ir.graph import Node, Value
from irc.ir.types import Constant
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, op, var
from irc.rewrite.facts import rank


class TransposePastUnary(Rule):
    """T(f(y)) = f(T(y)), where y comes from another Transpose through elementwise operators of one use each."""

    name = "transpose-past-elementwise"
    pattern = op("Transpose", var("x"))

    def check(self, m: Match) -> str | None:
        f = m["x"].producer
        if f is None or not _passes(f, len(m.root.get_ints("perm"))) or f.graph is not m.root.graph:
            return NOT_A_CANDIDATE
        if not _leads_to_transpose(m["x"], len(m.root.get_ints("perm"))):
            return NOT_A_CANDIDATE
        return None if _read_once(m["x"]) else f"'{m['x'].name}' has other readers"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        f, perm = m["x"].producer, m.root.get_ints("perm")
        assert f is not None
        inputs = [_transposed(edit, v, perm) if i < _data_inputs(f) else v for i, v in enumerate(f.inputs)]
        return edit.node(f.op_type, inputs, f.attributes, name=f.name).output


def _read_once(value: Value) -> bool:
    return len(value.uses) == 1 and not value.is_output


def _data_inputs(node: Node) -> int:
    """How many of its inputs move with the data (the others are scalars)."""
    return 2 if node.is_op(*_BINARY) else 1


_BINARY = ("Add", "Mul", "Sub", "Div")


def _passes(node: Node, n: int) -> bool:
    """Whether a Transpose of rank n may move through this node."""
    if node.is_op(*_BINARY):
        return all(v is not None and (_is_scalar(v) or rank(v) == n) for v in node.inputs)
    if node.is_op("QuantizeLinear", "DequantizeLinear"):
        return _is_scalar(node.need(1)) and not node.need(0).is_constant  # per tensor
    if node.is_op("Clip"):
        return True
    return ops.is_unary_elementwise(node)


def _is_scalar(value: Value) -> bool:
    return value.shape is not None and all(d == 1 for d in value.shape) and value.shape.rank <= 1


def _leads_to_transpose(value: Value, n: int, depth: int = 12) -> bool:
    """Whether every way up, through elementwise nodes read once, ends in a Transpose or a constant; at least one
    in a Transpose."""
    node = value.producer
    if node is None or depth == 0:
        return False
    if node.is_op("Transpose"):
        return _read_once(value)
    if not _passes(node, n) or not _read_once(value):
        return False
    moving = [v for v in node.inputs[: _data_inputs(node)] if v is not None and not v.is_constant and not _is_scalar(v)]
    return bool(moving) and all(_leads_to_transpose(v, n, depth - 1) for v in moving)


def _transposed(edit: Editor, value: Value | None, perm: tuple[int, ...]) -> Value | None:
    if value is None or _is_scalar(value):
        return value
    if value.constant is not None:
        old = value.constant
        shape = tuple(old.shape[p] for p in perm)
        return edit.constant(Constant(old.dtype, shape, lambda: old.numpy().transpose(perm)), value.name)
    return edit.value("Transpose", [value], {"perm": perm})


class TransposedOperands(Rule):
    """f(T(a), T(b)) = T(f(a, b)) for a two-input elementwise f: one Transpose instead of two."""

    name = "transposed-operands"
    pattern = op(
        "Add|Mul|Sub|Div|Max|Min", op("Transpose", var("a"), name="left"), op("Transpose", var("b"), name="right")
    )

    def check(self, m: Match) -> str | None:
        left, right = m.node("left"), m.node("right")
        if left.attributes != right.attributes or len(m.root.inputs) != 2 or rank(m["a"]) != rank(m["b"]):
            return NOT_A_CANDIDATE
        return None if left is not right and not m.shared() else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        left = m.root.need(0).producer
        swapped = left is m.node("right")
        operands = [m["b"], m["a"]] if swapped else [m["a"], m["b"]]
        inner = edit.value(m.root.op_type, operands, m.root.attributes)
        return edit.value("Transpose", [inner], {"perm": m.node("left").get_ints("perm")})


class TransposeOfDequantized(Rule):
    """T(DequantizeLinear(w, s, z)) = DequantizeLinear(T(w), s, z) of a constant w; the axis of the scale moves."""

    name = "transpose-of-dequantized"
    pattern = op("Transpose", op("DequantizeLinear", name="dq"))

    def check(self, m: Match) -> str | None:
        dq = m.node("dq")
        if not dq.need(0).is_constant:
            return NOT_A_CANDIDATE
        if "block_size" in dq.attributes:
            return "its scale is per block"
        return m.shared()

    def rewrite(self, m: Match, edit: Editor) -> Value:
        dq, perm = m.node("dq"), m.root.get_ints("perm")
        attributes = dict(dq.attributes)
        if rank(dq.need(1)) != 0:
            attributes["axis"] = perm.index(dq.get_int("axis", 1))
        return edit.value("DequantizeLinear", [_transposed(edit, dq.need(0), perm), *dq.inputs[1:]], attributes)


RULES: tuple[Rule, ...] = (TransposeOfDequantized(), TransposePastUnary(), TransposedOperands())
