"""Products of integers that a model writes out (MatMulInteger, ConvInteger) become those of quantized data.

    Cast(MatMulInteger(q, w, zero)) -> MatMul(DequantizeLinear(q, 1, zero), DequantizeLinear(w, 1))

with a scale of one: the sum of a linear kernel as a real number is what the Cast gives, bit for bit. Where ranges are
taken at run time (DynamicQuantizeLinear), q less its zero point is computed instead of q, as int16: then nothing that
is only known at run time reaches the sums, and zero is zero in the border of an image, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array, DType, Shape, TensorType

_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_LEVELS = 255.0
_F = np.float32


def expand_integer_products(graph: Graph) -> None:
    """Rewrite all of them whose weights are constant and whose sums are only read as float32."""
    centred: dict[int, Value] = {}
    for node in graph.nodes:
        if node.op_type not in _PRODUCTS or node.domain != "" or not _is_covered(node):
            continue
        quantizer = node.need(0).producer
        if quantizer is not None and quantizer.is_op("DynamicQuantizeLinear"):
            if node.input(2) is not quantizer.outputs[2]:
                continue
            if id(quantizer) not in centred:
                centred[id(quantizer)] = _centred(graph, quantizer)
            _replace(graph, node, centred[id(quantizer)], None)
        elif _known(node.input(2)):
            _replace(graph, node, node.need(0), node.input(2))


def _is_covered(node: Node) -> bool:
    x, weights, zero = node.need(0), node.need(1), node.input(3)
    if not weights.is_constant or x.dtype not in (DType.INT8, DType.UINT8) or x.shape is None or node.output.is_output:
        return False
    if node.op_type == "MatMulInteger" and len(weights.static_shape()) != 2:
        return False
    return _known(zero) and all(u.is_op("Cast") and u.output.dtype is DType.FLOAT for u in node.output.users)


def _known(zero: Value | None) -> bool:
    """One zero point for all, as a constant, or none."""
    return zero is None or (zero.is_constant and zero.numpy().size == 1)


def _replace(graph: Graph, node: Node, x: Value, zero: Value | None) -> None:
    data = _dequantized(graph, node, x, zero)
    weights = _dequantized(graph, node, node.need(1), node.input(3))
    made = graph.add(
        _PRODUCTS[node.op_type],
        [data, weights],
        attributes=node.attributes,
        types=[TensorType(DType.FLOAT, node.output.shape)],
        origin=node.origin,
        before=node,
    )
    for cast in list(node.output.users):
        graph.replace_uses(cast.output, made.output)


def _dequantized(graph: Graph, node: Node, q: Value, zero: Value | None) -> Value:
    inputs = [q, graph.add_constant(np.array(1, _F), "one")]
    if zero is not None and np.any(zero.numpy()):
        inputs.append(graph.add_constant(zero.numpy().reshape(()), "zero_point"))
    types = [TensorType(DType.FLOAT, q.shape)]
    return graph.add("DequantizeLinear", inputs, types=types, origin=node.origin, before=node).output


def _centred(graph: Graph, quantizer: Node) -> Value:
    """int16: the numbers that DynamicQuantizeLinear gives less their zero point. Its scale and zero point get nodes of
    their own, too, for whoever reads them."""
    x, scalar = quantizer.need(0), Shape(())

    def add(op: str, *inputs: Value | Array, shape: Shape | None = scalar, dtype: DType = DType.FLOAT) -> Value:
        values = [v if isinstance(v, Value) else graph.add_constant(v, "constant") for v in inputs]
        attributes = {"Cast": {"to": dtype.onnx}, "ReduceMax": {"keepdims": 0}, "ReduceMin": {"keepdims": 0}}
        return graph.add(
            op,
            values,
            attributes=attributes.get(op, {}),
            types=[TensorType(dtype, shape)],
            origin=quantizer.origin,
            before=quantizer,
        ).output

    zero, one = np.array(0, _F), np.array(1, _F)
    high = add("Max", add("ReduceMax", x), zero)
    low = add("Min", add("ReduceMin", x), zero)
    width = add("Sub", high, low)
    empty = add("Equal", width, zero, dtype=DType.BOOL)
    scale = add("Where", empty, one, add("Div", width, np.array(_LEVELS, _F)))
    start = add("Round", add("Div", low, scale))
    start = add("Clip", start, np.array(-_LEVELS, _F), zero)  # minus the zero point
    level = add("Round", add("Div", x, scale, shape=x.shape), shape=x.shape)
    level = add("Max", level, start, shape=x.shape)
    level = add("Min", level, add("Add", start, np.array(_LEVELS, _F)), shape=x.shape)
    made = add("Cast", level, shape=x.shape, dtype=DType.INT16)
    zero_point = add("Cast", add("Neg", start), dtype=DType.UINT8)
    _keep_others(graph, quantizer, [scale, zero_point])
    return made


def _keep_others(graph: Graph, quantizer: Node, parameters: Sequence[Value]) -> None:
    """Readers of the scale and the zero point get the new values; the node stays for those of its numbers."""
    for old, new in zip(quantizer.outputs[1:], parameters, strict=True):
        graph.replace_uses(old, new, keep=[u for u in old.users if u.op_type in _PRODUCTS])
