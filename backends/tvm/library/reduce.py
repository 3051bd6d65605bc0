"""Reductions: the ReduceX family, ArgMax and ArgMin, Softmax and its relatives, pooling over all positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from irc.backends.tvm.library.elementwise import Definition, exp, in_float, is_float, like
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    axes_of,
    axis_of,
    cast,
    compute,
    const,
    dtype_of,
    element,
    elementwise,
    highest,
    lowest,
    shape_of,
    type_of,
)

_SUM = (lambda a, b: a + b, lambda dtype: 0)
_PROD = (lambda a, b: a * b, lambda dtype: 1)
_MAX = (lambda a, b: tirx.max(a, b), lowest)
_MIN = (lambda a, b: tirx.min(a, b), highest)


def fold(
    tensor: Tensor,
    axes: Sequence[int],
    combine: Callable[[Expr, Expr], Expr],
    identity: Callable[[str], Any],
    *,
    each: Callable[[Expr], Expr] = lambda x: x,
    keep: bool = True,
    dtype: str = "",
) -> Tensor:
    """`combine` over `axes` of `each(element)`, from the left to the right, starting at `identity(dtype)`.

    `dtype` is the accumulator's type (the tensor's own by default). An empty set gives the identity.
    """
    shape = shape_of(tensor)
    dtype = dtype or dtype_of(tensor)
    kept = [1 if a in axes else d for a, d in enumerate(shape)]
    result = kept if keep else [d for a, d in enumerate(shape) if a not in axes]
    if any(shape[a] == 0 for a in axes):
        return compute(result, lambda *_: const(identity(dtype), dtype), "empty")
    if not axes:
        return compute(result, lambda *i: each(cast(element(tensor, i), dtype)), "reduce")
    last = len(shape) - 1
    if last in axes and shape[last] >= 2 * LANES and is_float(dtype):
        return _fold_lanes(tensor, axes, combine, identity, each, result, keep, dtype)
    reducer = _reducer(combine, identity, dtype)
    inner = {a: te.reduce_axis((0, shape[a]), name=f"r{a}") for a in axes}

    def formula(*index: Expr) -> Expr:
        outer = iter([i for a, i in enumerate(index) if a not in axes] if keep else index)
        full = [inner[a].var if a in inner else next(outer) for a in range(len(shape))]
        return reducer(each(cast(element(tensor, full), dtype)), axis=list(inner.values()))

    return compute(result, formula, "spread_reduce" if last not in axes else "reduce")


LANES = 16
"""Partial results along a contiguous axis: LLVM may not reorder float sums by itself."""


def _reducer(combine: Callable[[Expr, Expr], Expr], identity: Callable[[str], Any], dtype: str) -> Any:
    return te.comm_reducer(combine, lambda t: const(identity(dtype), dtype), name="fold")


def _fold_lanes(
    tensor: Tensor,
    axes: Sequence[int],
    combine: Callable[[Expr, Expr], Expr],
    identity: Callable[[str], Any],
    each: Callable[[Expr], Expr],
    result: Sequence[int],
    keep: bool,
    dtype: str,
) -> Tensor:
    """`fold` over axes that include the last one: element t goes to lane t mod LANES, then the lanes are folded."""
    shape = shape_of(tensor)
    outer = [d for a, d in enumerate(shape) if a not in axes]
    steps, rest = divmod(shape[-1], LANES)
    inner = {a: te.reduce_axis((0, shape[a]), name=f"r{a}") for a in axes[:-1]}
    step = te.reduce_axis((0, steps), name="step")

    def place(index: Sequence[Expr], tail: Expr, others: dict[int, Any]) -> list[Expr]:
        left = iter(index)
        return [*(others[a].var if a in others else next(left) for a in range(len(shape) - 1)), tail]

    def lane_of(*index: Expr) -> Expr:
        value = element(tensor, place(index[:-1], step.var * LANES + index[-1], inner))
        return _reducer(combine, identity, dtype)(each(cast(value, dtype)), axis=[*inner.values(), step])

    partial = compute((*outer, LANES), lane_of, "spread_lanes")
    lane = te.reduce_axis((0, LANES), name="lane")
    total = compute(
        outer, lambda *i: _reducer(combine, identity, dtype)(element(partial, [*i, lane.var]), axis=lane), "lanes"
    )
    if rest:
        others = {a: te.reduce_axis((0, shape[a]), name=f"r{a}") for a in axes[:-1]}
        tail = te.reduce_axis((0, rest), name="tail")

        def tail_of(*index: Expr) -> Expr:
            value = element(tensor, place(index, tail.var + steps * LANES, others))
            return _reducer(combine, identity, dtype)(each(cast(value, dtype)), axis=[*others.values(), tail])

        remainder = compute(outer, tail_of, "tail")
        total = elementwise(combine, total, remainder, name="keep_total")
    kept = [a for a in range(len(shape)) if a not in axes]
    return compute(result, lambda *i: element(total, [i[a] for a in kept] if keep else i), "fold")


def reduced_axes(op: Op, rank: int) -> list[int] | None:
    """The axes of a ReduceX node, given as an input (opset 13 and 18) or as an attribute; None: nothing to reduce."""
    given: Sequence[int] = op.attr("axes", [])
    if op.has(1):
        given = op.integers(1, "axes")
    if not given and op.attr("noop_with_empty_axes", 0):
        return None
    return sorted(set(axes_of(given, rank))) if given else list(range(rank))


def wide(dtype: str) -> str:
    """The accumulator's type: half precision is summed in single."""
    return "float32" if dtype == "float16" else dtype


def reduction(
    kind: tuple[Any, Any],
    each: Callable[[Expr], Expr] = lambda x: x,
    after: Callable[[Expr, int], Expr] = lambda x, count: x,
) -> Definition:
    """A ReduceX operator: `after(combine(each(x)...), number of elements combined)`."""

    def definition(op: Op) -> list[Tensor]:
        x = op.tensor(0)
        dtype = op.value(0).dtype
        shape = shape_of(x)
        axes = reduced_axes(op, len(shape))
        if axes is None:
            if op.kind in ("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum"):
                axes = []
            else:
                return [elementwise(lambda v: v, x)]
        if dtype == "bool":
            x, dtype = elementwise(lambda v: cast(v, "uint8"), x), "uint8"
        count = int(np.prod([shape[a] for a in axes], dtype=np.int64))
        total = fold(x, axes, *kind, each=each, keep=bool(op.attr("keepdims", 1)), dtype=wide(dtype))
        result = op.value(0).dtype
        return [elementwise(lambda v: cast(after(v, count), result), total, name=op.kind)]

    return definition


def log_sum_exp(op: Op) -> list[Tensor]:
    """max + log(sum(exp(x - max))), so that exp never overflows; a maximum of infinity counts as 0."""
    x = op.tensor(0)
    axes = reduced_axes(op, len(shape_of(x)))
    if axes is None:
        return [elementwise(lambda v: v, x)]
    keep = bool(op.attr("keepdims", 1))
    dtype = wide(op.value(0).dtype)
    if not is_float(dtype):
        raise Refused(f"element type {dtype}")
    peak = fold(x, axes, *_MAX, keep=True, dtype=dtype)
    peak = elementwise(lambda m: tirx.Select(tirx.isinf(m), like(0, m), m), peak)
    shifted = elementwise(lambda v, m: exp(cast(v, dtype) - m), x, peak)
    total = fold(shifted, axes, *_SUM, keep=True)
    result = elementwise(lambda s, m: cast(tirx.log(s) + m, op.value(0).dtype), total, peak)
    return [result if keep else drop(result, axes)]


def drop(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Without `axes`, whose extent is 1."""
    shape = shape_of(tensor)

    def formula(*index: Expr) -> Expr:
        left = iter(index)
        return element(tensor, [0 if a in axes else next(left) for a in range(len(shape))])

    return compute([d for a, d in enumerate(shape) if a not in axes], formula, "squeeze")


def integer_mean(total: Expr, count: int) -> Expr:
    if is_float(type_of(total)):
        return total / like(count, total)
    return tirx.truncdiv(total, like(count, total))


def arg_extreme(greater: bool) -> Definition:
    """Position of the extreme along one axis: the first, or the last with select_last_index."""

    def definition(op: Op) -> list[Tensor]:
        x = op.tensor(0)
        shape, dtype = shape_of(x), dtype_of(x)
        axis = axis_of(op.attr("axis", 0), len(shape))
        last = bool(op.attr("select_last_index", 0))
        if shape[axis] == 0:
            raise Refused("an empty axis has no extreme")

        def combine(a: Sequence[Expr], b: Sequence[Expr]) -> tuple[Expr, Expr]:
            better = b[1] > a[1] if greater else b[1] < a[1]
            better = tirx.any(better, tirx.all(b[1] == a[1], b[0] > a[0])) if last else better
            better = tirx.any(better, a[0] < 0)
            return tirx.Select(better, b[0], a[0]), tirx.Select(better, b[1], a[1])

        def identity(t0: str, t1: str) -> tuple[Expr, Expr]:
            return tirx.const(-1, "int32"), const(lowest(dtype) if greater else highest(dtype), dtype)

        reducer = te.comm_reducer(combine, identity, name="arg")
        r = te.reduce_axis((0, shape[axis]), name="r")

        def formula(*index: Expr) -> Any:
            full = [*index[:axis], r.var, *index[axis:]]
            return reducer((r.var, element(x, full)), axis=r)

        kept = [d for a, d in enumerate(shape) if a != axis]
        if not kept:
            found = compute_pair((1,), lambda _: reducer((r.var, element(x, [r.var])), axis=r))
            place = compute((), lambda: cast(element(found, [0]), "int64"), op.kind)
        else:
            found = compute_pair(kept, formula)
            place = elementwise(lambda i: cast(i, "int64"), found, name=op.kind)
        if op.attr("keepdims", 1):
            full = [1 if a == axis else d for a, d in enumerate(shape)]
            return [compute(full, lambda *i: element(place, [*i[:axis], *i[axis + 1 :]]), op.kind)]
        return [place]

    return definition


def compute_pair(shape: Sequence[int], formula: Callable[..., Any]) -> Tensor:
    from irc.backends.tvm.library.op import fresh

    return te.compute(tuple(shape), lambda *index: formula(*index), name=fresh("arg"))[0]


def softmax_axes(op: Op, rank: int) -> list[int]:
    """Opset 13: one axis; before, all axes from `axis` on together."""
    axis = axis_of(op.attr("axis", -1 if op.since >= 13 else 1), rank)
    return [axis] if op.since >= 13 else list(range(axis, rank))


def softmax(op: Op) -> list[Tensor]:
    x = op.tensor(0)
    axes = softmax_axes(op, len(shape_of(x)))
    dtype = wide(op.value(0).dtype)
    peak = fold(x, axes, *_MAX, dtype=dtype)
    powers = elementwise(lambda v, m: exp(cast(v, dtype) - m), x, peak, name="exp")
    total = fold(powers, axes, *_SUM)
    result = op.value(0).dtype
    if op.kind == "Softmax":
        inverse = elementwise(lambda s: like(1, s) / s, total)
        return [elementwise(lambda e, s: cast(e * s, result), powers, inverse, name=op.kind)]
    logarithm = elementwise(in_float(tirx.log), total, name="log")
    return [elementwise(lambda v, m, s: cast(cast(v, dtype) - m - s, result), x, peak, logarithm, name=op.kind)]


def hardmax(op: Op) -> list[Tensor]:
    """1 at the first maximum along the axis, else 0."""
    x = op.tensor(0)
    rank = len(shape_of(x))
    if op.since < 13:
        raise Refused("Hardmax before opset 13")
    axis = axis_of(op.attr("axis", -1), rank)
    first = arg_extreme(True)(_with(op, axis=axis, keepdims=1))[0]

    def formula(*index: Expr) -> Expr:
        own = [0 if a == axis else i for a, i in enumerate(index)]
        found = cast(element(first, own), "int32") == index[axis]
        return tirx.Select(found, const(1, dtype_of(x)), const(0, dtype_of(x)))

    return [compute(shape_of(x), formula, op.kind)]


def _with(op: Op, **attributes: Any) -> Op:
    return Op(op.node, {**op.attributes, **attributes}, op.values, op.materialize, op.since)


def over_positions(kind: tuple[Any, Any], after: Callable[[Expr, int], Expr]) -> Definition:
    """A pooling over all spatial positions: (N, C, ...) -> (N, C, 1, ...)."""

    def definition(op: Op) -> list[Tensor]:
        x = op.tensor(0)
        shape, dtype = shape_of(x), op.value(0).dtype
        axes = list(range(2, len(shape)))
        count = int(np.prod(shape[2:], dtype=np.int64))
        total = fold(x, axes, *kind, dtype=wide(dtype))
        return [elementwise(lambda v: cast(after(v, count), dtype), total, name=op.kind)]

    return definition


def global_lp_pool(op: Op) -> list[Tensor]:
    x, p = op.tensor(0), op.attr("p", 2)
    total = fold(x, list(range(2, len(shape_of(x)))), *_SUM, each=lambda v: to_power(v, p))
    return [elementwise(lambda s: root(s, p), total, name=op.kind)]


def to_power(x: Expr, p: int) -> Expr:
    """|x| ** p."""
    size = tirx.abs(x)
    if p == 1:
        return size
    return x * x if p == 2 else tirx.power(size, like(p, x))


def root(x: Expr, p: int) -> Expr:
    """x ** (1 / p)."""
    if p == 1:
        return x
    return tirx.sqrt(x) if p == 2 else tirx.power(x, like(1 / p, x))


def absolute(x: Expr) -> Expr:
    from irc.backends.tvm.library.elementwise import absolute as formula

    return formula(x)


def square_root(x: Expr, count: int) -> Expr:
    """Also of integers, through float64."""
    if is_float(type_of(x)):
        return tirx.sqrt(x)
    return cast(tirx.sqrt(cast(x, "float64")), type_of(x))


def logarithm(x: Expr, count: int) -> Expr:
    if is_float(type_of(x)):
        return tirx.log(x)
    return cast(tirx.log(cast(x, "float64")), type_of(x))


OPERATORS: dict[str, Definition] = {
    "ArgMax": arg_extreme(True),
    "ArgMin": arg_extreme(False),
    "GlobalAveragePool": over_positions(_SUM, integer_mean),
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": over_positions(_MAX, lambda x, count: x),
    "Hardmax": hardmax,
    "LogSoftmax": softmax,
    "ReduceL1": reduction(_SUM, absolute),
    "ReduceL2": reduction(_SUM, lambda x: x * x, square_root),
    "ReduceLogSum": reduction(_SUM, after=logarithm),
    "ReduceLogSumExp": log_sum_exp,
    "ReduceMax": reduction(_MAX),
    "ReduceMean": reduction(_SUM, after=integer_mean),
    "ReduceMin": reduction(_MIN),
    "ReduceProd": reduction(_PROD),
    "ReduceSum": reduction(_SUM),
    "ReduceSumSquare": reduction(_SUM, lambda x: x * x),
    "Softmax": softmax,
}
