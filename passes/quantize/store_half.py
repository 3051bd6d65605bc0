"""Weights in 16-bit floating point, arithmetic in float32: half the bytes, without calibration data.

A weight becomes a constant of 16 bits behind a Cast to float32, which the backend takes into the kernel. Rounding is to
nearest even: float16 keeps 11 bits of each weight (about 73 dB), bfloat16 8 bits (about 55 dB) and float32's range.
Biases and everything else stay in float32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array, DType, Origin, Shape, TensorType
from irc.passes.quantize.ranges import decibel
from irc.passes.quantize.rewrite import NAME
from irc.pipeline.contract import PassResult, Refusal

Half = Literal["float16", "bfloat16"]

SMALLEST = 256
"""Weights from which on a layer is worth a node."""

_LARGEST = 65504.0  # of float16


def store_half(graph: Graph, dtype: Half, skip: Collection[str] = ()) -> PassResult:
    """Store the constant weights of Conv, Gemm and MatMul of `graph` as `dtype`; nodes named in `skip` keep theirs."""
    made: dict[Value, Value] = {}
    layers: list[dict[str, Any]] = []
    refusals: list[Refusal] = []
    for node in list(graph.nodes):
        if not node.is_op("Conv", "Gemm", "MatMul"):
            continue
        weight = node.need(1)
        if not weight.is_constant or weight.tensor.dtype is not DType.FLOAT:
            continue
        reason = "named in skip" if _named(node, skip) else _refusal(node, weight, dtype)
        if reason:
            refusals.append(Refusal(node.label, NAME, reason))
            continue
        if weight not in made:
            made[weight] = _stored(graph, weight, dtype, node.origin)
        graph.set_input(node, 1, made[weight])
        node.origin = node.origin.touched(NAME)
        layers.append(_line(node, weight, made[weight]))
    for weight in made:
        if not weight.uses and not weight.is_output:
            graph.remove_constant(weight)
    if made:
        graph.sort()
    return PassResult(bool(layers), {"layers": layers, "tensors": [], "notes": []}, tuple(refusals))


def _named(node: Node, skip: Collection[str]) -> bool:
    return node.name in skip or any(name in skip for name in node.origin.nodes)


def _refusal(node: Node, weight: Value, dtype: Half) -> str:
    shape = weight.static_shape()
    groups = node.get_int("group", 1)
    if node.is_op("Conv") and groups > 1 and groups == shape[0]:
        return "depthwise weights are few, and their kernels read them in float32"
    if not node.is_op("Conv") and len(shape) != 2:
        return "its weights are no matrix"
    data = weight.numpy()
    if data.size < SMALLEST:
        return f"it has fewer than {SMALLEST} weights"
    if not np.isfinite(data).all():
        return "its weights are not finite"
    if dtype == "float16" and np.abs(data).max() > _LARGEST:
        return f"weights beyond float16's {_LARGEST:g}"
    return ""


def _stored(graph: Graph, weight: Value, dtype: Half, origin: Origin) -> Value:
    """The value of a Cast from the stored weights."""
    stored = graph.add_constant(weight.numpy().astype(DType(dtype).numpy), f"{weight.name}_{dtype}")
    node = graph.add(
        "Cast",
        [stored],
        attributes={"to": DType.FLOAT.onnx},
        types=[TensorType(DType.FLOAT, Shape(weight.static_shape()))],
        name=f"{weight.name}_restore",
        origin=origin.touched(NAME),
    )
    return node.output


def _line(node: Node, weight: Value, restored: Value) -> dict[str, Any]:
    assert restored.producer is not None
    exact: Array = weight.numpy().astype(np.float64)
    error = exact - restored.producer.need(0).numpy().astype(np.float64)
    snr = decibel(float(np.square(exact).sum()), float(np.square(error).sum()))
    return {"node": node.name, "op": node.op_type, "weights": int(exact.size), "weight_snr_db": round(snr, 2)}
