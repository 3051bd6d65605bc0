"""Reading and writing at computed places. Indices may be negative; those out of range are moved into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from irc.backends.tvm.library.elementwise import Definition
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    axis_of,
    compute,
    dtype_of,
    element,
    index32,
    sequential,
    shape_of,
    wrap,
)


def gather(op: Op) -> list[Tensor]:
    x, indices = op.tensor(0), op.tensor(1)
    shape, places = shape_of(x), shape_of(indices)
    axis, many = axis_of(op.attr("axis", 0), len(shape)), len(places)

    def formula(*i: Expr) -> Expr:
        place = wrap(element(indices, i[axis : axis + many]), shape[axis])
        return element(x, [*i[:axis], place, *i[axis + many :]])

    return [compute([*shape[:axis], *places, *shape[axis + 1 :]], formula, op.kind)]


def gather_elements(op: Op) -> list[Tensor]:
    x, indices = op.tensor(0), op.tensor(1)
    shape = shape_of(x)
    axis = axis_of(op.attr("axis", 0), len(shape))

    def formula(*i: Expr) -> Expr:
        return element(x, [*i[:axis], wrap(element(indices, i), shape[axis]), *i[axis + 1 :]])

    return [compute(shape_of(indices), formula, op.kind)]


def gather_nd(op: Op) -> list[Tensor]:
    x, indices = op.tensor(0), op.tensor(1)
    shape, places = shape_of(x), shape_of(indices)
    batch = op.attr("batch_dims", 0)
    depth = places[-1]
    outer = len(places) - 1

    def formula(*i: Expr) -> Expr:
        found = [wrap(element(indices, [*i[:outer], k]), shape[batch + k]) for k in range(depth)]
        return element(x, [*i[:batch], *found, *i[outer:]])

    return [compute([*places[:-1], *shape[batch + depth :]], formula, op.kind)]


_COMBINE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": tirx.max,
    "min": tirx.min,
}


def loops(extents: Sequence[int], body: Callable[[list[Expr]], None], done: tuple[Expr, ...] = ()) -> None:
    """A nest of serial loops, inside an `IRBuilder`."""
    from tvm.script.ir_builder import tirx as T

    if not extents:
        body(list(done) or [0])
        return
    with T.serial(0, int(extents[0])) as i:
        if len(extents) == 1:
            body([*done, i])
        else:
            loops(extents[1:], body, (*done, i))


def combiner(op: Op, dtype: str) -> Callable[[Expr, Expr], Expr]:
    name = op.attr("reduction", "none")
    if dtype == "bool" and name != "none":
        raise Refused(f"reduction {name} of bool")
    return _COMBINE[name]


def _index(shape: Sequence[int], index: list[Expr]) -> Any:
    """Buffers of rank 0 are indexed with 0."""
    return tuple(index) if len(shape) != 1 else index[0]


def scatter_elements(op: Op) -> list[Tensor]:
    x, indices, updates = op.tensor(0), op.tensor(1), op.tensor(2)
    shape, places = shape_of(x), shape_of(indices)
    axis = axis_of(op.attr("axis", 0), len(shape))
    combine = combiner(op, dtype_of(x))

    def body(ins: list[Any], outs: list[Any]) -> None:
        data, where, new = ins
        out = outs[0]

        def copy(i: list[Expr]) -> None:
            out[_index(shape, i)] = data[_index(shape, i)]

        def write(i: list[Expr]) -> None:
            at = _index(shape, [*i[:axis], wrap(where[_index(shape, i)], shape[axis]), *i[axis + 1 :]])
            out[at] = combine(out[at], new[_index(shape, i)])

        loops(shape, copy)
        if 0 not in places:
            loops(places, write)

    return sequential([shape], [dtype_of(x)], [x, indices, updates], body, op.kind)


def scatter_nd(op: Op) -> list[Tensor]:
    x, indices, updates = op.tensor(0), op.tensor(1), op.tensor(2)
    shape, places = shape_of(x), shape_of(indices)
    depth, outer = places[-1], places[:-1]
    combine = combiner(op, dtype_of(x))
    if not outer or not depth:
        raise Refused("indices of rank 1 or without depth")

    def body(ins: list[Any], outs: list[Any]) -> None:
        data, where, new = ins
        out = outs[0]

        def copy(i: list[Expr]) -> None:
            out[_index(shape, i)] = data[_index(shape, i)]

        def write(i: list[Expr]) -> None:
            row = i[: len(outer)]
            found = [wrap(where[(*row, k)], shape[k]) for k in range(depth)]
            at = _index(shape, [*found, *i[len(outer) :]])
            out[at] = combine(out[at], new[_index(shape_of(updates), i)])

        loops(shape, copy)
        if 0 not in shape_of(updates):
            loops(shape_of(updates), write)

    return sequential([shape], [dtype_of(x)], [x, indices, updates], body, op.kind)


def tensor_scatter(op: Op) -> list[Tensor]:
    """Write `update` into `past_cache` from write_indices[batch] on along one axis; `circular` wraps around."""
    x, update = op.tensor(0), op.tensor(1)
    shape, new = shape_of(x), shape_of(update)
    axis = axis_of(op.attr("axis", -2), len(shape))
    starts = op.optional(2)
    circular = op.attr("mode", "linear") == "circular"

    def body(ins: list[Any], outs: list[Any]) -> None:
        out = outs[0]

        def copy(i: list[Expr]) -> None:
            out[tuple(i)] = ins[0][tuple(i)]

        def write(i: list[Expr]) -> None:
            start = index32(ins[2][i[0]]) if starts is not None else 0
            place = start + i[axis]
            place = tirx.floormod(place, shape[axis]) if circular else wrap(place, shape[axis])
            out[(*i[:axis], place, *i[axis + 1 :])] = ins[1][tuple(i)]

        loops(shape, copy)
        loops(new, write)

    inputs = [x, update] + ([starts] if starts is not None else [])
    return sequential([shape], [dtype_of(x)], inputs, body, op.kind)


def max_unpool(op: Op) -> list[Tensor]:
    """Values put back at flat positions of the output, zero elsewhere. Positions refer to the unpooled extents."""
    x, indices = op.tensor(0), op.tensor(1)
    shape = shape_of(x)
    rank = len(shape) - 2
    kernel = op.attr("kernel_shape")
    strides = op.attr("strides") or [1] * rank
    pads = op.attr("pads") or [0] * (2 * rank)
    natural = [
        *shape[:2],
        *((shape[a + 2] - 1) * strides[a] - pads[a] - pads[a + rank] + kernel[a] for a in range(rank)),
    ]
    result = op.integers(2, "output_shape") if op.has(2) else natural
    total = int(np.prod(natural, dtype=np.int64))

    def body(ins: list[Any], outs: list[Any]) -> None:
        from irc.backends.tvm.library.op import unflatten_index

        def clear(i: list[Expr]) -> None:
            outs[0][tuple(i)] = tirx.const(0, dtype_of(x))

        def write(i: list[Expr]) -> None:
            place = unflatten_index(wrap(ins[1][tuple(i)], total), natural)
            outs[0][tuple(place)] = ins[0][tuple(i)]

        loops(result, clear)
        loops(shape, write)

    return sequential([result], [dtype_of(x)], [x, indices], body, op.kind)


OPERATORS: dict[str, Definition] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "MaxUnpool": max_unpool,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
}
