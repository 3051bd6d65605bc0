"""Channels of quantized convolutions that no result depends on are neither computed nor stored (microcontrollers).

Training with weight decay lets whole channels die: their weights become so small that, with the scale of the channel,
every sum there can be rounds to the same integer. Which channels these are follows from the weights: the smallest and
the largest sum have the same result, and requantization is monotonic.

- A convolution that reads such a channel adds its integer to the sums as a constant, where no window leaves the image
  or the integer is the zero point, which is what lies outside.
- A depthwise convolution computes what its readers need.
- What nobody needs is not computed, whether it is constant or not.

The sums are the same numbers, so results have the same bits. Images keep a multiple of the channels that kernels take
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irc.backends.tvm.expression import Expression
from irc.backends.tvm.plan.integer import IntegerWeights
from irc.backends.tvm.plan.kinds import kind_of
from irc.backends.tvm.plan.planner import Planner
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.small_conv import conv_weights, small_expression, small_weights
from irc.backends.tvm.plan.window import all_inside, window
from irc.backends.tvm.reference import evaluate
from irc.backends.tvm.small_mve import MVE
from irc.ir.graph import Value
from irc.ir.types import Array
from irc.targets.target import Target

_TOGETHER, _TOGETHER_VECTORS = 4, 16  # channels


@dataclass(frozen=True)
class Kept:
    """`channels` of an image that are stored, ascending. `values` (int64, of all channels): the integer that a channel
    is everywhere, for its readers to add up; 0 where it varies, which is then read by nobody."""

    channels: Array
    values: Array


@dataclass(frozen=True)
class _Layer:
    """A convolution of one group, or a depthwise one. `w` int [oc, kh, kw, ic]."""

    region: Region
    integer: IntegerWeights
    w: Array
    depthwise: bool
    inside: bool  # no window leaves the image
    expression: Expression
    constants: tuple[Array, ...] | None  # of channels; None where the result depends on more than sums

    @property
    def x(self) -> Value:
        return self.integer.x

    @property
    def output(self) -> Value:
        return self.region.output

    @property
    def channels(self) -> int:
        return int(self.w.shape[0])


def kept_channels(p: Planner, regions: Sequence[Region]) -> dict[int, Kept]:
    """For values (by id) of which not all channels are needed: what is stored. Small targets only."""
    if not p.target.small:
        return {}
    layers = [layer for region in regions if (layer := _layer(p, region)) is not None]
    readers = _readers(layers)
    written = {id(layer.output): layer for layer in layers}
    known = _constants(layers)
    found: dict[int, Kept] = {}
    for layer in reversed(layers):
        if not _may_shrink(layer, written, readers):
            continue
        needed = _needed(layer, readers[id(layer.output)], known, found)
        if needed is None:
            continue
        channels = _rounded_up(needed, p.target)
        if len(channels) < layer.channels:
            found[id(layer.output)] = Kept(channels, known[id(layer.output)][1])
    return found


def _layer(p: Planner, region: Region) -> _Layer | None:
    node = region.root
    integer = small_weights(node, p.target) if node.is_op("Conv") else None
    if integer is None:
        return None
    depthwise = kind_of(node) == "depthwise"
    if not depthwise and node.get_int("group", 1) != 1:
        return None
    g = window(node, node.need(0).static_shape()[2:], node.need(1).static_shape()[2:])
    w = conv_weights(node, integer, g)
    expression, values = small_expression(p, region, integer, w, fpu=True)
    arrays = tuple(v for v in values if isinstance(v, np.ndarray) and v.ndim == 1)
    alone = len(arrays) == len(values) and _is_monotonic(expression)
    shape = node.output.static_shape()
    image = node.need(0).static_shape()
    spatial = [(1,) * (4 - len(s)) + s[2:] for s in (image, shape)]
    inside = all_inside(g, (spatial[0][0], spatial[0][1]), (spatial[1][0], spatial[1][1]))
    return _Layer(region, integer, w, depthwise, inside, expression, arrays if alone else None)


_MONOTONIC = ("add", "sub", "cast", "scale", "relu", "dequantize", "requantize")


def _is_monotonic(expression: Expression) -> bool:
    """Whether the result only rises, or only falls, with the kernel's sum."""
    varying: set[int] = set()
    for number, instr in enumerate(expression):
        if instr.op == "accumulator":
            varying.add(number)
            continue
        arguments = sum(a in varying for a in instr.args)
        if not arguments:
            continue
        narrows = instr.op == "cast" and instr.dtype != "float32"
        if instr.op not in _MONOTONIC or narrows or arguments > 1:
            return False
        varying.add(number)
    return len(expression) - 1 in varying


def _readers(layers: Sequence[_Layer]) -> dict[int, list[_Layer]]:
    """Layers that read an integer value, for values that nothing else reads."""
    by_root = {id(layer.region.root): layer for layer in layers}
    found: dict[int, list[_Layer]] = {}
    for value in {id(layer.output): layer.output for layer in layers}.values():
        made: list[_Layer] = []
        others = value.is_output
        for user in value.users:
            real = user.output
            others |= not user.is_op("DequantizeLinear") or real.is_output
            for use in real.uses:
                layer = by_root.get(id(use.node))
                if layer is None or use.index != 0 or layer.x is not value:
                    others = True
                else:
                    made.append(layer)
        if made and not others:
            found[id(value)] = made
    return found


def _constants(layers: Sequence[_Layer]) -> dict[int, tuple[Array, Array]]:
    """Of each layer's output: which channels are one integer everywhere (bool), and which integer (int64, else 0)."""
    found: dict[int, tuple[Array, Array]] = {}
    for layer in layers:
        none = np.zeros(layer.channels, bool), np.zeros(layer.channels, np.int64)
        found[id(layer.output)] = none
        low, high = _sums(layer, found.get(id(layer.x)))
        if layer.constants is None or not _fit(layer, low, high):
            continue
        ends = [evaluate(layer.expression, layer.constants, s.astype(np.int32)).astype(np.int64) for s in (low, high)]
        same = np.broadcast_to(ends[0] == ends[1], (layer.channels,))
        found[id(layer.output)] = same, np.where(same, ends[0], 0)
    return found


def _fit(layer: _Layer, low: Array, high: Array) -> bool:
    """Whether no sum leaves an int32, with what is added to it either."""
    added = np.zeros(1, np.int64)
    for instr in layer.expression:
        if instr.op in ("operand", "constant") and instr.dtype == "int32":
            data = layer.constants[int(instr.params[0])] if instr.op == "operand" and layer.constants else None
            added = added + np.abs(np.asarray(instr.params[0] if data is None else data, np.int64))
    return bool((np.maximum(np.abs(low), np.abs(high)) + added).max() < 1 << 31)


def _sums(layer: _Layer, known: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """Bounds of the sums of each channel (int64)."""
    inputs = layer.channels if layer.depthwise else layer.w.shape[3]
    least, most = np.full(inputs, -128, np.int64), np.full(inputs, 127, np.int64)
    if known is not None:
        least, most = (np.where(known[0], known[1], bound) for bound in (least, most))
    if not layer.inside:
        least, most = np.minimum(least, layer.integer.x_zero), np.maximum(most, layer.integer.x_zero)
    w = layer.w.astype(np.int64)
    places = (-1, 1, 1, 1) if layer.depthwise else (-1,)
    ends = w * least.reshape(places), w * most.reshape(places)
    low, high = (bound(*ends).reshape(layer.channels, -1).sum(1) for bound in (np.minimum, np.maximum))
    return low, high


def _may_shrink(layer: _Layer, written: dict[int, _Layer], readers: dict[int, list[_Layer]]) -> bool:
    """Whether the kernels that write and read the result of `layer` can do with some of its channels."""
    after = readers.get(id(layer.output), [])
    if layer.constants is None or not after or (len(after) > 1 and any(r.depthwise for r in after)):
        return False
    if not layer.depthwise:
        return True
    before = written.get(id(layer.x))  # its input has the same channels
    return before is not None and readers.get(id(layer.x)) == [layer] and _may_shrink(before, written, readers)


def _needed(
    layer: _Layer, after: Sequence[_Layer], known: dict[int, tuple[Array, Array]], found: dict[int, Kept]
) -> Array | None:
    """Which channels (bool) have to be stored for the layers `after` it; None: all."""
    if after[0].depthwise:
        kept = found.get(id(after[0].output))
        if kept is None:
            return None
        mask = np.zeros(layer.channels, bool)
        mask[kept.channels] = True
        return mask
    same, value = known[id(layer.output)]
    needed = np.zeros(layer.channels, bool)
    for reader in after:
        added = same if reader.inside else same & (value == reader.integer.x_zero)
        kept = found.get(id(reader.output))
        w = reader.w if kept is None else reader.w[kept.channels]
        needed |= (w != 0).any((0, 1, 2)) & ~added
    return needed


def _rounded_up(needed: Array, target: Target) -> Array:
    """Channels that are needed, and the first others until their number is what kernels take together."""
    together = _TOGETHER_VECTORS if target.dot == MVE or target.arch == "c" else _TOGETHER
    count = max(-(-int(needed.sum()) // together) * together, together)
    order = np.argsort(~needed, kind="stable")
    return np.sort(order[:count])
