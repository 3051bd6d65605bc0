"""Matrix products and Einsum, of floats and of quantized integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from irc.backends.tvm.library.elementwise import Definition, like
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    at,
    cast,
    compute,
    const,
    dtype_of,
    element,
    elementwise,
    shape_of,
    transpose,
)
from irc.backends.tvm.library.quantize import requantize
from irc.backends.tvm.library.reduce import wide


def matmul(a: Tensor, b: Tensor, dtype: str, result: str = "") -> Tensor:
    """numpy.matmul, accumulated in `dtype`."""
    left, right = shape_of(a), shape_of(b)
    rows, columns = len(left) > 1, len(right) > 1
    inner = left[-1]
    if inner != (right[-2] if columns else right[0]):
        raise Refused(f"shapes {left} and {right} do not match")
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    shape = [*batch, *left[-2:-1], *(right[-1:] if columns else ())]
    if inner == 0:
        return compute(shape, lambda *_: const(0, result or dtype), "MatMul")
    k = te.reduce_axis((0, inner), name="k")

    def formula(*i: Expr) -> Expr:
        outer = i[: len(batch)]
        x = at(a, [*outer, i[len(batch)], k.var]) if rows else element(a, [k.var])
        y = at(b, [*outer, k.var, i[-1]]) if columns else element(b, [k.var])
        return te.sum(cast(x, dtype) * cast(y, dtype), axis=k)

    made = compute(shape, formula, "spread_matmul" if columns else "matmul")
    return elementwise(lambda v: cast(v, result), made) if result and result != dtype else made


def mat_mul(op: Op) -> list[Tensor]:
    dtype = op.value(0).dtype
    return [matmul(op.tensor(0), op.tensor(1), wide(dtype), dtype)]


def gemm(op: Op) -> list[Tensor]:
    """alpha * A' * B' + beta * C."""
    a, b = op.tensor(0), op.tensor(1)
    dtype = op.value(0).dtype
    a = transpose(a, (1, 0)) if op.attr("transA", 0) else a
    b = transposed_copy(b, (1, 0)) if op.attr("transB", 0) else b
    product = matmul(a, b, wide(dtype))
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)

    def scaled(v: Expr, factor: float) -> Expr:
        return v if factor == 1 else v * like(factor, v)

    if not op.has(2):
        return [elementwise(lambda p: cast(scaled(p, alpha), dtype), product)]
    return [
        elementwise(
            lambda p, c: cast(scaled(p, alpha) + scaled(cast(c, wide(dtype)), beta), dtype), product, op.tensor(2)
        )
    ]


def transposed_copy(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """A transposed tensor that is stored, so that sums over it run along memory."""
    moved = transpose(tensor, order)
    return compute(shape_of(moved), lambda *i: element(moved, i), "keep_transposed")


def centered(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """x - zero point in int32; a zero point of rank 1 runs along `axis`."""
    rank = len(shape_of(x))
    if zero is None:
        return elementwise(lambda v: cast(v, "int32"), x)

    def formula(*i: Expr) -> Expr:
        return cast(element(x, i), "int32") - cast(parameter(zero, i, axis % rank), "int32")

    return compute(shape_of(x), formula, "centered")


def parameter(tensor: Tensor, index: Sequence[Expr], axis: int) -> Expr:
    """A scale or zero point: one for all, one per position of `axis`, or one per row of a batched matrix."""
    shape = shape_of(tensor)
    if int(np.prod(shape, dtype=np.int64)) == 1:
        return element(tensor, [0] * len(shape))
    if len(shape) == 1:
        return element(tensor, [index[axis]])
    return at(tensor, index)


def matmul_integer(op: Op) -> list[Tensor]:
    a = centered(op.tensor(0), op.optional(2), -2)
    b = centered(op.tensor(1), op.optional(3), -1)
    return [matmul(a, b, "int32")]


def qlinear_matmul(op: Op) -> list[Tensor]:
    a_scale, b_scale, y_scale, y_zero = op.tensor(1), op.tensor(4), op.tensor(6), op.tensor(7)
    product = matmul(centered(op.tensor(0), op.tensor(2), -2), centered(op.tensor(3), op.tensor(5), -1), "int32")
    rank = len(shape_of(product))

    def formula(*i: Expr) -> Expr:
        scale = _scale(a_scale, i, rank - 2) * _scale(b_scale, i, rank - 1) / _scale(y_scale, i, rank - 2)
        return requantize(element(product, i), scale, parameter(y_zero, i, rank - 2), dtype_of(y_zero))

    return [compute(shape_of(product), formula, op.kind)]


def _scale(tensor: Tensor, index: Sequence[Expr], axis: int) -> Expr:
    return cast(parameter(tensor, index, axis), "float32")


def einsum(op: Op) -> list[Tensor]:
    """numpy's einsum, with ellipsis and repeated labels."""
    tensors = [op.tensor(i) for i in range(len(op.values))]
    terms, result = parse_equation(op.attr("equation"), [len(shape_of(t)) for t in tensors])
    extents: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for label, d in zip(term, shape_of(tensor), strict=True):
            if extents.get(label, 1) not in (1, d) and d != 1:
                raise Refused(f"extents of {label!r} differ")
            extents[label] = max(extents.get(label, 1), d)
    inner = {label: te.reduce_axis((0, extents[label]), name="k") for label in extents if label not in result}
    tensors, terms = _last_label_last(tensors, terms, result, bool(inner))
    dtype = wide(op.value(0).dtype)

    def formula(*i: Expr) -> Expr:
        where = dict(zip(result, i, strict=True)) | {label: axis.var for label, axis in inner.items()}
        product = None
        for term, tensor in zip(terms, tensors, strict=True):
            index = [0 if d == 1 else where[label] for label, d in zip(term, shape_of(tensor), strict=True)]
            factor = cast(element(tensor, index), dtype)
            product = factor if product is None else product * factor
        return te.sum(product, axis=list(inner.values())) if inner else product

    made = compute([extents[label] for label in result], formula, "spread_einsum" if inner else op.kind)
    return [elementwise(lambda v: cast(v, op.value(0).dtype), made)]


def _last_label_last(
    tensors: list[Tensor], terms: list[list[str]], result: list[str], sums: bool
) -> tuple[list[Tensor], list[list[str]]]:
    """Operands that have the result's last label elsewhere than last are stored with it last."""
    if not result or not sums:
        return tensors, terms
    label = result[-1]
    moved, named = [], []
    for tensor, term in zip(tensors, terms, strict=True):
        if term.count(label) == 1 and term[-1] != label and len(set(term)) == len(term):
            order = [*(i for i, n in enumerate(term) if n != label), term.index(label)]
            tensor, term = transposed_copy(tensor, order), [term[i] for i in order]
        moved.append(tensor)
        named.append(term)
    return moved, named


def parse_equation(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Labels of each operand and of the result. An ellipsis becomes labels of its own, "...0" being the last axis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = []
    for text, rank in zip(left.split(","), ranks, strict=True):
        before, dots, after = text.partition("...")
        hidden = rank - len(before) - len(after) if dots else 0
        terms.append([*before, *(f"...{hidden - 1 - i}" for i in range(hidden)), *after])
    dotted = sorted({n for t in terms for n in t if n.startswith("...")}, key=lambda n: -int(n[3:]))
    if arrow:
        before, dots, after = right.partition("...")
        return terms, [*before, *(dotted if dots else []), *after]
    every = [n for t in terms for n in t]
    return terms, [*dotted, *sorted(n for n in set(every) if every.count(n) == 1 and not n.startswith("..."))]


def determinant(op: Op) -> list[Tensor]:
    """Gaussian elimination with partial pivoting, on a copy of each matrix."""
    from tvm.script.ir_builder import tirx as T

    from irc.backends.tvm.library.gather import loops
    from irc.backends.tvm.library.op import flatten_index, reshape, sequential

    x = op.tensor(0)
    *batch, n, _ = shape_of(x)
    dtype = dtype_of(x)
    many = int(np.prod(batch, dtype=np.int64))

    def body(ins: list, outs: list) -> None:  # type: ignore[type-arg]  # TVM's buffer proxies have no type
        result, m, best = outs

        def one(index: list[Expr]) -> None:
            b = flatten_index([index[0]], [many])
            with T.serial(0, n * n) as e:
                m[e] = ins[0][b, tirx.floordiv(e, n), tirx.floormod(e, n)]
            result[b] = const(1, dtype)
            with T.serial(0, n) as k:
                best[0] = k
                with T.serial(0, n) as r:
                    better = tirx.all(r > k, tirx.abs(m[r * n + k]) > tirx.abs(m[best[0] * n + k]))
                    best[0] = tirx.Select(better, r, best[0])
                result[b] = result[b] * tirx.Select(best[0] == k, const(1, dtype), const(-1, dtype))
                with T.serial(0, n) as c:
                    m[n * n] = m[k * n + c]
                    m[k * n + c] = m[best[0] * n + c]
                    m[best[0] * n + c] = m[n * n]
                result[b] = result[b] * m[k * n + k]
                below = n - 1 - k
                with T.serial(0, below) as s, T.If(m[k * n + k] != const(0, dtype)), T.Then():
                    r = k + 1 + s
                    m[n * n] = m[r * n + k] / m[k * n + k]
                    with T.serial(0, n) as c:
                        m[r * n + c] = m[r * n + c] - m[n * n] * m[k * n + c]

        loops([many], one)

    flat = reshape(x, (many, n, n))
    made = sequential([(many,), (n * n + 1,), (1,)], [dtype, dtype, "int32"], [flat], body, op.kind)
    return [reshape(made[0], batch)]


OPERATORS: dict[str, Definition] = {
    "Det": determinant,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": mat_mul,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
}
