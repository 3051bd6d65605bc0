"""Pooling, row kernels (softmax, normalizations), reductions and elementwise groups."""

from __future__ import annotations

import math

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.plan.kinds import REDUCTIONS, dequantized
from irc.backends.tvm.plan.lower_conv import _channel_ready, _nhw
from irc.backends.tvm.plan.planner import Planner, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View, row_major
from irc.backends.tvm.plan.window import all_inside, two, window
from irc.backends.tvm.reference import evaluate
from irc.backends.tvm.specs import Operand, PoolSpec, ReduceSpec, RowKind, RowsSpec
from irc.ir.graph import Node, Value
from irc.ir.types import Array, DType


def _summable(found: tuple[Value, float, int] | None) -> tuple[Value, float, int] | None:
    """None for numbers of 16 bits that are so many that their sum may leave int32: they are summed as reals."""
    if found is None or found[0].dtype is not DType.INT16:
        return found
    return found if math.prod(found[0].static_shape()[1:]) < 1 << 15 else None


def lower_pool(p: Planner, region: Region) -> None:
    node = region.root
    value = node.need(0)
    found = _summable(dequantized(value))
    x_value = value if found is None else found[0]
    shape = x_value.static_shape()
    rank = len(shape)
    order = (0, 2, 1) if rank == 3 else (0, 2, 3, 1)
    x = p.view(x_value)
    if x.strides[1] != 1 and x.shape[1] != 1:
        x = p.ordered(x_value, order)
    image = two(shape[2:])
    is_global = node.op_type.startswith("Global")
    g = window(node, shape[2:], shape[2:] if is_global else node.get_ints("kernel_shape"))
    maximum = node.op_type in ("MaxPool", "GlobalMaxPool")
    b, operands = ExpressionBuilder(), RegionOperands()
    if maximum:
        start = _maximum(b, found, x.dtype)
    else:
        start = _average(b, node, found, math.prod(g.kernel), all_inside(g, image, two(node.output.static_shape()[2:])))
    result = p.translate(region, b, operands, start)
    out_shape = region.output.static_shape()
    out = p.output_view(region.output, order, innermost=1)
    views = [_channel_ready(p, p.operand_view(v, out_shape)) for v in operands.values]
    spec = PoolSpec(
        "max" if maximum else "sum",
        x.dtype,
        out.dtype,
        shape[0],
        image,
        two(out_shape[2:]),
        g.kernel,
        shape[1],
        _nhw(x),
        _nhw(out),
        g.stride,
        g.dilation,
        g.pads[:2],
        b.finish(result),
        tuple(Operand(v.dtype, (*_nhw(v), v.strides[1]), v.extent) for v in views),
        x.extent,
        out.extent,
    )
    p.call(spec, [p.pointer(v) for v in (x, *views, out)], (out.storage,), region.label)
    p.views[id(region.output)] = out


def _maximum(b: ExpressionBuilder, found: tuple[Value, float, int] | None, dtype: str) -> int:
    acc = b.add("accumulator", dtype)
    return acc if found is None else b.dequantize(acc, found[1], found[2])


def _average(b: ExpressionBuilder, node: Node, found: tuple[Value, float, int] | None, full: int, inside: bool) -> int:
    """From the window's sum to its mean. `inside`: no window leaves the image, so all have `full` places there.

    The kernel sums the places inside the image only; operand -1 is their number. `count_include_pad` divides by `full`
    all the same (kinds.py sees to it that no such window leaves the padded image).
    """
    places = b.constant(float(full), "float32") if inside else b.operand(-1, "float32")
    fixed = inside or bool(node.get_int("count_include_pad", 0))
    if found is None:
        total, scale = b.add("accumulator", "float32"), 1.0
    else:
        total, scale = b.add("cast", "float32", b.add("accumulator", "int32")), found[1]
        if found[2] != 0 and inside:  # sum of q - z
            total = b.add("sub", "float32", total, b.constant(float(full * found[2]), "float32"))
        elif found[2] != 0:
            zeros = b.add("scale", "float32", places, b.constant(float(found[2]), "float32"))
            total = b.add("sub", "float32", total, zeros)
    if fixed:
        return b.add("scale" if found else "mul", "float32", total, b.constant(scale / full, "float32"))
    mean = b.add("div", "float32", total, places)
    return mean if found is None else b.add("scale", "float32", mean, b.constant(scale, "float32"))


_ROW_KINDS: dict[str, RowKind] = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "LayerNormalization": "layer_norm",
    "RMSNormalization": "rms_norm",
}


def lower_rows(p: Planner, region: Region) -> None:
    node = region.root
    value = node.need(0)
    found = dequantized(value)
    x = p.view(value if found is None else found[0])
    rank = len(x.shape)
    axis = node.get_int("axis", -1) % rank
    order = [i for i in range(rank) if i != axis] + [axis]
    x = x.transposed(order)
    if x.strides[-1] != 1 and x.shape[-1] != 1:
        made = View(p.new_storage(x.dtype, math.prod(x.shape)), x.dtype, x.shape, row_major(x.shape))
        p.copy(x, made, "reorder")
        x = made
    prologue: Expression = ()
    if found is not None:
        q = ExpressionBuilder()
        prologue = q.finish(q.dequantize(q.operand(0, x.dtype), found[1], found[2]))
    b, operands = ExpressionBuilder(), RegionOperands()
    start = b.add("accumulator", "float32")
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        start = _affine(b, operands, node, start)
    result = p.translate(region, b, operands, start)
    out_shape = region.output.static_shape()
    out = p.output_view(region.output, order, innermost=axis)
    views = [p.operand_view(v, out_shape).transposed(order) for v in operands.values]
    views = [v if v.strides[-1] in (0, 1) else _copied(p, v) for v in views]
    written = out.transposed(order)
    spec = RowsSpec(
        _ROW_KINDS[node.op_type],
        x.dtype,
        out.dtype,
        x.shape[:-1],
        x.shape[-1],
        x.strides[:-1],
        written.strides[:-1],
        node.get_float("epsilon", 1e-5),
        prologue,
        b.finish(result),
        tuple(Operand(v.dtype, v.strides, v.extent) for v in views),
        x.extent,
        out.extent,
    )
    p.call(spec, [p.pointer(v) for v in (x, *views, out)], (out.storage,), region.label)
    p.views[id(region.output)] = out


def _copied(p: Planner, view: View) -> View:
    made = View(p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, row_major(view.shape))
    p.copy(view, made, "reorder")
    return made


def _affine(b: ExpressionBuilder, operands: RegionOperands, node: Node, start: int) -> int:
    scale, shift = node.need(1), node.input(2)
    start = b.add("mul", "float32", start, b.operand(operands.number(scale), "float32"))
    if shift is not None:
        start = b.add("add", "float32", start, b.operand(operands.number(shift), "float32"))
    return start


def lower_reduce(p: Planner, region: Region) -> None:
    node = region.root
    value = node.need(0)
    found = _summable(dequantized(value))
    x = p.view(value if found is None else found[0])
    rank = len(x.shape)
    axes_value = node.input(1)
    axes = [] if axes_value is None else [int(v) % rank for v in axes_value.numpy().reshape(-1)]
    if not axes:
        axes = [] if node.get_int("noop_with_empty_axes", 0) else list(range(rank))
    kept = [i for i in range(rank) if i not in axes]
    full_shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    out_shape = region.output.static_shape()
    b, operands = ExpressionBuilder(), RegionOperands()
    count = math.prod(x.shape[i] for i in axes)
    if found is not None and node.op_type in _INTEGER_REDUCTIONS:
        prologue, start = _integer_reduction(b, node, found, x.dtype, count)
    else:
        prologue, start = _real_reduction(b, node, found, x.dtype, count)
    result = p.translate(region, b, operands, start)
    inner_order = [i for i in x.order if i in kept]
    squeezed = len(out_shape) != rank
    order = [kept.index(i) for i in inner_order] if squeezed else list(x.order)
    out = p.output_view(region.output, order)
    written = _unsqueezed(out, kept, rank, full_shape)
    views = [_unsqueezed(p.operand_view(v, out_shape), kept, rank, full_shape) for v in operands.values]
    views = [
        v if not inner_order or v.strides[inner_order[-1]] in (0, 1) else _copied_as(p, v, list(x.order)) for v in views
    ]
    reduced = sorted(axes, key=lambda i: (-x.strides[i], i))
    spec = ReduceSpec(
        REDUCTIONS[node.op_type],
        x.dtype,
        out.dtype,
        tuple(x.shape[i] for i in inner_order),
        tuple(x.shape[i] for i in reduced),
        tuple(x.strides[i] for i in inner_order),
        tuple(x.strides[i] for i in reduced),
        tuple(written.strides[i] for i in inner_order),
        prologue,
        b.finish(result),
        tuple(Operand(v.dtype, tuple(v.strides[i] for i in inner_order) or (0,), v.extent) for v in views),
        x.extent,
        out.extent,
    )
    p.call(spec, [p.pointer(v) for v in (x, *views, out)], (out.storage,), region.label)
    p.views[id(region.output)] = out


def _copied_as(p: Planner, view: View, order: list[int]) -> View:
    from irc.backends.tvm.plan.views import strides_in_order

    made = View(
        p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, strides_in_order(view.shape, order)
    )
    p.copy(view, made, "reorder")
    return made


def _unsqueezed(view: View, kept: list[int], rank: int, shape: tuple[int, ...]) -> View:
    """The view with the reduced dimensions put back as ones."""
    if len(view.shape) == rank:
        return view
    strides = [0] * rank
    for place, axis in enumerate(kept):
        strides[axis] = view.strides[place]
    return View(view.storage, view.dtype, shape, tuple(strides), view.offset)


_INTEGER_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")


def _integer_reduction(
    b: ExpressionBuilder, node: Node, found: tuple[Value, float, int], x_dtype: str, count: int
) -> tuple[Expression, int]:
    """Bytes reduced in int32, exact in any order, and made real once at the end."""
    q = ExpressionBuilder()
    prologue = q.finish(q.add("cast", "int32", q.operand(0, x_dtype)))
    acc = b.add("accumulator", "int32")
    _, scale, zero = found
    if node.op_type in ("ReduceMax", "ReduceMin"):
        return prologue, b.dequantize(acc, scale, zero)
    if zero:
        acc = b.add("sub", "int32", acc, b.constant(count * zero, "int32"))
    factor = scale / count if node.op_type == "ReduceMean" else scale
    return prologue, b.add("scale", "float32", b.add("cast", "float32", acc), b.constant(factor, "float32"))


def _real_reduction(
    b: ExpressionBuilder, node: Node, found: tuple[Value, float, int] | None, x_dtype: str, count: int
) -> tuple[Expression, int]:
    dtype = "float32" if found is not None else x_dtype
    start = b.add("accumulator", dtype)
    if node.op_type == "ReduceMean":
        start = b.add("mul", dtype, start, b.constant(1.0 / count, dtype))
    if node.op_type == "ReduceL2":
        start = b.add("sqrt", dtype, start)
    return _reduce_prologue(node, found, x_dtype, dtype), start


def _reduce_prologue(node: Node, found: tuple[Value, float, int] | None, x_dtype: str, dtype: str) -> Expression:
    b = ExpressionBuilder()
    x = b.operand(0, x_dtype)
    if found is not None:
        x = b.dequantize(x, found[1], found[2])
    if node.op_type in ("ReduceSumSquare", "ReduceL2"):
        x = b.add("mul", dtype, x, x)
    elif node.op_type == "ReduceL1":
        x = b.add("abs", dtype, x)
    elif found is None:
        return ()
    return b.finish(x)


def lower_elementwise(p: Planner, region: Region) -> None:
    b, operands = ExpressionBuilder(), RegionOperands()
    result = p.translate(region, b, operands, None, 0)
    expression = b.finish(result)
    out_shape = region.output.static_shape()
    views = [p.view(v) if isinstance(v, Value) else p.constant(v) for v in operands.values]
    table = _table(expression, views, [v for v in operands.values if isinstance(v, Value)], region)
    leading = next((v for v in views if v.shape == tuple(out_shape)), None)
    order = leading.order if leading is not None else tuple(range(len(out_shape)))
    out = p.output_view(region.output, order)
    if table is not None:
        t = ExpressionBuilder()
        lookup = t.add("table", out.dtype, _byte(t, views[0].dtype), params=(1,))
        p.elementwise(out, t.finish(lookup), [views[0], p.constant(table)], region.label, tables=(1,))
    else:
        p.elementwise(out, expression, views, region.label)
    p.views[id(region.output)] = out


_CHEAP = {"operand", "constant", "dequantize", "requantize", "relu", "clip", "flip", "cast", "add", "sub", "mul"}


def _table(expression: Expression, views: list[View], values: list[Value], region: Region) -> Array | None:
    """A 256-entry table for a function of one 8-bit value that would need costly arithmetic."""
    if len(views) != 1 or views[0].dtype not in ("uint8", "int8") or values[0].is_constant:
        return None
    if storage_dtype(region.output.dtype) not in ("uint8", "int8") or all(i.op in _CHEAP for i in expression):
        return None
    if str(values[0].dtype and values[0].dtype.value) == "bool":
        return None
    every = np.arange(256, dtype=np.uint8).view(views[0].dtype)
    return evaluate(expression, [every])


def _byte(t: ExpressionBuilder, dtype: str) -> int:
    """The operand as an index 0..255."""
    x = t.operand(0, dtype)
    return x if dtype == "uint8" else t.add("as_uint8", "uint8", x)
