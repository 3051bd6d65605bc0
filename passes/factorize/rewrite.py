"""Putting the factors of a layer into the graph. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from irc.ir.graph import AttributeValue, Graph, Node, Value
from irc.ir.infer import infer_node
from irc.ir.types import Array
from irc.passes.factorize.forms import Choice, matrix_of, product

NAME = "factorize"
_POINT: dict[str, AttributeValue] = {
    "kernel_shape": (1, 1),
    "strides": (1, 1),
    "pads": (0, 0, 0, 0),
    "dilations": (1, 1),
}


def has_bias(node: Node) -> bool:
    """Whether a bias can be changed, or one be given."""
    bias = node.input(2)
    if node.op_type == "MatMul" or node.get_float("alpha", 1.0) != 1.0 or node.get_float("beta", 1.0) != 1.0:
        return False
    return bias is None or (bias.is_constant and bias.static_shape() == (len(matrix_of(node)),))


def correct_bias(graph: Graph, node: Node, choice: Choice, mean: Array) -> None:
    """Add what the factors change on average, E[(W - W') x]; `mean`: E[x], [inputs]."""
    change = (matrix_of(node).astype(np.float64) - product(choice, node)) @ mean.reshape(-1)
    old = node.input(2)
    data = change + (old.numpy() if old is not None else 0)
    name = old.name if old is not None else f"{node.name}_bias"
    graph.set_input(node, 2, graph.add_constant(data.astype(np.float32), name))
    if old is not None and not old.uses and not old.is_output and old.graph is not None:
        old.graph.remove_constant(old)


def rewrite(graph: Graph, node: Node, choice: Choice) -> None:
    """`node` becomes the last of its factors; the others stand before it."""
    weight = node.need(1)
    factors = choice.factors()
    if node.op_type != "Conv":
        right, left = factors
        first = _first(graph, node, "MatMul", np.ascontiguousarray(right.T), {})
        second = left if node.get_int("transB") else np.ascontiguousarray(left.T)
        graph.set_input(node, 1, graph.add_constant(second, f"{weight.name}_left"))
    elif choice.form == "pair":
        first = _pair(graph, node, *factors)
    elif choice.form == "spatial":
        first = _split(graph, node, *factors)
    else:
        first = _tucker(graph, node, *factors)
    graph.set_input(node, 0, first)
    node.origin = node.origin.touched(NAME)
    if weight.graph is not None:
        weight.graph.remove_constant(weight)


def _pair(graph: Graph, node: Node, right: Array, left: Array) -> Value:
    """k x k to `rank` channels, then 1 x 1."""
    _, inputs, kh, kw = node.need(1).static_shape()
    first = _first(graph, node, "Conv", right.reshape(-1, inputs, kh, kw), _moved(node, kernel_shape=(kh, kw)))
    _become(graph, node, left[:, :, None, None], **_POINT)
    return first


def _split(graph: Graph, node: Node, right: Array, left: Array) -> Value:
    """kh x 1 to `rank` channels, then 1 x kw."""
    outputs, inputs, kh, kw = node.need(1).static_shape()
    rank = len(right)
    (sh, sw), (dh, dw) = node.get_ints("strides", (1, 1)), node.get_ints("dilations", (1, 1))
    top, side, bottom, far = node.get_ints("pads", (0, 0, 0, 0))
    moved = _moved(node, kernel_shape=(kh, 1), strides=(sh, 1), pads=(top, 0, bottom, 0), dilations=(dh, 1))
    first = _first(graph, node, "Conv", right.reshape(rank, inputs, kh, 1), moved)
    second = np.ascontiguousarray(left.reshape(outputs, kw, rank).transpose(0, 2, 1))[:, :, None, :]
    _become(graph, node, second, kernel_shape=(1, kw), strides=(1, sw), pads=(0, side, 0, far), dilations=(1, dw))
    return first


def _tucker(graph: Graph, node: Node, projection: Array, core: Array, left: Array) -> Value:
    """1 x 1 on the image as it is (a border of zeros stays one), k x k with stride and padding, then 1 x 1."""
    _, _, kh, kw = node.need(1).static_shape()
    entry = _first(graph, node, "Conv", np.ascontiguousarray(projection)[:, :, None, None], _POINT)
    inner = core.reshape(len(core), len(projection), kh, kw)
    middle = _first(graph, node, "Conv", inner, _moved(node, kernel_shape=(kh, kw)), entry)
    _become(graph, node, left[:, :, None, None], **_POINT)
    return middle


def _moved(node: Node, **changed: AttributeValue) -> dict[str, AttributeValue]:
    return {**node.attributes, **changed}


def _become(graph: Graph, node: Node, weight: Array, **attributes: AttributeValue) -> None:
    node.attributes.pop("auto_pad", None)
    node.attributes.update(attributes)
    graph.set_input(node, 1, graph.add_constant(np.ascontiguousarray(weight), f"{node.need(1).name}_left"))


def _first(
    graph: Graph,
    node: Node,
    op_type: str,
    weight: Array,
    attributes: Mapping[str, AttributeValue],
    entry: Value | None = None,
) -> Value:
    """One of the layers before `node`, without a bias. It reads `entry`, or what `node` reads."""
    stored = graph.add_constant(weight, f"{node.need(1).name}_right")
    made = graph.add(
        op_type,
        [node.need(0) if entry is None else entry, stored],
        attributes=attributes,
        name=f"{node.name}_factor",
        origin=node.origin.touched(NAME),
        before=node,
    )
    infer_node(made)
    return made.output
