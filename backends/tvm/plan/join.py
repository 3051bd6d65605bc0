"""Concatenations without copies: a value is computed where the concatenation that reads it wants it.

A part of a concatenation is a slice of its storage, and slices are views, so a kernel can write it in place. The first
part that is computed settles where the whole lies. Values read by several concatenations (dense blocks) go to the
largest; the smaller ones are then often slices of it (`lower_concat` looks for that). What lies between a value and the
concatenation and only renames elements (Reshape, Transpose, or a Split whose parts all stand side by side) is undone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from irc.backends.tvm.plan.kinds import is_view, kind_of
from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View, strides_in_order
from irc.ir.graph import Node, Value

if TYPE_CHECKING:
    from irc.backends.tvm.plan.planner import Planner

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_DEPTH = 8  # views and concatenations looked through


def image_axis(node: Node) -> int | None:
    """The dimension along which a Concat or Split of images [n, c, spatial...] works; None for other ranks."""
    rank = len(node.need(0).static_shape())
    return node.get_int("axis", 0) % rank if rank in (3, 4) else None


def slot_of(p: Planner, value: Value, order: Sequence[int], innermost: int | None, depth: int = 0) -> View | None:
    """The part of a concatenation's storage that `value` is, or None where none has room for it.

    `order`: the memory order its producer prefers; `innermost`: the dimension that must have stride 1 (None: any).
    """
    if depth > _DEPTH or value.is_output or math.prod(value.static_shape()) == 0:
        return None
    for user in sorted(value.users, key=lambda u: -_size(u)):
        found = _through(p, value, user, order, depth)
        if found is None or found.shape != value.static_shape():
            continue
        if innermost is None or found.strides[innermost] == 1 or found.shape[innermost] == 1:
            return found
    return None


def _size(node: Node) -> int:
    return math.prod(node.output.static_shape()) if node.is_op("Concat") else 0


def _through(p: Planner, value: Value, user: Node, order: Sequence[int], depth: int) -> View | None:
    if user.is_op("Concat") and kind_of(user) == "concat":
        index = next(i for i, v in enumerate(user.inputs) if v is value)
        return _part(p, user, index, index + 1, order, depth)
    if not is_view(user) or user.need(0) is not value:
        return None
    if user.op_type == "Split":
        return _split(p, value, user, order, depth)
    shape = value.static_shape()
    dense = View(-1, storage_dtype(value.dtype), shape, strides_in_order(shape, order))
    if user.op_type == "Transpose":
        perm = user.get_ints("perm", tuple(reversed(range(len(shape)))))
        found = slot_of(p, user.output, dense.transposed(perm).order, None, depth + 1)
        return None if found is None else found.transposed([perm.index(i) for i in range(len(perm))])
    if user.op_type in _RESHAPES:
        seen = dense.reshaped(user.output.static_shape())
        found = None if seen is None else slot_of(p, user.output, seen.order, None, depth + 1)
        return None if found is None else found.reshaped(shape)
    return None


def _split(p: Planner, value: Value, split: Node, order: Sequence[int], depth: int) -> View | None:
    """A value whose parts, split, follow each other in a concatenation along the same dimension."""
    axis = split.get_int("axis", 0) % len(value.static_shape())
    first = split.outputs[0]
    for user in first.users:
        if not user.is_op("Concat") or user.get_int("axis", 0) % len(value.static_shape()) != axis:
            continue
        start = next(i for i, v in enumerate(user.inputs) if v is first)
        parts = user.inputs[start : start + len(split.outputs)]
        if len(parts) == len(split.outputs) and all(a is b for a, b in zip(parts, split.outputs, strict=True)):
            return _part(p, user, start, start + len(parts), order, depth)
    return None


def _part(p: Planner, concat: Node, first: int, last: int, order: Sequence[int], depth: int) -> View | None:
    """Inputs `first` to `last` (not included) of a concatenation, as a slice of its storage."""
    out = p.views.get(id(concat.output)) or p.joined.get(id(concat.output))
    if out is None:
        out = p.joined[id(concat.output)] = _whole(p, concat, order, depth)
    axis = concat.get_int("axis", 0) % len(out.shape)
    extents = [v.static_shape()[axis] for v in concat.inputs if v is not None]
    starts, sizes = [0] * len(out.shape), list(out.shape)
    starts[axis], sizes[axis] = sum(extents[:first]), sum(extents[first:last])
    return out.sliced(starts, sizes, [1] * len(sizes))


def _whole(p: Planner, concat: Node, order: Sequence[int], depth: int) -> View:
    """Storage for a concatenation. Images whose parts convolutions or pools compute or read lie channels-last."""
    rank = len(concat.output.static_shape())
    if rank in (3, 4) and concat.get_int("axis", 0) % rank == 1 and _is_image(concat):
        order = (0, *range(2, rank), 1)
    return p.output_view(concat.output, order)


def _is_image(concat: Node) -> bool:
    near = [v.producer for v in concat.inputs if v is not None and v.producer is not None]
    for user in concat.output.users:
        near += user.output.users if user.is_op("DequantizeLinear") else [user]
    return any(n.is_op("Conv", "ConvTranspose", "MaxPool", "AveragePool") for n in near)


def joined_view(views: Sequence[View], axis: int) -> View | None:
    """The views as one, where each begins along `axis` where the one before ends; otherwise None."""
    first = views[0]
    offset, total = first.offset, 0
    for view in views:
        if (view.storage, view.dtype, view.strides) != (first.storage, first.dtype, first.strides):
            return None
        if view.offset != offset or first.strides[axis] == 0:
            return None
        offset += view.shape[axis] * view.strides[axis]
        total += view.shape[axis]
    sizes = list(first.shape)
    sizes[axis] = total
    halo = first.halo
    if halo is not None:
        halo = tuple((0, 0) if i == axis else h for i, h in enumerate(halo))
    return View(first.storage, first.dtype, tuple(sizes), first.strides, first.offset, halo, first.fill)
