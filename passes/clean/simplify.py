"""simplify: operators that do nothing go, neighbours that do one thing in two steps become one.

Everything is exact but for the rounding of constants that are multiplied or added together beforehand. One rule
assumes more: with `finite` (the default) the guard `Where(IsNaN(s), 0, s)`, s = Softmax(x), that PyTorch exports for
attention is removed where x cannot hold an infinity unless the model's inputs do or finite numbers overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irc.ir.graph import Model
from irc.passes.clean import simplify_arith, simplify_guard, simplify_noop, simplify_pad, simplify_shape, simplify_sink
from irc.pipeline.contract import Pass, PassContext, PassResult
from irc.rewrite import apply_rules


@dataclass(frozen=True)
class Simplify(Pass):
    """Local simplifications.

    `finite`: inputs are finite and finite numbers do not overflow (needed only by the softmax guard rule).
    """

    name: ClassVar[str] = "simplify"
    summary: ClassVar[str] = "removes what does nothing, merges neighbours"

    finite: bool = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        rules = [
            *simplify_noop.RULES,
            *simplify_arith.RULES,
            *simplify_shape.RULES,
            *simplify_sink.RULES,
            *simplify_pad.RULES,
        ]
        if self.finite:
            rules += simplify_guard.RULES
        return apply_rules(model, rules, ctx, pass_name=self.name)
