"""canonicalize: one form of each operator, so that every later pass has to know only one.

The normal form
- No Constant nodes, no Dropout in inference, no one-input Sum/Max/Min/Mean/Concat.
- Axes count from the front and are written out (`axis` of Softmax, Concat, Gather, ...; `perm` of Transpose); other
  scalar attributes that equal the schema's default are left out.
- Conv, ConvTranspose and the pools have kernel_shape, strides, pads and dilations written out and no auto_pad,
  where the shapes are known.
- Gemm has alpha = beta = 1 and transB = 0 where B and C are constants.
- The constant operand of a commutative operator stands right. Sub of a float constant is Add of its negative, Div by
  a power of two is Mul by its inverse (both exact).
- Flatten, Squeeze and Unsqueeze are Reshapes, and a Reshape target is a constant, where at most one extent is
  unknown.
- A mean over all spatial axes is GlobalAveragePool, with a Reshape where the axes are dropped.
- Attention is its two products and the softmax between them, where it reads float32 of known shape.
- Clip with no lower bound but 0 and no upper one is Relu; Max and Min with one scalar are Clip. Swish is a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irc.ir.graph import Model
from irc.passes.clean import canonical_arith, canonical_attention, canonical_attributes, canonical_shape
from irc.pipeline.contract import Pass, PassContext, PassResult
from irc.rewrite import apply_rules


@dataclass(frozen=True)
class Canonicalize(Pass):
    """One form of each operator (the module docstring lists them). Exact, but for Attention, which is scaled once."""

    name: ClassVar[str] = "canonicalize"
    summary: ClassVar[str] = "one normal form of each operator"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        named = canonical_attributes.normalize(model)
        rules = (*canonical_arith.RULES, *canonical_attention.RULES, *canonical_shape.RULES)
        result = apply_rules(model, rules, ctx, pass_name=self.name)
        statistics = {**named, **result.statistics}
        return PassResult(result.changed or bool(named), statistics, result.refusals)
