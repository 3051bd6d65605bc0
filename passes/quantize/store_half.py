"""Weights in 16-bit floating point, arithmetic in float32: half the bytes, without calibration data.

A weight becomes a constant of 16 bits behind a Cast to float32, which the backend takes into the kernel; of a table
the rows that were read are cast. Rounding is to nearest even: float16 keeps 11 bits of each weight (about 73 dB),
bfloat16 8 bits (about 55 dB) and float32's range. Biases and everything else stay in float32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array, DType, Origin, TensorType
from irc.passes.quantize.ranges import decibel
from irc.passes.quantize.rewrite import NAME
from irc.pipeline.contract import PassResult, Refusal
from irc.rewrite.facts import weight_inputs

Half = Literal["float16", "bfloat16"]

SMALLEST = 256
"""Weights from which on a layer is worth a node."""

SMALLEST_TABLE = 4096
"""Numbers from which on a table is: its rows are widened after they are read."""

_LARGEST = 65504.0  # of float16


def store_half(graph: Graph, dtype: Half, skip: Collection[str] = ()) -> PassResult:
    """Store the constant weights of Conv, Gemm, MatMul, LSTM and GRU, and the tables of Gather, as `dtype`.

    Nodes named in `skip` keep theirs.
    """
    run = _Run(graph, dtype)
    refusals: list[Refusal] = []
    for node in list(graph.nodes):
        for index in (0,) if node.is_op("Gather") else weight_inputs(node):
            weight = node.need(index)
            if not weight.is_constant or weight.tensor.dtype is not DType.FLOAT:
                continue
            reason = "named in skip" if _named(node, skip) else _refusal(node, weight, dtype)
            if reason:
                refusals.append(Refusal(node.label, NAME, reason))
            elif node.is_op("Gather"):
                run.table(node, weight)
            else:
                run.linear(node, index, weight)
    run.finish()
    return PassResult(bool(run.layers), {"layers": run.layers, "tensors": [], "notes": []}, tuple(refusals))


def _named(node: Node, skip: Collection[str]) -> bool:
    return node.name in skip or any(name in skip for name in node.origin.nodes)


def _refusal(node: Node, weight: Value, dtype: Half) -> str:
    shape = weight.static_shape()
    groups = node.get_int("group", 1)
    if node.is_op("Conv") and groups > 1 and groups == shape[0]:
        return "depthwise weights are few, and their kernels read them in float32"
    if node.is_op("Gemm", "MatMul") and len(shape) != 2:
        return "its weights are no matrix"
    data = weight.numpy()
    least = SMALLEST_TABLE if node.is_op("Gather") else SMALLEST
    if data.size < least:
        return f"it has fewer than {least} weights"
    if not np.isfinite(data).all():
        return "its weights are not finite"
    if dtype == "float16" and np.abs(data).max() > _LARGEST:
        return f"weights beyond float16's {_LARGEST:g}"
    return ""


class _Run:
    """Rewrites one graph. Constants are stored once, however many nodes read them."""

    def __init__(self, graph: Graph, dtype: Half) -> None:
        self.graph, self.dtype = graph, dtype
        self.layers: list[dict[str, Any]] = []
        self._stored: dict[Value, Value] = {}
        self._restored: dict[Value, Value] = {}

    def linear(self, node: Node, index: int, weight: Value) -> None:
        """The operator reads the weights behind a Cast."""
        if weight not in self._restored:
            self._restored[weight] = self._cast(self._store(weight), f"{weight.name}_restore", node.origin)
        self.graph.set_input(node, index, self._restored[weight])
        node.origin = node.origin.touched(NAME)
        self._report(node, weight)

    def table(self, node: Node, weight: Value) -> None:
        """The rows are read as they are stored, and then cast."""
        gather = self.graph.add(
            "Gather",
            [self._store(weight), node.need(1)],
            attributes=node.attributes,
            types=[TensorType(DType(self.dtype), node.output.shape)],
            name=node.name,
            origin=node.origin.touched(NAME),
        )
        self._report(node, weight)
        restored = self._cast(gather.output, f"{node.name}_restore", node.origin)
        self.graph.replace_uses(node.output, restored)
        self.graph.remove_nodes([node])

    def finish(self) -> None:
        """Drop what nobody reads any more, and restore the topological order."""
        for weight in self._stored:
            if not weight.uses and not weight.is_output:
                self.graph.remove_constant(weight)
        if self._stored:
            self.graph.sort()

    def _store(self, weight: Value) -> Value:
        if weight not in self._stored:
            data = weight.numpy().astype(DType(self.dtype).numpy)
            self._stored[weight] = self.graph.add_constant(data, f"{weight.name}_{self.dtype}")
        return self._stored[weight]

    def _cast(self, value: Value, name: str, origin: Origin) -> Value:
        node = self.graph.add(
            "Cast",
            [value],
            attributes={"to": DType.FLOAT.onnx},
            types=[TensorType(DType.FLOAT, value.shape)],
            name=name,
            origin=origin.touched(NAME),
        )
        return node.output

    def _report(self, node: Node, weight: Value) -> None:
        exact: Array = weight.numpy().astype(np.float64)
        error = exact - self._stored[weight].numpy().astype(np.float64)
        snr = decibel(float(np.square(exact).sum()), float(np.square(error).sum()))
        line = {"node": node.name, "op": node.op_type, "weights": int(exact.size), "weight_snr_db": round(snr, 2)}
        self.layers.append(line)
