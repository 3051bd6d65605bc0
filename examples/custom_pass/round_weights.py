"""A pass of one's own: rounds the weights of linear operators to few bits, and leaves them float.

As an object in a pipeline:

    irc.compile("model.onnx", passes=[RoundWeights(bits=6)])

By name, once this folder is installed (`pip install examples/custom_pass`; pyproject.toml there has the entry point):

    irc compile model.onnx --passes 'none,round-weights{bits=6}'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from irc.errors import OptionError
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.pipeline import Pass, PassContext, PassResult, Refusal


@dataclass(frozen=True)
class RoundWeights(Pass):
    """w -> s * round(w / s) with s = max|w| / (2^(bits-1) - 1), one s for each tensor."""

    name: ClassVar[str] = "round-weights"
    summary: ClassVar[str] = "round float weights to a grid of few bits"

    bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise OptionError(
                "bits is out of range", where=f"pass '{self.name}'", expected="2 to 16", got=str(self.bits)
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        rounded = 0
        refusals: list[Refusal] = []
        for node in model.graph.nodes:
            if not node.is_op("Conv", "Gemm", "MatMul"):
                continue
            weight = node.need(1)
            if not weight.is_constant:
                refusals.append(Refusal(node.label, self.name, "its weight is computed, not constant"))
                continue
            old = weight.numpy()
            new = self._round(old)
            if np.array_equal(old, new):
                continue  # on the grid already: running the pass twice changes nothing
            model.graph.set_input(node, 1, model.graph.add_constant(new, weight.name))
            node.origin = node.origin.touched(self.name)
            rounded += 1
        return PassResult(bool(rounded), {"rounded": rounded}, tuple(refusals))

    def _round(self, weight: Array) -> Array:
        levels = 2 ** (self.bits - 1) - 1
        step = float(np.abs(weight).max()) / levels
        # In float64, so that the largest weight stays what it is and a second run finds the same grid.
        return (np.round(weight.astype(np.float64) / step) * step).astype(weight.dtype) if step else weight
