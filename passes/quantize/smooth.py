"""SmoothQuant: outlier channels behind a normalization move into the weights that read them.

Behind LayerNormalization or RMSNormalization some channels are far larger than the others, and all share one scale.
Dividing the normalization's own scale (and bias) of channel j by s_j and multiplying the weights that read it by s_j
changes nothing in real numbers. s_j = max|x_j|^a / max|w_j|^(1-a): a = 0 leaves activations as they are, 1 makes all
channels alike. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
(2023). Here s_j is a power of two, so that scaling is exact, and a channel's range is the one of least squared error in
8 bits, as in `equalize.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irc.calibrate.observers import ChannelOctaves
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array
from irc.passes.quantize.equalize import scale_inputs
from irc.passes.quantize.regions import Kernel, Linear
from irc.pipeline.contract import Refusal

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")
_MOST = 5  # octaves that a channel moves


@dataclass(frozen=True)
class Smoothing:
    """A normalization and the layers that alone read its result."""

    node: Node
    readers: tuple[Linear, ...]

    @property
    def value(self) -> Value:
        return self.node.output


def find_smoothings(graph: Graph, kernels: Sequence[Kernel]) -> tuple[list[Smoothing], list[Refusal]]:
    """Every normalization over the last axis whose result only linear layers read, and why others are left."""
    by_core = {id(k.linear.core): k.linear for k in kernels if k.linear is not None}
    found, refusals = [], []
    for node in graph.nodes:
        if not node.is_op(*_NORMALIZATIONS):
            continue
        readers = [by_core[id(u.node)] for u in node.output.uses if u.index == 0 and id(u.node) in by_core]
        reason = _refusal(node, readers)
        if reason:
            refusals.append(Refusal(node.label, "smooth", reason))
        elif readers:
            found.append(Smoothing(node, tuple(readers)))
    return found, refusals


def _refusal(node: Node, readers: Sequence[Linear]) -> str:
    value, scale = node.output, node.need(1)
    if not readers:
        return ""
    if len(readers) != len(value.uses) or value.is_output or any(o.uses for o in node.outputs[1:]):
        return "others than linear layers read its result, which must keep its scale"
    rank = value.shape.rank if value.shape is not None else 0
    if node.get_int("axis", -1) not in (-1, rank - 1) or not scale.is_constant or len(scale.static_shape()) != 1:
        return "it does not scale the last axis by constants"
    bias = node.input(2)
    if bias is not None and not bias.is_constant:
        return "its bias is not constant"
    return ""


def observer(smoothing: Smoothing) -> ChannelOctaves:
    """What `smooth` has to know of its value."""
    return ChannelOctaves(-1)


def smooth(
    graph: Graph, smoothings: Sequence[Smoothing], observed: Mapping[str, ChannelOctaves], strength: float
) -> int:
    """Apply it with `strength` a, in (0, 1]. Returns how many normalizations were changed."""
    changed = 0
    for smoothing in smoothings:
        largest = np.max([_largest(linear) for linear in smoothing.readers], axis=0)
        factors = smoothing_factors(*observed[smoothing.value.name].clipped(), largest, strength)
        if factors is None:
            continue
        for index in (1, 2):
            old = smoothing.node.input(index)
            if old is not None:
                _replace(graph, smoothing.node, index, old.numpy() / factors)
        for linear in smoothing.readers:
            scale_inputs(graph, linear, factors)
        changed += 1
    return changed


def smoothing_factors(clipped: Array, used: Array, weights: Array, strength: float) -> Array | None:
    """s of each channel, powers of two; None where all are 1. `weights`: max|w_j|; the rest as for
    `equalize.channel_factors`. Channels that are always 0, or that nobody reads, keep 1."""
    exponents = np.arange(clipped.shape[1]) + ChannelOctaves.first
    ranges = exponents[np.argmin(clipped + used[:, None] * np.exp2(2.0 * exponents) / (12 * 255**2), axis=1)]
    live = (used > 0) & (weights > 0)
    if not live.any():
        return None
    wanted = strength * ranges - (1 - strength) * np.log2(np.where(live, weights, 1.0))
    moved = np.where(live, np.rint(wanted - np.median(wanted[live])), 0.0)
    factors: Array = np.exp2(np.clip(moved, -_MOST, _MOST))
    return factors if (factors != 1.0).any() else None


def _largest(linear: Linear) -> Array:
    """max|w| over the outputs, for each input."""
    weight = np.abs(linear.core.need(1).numpy())
    return np.asarray(weight.max(axis=linear.axis))


def _replace(graph: Graph, node: Node, index: int, data: Array) -> None:
    old = node.need(index)
    graph.set_input(node, index, graph.add_constant(data.astype(np.float32), old.name))
    if not old.uses and not old.is_output and old.graph is not None:
        old.graph.remove_constant(old)
