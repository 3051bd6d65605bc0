"""Operators that move or select elements: views where possible, one strided copy where not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from irc.backends.tvm.plan.join import joined_view
from irc.backends.tvm.plan.views import View, merged_dimensions, row_major, same_place
from irc.ir.graph import Node, Value

if TYPE_CHECKING:
    from irc.backends.tvm.plan.planner import Planner


def view_output(p: Planner, node: Node, value: Value) -> View:
    """The view of `value`, an output of a view operator."""
    source = p.view(node.need(0))
    shape = value.static_shape()
    op = node.op_type
    if op == "Identity":
        return source
    if op == "Transpose":
        return source.transposed(node.get_ints("perm", tuple(reversed(range(len(source.shape))))))
    if op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return _reshape(p, node, source, shape)
    if op == "Expand":
        return source.broadcast_to(shape)
    if op == "Slice":
        return _slice(node, source, shape)
    if op == "Split":
        return _split(node, source, value)
    if op == "Gather":
        return _select(node, source, shape)
    raise ValueError(f"{node.label} is no view")


def _reshape(p: Planner, node: Node, source: View, shape: tuple[int, ...]) -> View:
    made = source.reshaped(shape)
    if made is None:
        made = _regrouped(p, node, source, shape)
    if made is None:
        made = p.row_major(node.need(0)).reshaped(shape)
        assert made is not None, "row-major data can take any shape"
    return made


def _regrouped(p: Planner, node: Node, source: View, shape: tuple[int, ...]) -> View | None:
    """An image that is made of shuffled parts (channel shuffle, depth to space), channels-last where its source is or
    its readers want it, copied to where they want it. None where dimensions do not merge one by one."""
    groups = merged_dimensions(source.shape, shape)
    if groups is None or len(shape) not in (3, 4):
        return None
    strides = [(s, i) for i, (d, s) in enumerate(zip(source.shape, source.strides, strict=True)) if d > 1]
    if not strides or (min(strides)[1] not in groups[1] and p.demand(node.output) is None):
        return None
    out = p.output_view(node.output, (0, *range(2, len(shape)), 1))
    split = out.reshaped(source.shape)
    if split is None:
        return None
    p.copy(source, split, "regroup")
    return out


def _slice(node: Node, source: View, shape: tuple[int, ...]) -> View:
    rank = len(source.shape)
    starts = [int(v) for v in node.need(1).numpy().reshape(-1)]
    axes_value, steps_value = node.input(3), node.input(4)
    axes = list(range(len(starts)))
    if axes_value is not None:
        axes = [int(v) % rank for v in axes_value.numpy().reshape(-1)]
    steps = [1] * len(starts)
    if steps_value is not None:
        steps = [int(v) for v in steps_value.numpy().reshape(-1)]
    first, step = [0] * rank, [1] * rank
    for axis, start, stride in zip(axes, starts, steps, strict=True):
        size = source.shape[axis]
        start = start + size if start < 0 else start
        first[axis] = min(max(start, 0), size - 1 if stride < 0 else size)
        step[axis] = stride
    return source.sliced(first, shape, step)


def _split(node: Node, source: View, value: Value) -> View:
    axis = node.get_int("axis", 0) % len(source.shape)
    starts = [0] * len(source.shape)
    for other in node.outputs[: value.output_index]:
        starts[axis] += other.static_shape()[axis]
    return source.sliced(starts, value.static_shape(), [1] * len(source.shape))


def _select(node: Node, source: View, shape: tuple[int, ...]) -> View:
    """Gather of a single constant index."""
    axis = node.get_int("axis", 0) % len(source.shape)
    index = int(node.need(1).numpy().reshape(-1)[0]) % source.shape[axis]
    starts = [0] * len(source.shape)
    starts[axis] = index
    sizes = [*source.shape]
    sizes[axis] = 1
    one = source.sliced(starts, sizes, [1] * len(source.shape))
    strides = [*one.strides[:axis], *[1] * (len(shape) - len(source.shape) + 1), *one.strides[axis + 1 :]]
    return View(one.storage, one.dtype, shape, tuple(strides), one.offset)


def lower_concat(p: Planner, node: Node) -> None:
    """Inputs that do not lie in their part of the output yet are copied there."""
    axis = node.get_int("axis", 0) % len(node.output.static_shape())
    views = [p.view(v) for v in node.inputs if v is not None and math.prod(v.static_shape()) > 0]
    out = p.joined.get(id(node.output))
    if out is None and views and not node.output.is_output:
        out = joined_view(views, axis)
    if out is None:
        out = p.output_view(node.output, views[0].order if views else row_major(node.output.static_shape()))
    start = 0
    for view in views:
        starts = [0] * len(out.shape)
        starts[axis] = start
        part = out.sliced(starts, view.shape, [1] * len(out.shape))
        if not same_place(view, part):
            p.copy(view, part, "Concat")
        start += view.shape[axis]
    p.views[id(node.output)] = out
