"""Which elements of small integer tensors are known before running: the arithmetic on shapes.

A known tensor is an array of Python objects: numbers, names of symbolic dimensions, or None for a single element that
is not known. So Shape -> Gather -> Concat -> Reshape resolves even where only some extents are numbers.
Whatever is all numbers is computed by `onnx.reference`, the specification's own evaluator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from irc.ir import ops
from irc.ir.graph import CANONICAL_OPSET, Node, Value
from irc.ir.types import Array, Constant, DType, TensorType

_MOST_ELEMENTS = 1024
_DEPTH = 60  # of the search towards the inputs; inference asks in topological order, so results are mostly there


class Known:
    """Remembers what was found out; make a new one after the graph has changed."""

    def __init__(self, opset: int = CANONICAL_OPSET) -> None:
        self.opset = opset
        self._found: dict[Value, Array | None] = {}

    def elements(self, value: Value | None, depth: int = 0) -> Array | None:
        """The elements as an object array of the tensor's shape, or None where nothing is known."""
        if value is None or depth > _DEPTH:
            return None
        if value not in self._found:
            self._found[value] = self._find(value, depth)
        return self._found[value]

    def array(self, value: Value | None) -> Array | None:
        """The tensor with its own dtype, when every element is a number."""
        if value is not None and value.constant is not None:
            return value.constant.numpy() if value.constant.size <= _MOST_ELEMENTS else None
        found = self.elements(value)
        if found is None or value is None or not is_concrete(found):
            return None
        return found.astype(_dtype(value))

    def _find(self, value: Value, depth: int) -> Array | None:
        constant = value.constant
        if constant is not None:
            return _objects(constant)
        node = value.producer
        if node is None or node.domain != "" or node.subgraphs or value.output_index > 0:
            return None
        if node.op_type == "Shape":
            return _shape(node)
        if node.op_type == "Size":
            shape = node.need(0).shape
            return None if shape is None or not shape.is_static else _scalar(shape.numel())
        if node.op_type == "Constant" and isinstance(node.attributes.get("value"), Constant):
            held = node.attributes["value"]
            assert isinstance(held, Constant)
            return _objects(held)
        inputs = [self.elements(v, depth + 1) for v in node.inputs]
        if any(a is None for a, v in zip(inputs, node.inputs, strict=True) if v is not None):
            return None
        return _evaluate(node, inputs, self.opset)


def is_concrete(elements: Array) -> bool:
    return not any(e is None or isinstance(e, str) for e in elements.reshape(-1))


def _dtype(value: Value) -> np.dtype[Any]:
    return value.dtype.numpy if value.dtype is not None else np.dtype(np.int64)


def _objects(constant: Constant) -> Array | None:
    if constant.size > _MOST_ELEMENTS or constant.dtype is DType.STRING or constant.dtype.bits < 8:
        return None
    return constant.numpy().astype(object)


def _scalar(value: object) -> Array:
    out = np.empty((), dtype=object)
    out[()] = value
    return out


def _shape(node: Node) -> Array | None:
    shape = node.need(0).shape
    if shape is None:
        return None
    start, end = node.get_int("start"), node.attributes.get("end")
    dims = shape.dims[start : end if isinstance(end, int) else None]
    return np.array(dims, dtype=object)


def _evaluate(node: Node, inputs: list[Array | None], opset: int) -> Array | None:
    rule = _RULES.get(node.op_type)
    if node.is_op("Add", "Sub", "Mul", "Div") and (node.need(0).dtype or DType.INT64).is_float:
        rule = None  # rounds as its own type does: the reference evaluator's job
    try:
        if rule is not None:
            return rule(node, inputs)
        present = [a for a in inputs if a is not None]
        if present and all(is_concrete(a) for a in present) and ops.is_deterministic(node):
            return _reference(node, inputs, opset)
    except (ValueError, IndexError, TypeError, OverflowError, ArithmeticError):
        return None  # a wrong node is for shape inference to report; here it is just not known
    return None


def _reference(node: Node, inputs: list[Array | None], opset: int) -> Array | None:
    """Run one node on numbers in onnx's reference evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    from irc.ir import _light

    if any(not isinstance(v.type, TensorType) for v in node.inputs if v is not None):
        return None
    given = [v for v in node.inputs if v is not None]
    infos = [onnx.ValueInfoProto(name=v.name, type=_light.type_to_proto(v.type)) for v in dict.fromkeys(given)]
    outputs = [onnx.ValueInfoProto(name=v.name) for v in node.outputs]
    graph = onnx.helper.make_graph([_light.node(node)], "one", infos, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {
        v.name: a.astype(_dtype(v)) for v, a in zip(node.inputs, inputs, strict=True) if v is not None and a is not None
    }
    try:
        result = ReferenceEvaluator(model).run([node.outputs[0].name], feeds)[0]
    except Exception:  # the evaluator raises anything; then the value is simply not known
        return None
    if not isinstance(result, np.ndarray | np.generic) or result.size > _MOST_ELEMENTS:
        return None
    return np.asarray(result).astype(object)


def _option(node: Node, inputs: list[Array | None], index: int, name: str) -> list[int]:
    """Integers that are input `index`, or, in old opsets, attribute `name`; empty where they are left out."""
    elements = inputs[index] if index < len(inputs) else None
    if elements is None:
        return list(node.get_ints(name))
    return [int(e) for e in elements.reshape(-1)]  # TypeError on a symbol: caught by _evaluate


def _need(elements: Array | None) -> Array:
    if elements is None:
        raise ValueError("input left out")
    return elements


def _gather(node: Node, inputs: list[Array | None]) -> Array | None:
    indices = _need(inputs[1]).astype(np.int64)
    return np.asarray(np.take(_need(inputs[0]), indices, axis=node.get_int("axis")), dtype=object)


def _concat(node: Node, inputs: list[Array | None]) -> Array | None:
    return np.concatenate([_need(a) for a in inputs], axis=node.get_int("axis"))


def _slice(node: Node, inputs: list[Array | None]) -> Array | None:
    data, starts, ends = _need(inputs[0]), _option(node, inputs, 1, "starts"), _option(node, inputs, 2, "ends")
    axes = _option(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = _option(node, inputs, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        stop: int | None = end
        if step < 0 and end < -size:
            stop = None  # ONNX clamps such an end to before the first element
        index[axis] = slice(start, stop, step)
    return data[tuple(index)]


def _unsqueeze(node: Node, inputs: list[Array | None]) -> Array | None:
    return np.expand_dims(_need(inputs[0]), tuple(_option(node, inputs, 1, "axes")))


def _squeeze(node: Node, inputs: list[Array | None]) -> Array | None:
    axes = _option(node, inputs, 1, "axes")
    return np.asarray(np.squeeze(_need(inputs[0]), tuple(axes) or None), dtype=object)


def _reshape(node: Node, inputs: list[Array | None]) -> Array | None:
    data, target = _need(inputs[0]), _option(node, inputs, 1, "shape")
    if not node.get_int("allowzero"):
        target = [data.shape[i] if t == 0 else t for i, t in enumerate(target)]
    return data.reshape(target)


def _identity(node: Node, inputs: list[Array | None]) -> Array | None:
    return inputs[0]


def _cast(node: Node, inputs: list[Array | None]) -> Array | None:
    data, to = _need(inputs[0]), DType.from_onnx(node.get_int("to"))
    if is_concrete(data):
        return data.astype(_dtype(node.need(0))).astype(to.numpy).astype(object)
    return data if to in (DType.INT64, DType.INT32) else None


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[[Node, list[Array | None]], Array | None]:
    def rule(node: Node, inputs: list[Array | None]) -> Array | None:
        return np.asarray(np.frompyfunc(function, 2, 1)(_need(inputs[0]), _need(inputs[1])), dtype=object)

    return rule


def _add(a: Any, b: Any) -> Any:
    if a == 0 or b == 0:
        return b if a == 0 else a
    return None if _unknown(a, b) else a + b


def _subtract(a: Any, b: Any) -> Any:
    if b == 0:
        return a
    return None if _unknown(a, b) else a - b


def _multiply(a: Any, b: Any) -> Any:
    if a == 1 or b == 1:
        return b if a == 1 else a
    return None if _unknown(a, b) else a * b


def _divide(a: Any, b: Any) -> Any:
    if b == 1:
        return a
    if _unknown(a, b):
        return None
    if isinstance(a, int) and isinstance(b, int):
        return math.trunc(a / b) if b and abs(a) < 2**53 else None  # ONNX divides integers towards zero
    return a / b


def _equal(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if isinstance(a, str) == isinstance(b, str):
        return True if a == b else (None if isinstance(a, str) else False)
    number = b if isinstance(a, str) else a
    return False if number < 0 else None  # an extent is never negative


def _where(node: Node, inputs: list[Array | None]) -> Array | None:
    def pick(condition: Any, a: Any, b: Any) -> Any:
        if condition is None:
            return a if a == b else None
        return a if condition else b

    return np.asarray(np.frompyfunc(pick, 3, 1)(*(_need(a) for a in inputs)), dtype=object)


def _unknown(a: Any, b: Any) -> bool:
    return a is None or b is None or isinstance(a, str) or isinstance(b, str)


_RULES: dict[str, Callable[[Node, list[Array | None]], Array | None]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Identity": _identity,
    "Cast": _cast,
    "Add": _elementwise(_add),
    "Sub": _elementwise(_subtract),
    "Mul": _elementwise(_multiply),
    "Div": _elementwise(_divide),
    "Equal": _elementwise(_equal),
    "Where": _where,
}
