"""8-bit arithmetic with ranges of activations that are taken at run time: no calibration, one scale for each tensor.

Each layer's input is quantized as it comes (DynamicQuantizeLinear), multiplied in integers (MatMulInteger,
ConvInteger) and scaled back. For transformers and recurrent networks, whose activations have ranges that differ much
from input to input; between the layers everything stays in floating point.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import DType, Shape, TensorType
from irc.passes.quantize.regions import Linear, find_regions
from irc.passes.quantize.report import floating, share_damage, summary
from irc.passes.quantize.rewrite import NAME
from irc.passes.quantize.store import WeightChoice
from irc.passes.quantize.weight_only import fit_weights
from irc.passes.quantize.weights import LayerWeights
from irc.pipeline.contract import PassContext, PassResult

_SCALAR = Shape(())


def make_dynamic(
    model: Model, ctx: PassContext, choice: WeightChoice, skip: Collection[str], sequential: bool
) -> PassResult:
    """Rewrite all linear layers with constant weights. With calibration samples these are rounded by least squares."""
    regions = find_regions(model.graph, skip)
    linears = [k.linear for k in regions.kernels if k.linear is not None]
    known, lines = fit_weights(model, ctx, choice, linears, 0, sequential)
    writer = _Writer(model.graph)
    for linear in linears:
        writer.replace(linear, known[linear.core])
    writer.finish()
    share_damage(lines, {})
    return PassResult(bool(linears), summary(lines, [], floating(regions)), tuple(regions.refusals))


class _Writer:
    """Rewrites one graph. A tensor that several layers read is quantized once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._quantized: dict[Value, tuple[Value, Value, Value]] = {}
        self._stored: dict[tuple[int, bool, bytes], Value] = {}
        self._replaced: list[Value] = []

    def replace(self, linear: Linear, weights: LayerWeights) -> None:
        node = linear.core
        x, scale, zero = self._input(node)
        stored = self._weights(linear, weights)
        conv = node.op_type == "Conv"
        bias = node.input(2)  # of a MatMul it stays in the Add that follows
        shape, origin = node.output.shape, node.origin.touched(NAME)
        sums = self.graph.add(
            "ConvInteger" if conv else "MatMulInteger",
            [x, stored, zero],
            attributes=dict(node.attributes) if conv else {},
            types=[TensorType(DType.INT32, shape)],
            name=f"{node.name}_integer",
            origin=origin,
        )
        made = self._node("Cast", [sums.output], node, {"to": DType.FLOAT.onnx})
        each = (-1, *[1] * (len(stored.static_shape()) - 2)) if conv else (-1,)
        scales = weights.scales.reshape(each) if weights.scales.ndim else weights.scales
        factors = self.graph.add_constant(scales, f"{node.name}_scale")
        both = self.graph.add(
            "Mul",
            [scale, factors],
            types=[TensorType(DType.FLOAT, factors.tensor.shape)],
            name=f"{node.name}_scales",
            origin=origin,
        )
        made = self._node("Mul", [made, both.output], node)
        if bias is not None:
            numbers = bias.numpy().reshape(each if conv else bias.static_shape())
            added = self.graph.add_constant(numbers, f"{node.name}_bias")
            made = self._node("Add", [made, added], node)
        self._replaced += [v for v in (node.need(1), bias) if v is not None]
        self.graph.replace_uses(node.output, made)
        self.graph.remove_nodes([node])

    def finish(self) -> None:
        """Drop what nobody reads any more, and restore the topological order."""
        for value in self._replaced:
            if value.name in self.graph.constants and not value.uses and not value.is_output:
                self.graph.remove_constant(value)
        self.graph.sort()

    def _input(self, node: Node) -> tuple[Value, Value, Value]:
        value = node.need(0)
        if value not in self._quantized:
            made = self.graph.add(
                "DynamicQuantizeLinear",
                [value],
                3,
                types=[
                    TensorType(DType.UINT8, value.shape),
                    TensorType(DType.FLOAT, _SCALAR),
                    TensorType(DType.UINT8, _SCALAR),
                ],
                name=f"{value.name}_quantize",
                origin=node.origin.touched(NAME),
            )
            x, scale, zero = made.outputs
            self._quantized[value] = (x, scale, zero)
        return self._quantized[value]

    def _weights(self, linear: Linear, weights: LayerWeights) -> Value:
        """int8, [k, outputs] for products."""
        node = linear.core
        turned = node.op_type != "Conv" and linear.axis == 0
        key = (id(linear.weight), turned, weights.q.tobytes())
        if key not in self._stored:
            q = np.ascontiguousarray(weights.q.T) if turned else weights.q
            self._stored[key] = self.graph.add_constant(q, f"{linear.weight.name}_q")
        return self._stored[key]

    def _node(self, op: str, inputs: list[Value], like: Node, attributes: dict[str, int] | None = None) -> Value:
        node = self.graph.add(
            op,
            inputs,
            attributes=attributes or {},
            types=[TensorType(DType.FLOAT, like.output.shape)],
            name=f"{like.name}_{op.lower()}",
            origin=like.origin.touched(NAME),
        )
        return node.output
