"""Last rewrites of the graph before the plan, on a copy that only the backend sees.

- Dequantizations sink below operators that only move elements, so that these move bytes.
- Quantize(Concat(...)) becomes Concat(Quantize(...)), and quantizations rise above operators that only move elements.
- Quantize of a dequantization with the same parameters is the integers themselves.
- 8-bit activations take the sign that the target's dot product wants: q and q xor 0x80 with the zero point moved by 128
  mean the same real values, so no result changes. The rest of the program and the network's interface keep theirs
  through `irc.Flip`.
"""

from __future__ import annotations

import numpy as np

from irc.backends.tvm.plan.kinds import dequantized, is_view, is_weight, kind_of
from irc.backends.tvm.plan.translate import quantization
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
            changed |= _hoist_quantize(graph, node) or _raise_quantize(graph, node)
            changed |= node.graph is not None and (_sink_dequantize(graph, node) or _cancel(graph, node))
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


def _raise_quantize(graph: Graph, node: Node) -> bool:
    """Q(view(x)) -> view(Q(x)) where nobody else reads: Q joins the kernel that makes x, the view moves bytes."""
    if not node.is_op("QuantizeLinear") or quantization(node) is None:
        return False
    view = node.need(0).producer
    if view is None or not view.is_op(*_WHOLE) or not is_view(view):
        return False
    source = view.need(0)
    if is_weight(source) or any(len(v.uses) != 1 or v.is_output for v in (source, view.output)):
        return False
    if source.producer is None:
        return False
    q = graph.add(
        "QuantizeLinear",
        [source, *node.inputs[1:]],
        attributes=node.attributes,
        types=[TensorType(node.output.tensor.dtype, source.shape)],
        origin=node.origin,
        before=view,
    )
    moved = graph.add(
        view.op_type,
        [q.output, *view.inputs[1:]],
        attributes=view.attributes,
        types=[node.output.type],
        origin=view.origin,
        before=view,
    )
    graph.replace_uses(node.output, moved.output)
    graph.remove(node)
    graph.remove(view)
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
            if found is None or found[0].dtype is wanted or id(found[0]) in done:
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
