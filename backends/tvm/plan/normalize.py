"""Last rewrites of the graph before the plan, on a copy that only the backend sees.

- Dequantizations sink below operators that only move elements, so that these move bytes.
- Quantize(Concat(...)) becomes Concat(Quantize(...)).
- Elementwise operators rise above operators that only move elements, to the kernel that computes what they read.
- Factors of a product of two computed matrices sink below it.
- Quantize of a dequantization with the same parameters is the integers themselves.
- 8-bit activations take the sign that the target's dot product wants: q and q xor 0x80 with the zero point moved by 128
  mean the same real values, so no result changes. The rest of the program and the network's interface keep theirs
  through `irc.Flip`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irc.backends.tvm.plan.kinds import dequantized, is_view, is_weight, kind_of
from irc.backends.tvm.plan.translate import builder_of, data_inputs, quantization
from irc.ir.graph import Graph, Node, Value
from irc.ir.types import DType, TensorType
from irc.targets.target import Target

_BYTES = (DType.INT8, DType.UINT8)
_WHOLE = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")  # views of every element, each once


def normalize(graph: Graph, target: Target) -> None:
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            if node.graph is None:
                continue
            changed |= any(rule(graph, node) for rule in _RULES)
        _drop_dead(graph)
    _choose_signs(graph, target)
    _drop_dead(graph)


def _drop_dead(graph: Graph) -> None:
    for node in reversed(graph.nodes):
        if not any(v.uses or v.is_output for v in node.outputs):
            graph.remove(node)


def _cancel(graph: Graph, node: Node) -> bool:
    """Q(DQ(q)) with equal parameters."""
    if not node.is_op("QuantizeLinear") or node.output.is_output:
        return False
    source, mine = dequantized(node.need(0)), quantization(node)
    if source is None or mine is None or source[1:] != mine or source[0].dtype is not node.output.dtype:
        return False
    graph.replace_uses(node.output, source[0])
    return True


def _sink_dequantize(graph: Graph, node: Node) -> bool:
    """view(DQ(q)) -> DQ(view(q)); Concat and MaxPool too when their inputs agree."""
    if not (is_view(node) or node.is_op("Concat") or _moves_places(node)):
        return False
    data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    found = [dequantized(v) if v is not None else None for v in data]
    first = found[0]
    if first is None or any(f is None or f[1:] != first[1:] or f[0].dtype is not first[0].dtype for f in found):
        return False
    if any(v is not None and is_weight(v) for v in data):
        return False  # weights stay where they are
    producer = node.need(0).producer
    assert producer is not None
    inputs = [f[0] for f in found if f is not None] + list(node.inputs[len(data) :])
    types = [TensorType(first[0].tensor.dtype, v.shape) for v in node.outputs]
    moved = graph.add(
        node.op_type, inputs, len(node.outputs), node.attributes, types=types, origin=node.origin, before=node
    )
    for old, new in zip(node.outputs, moved.outputs, strict=True):
        back = graph.add(
            "DequantizeLinear",
            [new, *producer.inputs[1:]],
            types=[old.type],
            origin=producer.origin,
            before=node,
        )
        graph.replace_uses(old, back.output)
    graph.remove(node)
    return True


def _hoist_quantize(graph: Graph, node: Node) -> bool:
    """Q(Concat(a, b)) -> Concat(Q(a), Q(b)) when Q is the only reader."""
    if not node.is_op("QuantizeLinear") or quantization(node) is None:
        return False
    concat = node.need(0).producer
    if concat is None or not concat.is_op("Concat") or len(concat.output.users) != 1 or concat.output.is_output:
        return False
    parts = []
    for value in concat.inputs:
        assert value is not None
        q = graph.add(
            "QuantizeLinear",
            [value, *node.inputs[1:]],
            attributes=node.attributes,
            types=[TensorType(node.output.tensor.dtype, value.shape)],
            origin=node.origin,
            before=node,
        )
        parts.append(q.output)
    joined = graph.add(
        "Concat", parts, attributes=concat.attributes, types=[node.output.type], origin=concat.origin, before=node
    )
    graph.replace_uses(node.output, joined.output)
    graph.remove(node)
    graph.remove(concat)
    return True


def _raise(graph: Graph, node: Node) -> bool:
    """f(view(x)) -> view(f(x)) where nobody else reads: f joins the kernel that makes x.

    f is elementwise, of one tensor and single numbers; after a linear kernel also of two tensors of the same shape.
    """
    build = builder_of(node)
    if build is None or node.is_op("DequantizeLinear") or node.op_type in _WHOLE or node.output.is_output:
        return False
    tensors = [v for v in data_inputs(node) if not (v.is_constant and v.numpy().size == 1)]
    index = next((i for i, v in enumerate(node.inputs) if v is not None and _raised_over(v)), None)
    if index is None or node.output.shape != node.need(index).shape:
        return False
    view = node.need(index).producer
    assert view is not None
    source = view.need(0)
    other: Value | None = None
    if len(tensors) == 2 and view.op_type != "Transpose" and source.producer is not None:
        other = tensors[0] if tensors[1] is view.output else tensors[1]
        if kind_of(source.producer) != "linear" or other is view.output or other.shape != view.output.shape:
            return False
    elif len(tensors) != 1:
        return False
    inputs = [source if v is view.output else v for v in node.inputs]
    if other is not None:
        shape = graph.add_constant(np.array(source.static_shape(), np.int64), "shape")
        seen = graph.add("Reshape", [other, shape], types=[TensorType(other.tensor.dtype, source.shape)], before=node)
        inputs = [seen.output if v is other else v for v in inputs]
    kind = node.output.tensor.dtype
    raised = graph.add(
        node.op_type,
        inputs,
        attributes=node.attributes,
        types=[TensorType(kind, source.shape)],
        domain=node.domain,
        origin=node.origin,
        before=node,
    )
    moved = graph.add(
        view.op_type,
        [raised.output, *view.inputs[1:]],
        attributes=view.attributes,
        types=[node.output.type],
        origin=view.origin,
        before=node,
    )
    graph.replace_uses(node.output, moved.output)
    graph.remove(node)
    graph.remove(view)
    return True


def _raised_over(value: Value) -> bool:
    """Whether a value is a view of another that is made for it alone."""
    view = value.producer
    if view is None or not view.is_op(*_WHOLE) or not is_view(view):
        return False
    source = view.need(0)
    if source.producer is None or is_weight(source):
        return False
    return all(len(v.uses) == 1 and not v.is_output for v in (source, value))


def _sink_scale(graph: Graph, node: Node) -> bool:
    """(c * x) y -> c * (x y), through views: the product of two computed matrices scales its sums for nothing."""
    if not node.is_op("Mul", "Div") or node.output.dtype is not DType.FLOAT:
        return False
    x, factor, value = node.need(0), node.need(1), node.output
    if not (factor.is_constant and factor.numpy().size == 1) or is_weight(x) or x.shape != value.shape:
        return False
    if x.producer is not None and kind_of(x.producer) == "linear" and len(x.uses) == 1:
        return False  # it is part of that kernel
    while len(value.uses) == 1 and not value.is_output and value.users[0].op_type in _WHOLE:
        value = value.users[0].output
    product = value.users[0] if len(value.uses) == 1 and not value.is_output else None
    if product is None or not product.is_op("MatMul") or any(is_weight(v) for v in (product.need(0), product.need(1))):
        return False
    if product.output.is_output:
        return False
    scaled = graph.add(node.op_type, [product.output, factor], types=[product.output.type], origin=node.origin)
    graph.replace_uses(product.output, scaled.output, keep=[scaled])
    graph.replace_uses(node.output, x)
    graph.remove(node)
    graph.sort()
    return True


def _choose_signs(graph: Graph, target: Target) -> None:
    wanted = DType.UINT8 if target.activations == "uint8" else DType.INT8
    if target.dot == "widening":
        return  # any sign will do
    done: set[int] = set()
    for node in graph.nodes:
        if kind_of(node) not in ("linear", "depthwise"):
            continue
        for factor in node.inputs[: 2 if node.is_op("MatMul") else 1]:
            found = dequantized(factor) if factor is not None and not is_weight(factor) else None
            if found is None or found[0].dtype not in _BYTES or found[0].dtype is wanted or id(found[0]) in done:
                continue
            _flip_component(graph, found[0], wanted, done)
    graph.sort()  # Flips were added at the end


def _moves_places(node: Node) -> bool:
    """Whether a kernel can do this to bytes and give bytes that it has read."""
    if node.is_op("Resize"):
        return node.get_str("mode", "nearest") == "nearest" and kind_of(node) == "resize"
    return node.is_op("MaxPool") and kind_of(node) == "pool"


def _moves(node: Node) -> bool:
    return is_view(node) or node.is_op("Concat", "MaxPool") or (node.is_op("Resize") and _moves_places(node))


def _flip_component(graph: Graph, start: Value, wanted: DType, done: set[int]) -> None:
    """Change the sign of all values that are tied to `start` by operators that only move bytes."""
    values: dict[int, Value] = {}
    stack = [start]
    while stack:
        value = stack.pop()
        if id(value) in values or value.dtype not in _BYTES:
            continue
        values[id(value)] = value
        if value.producer is not None and _moves(value.producer):
            stack.extend(v for v in value.producer.inputs if v is not None and v.dtype in _BYTES)
        for user in value.users:
            if _moves(user):
                stack.extend(user.outputs)
    for value in list(values.values()):
        done.add(id(value))
        _flip_value(graph, value, wanted, values)


def _flip_value(graph: Graph, value: Value, wanted: DType, component: dict[int, Value]) -> None:
    old_type = value.tensor
    shift = 128 if wanted is DType.UINT8 else -128
    uses, was_output = value.uses, value.is_output
    producer = value.producer
    inside = producer is not None and _moves(producer) and id(producer.need(0)) in component
    if producer is not None and producer.is_op("QuantizeLinear") and quantization(producer) is not None:
        _shift_zero_point(graph, producer, shift, wanted)
        value.type = TensorType(wanted, old_type.shape)
        flipped = value
    elif inside:
        value.type = TensorType(wanted, old_type.shape)
        flipped = value
    else:  # a network input, or made by an operator that keeps its type
        flip = graph.add("Flip", [value], types=[TensorType(wanted, old_type.shape)], domain="irc")
        flipped = flip.output
        component[id(flipped)] = flipped
        was_output = False
    for use in uses:
        user = use.node
        if user.is_op("DequantizeLinear") and quantization(user) is not None:
            _shift_zero_point(graph, user, shift, wanted)
            graph.set_input(user, 0, flipped)
        elif _moves(user):
            graph.set_input(user, use.index, flipped)
        elif flipped is value:  # some other reader wants the old bytes
            graph.set_input(user, use.index, _flip_back(graph, value, old_type).output)
    if was_output:
        back = _flip_back(graph, value, old_type)
        name = value.name
        outputs = [back.output if v is value else v for v in graph.outputs]
        graph.rename(value, graph.unique_name(name + "_flipped"))
        graph.rename(back.output, name)
        graph.set_outputs(outputs)


def _flip_back(graph: Graph, value: Value, old_type: TensorType) -> Node:
    return graph.add("Flip", [value], types=[old_type], domain="irc")


def _shift_zero_point(graph: Graph, node: Node, shift: int, dtype: DType) -> None:
    parameters = quantization(node)
    assert parameters is not None
    zero = np.asarray(parameters[1] + shift, dtype.numpy)
    graph.set_input(node, 2, graph.add_constant(zero, "zero_point"))


_RULES: tuple[Callable[[Graph, Node], bool], ...] = (_hoist_quantize, _raise, _sink_scale, _sink_dequantize, _cancel)
