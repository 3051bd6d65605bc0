"""fold-batchnorm: BatchNormalization in inference is one multiplication and one addition per channel.

    y = scale * (x - mean) / sqrt(var + epsilon) + B = a * x + c
    a = scale / sqrt(var + epsilon),  c = B - a * mean

Behind a Conv, ConvTranspose, Gemm or MatMul that nothing else reads, both go into its weights and bias
(Jacob et al. 2018, section 3.2). Elsewhere they become Mul and Add, which other passes know how to move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from irc.ir import ops
from irc.ir.graph import Model, Node, Value
from irc.ir.types import Array
from irc.passes.fuse.linear import Linear, check_rescaled, linear_before, rescaled
from irc.pipeline.contract import Pass, PassContext, PassResult
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, apply_rules, op
from irc.rewrite.facts import rank


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Folds BatchNormalization into the linear operator before it, or makes it a Mul and an Add.

    Exact but for the rounding of the new weights: relative error of about 1e-7 per layer in float32.
    """

    name: ClassVar[str] = "fold-batchnorm"
    summary: ClassVar[str] = "BatchNormalization into the weights before it"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        folded = apply_rules(model, (IntoLinear(),), ctx, pass_name=self.name)
        rest = apply_rules(model, (ToAffine(),), ctx, pass_name=self.name)
        return PassResult(
            folded.changed or rest.changed,
            {**folded.statistics, **rest.statistics},
            (*folded.refusals, *rest.refusals),
        )


def _affine(node: Node) -> tuple[Array, Array] | str:
    """(a, c) in float64, one number per channel, or the reason why there are none."""
    if node.get_int("training_mode") or sum(bool(v.uses) or v.is_output for v in node.outputs) > 1:
        return "it is in training mode: its mean and variance are those of the batch"
    parameters = [node.need(i) for i in range(1, 5)]
    if not all(v.is_constant for v in parameters):
        return "its parameters are not constant"
    scale, shift, mean, var = (v.numpy().astype(np.float64) for v in parameters)
    epsilon = ops.attribute(node, "epsilon")
    assert isinstance(epsilon, float)
    if not bool((var + epsilon > 0).all()):
        return "a variance is not positive"
    a = scale / np.sqrt(var + epsilon)
    return a, shift - a * mean


class IntoLinear(Rule):
    """a * (W x + b) + c = (a W) x + (a b + c)"""

    name = "into-linear"
    pattern = op("BatchNormalization")

    def check(self, m: Match) -> str | None:
        affine, linear = _affine(m.root), linear_before(m.root.need(0))
        if isinstance(affine, str):
            return affine
        if isinstance(linear, str):
            return linear or NOT_A_CANDIDATE
        if linear.channel_axis != 1:
            return f"the channels of {linear.node.label} are not those of the normalization"
        return check_rescaled(linear, *affine)

    def rewrite(self, m: Match, edit: Editor) -> Value:
        affine, linear = _affine(m.root), linear_before(m.root.need(0))
        assert isinstance(linear, Linear)
        assert not isinstance(affine, str)
        edit.include(linear.nodes)
        return rescaled(edit, linear, *affine)


class ToAffine(Rule):
    """BatchNormalization(x) = x * a + c with a, c of shape [C, 1, ...]"""

    name = "to-affine"
    pattern = op("BatchNormalization")

    def check(self, m: Match) -> str | None:
        affine = _affine(m.root)
        if isinstance(affine, str):
            return affine
        kind = m.root.need(1).dtype
        if kind is not m.root.need(0).dtype or kind is not m.root.need(3).dtype:
            return "its parameters have another type than its data"
        return None if rank(m.root.need(0)) is not None else "the rank of its input is unknown"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        affine, n = _affine(m.root), rank(m.root.need(0))
        assert not isinstance(affine, str)
        assert n is not None
        kind = m.root.need(0).tensor.dtype.numpy
        shape = (-1,) if n < 2 else (-1, *[1] * (n - 2))
        a, c = (
            edit.constant(v.astype(kind).reshape(shape), f"{m.root.name}_{name}")
            for v, name in zip(affine, ("scale", "shift"), strict=True)
        )
        return edit.value("Add", [edit.value("Mul", [m.root.need(0), a]), c])
