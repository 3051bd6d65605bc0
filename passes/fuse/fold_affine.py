"""fold-affine: a constant Mul, Div or Add per output channel goes into the linear operator before it.

    (W x + b) * a = (a W) x + a b          (W x + b) + c = W x + (b + c)

The linear operators are Conv, ConvTranspose, Gemm, and MatMul with the Add that is its bias. A scale by one number
also goes in from behind Transposes and Reshapes, as the scale of attention stands behind the split into heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from irc.ir.graph import Model, Node, Value
from irc.ir.types import Array
from irc.passes.fuse.linear import Linear, check_rescaled, linear_before, per_channel, rescaled
from irc.pipeline.contract import Pass, PassContext, PassResult
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, apply_rules, const, op, var
from irc.rewrite.facts import cannot_widen, is_float, rank


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Folds constant scales and shifts per channel into the weights and bias before them.

    Exact but for the rounding of the new weights: relative error of about 1e-7 per layer in float32.
    """

    name: ClassVar[str] = "fold-affine"
    summary: ClassVar[str] = "constant scales and shifts into the weights before them"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        return apply_rules(model, (AffineIntoLinear(), ScalePastMove()), ctx, pass_name=self.name)


class AffineIntoLinear(Rule):
    """Module docstring. The Add that is the bias of a MatMul is its normal form and stays."""

    name = "affine-into-linear"
    pattern = op("Mul|Div|Add|Sub", var("x"), const("c"))

    def check(self, m: Match) -> str | None:
        if m["x"] is not m.root.need(0) or m["x"].is_constant:
            return NOT_A_CANDIDATE
        linear = linear_before(m["x"])
        if isinstance(linear, str):
            return linear or NOT_A_CANDIDATE
        if linear.node.op_type == "MatMul" and linear.add is None and m.root.op_type == "Add":
            return NOT_A_CANDIDATE
        affine = _affine(m.root, linear)
        if affine is None:
            return "its constant is not one number per channel"
        return check_rescaled(linear, *affine)

    def rewrite(self, m: Match, edit: Editor) -> Value:
        linear = linear_before(m["x"])
        assert isinstance(linear, Linear)
        affine = _affine(m.root, linear)
        assert affine is not None
        edit.include(linear.nodes)
        return rescaled(edit, linear, *affine)


def _affine(node: Node, linear: Linear) -> tuple[Array | None, Array | None] | None:
    """(a, c) of a * x + c; None where the constant does not fit."""
    c = per_channel(node.need(1), linear.channels, linear.channel_axis, rank(node.need(0)))
    if c is None:
        return None
    if node.op_type in ("Add", "Sub"):
        return None, c if node.op_type == "Add" else -c
    with np.errstate(divide="ignore"):
        return (c if node.op_type == "Mul" else 1 / c), None


class ScalePastMove(Rule):
    """T(y) * a = T(y * a) for one number a and a Transpose or Reshape T, on the way to a linear operator."""

    name = "scale-past-move"
    pattern = op("Mul|Div", op("Transpose|Reshape", name="move"), const("c"))

    def check(self, m: Match) -> str | None:
        c = m["c"].constant
        if c is None or c.size != 1 or m.root.need(1) is not m["c"] or not _leads_to_linear(m.root.need(0)):
            return NOT_A_CANDIDATE
        return None if cannot_widen(m["c"], m.root.need(0)) else "its constant may widen the shape"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        move = m.node("move")
        number = edit.constant(m.array("c").reshape(()), m["c"].name)
        scaled = edit.value(m.root.op_type, [move.need(0), number])
        return edit.node(move.op_type, [scaled, *move.inputs[1:]], move.attributes, name=move.name).output


def _leads_to_linear(value: Value) -> bool:
    """Whether only Transposes and Reshapes, read by nothing else, stand between a linear operator and `value`."""
    node = value.producer
    while node is not None and node.is_op("Transpose", "Reshape"):
        if len(value.uses) != 1 or value.is_output:
            return False
        value = node.need(0)
        node = value.producer
    linear = linear_before(value)
    return isinstance(linear, Linear) and is_float(value)
