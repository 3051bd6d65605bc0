"""Cross-layer equalization: channels of one tensor share one scale, so their ranges should be alike.

Where a linear layer, a Relu and another linear layer follow each other, dividing an output channel of the first and
multiplying the matching input channel of the second by the same number changes nothing: Relu(x / s) = Relu(x) / s for
s > 0. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1; here
with measured ranges of the activations. The first layer has a scale per output channel, so its weights lose nothing;
those of the second lose nothing when it is depthwise, and otherwise only half of the disparity is moved.

The range of a channel is the power of two of least squared error in 8 bits, so rare outliers do not count. Behind
Clip(0, m), as in MobileNets, a channel that mostly stays below m is scaled up, and what then exceeds m is clipped: the
same that choosing a range for 8 bits does, but for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from irc.calibrate.observers import ChannelOctaves
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array
from irc.passes.quantize.regions import Kernel, Linear

_HOMOGENEOUS = ("Relu", "LeakyRelu")  # f(x / s) = f(x) / s for s > 0
_DENSE_POWER = 0.5
_MOST = 10  # octaves between the widest channel and any other


@dataclass(frozen=True)
class Link:
    """A layer, and the layers that alone read its (rectified) output `value`. `bound`: m where a Clip(0, m) ends."""

    first: Linear
    value: Value
    readers: tuple[Linear, ...]
    bound: float | None = None

    @property
    def axis(self) -> int:
        """The axis of the channels in `value`."""
        return self.readers[0].channel_axis

    @property
    def depthwise(self) -> bool:
        return all(r.core.op_type == "Conv" and r.weight.static_shape()[1] == 1 for r in self.readers)


def find_links(kernels: list[Kernel]) -> list[Link]:
    """Every place where equalization changes nothing but ranges."""
    by_core = {id(k.linear.core): k.linear for k in kernels if k.linear is not None}
    links = []
    for kernel in kernels:
        linear = kernel.linear
        if linear is None or len(kernel.inputs) != 1 or kernel.output.is_output:
            continue
        tail = [n for n in kernel.nodes if n is not linear.core and n is not linear.bias_add]
        uses = kernel.output.uses
        readers = tuple(by_core[id(u.node)] for u in uses if u.index == 0 and id(u.node) in by_core)
        bounds = [_clip_bound(n) for n in tail if n.is_op("Clip")]
        if not readers or len(readers) != len(uses) or not all(n.is_op(*_HOMOGENEOUS, "Clip") for n in tail):
            continue
        if None in bounds or len(bounds) > 1:
            continue
        shape = kernel.output.shape
        axes = {r.channel_axis % shape.rank for r in readers} if shape is not None else set()
        if shape is not None and axes == {linear.channel_axis % shape.rank}:
            links.append(Link(linear, kernel.output, readers, bounds[0] if bounds else None))
    return links


def _clip_bound(node: Node) -> float | None:
    """m of Clip(0, m), None for other clips."""
    low, high = node.input(1), node.input(2)
    if low is None or high is None or not (low.is_constant and high.is_constant):
        return None
    bound = float(high.numpy().reshape(()))
    return bound if float(low.numpy().reshape(())) == 0 and bound > 0 else None


def observer(link: Link) -> ChannelOctaves:
    """What `equalize` has to know of the link's value."""
    return ChannelOctaves(link.axis, link.bound or 1.0)


def equalize(graph: Graph, links: list[Link], observed: Mapping[str, ChannelOctaves]) -> int:
    """Apply it, with the observers of each link's value. Returns how many links were changed."""
    changed = 0
    for link in links:
        power = 1.0 if link.depthwise else _DENSE_POWER
        factors = channel_factors(*observed[link.value.name].clipped(), power, bounded=link.bound is not None)
        if factors is None:
            continue
        _scale_outputs(graph, link.first, 1.0 / factors)
        for reader in link.readers:
            scale_inputs(graph, reader, factors)
        changed += 1
    return changed


def channel_factors(clipped: Array, used: Array, power: float, *, bounded: bool) -> Array | None:
    """s of each channel, a power of two (so that scaling weights is exact) of at most 1; None where all are 1.

    `clipped`: squared error of clipping at 2^k, [channels, octaves]; `used`: share of non-zero elements, [channels].
    The widest channel has 1, and with `bounded` a range of 2^0. Channels that are always 0 keep 1.
    """
    exponents = np.arange(clipped.shape[1]) + ChannelOctaves.first
    error = clipped + used[:, None] * np.exp2(2.0 * exponents) / (12 * 255**2)
    best = exponents[np.argmin(error, axis=1)]
    live = used > 0
    if not live.any():
        return None
    top = 0 if bounded else best[live].max()
    relative = np.clip(np.where(live, best - top, 0), -_MOST, 0)
    factors: Array = np.exp2(np.ceil(relative * power))
    return factors if (factors != 1.0).any() else None


def _scale_outputs(graph: Graph, linear: Linear, factors: Array) -> None:
    weight = linear.core.need(1).numpy()  # may have been scaled already, as the inputs of another link
    shape = [-1 if i == linear.axis else 1 for i in range(weight.ndim)]
    _replace(graph, linear.core, 1, weight * factors.reshape(shape))
    if linear.bias is not None:
        bias = linear.bias_node.need(linear.bias_index).numpy()
        _replace(graph, linear.bias_node, linear.bias_index, bias * factors.reshape(bias.shape))


def scale_inputs(graph: Graph, linear: Linear, factors: Array) -> None:
    """Multiply the weights of each input channel by its factor."""
    current = linear.core.need(1).numpy()  # may have been scaled already, as the outputs of another link
    if linear.core.op_type != "Conv":
        scaled = current * (factors[None, :] if linear.axis == 0 else factors[:, None])
    else:
        outputs, per_group, *kernel = current.shape
        groups = len(factors) // per_group
        spread = factors.reshape(groups, 1, per_group, *[1] * len(kernel))
        scaled = (current.reshape(groups, outputs // groups, per_group, *kernel) * spread).reshape(current.shape)
    _replace(graph, linear.core, 1, scaled)


def _replace(graph: Graph, node: Node, index: int, data: Array) -> None:
    old = node.need(index)
    graph.set_input(node, index, graph.add_constant(data.astype(np.float32), old.name))
    if not old.uses and not old.is_output and old.graph is not None:
        old.graph.remove_constant(old)
