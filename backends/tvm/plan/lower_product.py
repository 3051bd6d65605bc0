"""Gemm and MatMul -> linear kernels: with packed constant weights, or with both factors computed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.geometry import block_of, fields_of, lanes_of, padded_step
from irc.backends.tvm.plan.integer import (
    FusedQuantize,
    float_weights,
    fuse_quantize,
    integer_weights,
    start_sum,
)
from irc.backends.tvm.plan.kinds import is_weight
from irc.backends.tvm.plan.pack import pack_for, share_bytes, small_type
from irc.backends.tvm.plan.planner import Demand, Planner, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.tiles import Product, choose_tile, epilogue_cycles, in_pairs, uops_of
from irc.backends.tvm.plan.views import View, collapse, row_major
from irc.backends.tvm.specs import LinearSpec, Operand
from irc.ir.graph import Node, Value
from irc.ir.types import Array


def lower_product(p: Planner, region: Region) -> None:
    node = region.root
    if is_weight(node.need(1)) and len(node.need(1).static_shape()) <= 2:
        _constant_weights(p, region)
    else:
        _computed_weights(p, region)


def _gemm_scale(node: Node) -> tuple[float, float]:
    if node.op_type != "Gemm":
        return 1.0, 1.0
    return node.get_float("alpha", 1.0), node.get_float("beta", 1.0)


def _weights_n_k(node: Node) -> Array:
    """Float weights as [n, k]."""
    w = float_weights(node.need(1)).astype(np.float32)
    if w.ndim == 1:
        return w.reshape(1, -1)
    transposed = node.op_type == "Gemm" and node.get_int("transB", 0)
    return w if transposed else np.ascontiguousarray(w.T)


def _gemm_bias(node: Node, columns: int) -> tuple[Array | None, Value | None]:
    """The constant bias vector of a Gemm, or the value it adds otherwise."""
    value = node.input(2) if node.op_type == "Gemm" else None
    if value is None:
        return None, None
    if is_weight(value):
        data = float_weights(value).astype(np.float32)
        if data.size in (1, columns) and (data.ndim == 0 or data.shape[-1] == data.size):
            vector = np.broadcast_to(data.reshape(-1), (columns,)) * np.float32(_gemm_scale(node)[1])
            return np.ascontiguousarray(vector), None
    return None, value


def _matrix_input(p: Planner, value: Value, transposed: bool) -> View:
    """[..., m, k] with k contiguous; one copy where it is not."""
    view = p.view(value)
    if len(view.shape) == 1:
        view = replace(view, shape=(1, *view.shape), strides=(0, *view.strides))
    if transposed:
        view = view.transposed((1, 0))
    if view.strides[-1] == 1 or view.shape[-1] == 1:
        return view
    made = View(p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, row_major(view.shape))
    p.copy(view, made, "reorder")
    return made


def _flatten_rows(p: Planner, view: View) -> View:
    """[..., m, k] -> [rows, k], copied when the rows do not follow one stride."""
    rows = math.prod(view.shape[:-1])
    flat = view.reshaped((rows, view.shape[-1]))
    if flat is not None and (flat.strides[1] == 1 or flat.shape[1] == 1):
        return flat
    made = View(p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, row_major(view.shape))
    p.copy(view, made, "reorder")
    flat = made.reshaped((rows, view.shape[-1]))
    assert flat is not None
    return flat


def _pad_inner(p: Planner, view: View, step: int, fill: float) -> View:
    """[rows, k] with k a multiple of `step`; the rest filled."""
    extra = -view.shape[1] % step
    if not extra:
        return view
    image = View(view.storage, view.dtype, (1, view.shape[1], view.shape[0]), (0, 1, view.strides[0]), view.offset)
    made = p._with_border(image.shape, view.dtype, Demand((0, 2, 1), ((0, 0), (0, extra), (0, 0)), fill))
    p.copy(image, made, "pad")
    return View(made.storage, made.dtype, view.shape, (made.strides[2], 1), made.offset)


def _constant_weights(p: Planner, region: Region) -> None:
    node = region.root
    integer = integer_weights(node)
    alpha, beta = _gemm_scale(node)
    value = node.need(0) if integer is None else integer.x
    x = _flatten_rows(p, _matrix_input(p, value, node.op_type == "Gemm" and bool(node.get_int("transA", 0))))
    w = integer.w if integer is not None else _weights_n_k(node) * np.float32(alpha)
    columns, inner = w.shape
    bias, added = _gemm_bias(node, columns)
    step = padded_step(x.dtype, p.target, inner)
    x = _pad_inner(p, x, step, float(integer.x_zero) if integer is not None else 0.0)
    inner_padded = -(-inner // step) * step
    w = np.pad(w, ((0, 0), (0, inner_padded - inner)))
    rows = x.shape[0]
    sums = integer is not None and integer.weight_zero is not None
    b = ExpressionBuilder()
    fused = FusedQuantize(1, bias)
    if integer is not None and added is None:  # a computed C comes before everything that follows
        fused = fuse_quantize(region, bias)
    operands = RegionOperands()
    compensation = None if integer is None else integer.compensation(inner_padded)
    start = start_sum(b, operands, integer, fused, compensation, summed=sums, fpu=p.target.fpu != "none")
    if added is not None:
        start = _add_c(b, operands, start, added, beta)
    result = p.translate(region, b, operands, start, fused.skip)
    out_shape = region.output.static_shape()
    out, flat = _output_rows(p, region.output, rows, columns)
    views = [_operand_rows(p, v, out_shape, rows, columns) for v in operands.values]
    lanes = lanes_of(p.target)
    vectors = -(-columns // lanes)
    uops = uops_of(x.dtype, p.target)
    apart = (0, x.strides[0] * x.itemsize)
    expression = b.finish(result)
    ending = epilogue_cycles(expression)
    w = w.reshape(columns, 1, 1, inner_padded)
    w_dtype = "" if integer is None else small_type(w, step, integer.scale)
    product = Product(
        (1, rows),
        vectors,
        inner_padded // step,
        sums=sums,
        uops=uops,
        apart=apart,
        epilogue=ending,
        fields=fields_of(w_dtype),
        pairs=in_pairs(x.dtype, p.target, inner_padded),
        real=out.dtype == "float32",
    )
    tile = choose_tile(p.target, product)
    packed = pack_for(p.target, share_bytes(w, step, w_dtype), tile.vectors, step)
    weights = p.constant(packed, node.need(1).name)
    spec = LinearSpec(
        x.dtype,
        out.dtype,
        (1, 1),
        (1, rows),
        (1, 1),
        inner_padded,
        columns,
        (0, 0, 0, x.strides[0]),
        (0, 0, 0, flat.strides[0]),
        (0, 0),
        (1, 1),
        (1, 1),
        expression,
        tuple(Operand(v.dtype, (0, 0, 0, v.strides[0], v.strides[1]), v.extent, p.limit(v)) for v in views),
        0,
        sums,
        (1, tile.columns, tile.vectors),
        "channels",
        x.extent,
        flat.extent,
        weights.extent,
        block_of(p.target),
        w_dtype,
    )
    args = [p.pointer(v) for v in (x, weights, *views, out)]
    p.call(spec, args, (out.storage,), region.label, macs=rows * columns * inner)
    p.views[id(region.output)] = out


def _output_rows(p: Planner, value: Value, rows: int, columns: int) -> tuple[View, View]:
    """Where `value` will lie, and that seen as [rows, columns] with columns contiguous."""
    shape = value.static_shape()
    out = p.output_view(value, range(len(shape)), innermost=len(shape) - 1 if shape else None)
    flat = out.reshaped((rows, columns))
    if flat is None or (flat.strides[1] != 1 and columns > 1):  # a reader wants rows in another order
        out = View(p.new_storage(out.dtype, math.prod(shape)), out.dtype, shape, row_major(shape))
        flat = out.reshaped((rows, columns))
        assert flat is not None
    return out, flat


def _add_c(b: ExpressionBuilder, operands: RegionOperands, start: int, value: Value, beta: float) -> int:
    c = b.operand(operands.number(value), "float32")
    if beta != 1.0:
        c = b.add("mul", "float32", c, b.constant(beta, "float32"))
    return b.add("add", "float32", start, c)


def _operand_rows(p: Planner, value: Value | Array, shape: Sequence[int], rows: int, columns: int) -> View:
    """An operand broadcast to the output and seen as [rows, columns] with column stride 0 or 1."""
    view = p.operand_view(value, shape)
    flat = view.reshaped((rows, columns))
    if flat is None or (flat.strides[1] not in (0, 1) and columns > 1):
        made = View(p.new_storage(view.dtype, math.prod(shape)), view.dtype, tuple(shape), row_major(shape))
        p.copy(view, made, "reorder")
        flat = made.reshaped((rows, columns))
        assert flat is not None
    return flat


def _computed_weights(p: Planner, region: Region) -> None:
    """Both factors are computed (or the second is a constant of rank 3 and more): batched, float32."""
    node = region.root
    gemm = node.op_type == "Gemm"
    alpha, beta = _gemm_scale(node)
    x = _matrix_input(p, node.need(0), gemm and bool(node.get_int("transA", 0)))
    w = _second_factor(p, node, gemm)
    rows, inner, columns = x.shape[-2], x.shape[-1], w.shape[-1]
    batch = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    x, w = x.broadcast_to((*batch, rows, inner)), w.broadcast_to((*batch, inner, columns))
    bias, added = _gemm_bias(node, columns)
    b = ExpressionBuilder()
    operands = RegionOperands()
    start = b.add("accumulator", "float32")
    if alpha != 1.0:
        start = b.add("mul", "float32", start, b.constant(alpha, "float32"))
    if bias is not None:
        start = b.add("add", "float32", start, b.operand(operands.number(bias), "float32"))
    if added is not None:
        start = _add_c(b, operands, start, added, beta)
    expression = b.finish(p.translate(region, b, operands, start))
    out_shape = region.output.static_shape()
    full = (*batch, rows, columns)
    out = p.output_view(region.output, range(len(out_shape)), innermost=len(out_shape) - 1 if out_shape else None)
    shaped = out if tuple(out_shape) == full else out.reshaped(full)
    assert shaped is not None
    views = [_operand_full(p, v, out_shape, full) for v in operands.values]
    lanes = lanes_of(p.target)
    apart, ending = (0, x.strides[-2] * x.itemsize), epilogue_cycles(expression)
    tile = choose_tile(p.target, Product((1, rows), -(-columns // lanes), inner, apart=apart, epilogue=ending))
    dims, strides = collapse(batch, [v.strides[:-2] for v in (x, w, shaped, *views)])
    extra, dims2 = dims[: max(len(dims) - 2, 0)], (1, 1, *dims)[-2:]
    padded = [(0, 0, *s)[-2:] for s in strides]
    for index in itertools.product(*(range(d) for d in extra)):
        offsets = [sum(i * t for i, t in zip(index, s, strict=False)) for s in strides]
        x_i, w_i, y_i, *e_i = (
            replace(v, offset=v.offset + o) for v, o in zip((x, w, shaped, *views), offsets, strict=True)
        )
        spec = LinearSpec(
            "float32",
            out.dtype,
            (dims2[0], dims2[1]),
            (1, rows),
            (1, 1),
            inner,
            columns,
            (*padded[0], 0, x.strides[-2]),
            (*padded[2], 0, shaped.strides[-2]),
            (padded[1][0], padded[1][1]),
            (1, 1),
            (1, 1),
            expression,
            tuple(
                Operand(v.dtype, (*padded[3 + i], 0, v.strides[-2], v.strides[-1]), v.extent) for i, v in enumerate(e_i)
            ),
            w.strides[-2] if inner > 1 else columns,  # 0 would mean packed
            False,
            (1, tile.columns, tile.vectors),
            "rows",
            x.extent,
            shaped.extent,
            w.extent + lanes,
        )
        args = [p.pointer(v) for v in (x_i, w_i, *e_i, y_i)]
        p.call(spec, args, (out.storage,), region.label, macs=math.prod(dims2) * rows * columns * inner)
    p.views[id(region.output)] = out


def _second_factor(p: Planner, node: Node, gemm: bool) -> View:
    """[..., k, n] with n contiguous. The kernel may read a vector beyond the last row, so the caller's own memory and
    constants are copied first."""
    value = node.need(1)
    if value.is_constant or is_weight(value):
        data = float_weights(value).astype(np.float32)
        if gemm and node.get_int("transB", 0):
            data = data.T
        slack = np.zeros(lanes_of(p.target), np.float32)
        flat = p.constant(np.concatenate([np.ascontiguousarray(data).reshape(-1), slack]), value.name)
        shape = data.shape if data.ndim > 1 else (*data.shape, 1)
        return View(flat.storage, "float32", tuple(shape), row_major(shape))
    view = p.view(value)
    if len(view.shape) == 1:
        view = replace(view, shape=(*view.shape, 1), strides=(*view.strides, 1))
    if gemm and node.get_int("transB", 0):
        view = view.transposed((1, 0))
    own = p.storages[view.storage].kind == "workspace"
    repeated = view.strides[-2] == 0 and view.shape[-2] > 1
    if own and not repeated and (view.strides[-1] == 1 or view.shape[-1] == 1):
        return view
    made = View(p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, row_major(view.shape))
    p.copy(view, made, "reorder")
    return made


def _operand_full(p: Planner, value: Value | Array, out_shape: Sequence[int], full: Sequence[int]) -> View:
    view = p.operand_view(value, out_shape)
    if tuple(out_shape) != tuple(full):
        reshaped = view.reshaped(full)
        if reshaped is None:
            made = View(p.new_storage(view.dtype, math.prod(full)), view.dtype, tuple(out_shape), row_major(out_shape))
            p.copy(view, made, "reorder")
            reshaped = made.reshaped(full)
        assert reshaped is not None
        view = reshaped
    if view.strides[-1] in (0, 1):
        return view
    made = View(p.new_storage(view.dtype, math.prod(full)), view.dtype, tuple(full), row_major(full))
    p.copy(view, made, "reorder")
    return made
