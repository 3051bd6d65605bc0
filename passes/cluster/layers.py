"""The layers that can have palettes, as the pass sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irc.calibrate.layers import spread_outputs, to_rows
from irc.calibrate.sequential import LayerMoments, refit
from irc.ir.graph import Node, Value
from irc.ir.palette import palette_of
from irc.ir.types import Array, DType


@dataclass(frozen=True)
class Seen:
    """What calibration says of a layer's input. `metric` [groups, k, k] is what errors are measured in, `power` the
    diagonal of E[x xT], `mean` E[x]: [groups, k]; `shift` [groups, outputs] is to be added to the bias."""

    metric: Array
    power: Array
    mean: Array
    count: int
    shift: Array


@dataclass(frozen=True)
class Layer:
    """A weight and its first reader. `rows` [groups, outputs, k] are `scales` [groups, outputs] times the numbers that
    the palette is made of; `original` is what they were before they were fitted to the layer's input."""

    node: Node
    weight: Value  # what the palette replaces: the constant itself
    rows: Array
    original: Array
    scales: Array
    seen: Seen | None

    @property
    def units(self) -> Array:
        found: Array = self.rows / self.scales[:, :, None]
        return found

    @property
    def importance(self) -> Array:
        """How much the squared output error is that a squared error of each unit makes, [groups, outputs, k]."""
        squares = np.square(self.scales)[:, :, None]
        if self.seen is None:
            return np.broadcast_to(squares, self.rows.shape)
        return np.asarray(squares * self.seen.power[:, None, :])

    @property
    def integer(self) -> bool:
        return self.weight.dtype is DType.INT8


def layer_of(node: Node, moments: LayerMoments | None, *, normalize: bool, correct_bias: bool) -> Layer:
    """`moments` None: without calibration. `normalize`: the numbers are divided by their root mean square.

    Weights are first fitted to what the layer's input has become, unless several layers share them.
    """
    weight = constant_of(node)
    assert weight is not None
    axis, data = output_axis(node), weight.numpy().astype(np.float64)
    every = np.ones(data.shape[axis])
    if weight.dtype is DType.INT8:
        restore = node.need(1).producer
        assert restore is not None
        every = every * restore.need(1).numpy().astype(np.float64).reshape(-1)
        data = np.moveaxis(np.moveaxis(data, axis, -1) * every, -1, axis)
    elif normalize:
        power = float(np.sqrt(np.square(data).mean()))
        every = every * (float(np.float32(power)) if power > 0 else 1.0)
    own = node.get_int("group", 1) if node.op_type == "Conv" else 1
    groups = own if moments is None else moments.groups
    rows = to_rows(node, data, groups)
    scales = spread_outputs(node, every, groups)
    moment = None if moments is None else moments.moment
    if moments is None or moment is None or not moments.count or not np.isfinite(moment).all():
        return Layer(node, weight, rows, rows, scales, None)
    free = correct_bias and bias_slot(node)
    squares = np.diagonal(moment, axis1=1, axis2=2).copy()
    metric = moments.covariance if free else moment
    alone = len(weight.users) == 1 and len(node.need(1).users) == 1
    fitted, shift = refit(rows, moments, bias=free) if alone else (rows, np.zeros(scales.shape))
    return Layer(node, weight, fitted, rows, scales, Seen(metric, squares, moments.mean, moments.count, shift))


def named(node: Node, names: Sequence[str]) -> bool:
    return node.name in names or any(n in names for n in node.origin.nodes)


def constant_of(node: Node) -> Value | None:
    """The constant that holds the weights of a layer: itself, or behind a DequantizeLinear per channel or tensor."""
    weight = node.need(1)
    if weight.is_constant:
        return weight
    restore = weight.producer
    if restore is None or not restore.is_op("DequantizeLinear") or restore.get_int("block_size", 0):
        return None
    scale, zero = restore.need(1), restore.input(2)
    if not restore.need(0).is_constant or not scale.is_constant:
        return None
    if zero is not None and (not zero.is_constant or zero.numpy().any()):
        return None
    if scale.numpy().size > 1 and restore.get_int("axis", 1) % len(weight.static_shape()) != output_axis(node):
        return None
    return restore.need(0)


def is_palette(value: Value) -> bool:
    node = value.producer
    inner = node.need(0) if node is not None and node.is_op("DequantizeLinear", "Mul") else value
    return palette_of(inner) is not None


def output_axis(node: Node) -> int:
    return 0 if node.op_type == "Conv" or node.get_int("transB") else 1


def outputs_of(node: Node, shape: tuple[int, ...]) -> int:
    return shape[output_axis(node)]


def bias_slot(node: Node) -> bool:
    """Whether the bias of `node` can be changed: a float32 constant, or int32 behind DequantizeLinear."""
    bias = node.input(2)
    if node.op_type == "MatMul" or node.get_float("alpha", 1.0) != 1.0 or node.get_float("beta", 1.0) != 1.0:
        return False
    if bias is None or bias.static_shape() != (outputs_of(node, node.need(1).static_shape()),):
        return False
    restore = bias.producer
    return bias.is_constant or (
        restore is not None and restore.is_op("DequantizeLinear") and restore.need(0).is_constant
    )
