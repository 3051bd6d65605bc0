"""What kernel specifications mean, in numpy and by their definition: no tiles, no packing, no vectors.

Sums are taken in int64 or float64; expressions are `irc.backends.tvm.reference.evaluate`.
"""

from __future__ import annotations

import math

import numpy as np

from irc.backends.tvm.reference import evaluate
from irc.backends.tvm.specs import (
    AttentionSpec,
    DepthwiseSpec,
    ElementwiseSpec,
    FillSpec,
    LinearSpec,
    PoolSpec,
    ReduceSpec,
    RowsSpec,
    SparseSpec,
    WinogradInputSpec,
    WinogradSpec,
)
from irc.backends.tvm.winograd import input_matrix, input_size, output_matrix


def strided(flat: np.ndarray, shape, strides) -> np.ndarray:
    """A view of `flat`; strides count elements and stay inside."""
    assert all(s >= 0 for s in strides)
    assert math.prod(shape) == 0 or sum((d - 1) * s for d, s in zip(shape, strides, strict=True)) < flat.size
    return np.lib.stride_tricks.as_strided(flat, shape, [s * flat.itemsize for s in strides])


def output_geometry(spec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of what a kernel writes."""
    if isinstance(spec, SparseSpec):
        return output_geometry(spec.linear)
    if isinstance(spec, LinearSpec):
        return (*spec.batch, *spec.out, spec.oc), (*spec.y_strides, 1)
    if isinstance(spec, WinogradInputSpec):
        return (*_tiles(spec), spec.ic), (*spec.v_strides, 1)
    if isinstance(spec, WinogradSpec):
        return (spec.images, *spec.out, spec.oc), (*spec.y_strides, 1)
    if isinstance(spec, AttentionSpec):
        return (*spec.batch, spec.rows, spec.columns), spec.y_strides
    if isinstance(spec, DepthwiseSpec | PoolSpec):
        return (spec.batch, *spec.out, spec.channels), (*spec.y_strides, 1)
    if isinstance(spec, ElementwiseSpec):
        return spec.shape, spec.y_strides
    if isinstance(spec, RowsSpec):
        return (*spec.shape, spec.width), (*spec.y_strides, 1)
    assert isinstance(spec, ReduceSpec)
    return spec.shape, spec.y_strides


def written(spec, size: int) -> np.ndarray:
    """Which elements of a flat output of `size` elements the kernel may write."""
    mask = np.zeros(size, bool)
    if isinstance(spec, FillSpec):
        top, left, rows, columns, inner = spec.inner
        image = strided(mask, spec.shape, (*spec.strides, 1))
        image[...] = True
        image[:, top : top + rows, left : left + columns, :inner] = False
        return mask
    strided(mask, *output_geometry(spec))[...] = True
    if isinstance(spec, ElementwiseSpec) and spec.gap:  # the gap holds `fill` already and may be written with it again
        strided(mask, (*spec.shape[:-1], spec.shape[-1] + spec.gap), spec.y_strides)[...] = True
    return mask


def _operands(spec, arrays, shape) -> list[np.ndarray]:
    return [strided(a, shape, o.strides) for a, o in zip(arrays, spec.operands, strict=True)]


def attention(spec: AttentionSpec, q, k, v, *operands) -> np.ndarray:
    """Flat arrays in, [a, b, rows, columns] out."""
    a, b = spec.batch
    zero_q, zero_k, zero_p, zero_v = spec.zeros
    wide = np.float64 if spec.k_dtype == "float32" else np.int64
    q = strided(q, (a, b, spec.rows, spec.width), spec.q_strides).astype(wide) - zero_q
    k = strided(k, (a, b, spec.keys, spec.width), spec.k_strides).astype(wide) - zero_k
    shape = (a, b, spec.rows, spec.keys)
    count = len(spec.score_operands)
    given = [strided(o, shape, s.strides) for o, s in zip(operands[:count], spec.score_operands, strict=True)]
    scores = evaluate(spec.scores, given, _rounded(q @ np.swapaxes(k, 2, 3))).astype(np.float64)
    with np.errstate(invalid="ignore"):
        p = np.exp(scores - scores.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    if spec.probabilities:
        p = evaluate(spec.probabilities, [], p.astype(np.float32))
    wide = np.float64 if spec.p_dtype == "float32" else np.int64
    v = strided(v, (a, b, spec.keys, spec.columns), spec.v_strides).astype(wide) - zero_v
    total = (p.astype(wide) - zero_p) @ v
    shape = (a, b, spec.rows, spec.columns)
    return evaluate(spec.expression, _operands(spec, operands[count:], shape), _rounded(total))


def _sums(spec, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64 if x.dtype.kind == "f" else np.int64)


def _rounded(total: np.ndarray) -> np.ndarray:
    return total.astype(np.float32 if total.dtype.kind == "f" else np.int32)


def linear(spec: LinearSpec, x, w, *operands) -> np.ndarray:
    """`w` is given as [a, b, oc, kh, kw, ic] (a, b may be 1), not packed."""
    shape = (*spec.batch, *spec.out, *spec.kernel, spec.ic)
    sa, sb, sh, sw = spec.x_strides
    strides = (sa, sb, sh * spec.stride[0], sw * spec.stride[1], sh * spec.dilation[0], sw * spec.dilation[1], 1)
    data = _sums(spec, strided(x, shape, strides))
    factors = np.broadcast_to(_sums(spec, w), (*spec.batch, *w.shape[2:]))
    total = np.einsum("abhwkli,abckli->abhwc", data, factors)
    values = _operands(spec, operands, total.shape)
    if spec.sum_x:  # operand -1 is the last of the list
        values.append(np.broadcast_to(data.sum((4, 5, 6))[..., None].astype(np.int32), total.shape))
    if not spec.expression:
        return _rounded(total)
    return evaluate(spec.expression, values, _rounded(total))


def _tiles(spec) -> tuple[int, int]:
    """(points, tiles)"""
    points = math.prod(input_size(m, r) for m, r in zip(spec.tile, spec.kernel, strict=True))
    return points, spec.images * math.prod(-(-o // m) for o, m in zip(spec.out, spec.tile, strict=True))


def _corners(spec) -> list[tuple[int, int, int]]:
    """(image, row, column) of the first output of every tile; the last of a row or column ends with the image."""
    rows, columns = ([min(s, o - m) for s in range(0, o, m)] for o, m in zip(spec.out, spec.tile, strict=True))
    return [(n, h, w) for n in range(spec.images) for h in rows for w in columns]


def _matrices(spec, make) -> list[np.ndarray]:
    return [np.array(make(m, r), np.float64) for m, r in zip(spec.tile, spec.kernel, strict=True)]


def winograd_input(spec: WinogradInputSpec, x) -> np.ndarray:
    height, width = (o + r - 1 for o, r in zip(spec.out, spec.kernel, strict=True))
    image = strided(x, (spec.images, height, width, spec.ic), (*spec.x_strides, 1))
    rows, columns = _matrices(spec, input_matrix)
    tiles = np.stack([image[n, h : h + len(rows), w : w + len(columns)] for n, h, w in _corners(spec)])
    made = np.einsum("ai,tijc,bj->abtc", rows, tiles.astype(np.float64), columns)
    return made.reshape(*_tiles(spec), spec.ic).astype(np.float32)


def winograd(spec: WinogradSpec, v, w, *operands) -> np.ndarray:
    """`w` is given as [oc, point row, point column, ic], not packed."""
    points, tiles = _tiles(spec)
    data = strided(v, (points, tiles, spec.ic), (*spec.v_strides, 1)).astype(np.float64)
    rows, columns = _matrices(spec, output_matrix)
    product = np.einsum("pti,opi->pto", data, w.reshape(spec.oc, points, spec.ic))
    product = product.reshape(rows.shape[1], columns.shape[1], tiles, spec.oc)
    outputs = np.einsum("ai,ijto,bj->tabo", rows, product, columns)
    total = np.zeros((spec.images, *spec.out, spec.oc))
    for (n, h, w_), tile in reversed(list(zip(_corners(spec), outputs, strict=True))):  # the first tile counts
        total[n, h : h + spec.tile[0], w_ : w_ + spec.tile[1]] = tile
    if not spec.expression:
        return _rounded(total)
    return evaluate(spec.expression, _operands(spec, operands, total.shape), _rounded(total))


def depthwise(spec: DepthwiseSpec, x, w, *operands) -> np.ndarray:
    """`w` is [kh, kw, channels]."""
    sn, sh, sw = spec.x_strides
    shape = (spec.batch, *spec.out, *spec.kernel, spec.channels)
    strides = (sn, sh * spec.stride[0], sw * spec.stride[1], sh * spec.dilation[0], sw * spec.dilation[1], 1)
    total = np.einsum("nhwklc,klc->nhwc", _sums(spec, strided(x, shape, strides)), _sums(spec, w))
    if not spec.expression:
        return _rounded(total)
    return evaluate(spec.expression, _operands(spec, operands, total.shape), _rounded(total))


def pool(spec: PoolSpec, x, *operands) -> np.ndarray:
    sn, sh, sw = spec.x_strides
    image = strided(x, (spec.batch, *spec.image, spec.channels), (sn, sh, sw, 1))
    out = np.zeros((spec.batch, *spec.out, spec.channels), x.dtype if spec.kind == "max" else _sums(spec, x).dtype)
    count = np.zeros((spec.batch, *spec.out, spec.channels), np.float32)
    for h, w in np.ndindex(spec.out):
        rows = [h * spec.stride[0] - spec.pads[0] + i * spec.dilation[0] for i in range(spec.kernel[0])]
        columns = [w * spec.stride[1] - spec.pads[1] + i * spec.dilation[1] for i in range(spec.kernel[1])]
        rows = [r for r in rows if 0 <= r < spec.image[0]]
        columns = [c for c in columns if 0 <= c < spec.image[1]]
        window = image[:, rows][:, :, columns]
        out[:, h, w] = window.max((1, 2)) if spec.kind == "max" else _sums(spec, window).sum((1, 2))
        count[:, h, w] = len(rows) * len(columns)
    total = out if spec.kind == "max" else _rounded(out)
    values = [*_operands(spec, operands, total.shape), count]
    return evaluate(spec.expression, values, total) if spec.expression else total


def elementwise(spec: ElementwiseSpec, *operands) -> np.ndarray:
    if spec.expression[-1].op == "table":
        index = strided(operands[0], spec.shape, spec.operands[0].strides).view(np.uint8)
        return operands[1][index]
    return np.broadcast_to(evaluate(spec.expression, _operands(spec, operands, spec.shape)), spec.shape)


def rows(spec: RowsSpec, x, *operands) -> np.ndarray:
    data = strided(x, (*spec.shape, spec.width), (*spec.x_strides, 1))
    if spec.prologue:
        data = evaluate(spec.prologue, [data])
    data = data.astype(np.float64)
    if spec.kind in ("softmax", "log_softmax"):
        shifted = data - data.max(-1, keepdims=True)
        total = np.exp(shifted).sum(-1, keepdims=True)
        value = np.exp(shifted) / total if spec.kind == "softmax" else shifted - np.log(total)
    else:
        centred = data - data.mean(-1, keepdims=True) if spec.kind == "layer_norm" else data
        value = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + spec.epsilon)
    value = value.astype(np.float32)
    return evaluate(spec.expression, _operands(spec, operands, value.shape), value) if spec.expression else value


_REDUCTIONS = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}


def reduce(spec: ReduceSpec, x, *operands) -> np.ndarray:
    data = strided(x, (*spec.shape, *spec.reduced), (*spec.x_strides, *spec.r_strides))
    if spec.prologue:
        data = evaluate(spec.prologue, [data])
    axes = tuple(range(len(spec.shape), data.ndim))
    total = _REDUCTIONS[spec.kind](_sums(spec, data), axes).astype(data.dtype)
    return evaluate(spec.expression, _operands(spec, operands, total.shape), total) if spec.expression else total


_MEANINGS = {
    LinearSpec: linear,
    WinogradInputSpec: winograd_input,
    WinogradSpec: winograd,
    DepthwiseSpec: depthwise,
    PoolSpec: pool,
    ElementwiseSpec: elementwise,
    RowsSpec: rows,
    ReduceSpec: reduce,
}


def expected(spec, *arrays) -> np.ndarray:
    """The flat output, untouched elements 0. Weights of linear and depthwise kernels are given unpacked."""
    if isinstance(spec, FillSpec):
        out = np.zeros(spec.size, spec.dtype)
        out[written(spec, spec.size)] = spec.value
        return out
    if isinstance(spec, WinogradInputSpec):
        out = np.zeros(spec.v_size, np.float32)
    else:
        dtype = "float32" if isinstance(spec, WinogradSpec) else spec.y_dtype
        out = np.full(spec.y_size, spec.fill if isinstance(spec, ElementwiseSpec) else 0, dtype)
    strided(out, *output_geometry(spec))[...] = _MEANINGS[type(spec)](spec, *arrays)
    return out
