"""Cross-layer equalization: channels of one tensor share one scale, so their ranges should be alike.

Where a linear layer, a Relu and another linear layer follow each other, dividing an output channel of the first and
multiplying the matching input channel of the second by the same number changes nothing: Relu(x / s) = Relu(x) / s for
s > 0. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1; here
with measured ranges of the activations. The first layer has a scale per output channel, so its weights lose nothing;
those of the second lose nothing when it is depthwise, and otherwise only half of the disparity is moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array
from irc.passes.quantize.regions import Kernel, Linear

_HOMOGENEOUS = ("Relu", "LeakyRelu")  # f(x / s) = f(x) / s for s > 0
_DENSE_POWER = 0.5
_MOST = 2.0**10  # between the widest channel and any other


@dataclass(frozen=True)
class Link:
    """A layer, and the layers that alone read its (rectified) output `value`."""

    first: Linear
    value: Value
    readers: tuple[Linear, ...]

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
        if not readers or len(readers) != len(uses) or not all(n.is_op(*_HOMOGENEOUS) for n in tail):
            continue
        shape = kernel.output.shape
        axes = {r.channel_axis % shape.rank for r in readers} if shape is not None else set()
        if shape is not None and axes == {linear.channel_axis % shape.rank}:
            links.append(Link(linear, kernel.output, readers))
    return links


def equalize(graph: Graph, links: list[Link], largest: Mapping[str, Array]) -> int:
    """Apply it; `largest`: max |x| of each channel of each link's value. Returns how many links were changed."""
    changed = 0
    for link in links:
        power = 1.0 if link.depthwise else _DENSE_POWER
        factors = channel_factors(largest[link.value.name], power)
        if factors is None:
            continue
        _scale_outputs(graph, link.first, 1.0 / factors)
        for reader in link.readers:
            _scale_inputs(graph, reader, factors)
        changed += 1
    return changed


def channel_factors(largest: Array, power: float) -> Array | None:
    """s of each channel, 1 for the widest; None where all are alike. Channels that are always 0 keep 1.

    Powers of two are taken, so that scaling weights is exact.
    """
    top = float(largest.max(initial=0.0))
    if not np.isfinite(top) or top <= 0:
        return None
    relative = np.where(largest > 0, np.maximum(largest / top, 1 / _MOST), 1.0)
    factors: Array = np.exp2(np.ceil(np.log2(relative) * power))
    return factors if (factors != 1.0).any() else None


def _scale_outputs(graph: Graph, linear: Linear, factors: Array) -> None:
    weight = linear.core.need(1).numpy()  # may have been scaled already, as the inputs of another link
    shape = [-1 if i == linear.axis else 1 for i in range(weight.ndim)]
    _replace(graph, linear.core, 1, weight * factors.reshape(shape))
    if linear.bias is not None:
        bias = linear.bias_node.need(linear.bias_index).numpy()
        _replace(graph, linear.bias_node, linear.bias_index, bias * factors.reshape(bias.shape))


def _scale_inputs(graph: Graph, linear: Linear, factors: Array) -> None:
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
