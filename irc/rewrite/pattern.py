"""Patterns: small trees of operators, variables and constants that are looked for upwards from a node.

    op("Mul", op("Mul", var("x"), const("a"), name="inner"), const("b"))

A name that stands twice must match the same value (or node) both times. Two-input operators that commute match in
both orders.
"""

from __future__ import annotations

from dataclasses import dataclass

COMMUTATIVE = frozenset(
    {"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)


@dataclass(frozen=True)
class Var:
    """Any value. It may be a constant."""

    name: str


@dataclass(frozen=True)
class Const:
    """A constant of any contents."""

    name: str


@dataclass(frozen=True)
class Scalar:
    """A constant whose elements all equal `value`, within a relative `tolerance` (exporters round their constants)."""

    value: float
    tolerance: float = 0.0


@dataclass(frozen=True)
class Op:
    """A node of the standard domain: the first output of one of `op_types`.

    `inputs` None: whatever its inputs are; otherwise the node has exactly these, None where one is left out.
    """

    op_types: tuple[str, ...]
    inputs: tuple[Pattern | None, ...] | None = None
    name: str = ""


Pattern = Var | Const | Scalar | Op


def op(op_types: str, *inputs: Pattern | None, name: str = "") -> Op:
    """`op_types` separated by "|". Without inputs it matches whatever the inputs are."""
    return Op(tuple(op_types.split("|")), inputs or None, name)


def var(name: str) -> Var:
    return Var(name)


def const(name: str) -> Const:
    return Const(name)


def scalar(value: float, tolerance: float = 0.0) -> Scalar:
    return Scalar(value, tolerance)
