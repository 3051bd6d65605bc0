"""Runs constant nodes and gives the values they compute. onnxruntime does it; onnx's reference where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irc.export import to_proto
from irc.ir.clone import copy_nodes
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array, Constant, TensorType

SMALL_BYTES = 4096
"""Larger constants are fed as inputs instead of being written into the temporary model."""


class CannotEvaluate(Exception):
    """The reason, for a refusal."""


def evaluate(nodes: Sequence[Node], wanted: Sequence[Value]) -> list[Constant]:
    """The data of `wanted`, outputs of `nodes`, which read only constants and each other (in topological order).

    Raises CannotEvaluate when neither engine can run them or a result is no tensor.
    """
    graph, feeds, outputs = _region(nodes, wanted)
    proto = to_proto(Model(graph))
    names = [v.name for v in outputs]
    try:
        arrays = _onnxruntime(proto, names, feeds)
    except Exception as first:  # both engines raise many types for what they cannot run
        try:
            arrays = _reference(proto, names, feeds)
        except Exception as second:
            raise CannotEvaluate(f"it cannot be evaluated: {_line(first)}; {_line(second)}") from second
    return [_constant(value, array) for value, array in zip(wanted, arrays, strict=True)]


def _region(nodes: Sequence[Node], wanted: Sequence[Value]) -> tuple[Graph, dict[str, Array], list[Value]]:
    graph = Graph("constants")
    inside = {v for node in nodes for v in node.outputs}
    values: dict[Value, Value] = {}
    feeds: dict[str, Array] = {}
    for node in nodes:
        read = [v for v in node.inputs if v is not None]
        read.extend(v for sub in node.subgraphs for v in sub.captured())
        for value in read:
            if value in inside or value in values:
                continue
            assert value.constant is not None
            if value.constant.nbytes <= SMALL_BYTES or value.constant.dtype.bits < 8:
                values[value] = graph.add_constant(value.constant, value.name)
            else:
                values[value] = graph.add_input(value.name, value.constant.type)
                feeds[value.name] = value.numpy()
    copy_nodes(graph, nodes, values, keep_names=True)
    outputs = [values[v] for v in wanted]
    graph.set_outputs(outputs)
    return graph, feeds, outputs


def _onnxruntime(proto: Any, names: list[str], feeds: dict[str, Array]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # a failure is no news here: the reference evaluator is next
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(names, feeds)
    return found


def _reference(proto: Any, names: list[str], feeds: dict[str, Array]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    found: list[Any] = ReferenceEvaluator(proto).run(names, feeds)
    return found


def _constant(value: Value, array: Any) -> Constant:
    dtype = value.dtype
    if not hasattr(array, "dtype") or (value.type is not None and not isinstance(value.type, TensorType)):
        raise CannotEvaluate(f"'{value.name}' is no tensor")
    return Constant.of(array, dtype)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
