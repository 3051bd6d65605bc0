"""What a compiled program is tried on: the user's samples, or random ones that suit the model."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from irc.errors import ShapeError
from irc.evaluation.scoring import random_feeds
from irc.ir.graph import Model, Value
from irc.ir.types import Array
from irc.pipeline.contract import Samples

ELEMENTS = 1000
"""So many output elements make "99 %" mean something."""
MAC_BUDGET, SLOW_MAC_BUDGET = 4 * 10**9, 10**9
"""Multiply-adds spent on checking, in process and under an emulator (about a second, and about ten)."""


def count_feeds(model: Model, macs: int, *, quantized: bool, slow: bool) -> int:
    """How many feeds to verify on: 3, more for quantized models with few outputs, fewer where they are expensive."""
    elements = sum(_numel(v) for v in model.graph.outputs) or 1
    wanted = min(64, max(4, -(-ELEMENTS // elements))) if quantized else 3
    affordable = (SLOW_MAC_BUDGET if slow else MAC_BUDGET) // max(macs, 1)
    return max(1, min(wanted, affordable))


def _numel(value: Value) -> int:
    try:
        return int(np.prod(value.static_shape(), dtype=np.int64))
    except ValueError:
        return 1


def verification_feeds(model: Model, data: Samples | None, count: int, seed: int) -> list[dict[str, Array]]:
    """`count` feeds of `data` (the first ones), or random ones. Raises ShapeError where an input is not static."""
    if data is not None:
        return list(itertools.islice(data.feeds(), count))
    feeds = random_feeds({v.name: _input_type(v) for v in model.graph.inputs}, count, seed)
    rng = np.random.default_rng(seed)
    for value in model.graph.inputs:
        bounds = quantized_range(value)
        if bounds is None:
            continue
        for feed in feeds:
            array = feed[value.name]
            feed[value.name] = rng.uniform(*bounds, size=array.shape).astype(array.dtype)
    return feeds


def _input_type(value: Value) -> tuple[np.dtype[Any], tuple[int, ...]]:
    try:
        return value.tensor.dtype.numpy, value.static_shape()
    except ValueError as error:
        raise ShapeError(f"input '{value.name}' has no static shape", got=str(value.type)) from error


def quantized_range(value: Value) -> tuple[float, float] | None:
    """Real values that the QuantizeLinear behind this float input can represent; None where there is none.

    Random numbers outside it would only show how clamping works.
    """
    for node in value.users:
        if not node.is_op("QuantizeLinear") or node.inputs[0] is not value:
            continue
        scale, zero = node.input(1), node.input(2)
        kind = node.output.dtype
        if scale is None or scale.constant is None or scale.constant.size != 1 or kind is None or kind.bits != 8:
            continue
        step = float(scale.numpy().reshape(-1)[0])
        point = int(zero.numpy().reshape(-1)[0]) if zero is not None and zero.constant is not None else 0
        low, high = (-128, 127) if kind.value == "int8" else (0, 255)
        return (low - point) * step, (high - point) * step
    return None


_KEEP_STEPS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Concat", "Slice", "Gather")
"""Operators that hand values on as they are, so an output behind them keeps the quantization step."""


def output_steps(model: Model) -> dict[str, float]:
    """Quantization step, in units of the output, of every output that is a dequantized integer."""
    found = {}
    for value in model.graph.outputs:
        step = _step(value, 8)
        if step is not None:
            found[value.name] = step
    return found


def _step(value: Value | None, depth: int) -> float | None:
    node = value.producer if value is not None else None
    if node is None or depth == 0:
        return None
    if node.is_op("DequantizeLinear"):
        scale = node.need(1)
        return float(np.max(scale.numpy())) if scale.constant is not None else None
    return _step(node.input(0), depth - 1) if node.is_op(*_KEEP_STEPS) else None


_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


def has_quantized_activations(model: Model) -> bool:
    """Whether anything but constants is rounded to integers: then results agree in steps, not in digits."""
    for node in model.graph.walk():
        if node.is_op("QuantizeLinear") and (node.inputs[0] is None or node.inputs[0].constant is None):
            return True
        if node.is_op(*_INTEGER_OPS) or (node.domain == "com.microsoft" and node.op_type.startswith("QLinear")):
            return True
    return False
