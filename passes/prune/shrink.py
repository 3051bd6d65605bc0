"""Removing units of channels from a model: weights are cut, attributes and shapes follow. See dependencies.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array, Constant, Shape, TensorType
from irc.passes.prune.dependencies import Dependencies, Slot
from irc.rewrite.facts import ints

Kept = Mapping[tuple[int, int], Array]
"""(id of a value, axis) -> bool [extent], which elements stay."""


def kept_elements(found: Dependencies, removed: Iterable[int]) -> dict[tuple[int, int], Array]:
    """What stays of every axis that loses something."""
    gone = np.zeros(found.units + 1, bool)  # the last one: units[-1] are the frozen elements
    gone[list(removed)] = True
    kept = {}
    for key, slot in found.slots.items():
        mask = ~gone[slot.units]
        if not mask.all():
            kept[key] = mask
    return kept


def emptied(found: Dependencies, removed: Iterable[int]) -> Slot | None:
    """A slot of which nothing would be left, None where every tensor keeps an element."""
    kept = kept_elements(found, removed)
    return next((found.slots[key] for key, mask in kept.items() if not mask.any()), None)


def remove_units(model: Model, found: Dependencies, removed: Iterable[int]) -> bool:
    """Cut `removed` out of every tensor, in place; `found` does not describe the model any more. Says whether anything
    changed. Raises ValueError where a tensor would lose its last element."""
    removed = list(removed)
    kept = kept_elements(found, removed)
    if not kept:
        return False
    empty = emptied(found, removed)
    if empty is not None:
        raise ValueError(f"nothing would be left of '{empty.value.name}'")
    values = {id(slot.value): slot.value for slot in found.slots.values()}
    axes: dict[int, dict[int, Array]] = {}
    for (key, axis), mask in kept.items():
        axes.setdefault(key, {})[axis] = mask
    touched = dict.fromkeys(n for key in axes for n in _around(values[key]))
    for node in touched:  # before any shape changes: the rules look at the old ones
        _adjust(model.graph, node, kept)
    for key, masks in axes.items():
        value = values[key]
        if value.is_constant:
            _cut(value, masks)
        else:
            value.type = _smaller(value, masks)
    for node in touched:
        _regroup(node)
    return True


def _around(value: Value) -> tuple[Node, ...]:
    made = (value.producer,) if value.producer is not None else ()
    return (*made, *value.users)


def _cut(value: Value, masks: Mapping[int, Array]) -> None:
    data = value.numpy()
    for axis, mask in masks.items():
        data = np.compress(mask, data, axis=axis)
    value.constant = Constant.of(np.ascontiguousarray(data), value.tensor.dtype)
    value.type = value.constant.type


def _smaller(value: Value, masks: Mapping[int, Array]) -> TensorType:
    tensor = value.tensor
    assert tensor.shape is not None
    dims = [int(masks[a].sum()) if a in masks else d for a, d in enumerate(tensor.shape)]
    return TensorType(tensor.dtype, Shape(tuple(dims)))


def _regroup(node: Node) -> None:
    """The group count that follows from the new shapes."""
    if not node.is_op("Conv", "ConvTranspose") or node.get_int("group", 1) == 1:
        return
    x, weight = node.need(0).shape, node.need(1).static_shape()
    channels = x[1] if x is not None else None
    if node.op_type == "Conv" and isinstance(channels, int):
        node.attributes["group"] = channels // weight[1]
    elif node.op_type == "ConvTranspose":
        node.attributes["group"] = weight[0]  # only depthwise ones lose channels


# Operators that name extents in attributes or constants


def _adjust(graph: Graph, node: Node, kept: Kept) -> None:
    if node.is_op("Split"):
        _adjust_split(graph, node, kept)
    elif node.is_op("Slice"):
        _adjust_slice(graph, node, kept)
    elif node.is_op("Pad"):
        _adjust_pad(graph, node, kept)
    elif node.is_op("Reshape", "Expand"):
        _adjust_target(graph, node, 1, kept)
    elif node.is_op("Resize") and node.input(3) is not None:
        _adjust_target(graph, node, 3, kept)


def _new_input(graph: Graph, node: Node, index: int, data: Iterable[int]) -> None:
    """A new constant: the old one may have other readers."""
    old = node.input(index)
    name = old.name if old is not None else f"{node.name}_sizes"
    graph.set_input(node, index, graph.add_constant(np.array(list(data), np.int64), name))
    if old is not None and old.is_constant and not old.uses and not old.is_output and old.graph is not None:
        old.graph.remove_constant(old)


def _adjust_split(graph: Graph, node: Node, kept: Kept) -> None:
    rank = len(node.need(0).shape or ())
    along = node.get_int("axis", 0) % max(rank, 1)
    masks = [kept.get((id(v), along)) for v in node.outputs]
    if all(m is None for m in masks):
        return
    sizes = [_extent(v, along) if m is None else int(m.sum()) for v, m in zip(node.outputs, masks, strict=True)]
    node.attributes.pop("num_outputs", None)
    _new_input(graph, node, 1, sizes)


def _adjust_slice(graph: Graph, node: Node, kept: Kept) -> None:
    x = node.need(0)
    starts, ends = list(ints(node.input(1)) or ()), list(ints(node.input(2)) or ())
    rank = len(x.shape or ())
    axes = [a % rank for a in (ints(node.input(3)) or range(len(starts)))]
    changed = False
    for i, axis in enumerate(axes):
        mask = kept.get((id(x), axis))
        if mask is None:
            continue
        begin, end, _ = slice(starts[i], ends[i]).indices(len(mask))
        starts[i] = int(mask[:begin].sum())
        ends[i] = starts[i] + int(mask[begin:end].sum())
        changed = True
    if changed:
        _new_input(graph, node, 1, starts)
        _new_input(graph, node, 2, ends)


def _adjust_pad(graph: Graph, node: Node, kept: Kept) -> None:
    x, rank = node.need(0), len(node.output.shape or ())
    pads = list(ints(node.input(1)) or ())
    axes = [a % rank for a in (ints(node.input(3)) or range(rank))]
    changed = False
    for i, axis in enumerate(axes):
        mask = kept.get((id(node.output), axis))
        if mask is None:
            continue
        begin, end = pads[i], pads[i] + _extent(x, axis)
        pads[i], pads[i + len(axes)] = int(mask[:begin].sum()), int(mask[end:].sum())
        changed = True
    if changed:
        _new_input(graph, node, 1, pads)


def _adjust_target(graph: Graph, node: Node, index: int, kept: Kept) -> None:
    """A list of extents: entries of axes that shrink, where they are numbers (not 0: copied, or -1: the rest)."""
    target = node.need(index)
    numbers = list(ints(target) or ())
    offset = len(node.output.shape or ()) - len(numbers)
    changed = False
    for i, number in enumerate(numbers):
        mask = kept.get((id(node.output), i + offset))
        if mask is not None and number > 1:
            numbers[i] = int(mask.sum())
            changed = True
    if changed:
        _new_input(graph, node, index, numbers)


def _extent(value: Value, axis: int) -> int:
    shape = value.shape
    found = shape[axis] if shape is not None else None
    if not isinstance(found, int):
        raise ValueError(f"'{value.name}' has no known extent along axis {axis}")
    return found
