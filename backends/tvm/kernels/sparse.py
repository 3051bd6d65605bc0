"""Linear kernels that pass over blocks of zero weights: each unit of output channels has a list of the others.

Everything around the reduction is the dense kernel's (`linear.py`). The reduction goes through the stored blocks of
the tile's channels; each says where in x its channels lie, counted from the first tap of a place. So a step costs one
more load than a dense one, and kernel size, dilation and input channels are all the same to it.
"""

from __future__ import annotations

from typing import Any

from irc.backends.tvm.kernels.builder import Expr, cast
from irc.backends.tvm.kernels.linear import LinearKernel
from irc.backends.tvm.specs import SparseSpec
from irc.targets.target import Target


class _Sparse(LinearKernel):
    stages = False

    def __init__(self, symbol: str, spec: SparseSpec, target: Target) -> None:
        self.sparse = spec
        super().__init__(symbol, spec.linear, target)

    def _declare_weights(self, target: Target) -> None:
        super()._declare_weights(target)
        self.offsets = self.k.pointer("offsets", self.sparse.index, self.sparse.entries)
        self.starts = self.k.pointer("starts", "int32", self.sparse.lists + 1)

    def _reduce(
        self,
        a: Expr,
        b: Expr,
        h: Expr,
        w: Expr,
        vector: Expr,
        places: list[tuple[int, int]],
        vectors: int,
        start: int,
    ) -> None:
        spec, k, lanes, step = self.spec, self.k, self.lanes, self.step
        _, _, sh, sw = spec.x_strides
        per_unit = self.sparse.unit // lanes  # vectors
        size = lanes * step.channels  # weights of a vector
        unit = k.let(b * (self.sparse.lists // spec.batch[1]) + vector // per_unit, "u")
        inner = k.let(vector % per_unit * size, "wi")
        x_base = self._x_base(a, b, h, w)
        low, high = (k.let(k.load(self.starts, unit + n), "n") for n in (0, 1))
        following = self._asks(a, b, h, w, vector, vectors, len(places))
        with k.loop(high - low, "n", start=low) as n:
            x_at = k.let(x_base + cast(k.load(self.offsets, n), "int32"), "xa")
            weights = [step.load_w(k, self.w, n * (per_unit * size) + inner + v * size) for v in range(vectors)]
            following(n - low)
            for p, (r, c) in enumerate(places):
                value = step.load_x(k, self.x, x_at + r * spec.stride[0] * sh + c * spec.stride[1] * sw)
                for v in range(vectors):
                    at = (p * vectors + v) * lanes
                    k.store(self.acc, at, step.mac(k.load(self.acc, at, lanes), value, weights[v]), lanes)

    def _asks(self, a: Expr, b: Expr, h: Expr, w: Expr, vector: Expr, vectors: int, places: int) -> Any:
        """Step of the reduction -> asks for what follows; lists of usual length ask for all of their share."""
        spec = self.spec
        image = a * spec.batch[1] + b
        place = self.k.let((image * spec.out[0] + h) * spec.out[1] + w, "pl")
        usual = max(self.sparse.entries // (2 * self.sparse.lists), 1)
        return self._following(place, vector, vectors, usual, places)


def build(symbol: str, spec: SparseSpec, target: Target) -> Any:
    """The TIR function `symbol(x, w, offsets, starts, operands..., y, part, parts)`."""
    return _Sparse(symbol, spec, target).build()
