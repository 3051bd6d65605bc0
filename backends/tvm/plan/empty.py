"""Operators that read no element: their results are known now.

A sum over nothing is 0, a maximum over nothing the least number, a product of [2, 0] and [0, 3] is zeros. Kernels need
not know of such cases.
"""

from __future__ import annotations

import math

import numpy as np

from irc.backends.tvm.plan.lower_library import one_node_model, read_outputs
from irc.errors import UnsupportedError
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import Array


def fold_empty(graph: Graph) -> None:
    """Constants for the outputs of nodes whose inputs are constant or empty, one at least empty."""
    for node in graph.nodes:
        if not _reads_nothing(node):
            continue
        outputs = read_outputs(node)
        for value, data in zip(outputs, _evaluate(node), strict=True):
            graph.replace_uses(value, graph.add_constant(np.asarray(data, value.tensor.dtype.numpy), value.name))
        graph.remove(node)


def _is_empty(value: Value) -> bool:
    return math.prod(value.static_shape()) == 0


def _reads_nothing(node: Node) -> bool:
    inputs = [v for v in node.inputs if v is not None]
    computed = [v for v in inputs if not v.is_constant]
    if node.domain != "" or not any(_is_empty(v) for v in inputs) or not all(_is_empty(v) for v in computed):
        return False
    return any(not _is_empty(v) for v in read_outputs(node))


def _evaluate(node: Node) -> list[Array]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model, handed = one_node_model(node)
    proto = onnx.ModelProto.FromString(model)
    feeds = {port.name: _data(v) for port, v in zip(proto.graph.input, handed, strict=True)}
    try:
        results: list[Array] = ReferenceEvaluator(proto).run(None, feeds)
    except Exception as error:  # the evaluator raises whatever its operator happens to raise
        raise UnsupportedError("an operator on no data has no known result", where=node.label) from error
    return results


def _data(value: Value) -> Array:
    return value.numpy() if value.is_constant else np.zeros(value.static_shape(), value.tensor.dtype.numpy)
