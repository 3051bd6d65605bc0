"""Rounding weights for an entropy coder: the fewest bits for the least change of the layer's output.

With a coder behind, the best scalar quantizer has uniform steps and no bound on the number of levels; what a weight
costs is -log2 of how frequent its level is. So the step of a layer is free, and rounding weighs two things: the squared
error of the output in the metric of the layer's inputs, and the bits. Sullivan, "Efficient Scalar Quantization of
Exponential and Laplacian Random Variables" (1996), for entropy-constrained quantization; Frantar et al., "GPTQ" (2023),
for making up for each column's error in those not rounded yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from irc.ir.types import Array
from irc.passes.quantize.affine import WEIGHT_LIMIT
from irc.passes.quantize.rounding import inverse_factor

RATE = 0.08
"""What a bit is worth, in squared steps: at the best step a smaller one would buy a bit for ln 2 / 6 = 0.116 of them;
a little less, because levels that are rounded down pull the others' errors with them."""
_PASSES = 2  # the first shows how frequent each level is
_BLOCK = 128
_BITS_A_LEVEL = 12.0  # that a coder's table takes for each distinct level


@dataclass(frozen=True)
class Curve:
    """What a layer costs at each of a range of choices: bits of all its weights, and the change of its output as a
    share of the output's variance."""

    bits: Array
    change: Array


def conditional(metric: Array, damping: float) -> Array:
    """[groups, k]: what an error of one column costs when all later ones make up for it, largest columns first.

    The diagonal of D in metric = L D LT, put back into the order of the columns.
    """
    order = _order(metric)
    factor = inverse_factor(_sorted(metric, order), damping)
    least = _means(metric)[:, None] / np.square(np.diagonal(factor, axis1=1, axis2=2))
    found: Array = np.empty_like(least)
    np.put_along_axis(found, order, least, axis=1)
    return found


def curve(rows: Array, units: Sequence[Array], costs: Array, signal: float) -> Curve:
    """The trade-off without rounding for good: every weight by itself, at the cost `costs` [groups, k].

    `rows`: [groups, outputs, k]; `units`: for each point of the curve the steps of the outputs, [groups, outputs].
    `signal`: variance of all outputs.
    """
    bits, change = np.empty(len(units)), np.empty(len(units))
    for i, unit in enumerate(units):
        weigh = np.square(unit)[:, :, None] * costs[:, None, :]
        exact = rows / unit[:, :, None]
        near = np.clip(np.rint(exact), -WEIGHT_LIMIT, WEIGHT_LIMIT)
        price = RATE * float(weigh.mean()) * level_bits(near)[np.abs(near).astype(np.int64)]
        error, dropped = np.square(exact - near) * weigh, np.square(exact) * weigh
        zero = dropped < error + price
        near[zero] = 0
        change[i] = np.where(zero, dropped, error).sum() / signal
        bits[i] = entropy_bits(near)
    return Curve(bits, change)


def unclipped(rows: Array, unit: Array, costs: Array, join: Callable[[Array], Array]) -> Array:
    """Powers of two by which steps grow where clipping weights to 127 of them would cost more.

    `rows`: [groups, outputs, k]; `unit`: [groups, outputs]; `join`: sums [groups, outputs] over the groups of the same
    output, which share a step, to [outputs of the layer]. Returns that shape.
    """
    most = np.abs(rows).max(axis=2) / unit / WEIGHT_LIMIT
    octaves = int(np.ceil(np.log2(max(float(most.max(initial=0.0)), 1.0))))
    best = np.ones(len(join(most)))
    if octaves == 0:
        return best
    least = np.full(len(best), np.inf)
    clipped = (most > 1).any(axis=0)  # the same output of another group may be; one index serves all
    for octave in range(octaves + 1):
        cost = np.zeros(most.shape)
        step = unit[:, clipped, None] * 2**octave
        part = rows[:, clipped]
        near = np.clip(np.rint(part / step), -WEIGHT_LIMIT, WEIGHT_LIMIT) * step
        cost[:, clipped] = (np.square(part - near) * costs[:, None, :]).sum(axis=2)
        total = join(cost)
        better = total < least * (1 - 1e-9)
        best, least = np.where(better, 2.0**octave, best), np.minimum(total, least)
    return best


def entropy_bits(q: Array) -> float:
    """Bits of all numbers at their own entropy, and of a table of the levels."""
    counts = np.bincount(q.reshape(-1).astype(np.int64) + 128, minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / q.size)).sum()) + _BITS_A_LEVEL * len(counts)


def level_bits(q: Array) -> Array:
    """Bits of each magnitude 0 to 127 by how often it comes in `q`; those that never come have a tenth of a count."""
    counts = np.bincount(np.abs(q).reshape(-1).astype(np.int64), minlength=WEIGHT_LIMIT + 1) + 0.1
    share = counts / counts.sum()
    share[1:] /= 2  # the sign
    found: Array = -np.log2(share)
    return found


def round_for_rate(rows: Array, units: Array, metric: Array, damping: float = 0.01) -> Array:
    """int8 weights in [-127, 127], [groups, outputs, k]: levels of least error + RATE * bits, column after column.

    `rows`: weights [groups, outputs, k]; `units` [groups, outputs]: the step of each output; `metric`: [groups, k, k].
    Every weight may go to the nearest level, the next smaller one, or zero; exact zeros stay zero.
    """
    order = _order(metric)
    factor = inverse_factor(_sorted(metric, order), damping)
    costs = 1.0 / np.square(np.diagonal(factor, axis1=1, axis2=2))  # [groups, k], up to a number for each group
    exact = np.take_along_axis(rows.astype(np.float64) / units[:, :, None], order[:, None, :], 2)
    # A squared step of one output may cost more than one of another; a bit costs the same everywhere.
    scale = np.square(units) * _means(metric)[:, None]
    price = RATE * float((scale * costs.mean(axis=1, keepdims=True)).mean()) / scale
    levels = np.clip(np.rint(exact), -WEIGHT_LIMIT, WEIGHT_LIMIT)
    for _ in range(_PASSES):
        levels = _once(exact, factor, costs, price, level_bits(levels))
    found = np.empty(levels.shape, np.int8)
    np.put_along_axis(found, np.broadcast_to(order[:, None, :], levels.shape), levels.astype(np.int8), axis=2)
    return found


def _once(exact: Array, factor: Array, costs: Array, price: Array, bits: Array) -> Array:
    left, levels = exact.copy(), np.empty(exact.shape)
    columns = exact.shape[2]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((*exact.shape[:2], stop - start))
        for i in range(start, stop):
            column = left[:, :, i]
            chosen = _cheapest(np.abs(column), costs[:, i, None], price, bits) * np.sign(column)
            chosen[exact[:, :, i] == 0] = 0
            levels[:, :, i] = chosen
            error = (column - chosen) / factor[:, None, i, i]
            errors[:, :, i - start] = error
            left[:, :, i + 1 : stop] -= error[:, :, None] * factor[:, None, i, i + 1 : stop]
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return levels


def _cheapest(size: Array, cost: Array, price: Array, bits: Array) -> Array:
    best = np.minimum(np.rint(size), WEIGHT_LIMIT)
    least = np.square(size - best) * cost + price * bits[best.astype(np.int64)]
    for tried in (np.maximum(best - 1, 0), np.zeros_like(best)):
        total = np.square(size - tried) * cost + price * bits[tried.astype(np.int64)]
        best = np.where(total < least, tried, best)
        least = np.minimum(total, least)
    return best


def _means(metric: Array) -> Array:
    """Mean diagonal of each group, [groups]; where inputs are always zero a small share of what others have."""
    mean = np.trace(metric, axis1=1, axis2=2) / metric.shape[1]
    largest = float(mean.max(initial=0.0))
    found: Array = np.maximum(mean, 1e-6 * largest if largest > 0 else 1.0)
    return found


def _order(metric: Array) -> Array:
    return np.argsort(-np.diagonal(metric, axis1=1, axis2=2), axis=1, kind="stable")


def _sorted(metric: Array, order: Array) -> Array:
    return np.take_along_axis(np.take_along_axis(metric, order[:, :, None], 1), order[:, None, :], 2)
