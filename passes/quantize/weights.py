"""From the weights of one layer to integers and scales.

`quantize_layer` is the whole of it: scales, zero points, rounding. It knows a node's weight layout and the moments of
its input, and nothing of graphs.

Scales: each is searched among shrunken maxima, first with the errors weighed by E[x^2] of the input, then, for few
bits, with the error of the layer's output after rounding by least squares; clipping the largest weights makes all
others finer. Given the integers, the scale of least error has a closed form; taking it and rounding again goes on until
nothing is gained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from irc.calibrate.layers import from_rows, to_rows
from irc.ir.graph import Node
from irc.ir.types import Array
from irc.passes.quantize.affine import SMALLEST_SCALE
from irc.passes.quantize.levels import Levels
from irc.passes.quantize.regions import output_axis
from irc.passes.quantize.rounding import Metric, best_factor, descend, round_rows

Rounding = Literal["nearest", "least-squares", "adaptive"]
Scheme = Literal["auto", "symmetric", "asymmetric"]

_COARSE = 5  # bits up to which scales are searched with the error of the output
_DAMPING = 0.01


class Moments(Protocol):
    """What is known of a layer's input: `SecondMoment`, `LayerMoments`. Matrices [groups, k, k]."""

    @property
    def groups(self) -> int: ...
    @property
    def moment(self) -> Array: ...
    @property
    def covariance(self) -> Array: ...


@dataclass(frozen=True)
class LayerWeights:
    """Weights as DequantizeLinear takes them. `q`: in the weight's shape, of the numpy type of `levels.dtype`.

    `scales`: float32 [channels], [] for one of all, or with `block` in the weight's shape but for the axis of the input
    channels, which has a scale for each `block` of them. `zero_points`: like `scales`, of the type of `q`; None where
    all are 0. `axis`: what DequantizeLinear's attribute says (None: no attribute).
    """

    q: Array
    scales: Array
    zero_points: Array | None
    axis: int | None
    block: int
    levels: Levels

    def real(self) -> Array:
        """float32, as the integer kernel sees them: the product is taken in float32."""
        steps = self.q.astype(np.float32)
        if self.zero_points is not None:
            steps = steps - self._spread(self.zero_points).astype(np.float32)
        return np.asarray(steps * self._spread(self.scales), np.float32)

    def with_scales(self, scales: Array) -> LayerWeights:
        return replace(self, scales=scales)

    def overshoot(self, weight: Array) -> Array:
        """By how many steps each number of `weight` lies beyond the levels, 0 within them."""
        steps = weight / self._spread(self.scales)
        if self.zero_points is not None:
            steps = steps + self._spread(self.zero_points).astype(np.float64)
        return np.asarray(np.maximum(np.maximum(self.levels.low - steps, steps - self.levels.high), 0.0))

    def _spread(self, values: Array) -> Array:
        if self.axis is None:
            return values
        if self.block:
            return np.repeat(values, self.block, self.axis)
        return values.reshape([-1 if i == self.axis else 1 for i in range(self.q.ndim)])


def quantize_layer(
    node: Node,
    weight: Array,
    levels: Levels,
    moments: Moments | None = None,
    *,
    per_channel: bool = True,
    block: int = 0,
    scheme: Scheme = "symmetric",
    rounding: Rounding = "least-squares",
    bias: bool = True,
    least_scales: Array | None = None,
    damping: float = _DAMPING,
) -> LayerWeights:
    """Quantize the weights of a Conv, Gemm or MatMul.

    `weight`: what to approximate, in the layout of the node's weight. Without `moments` all inputs count alike and
    rounding is to nearest. `rounding=adaptive` moves each weight to one of the two levels next to it. `block`: a scale
    for each so many input channels (they must divide them). `bias`: whether the layer's bias takes the mean error.
    `least_scales`: per channel (or one), scales may not be smaller. `scheme=auto`: zero points in 4 bits and fewer,
    where they win much, and in depthwise layers.
    Raises ValueError where `block` does not fit.
    """
    if block and _input_channels(node, weight) % block:
        raise ValueError(f"blocks of {block} do not divide {_input_channels(node, weight)} input channels")
    groups = moments.groups if moments is not None else _own_groups(node)
    rows = to_rows(node, weight, groups).astype(np.float64)
    owner = _owners(node, weight.shape, groups, per_channel, block)
    if moments is None:
        metric = Metric(np.broadcast_to(np.eye(rows.shape[2]), (groups, rows.shape[2], rows.shape[2])), 0.0)
    else:
        metric = Metric(moments.covariance if bias else moments.moment, damping)
    least = np.zeros(int(owner.max()) + 1) if least_scales is None else np.resize(least_scales, int(owner.max()) + 1)
    search = _Search(rows, owner, metric, levels, np.maximum(least.astype(np.float64), SMALLEST_SCALE))
    importance = metric.diagonal if moments is None else np.diagonal(moments.moment, axis1=1, axis2=2)[:, None, :]
    scales, offset = search.by_elements(importance, zero_points=scheme != "symmetric" and levels.step == 1)
    if scheme == "auto" and offset.any():
        plain, none = search.by_elements(importance, zero_points=False)
        won = search.error_of(scales, offset, importance) / max(search.error_of(plain, none, importance), 1e-300)
        if levels.count > 1 << 4 or (won > _WORTH_SUMMING and not _is_depthwise(node)):
            scales, offset = plain, none
    q = levels.nearest(rows / scales[owner], offset[owner])
    if rounding == "least-squares" and moments is not None:
        q, scales = search.by_output(scales, offset, fine=block > 0 or levels.count > 1 << _COARSE)
    if rounding == "adaptive" and moments is not None and levels.step == 1:
        q = descend(rows, q, scales[owner], metric, levels, offset[owner], _SWEEPS, adjacent=True)
    return _layer_weights(node, weight, q + offset[owner], scales, offset, levels, per_channel, block)


class _Search:
    """Scales for the rows of one layer. `owner`: which scale each row (or element) has, [groups, outputs, 1 or k]."""

    def __init__(self, rows: Array, owner: Array, metric: Metric, levels: Levels, least: Array) -> None:
        self.rows, self.owner, self.metric, self.levels, self.least = rows, owner, metric, levels, least
        self.every = np.broadcast_to(owner, rows.shape)

    def by_elements(self, importance: Array, *, zero_points: bool) -> tuple[Array, Array]:
        """(scales, zero points), both float64 [scales], of least squared error weighed by `importance`, rounding to
        nearest. Scales of what is all zero are 1."""
        low, high = np.zeros((2, len(self.least)))
        np.minimum.at(low, self.every, self.rows)
        np.maximum.at(high, self.every, self.rows)
        weigh = np.broadcast_to(importance, self.rows.shape)
        factors = _SHRINK if self.levels.count > _FEW else _SHRINK_FEW
        tried = [self._symmetric(low, high, f) for f in factors]
        if zero_points:
            tried += [self._asymmetric(low, high, f) for f in factors]
        best, least = tried[0], np.full(len(self.least), np.inf)
        for scales, offset in tried:
            spread, zero = scales[self.owner], offset[self.owner]
            error = self._sum(np.square(self.levels.nearest(self.rows / spread, zero) * spread - self.rows) * weigh)
            better = error < least * (1 - 1e-9)
            best = np.where(better, scales, best[0]), np.where(better, offset, best[1])
            least = np.where(better, error, least)
        return best

    def error_of(self, scales: Array, offset: Array, importance: Array) -> float:
        """The squared error of rounding to nearest, weighed by `importance`."""
        spread, zero = scales[self.owner], offset[self.owner]
        return float((np.square(self.levels.nearest(self.rows / spread, zero) * spread - self.rows) * importance).sum())

    def _symmetric(self, low: Array, high: Array, factor: float) -> tuple[Array, Array]:
        full = np.maximum(np.abs(low), np.abs(high)) / self.levels.high
        scales = np.where(full > 0, full * factor, 1.0)
        return np.maximum(scales, self.least).astype(np.float32).astype(np.float64), np.zeros(len(scales))

    def _asymmetric(self, low: Array, high: Array, factor: float) -> tuple[Array, Array]:
        levels = self.levels
        full = (high - low) / (levels.high - levels.low)
        scales = np.maximum(np.where(full > 0, full * factor, 1.0), self.least).astype(np.float32).astype(np.float64)
        middle = (levels.low + levels.high) / 2 - (low + high) / (2 * scales)
        return scales, np.clip(np.rint(middle), levels.low, levels.high)

    def by_output(self, scales: Array, offset: Array, *, fine: bool) -> tuple[Array, Array]:
        """(levels less zero points, scales) after rounding by least squares. `fine`: with these scales; otherwise
        others near them are tried with the error of the output."""
        zero = offset[self.owner]
        best_scales, best_q, least = scales, np.zeros(self.rows.shape), np.full(len(scales), np.inf)
        near = _AROUND_FEW if self.rows.shape[2] <= _FEW_COLUMNS else _AROUND
        for factor in (1.0,) if fine else near:
            tried = np.maximum(scales * factor, self.least)
            q = round_rows(self.rows, tried[self.owner], self.metric, self.levels, zero)
            best_scales, best_q, least = self._better(q, tried, best_scales, best_q, least)
        q = descend(self.rows, best_q, best_scales[self.owner], self.metric, self.levels, zero)
        best_scales, best_q, least = self._better(q, best_scales, best_scales, best_q, least)
        for _ in range(0 if fine else _REFITS):
            tried = self._refitted(best_q, best_scales)
            q = descend(self.rows, best_q, tried[self.owner], self.metric, self.levels, zero)
            best_scales, best_q, least = self._better(q, tried, best_scales, best_q, least)
        return best_q, best_scales

    def _refitted(self, q: Array, scales: Array) -> Array:
        """The scales of least error for these integers; the old ones where there is none."""
        over, under = best_factor(self.rows, q, self.metric)
        numerator, denominator = (
            np.bincount(self.owner.reshape(-1), a.reshape(-1), len(scales)) for a in (over, under)
        )
        known = (numerator > 0) & (denominator > 0)
        found = np.where(known, numerator / np.where(known, denominator, 1.0), scales)
        return np.asarray(np.maximum(found, self.least).astype(np.float32).astype(np.float64))

    def _better(
        self, q: Array, scales: Array, best_scales: Array, best_q: Array, least: Array
    ) -> tuple[Array, Array, Array]:
        """The better of two, for each scale."""
        error = self.metric.error(self.rows, q * scales[self.owner])
        total = np.bincount(self.owner[:, :, 0].reshape(-1), error.reshape(-1), len(scales))
        better = total < least
        return (
            np.where(better, scales, best_scales),
            np.where(better[self.owner], q, best_q),
            np.where(better, total, least),
        )

    def _sum(self, errors: Array) -> Array:
        return np.bincount(self.every.reshape(-1), errors.reshape(-1), len(self.least))


_WORTH_SUMMING = 0.8
"""Share of the error left by zero points for which a kernel may sum its data beside its products. Kernels of depthwise
layers need not."""
_SHRINK = tuple(float(f) for f in np.linspace(1.0, 0.4, 31))
_SHRINK_FEW = tuple(float(f) for f in np.geomspace(1.0, 0.05, 41))
_FEW = 4  # levels up to which the largest weights are clipped far
_AROUND = (0.85, 0.92, 1.0, 1.08, 1.16)
_AROUND_FEW = tuple(float(f) for f in np.linspace(0.8, 1.24, 12))
_FEW_COLUMNS = 32  # layers as narrow as this have few weights to make up for each other, and cost little
_REFITS = 2
_SWEEPS = 20


def _is_depthwise(node: Node) -> bool:
    return node.op_type == "Conv" and node.need(1).static_shape()[1] == 1 and node.get_int("group", 1) > 1


def _own_groups(node: Node) -> int:
    return node.get_int("group", 1) if node.op_type == "Conv" else 1


def _input_axis(node: Node) -> int:
    return 1 if node.op_type == "Conv" else 1 - output_axis(node)


def _input_channels(node: Node, weight: Array) -> int:
    return int(weight.shape[_input_axis(node)])


def _owners(node: Node, shape: tuple[int, ...], groups: int, per_channel: bool, block: int) -> Array:
    """The number of the scale of each row, [groups, outputs, 1], or with blocks of each element."""
    axis = output_axis(node)
    if block:
        whole = list(shape)
        whole[_input_axis(node)] //= block
        numbers = np.repeat(np.arange(int(np.prod(whole))).reshape(whole), block, _input_axis(node))
        return to_rows(node, numbers, groups)
    channels = np.arange(shape[axis]) if per_channel else np.zeros(shape[axis], np.int64)
    spread = np.broadcast_to(channels.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
    return to_rows(node, spread, groups)[:, :, :1]


def _layer_weights(
    node: Node,
    weight: Array,
    q: Array,
    scales: Array,
    offset: Array,
    levels: Levels,
    per_channel: bool,
    block: int,
) -> LayerWeights:
    shape: tuple[int, ...] = (len(scales),) if per_channel else ()
    if block:
        shape = tuple(n // block if i == _input_axis(node) else n for i, n in enumerate(weight.shape))
    axis = _input_axis(node) if block else output_axis(node) if per_channel else None
    stored = from_rows(node, q, weight.shape).astype(np.int8).astype(levels.dtype.numpy)
    zero = offset.reshape(shape).astype(np.int8).astype(levels.dtype.numpy) if offset.any() else None
    return LayerWeights(stored, scales.reshape(shape).astype(np.float32), zero, axis, block, levels)
