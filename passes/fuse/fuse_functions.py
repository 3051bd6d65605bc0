"""fuse-functions: functions that exporters write out in small steps become the one operator that ONNX has for them.

    Gelu                x/2 * (1 + erf(x / sqrt 2)), and its tanh form       (Hendrycks, Gimpel 2016)
    LayerNormalization  (x - mean) / sqrt(var + eps) * scale + bias          (Ba et al. 2016)
    Softmax             e / sum(e), e = exp(x - max x)
    HardSwish           x * clip(x + 3, 0, 6) / 6                            (Howard et al. 2019)
    HardSigmoid         clip(x + 3, 0, 6) / 6
    Mish                x * tanh(softplus(x))

x * sigmoid(x) stays: onnxruntime has no kernel for Swish (see canonicalize).

The fused operator rounds less often; results differ in the last bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irc.ir.graph import Model
from irc.passes.fuse import activation_functions, normalization_functions
from irc.pipeline.contract import Pass, PassContext, PassResult
from irc.rewrite import apply_rules


@dataclass(frozen=True)
class FuseFunctions(Pass):
    """Decomposed functions back to single operators (module docstring)."""

    name: ClassVar[str] = "fuse-functions"
    summary: ClassVar[str] = "decomposed Gelu, LayerNormalization, HardSwish, ... to single operators"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        rules = (*activation_functions.RULES, *normalization_functions.RULES)
        return apply_rules(model, rules, ctx, pass_name=self.name)
