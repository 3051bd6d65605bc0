"""DepthToSpace and SpaceToDepth as what they are: Reshape, Transpose, Reshape. The first two are views."""

from __future__ import annotations

import numpy as np

from irc.ir.graph import Graph, Node
from irc.ir.types import DType, Shape, TensorType

_MOVED = (DType.FLOAT, DType.INT32, DType.INT8, DType.UINT8, DType.INT16)


def regroup(graph: Graph) -> None:
    """Rewrite all of them whose elements kernels can copy (static shapes)."""
    for node in graph.nodes:
        if node.is_op("DepthToSpace", "SpaceToDepth") and node.need(0).dtype in _MOVED:
            _regroup(graph, node)


def _regroup(graph: Graph, node: Node) -> None:
    x, out, r = node.need(0), node.output, node.get_int("blocksize")
    n, c, h, w = x.static_shape()
    if node.is_op("SpaceToDepth"):
        split, order = (n, c, h // r, r, w // r, r), (0, 3, 5, 1, 2, 4)
    elif node.get_str("mode", "DCR") == "DCR":
        split, order = (n, r, r, c // r**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, c // r**2, r, r, h, w), (0, 1, 4, 2, 5, 3)
    value = x
    for op, shape, attributes in (
        ("Reshape", split, {}),
        ("Transpose", tuple(split[i] for i in order), {"perm": order}),
        ("Reshape", out.static_shape(), {}),
    ):
        inputs = [value] if op == "Transpose" else [value, graph.add_constant(np.array(shape, np.int64), "shape")]
        types = [TensorType(x.tensor.dtype, Shape(shape))]
        made = graph.add(op, inputs, attributes=attributes, types=types, origin=node.origin, before=node)
        value = made.output
    graph.replace_uses(out, value)
    graph.remove(node)
