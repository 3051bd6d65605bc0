"""Linear kernels that pass over blocks of zero weights: each unit of output channels has a list of the others.

A register tile is computed and written as in the dense kernel (`linear.py`). Its reduction goes through the stored
blocks of its channels; each says where in x its data lie, counted from the first tap of a place. So a step costs one
more load than a dense one, and kernel size, dilation and input channels are all the same to it.

The data are read here and there, the weights in order. So some places, whose data stay in the first-level cache, meet
all weights, and then the next places do. As lists are of any length, their ends are a surprise for the processor;
several tiles of places take the same list one after the other.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from irc.backends.tvm.geometry import spans, without_matrices
from irc.backends.tvm.kernels.builder import Expr, cast, const
from irc.backends.tvm.kernels.linear import LinearKernel
from irc.backends.tvm.specs import SparseSpec
from irc.targets.target import Target

_AHEAD = 2048, 8192  # bytes of weights that are on their way, for tiles of many and of few places
_FEW = 4  # places
_FAR = 128 * 1024  # bytes of weights that do not stay near


class _Sparse(LinearKernel):
    stages = False

    def __init__(self, symbol: str, spec: SparseSpec, target: Target) -> None:
        self.sparse = spec
        super().__init__(symbol, spec.linear, without_matrices(target))

    def _declare_weights(self, target: Target) -> None:
        super()._declare_weights(target)
        self.offsets = self.k.pointer("offsets", self.sparse.index, self.sparse.entries)
        self.starts = self.k.pointer("starts", "int32", self.sparse.lists + 1)

    def build(self) -> Any:
        """Blocks of places and tiles of channels are shared out."""
        spec, k = self.spec, self.k
        row_tiles = -(-spec.out[0] // spec.tile[0])
        blocks = -(-spec.out[1] // self.sparse.columns)
        places = spec.batch[0] * spec.batch[1] * row_tiles * blocks
        tiles = sum(count for _, count, _ in self.channel_spans)
        with k.shares(places, tiles, self._by_places(), "p") as (item, first, end):
            row = k.let(item // blocks, "r") if blocks > 1 else item
            block = item % blocks if blocks > 1 else const(0, "int32")
            self._place(row // row_tiles, row % row_tiles, partial(self._block, block, first, end))
        return k.finish()

    def _block(self, block: Expr, low: Expr, high: Expr, a: Expr, b: Expr, h: Expr, rows: int) -> None:
        """Tiles [low, high) of channels for the columns of one block."""
        k = self.k
        parts = spans(self.spec.out[1], self.sparse.columns)
        for start, count, width in parts:
            last = block >= start // self.sparse.columns
            with k.when(None if len(parts) == 1 else last if start else block < count):
                self._tiles(k.let(block * self.sparse.columns, "col"), width, low, high, a, b, h, rows)

    def _tiles(self, column: Expr, width: int, low: Expr, high: Expr, a: Expr, b: Expr, h: Expr, rows: int) -> None:
        k, before = self.k, 0
        for start, count, vectors in self.channel_spans:
            with k.between(before, count, low, high, "c") as tile:
                vector = k.let(tile * vectors + start, "v")
                for first, many, columns in spans(width, self.spec.tile[1]):
                    with k.loop(many, "x") as x:
                        w = k.let(column + (x * columns + first), "col")
                        self._tile(a, b, h, w, vector, rows, columns, vectors, start)
            before += count

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
        far = spec.w_size * np.dtype(self.w.dtype).itemsize > _FAR
        ahead = _AHEAD[len(places) <= _FEW] // np.dtype(self.w.dtype).itemsize
        with k.loop(high - low, "n", start=low) as n:
            x_at = k.let(x_base + cast(k.load(self.offsets, n), "int32"), "xa")
            weights = [step.load_w(k, self.w, n * (per_unit * size) + inner + v * size) for v in range(vectors)]
            following(n - low)
            if far:
                k.prefetch(self.w, n * (per_unit * size) + (inner + ahead))
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
