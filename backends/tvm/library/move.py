"""Operators that only move elements: every output element is one input element, found by a formula of its index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import tirx

from irc.backends.tvm.library.elementwise import Definition
from irc.backends.tvm.library.op import (
    Expr,
    Op,
    Refused,
    Tensor,
    at,
    axes_of,
    axis_of,
    compute,
    const,
    dtype_of,
    element,
    elementwise,
    index32,
    reshape,
    shape_of,
    transpose,
)
from irc.backends.tvm.library.reduce import drop


def copy(tensor: Tensor) -> Tensor:
    return elementwise(lambda v: v, tensor, name="copy")


def reshape_to(op: Op) -> list[Tensor]:
    """0 keeps the extent (unless allowzero), one -1 takes the rest."""
    old = op.value(0).shape
    given = op.attr("shape", None) if op.since < 5 else op.integers(1, "shape")
    new = [old[i] if d == 0 and not op.attr("allowzero", 0) else d for i, d in enumerate(given)]
    if -1 in new:
        rest = int(np.prod([d for d in new if d != -1], dtype=np.int64))
        new[new.index(-1)] = int(np.prod(old, dtype=np.int64)) // rest if rest else 0
    return [reshape(op.tensor(0), new)]


def flatten(op: Op) -> list[Tensor]:
    shape = op.value(0).shape
    axis = op.attr("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    return [reshape(op.tensor(0), (rows, int(np.prod(shape[axis:], dtype=np.int64))))]


def transposed(op: Op) -> list[Tensor]:
    rank = len(op.value(0).shape)
    return [transpose(op.tensor(0), op.attr("perm") or list(range(rank))[::-1])]


def given_axes(op: Op) -> list[int]:
    return op.integers(1, "axes") if op.has(1) else list(op.attr("axes", []))


def squeeze(op: Op) -> list[Tensor]:
    shape = op.value(0).shape
    axes = given_axes(op)
    wanted = axes_of(axes, len(shape)) if axes else [a for a, d in enumerate(shape) if d == 1]
    return [drop(op.tensor(0), wanted)]


def unsqueeze(op: Op) -> list[Tensor]:
    shape = op.value(0).shape
    axes = given_axes(op)
    added = set(axes_of(axes, len(shape) + len(axes)))
    left = iter(shape)
    new = [1 if a in added else next(left) for a in range(len(shape) + len(axes))]
    x = op.tensor(0)
    return [compute(new, lambda *i: element(x, [v for a, v in enumerate(i) if a not in added]), "unsqueeze")]


def expand(op: Op) -> list[Tensor]:
    x = op.tensor(0)
    shape = np.broadcast_shapes(shape_of(x), tuple(op.integers(1, "shape")))
    return [compute(shape, lambda *i: at(x, i), op.kind)]


def tile(op: Op) -> list[Tensor]:
    x, repeats = op.tensor(0), op.integers(1, "repeats")
    shape = shape_of(x)
    new = [d * r for d, r in zip(shape, repeats, strict=True)]
    return [compute(new, lambda *i: element(x, [tirx.floormod(v, d) for v, d in zip(i, shape, strict=True)]), op.kind)]


def pad(op: Op) -> list[Tensor]:
    """All modes; negative pads crop. Before opset 11 the pads and the value are attributes."""
    x = op.tensor(0)
    shape, rank, dtype = shape_of(x), len(shape_of(x)), dtype_of(x)
    pads = op.integers(1, "pads") if op.has(1) else list(op.attr("pads", []))
    axes = axes_of(op.integers(3, "axes"), rank) if op.has(3) else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, a in enumerate(axes):
        before[a], after[a] = pads[i], pads[i + len(axes)]
    mode = op.attr("mode", "constant")
    if mode == "constant" and op.has(2):
        filler = op.tensor(2)
        value = element(filler, [0] * len(shape_of(filler)))
    else:
        value = const(op.attr("value", 0.0), dtype)
    new = [b + d + e for b, d, e in zip(before, shape, after, strict=True)]

    def formula(*index: Expr) -> Expr:
        source = [i - b if b else i for i, b in zip(index, before, strict=True)]
        if mode != "constant":
            return element(x, [_folded(i, d, mode) for i, d in zip(source, shape, strict=True)])
        bounds = [i >= 0 for i, b in zip(source, before, strict=True) if b > 0]
        bounds += [i < d for i, d, e in zip(source, shape, after, strict=True) if e > 0]
        return tirx.if_then_else(tirx.all(*bounds), element(x, source), value) if bounds else element(x, source)

    if mode != "constant" and 0 in shape:
        raise Refused("padding an empty tensor by its own elements")
    return [compute(new, formula, op.kind)]


def _folded(i: Expr, extent: int, mode: str) -> Expr:
    """An index outside of 0..extent-1 brought inside."""
    if mode == "edge":
        return tirx.max(tirx.min(i, extent - 1), 0)
    if mode == "wrap":
        return tirx.floormod(i, extent)
    if extent == 1:
        return i * 0
    inside = tirx.floormod(i, 2 * (extent - 1))
    return tirx.Select(inside >= extent, 2 * (extent - 1) - inside, inside)


def slices(op: Op) -> list[Tensor]:
    x = op.tensor(0)
    shape = shape_of(x)
    if op.since < 10:
        starts, ends = op.attr("starts"), op.attr("ends")
        axes, steps = op.attr("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = op.integers(1, "starts"), op.integers(2, "ends")
        axes = op.integers(3, "axes") if op.has(3) else list(range(len(starts)))
        steps = op.integers(4, "steps") if op.has(4) else [1] * len(starts)
    ranges = [range(d) for d in shape]
    for axis, start, end, step in zip(axes_of(axes, len(shape)), starts, ends, steps, strict=True):
        ranges[axis] = slice_range(shape[axis], start, end, step)
    new = [len(r) for r in ranges]
    return [
        compute(new, lambda *i: element(x, [r.start + v * r.step for v, r in zip(i, ranges, strict=True)]), op.kind)
    ]


def slice_range(extent: int, start: int, end: int, step: int) -> range:
    """The positions that Slice takes. Unlike Python's, a start before the first element is moved to it also when
    going backwards, and an end of INT_MAX stands for "all the rest" in both directions (as onnxruntime reads it)."""
    if extent == 0:
        return range(0)
    start, end = (v + extent if v < 0 else v for v in (start, end))
    if step > 0:
        return range(min(max(start, 0), extent), min(max(end, 0), extent), step)
    end = -1 if end in (2**31 - 1, 2**63 - 1) else min(max(end, -1), extent - 1)
    return range(min(max(start, 0), extent - 1), end, step)


def split(op: Op) -> list[Tensor]:
    x = op.tensor(0)
    shape = shape_of(x)
    axis = axis_of(op.attr("axis", 0), len(shape))
    sizes = op.integers(1, "split") if op.has(1) else op.attr("split")
    if not sizes:
        parts = op.attr("num_outputs", op.arity)
        chunk = -(-shape[axis] // parts)
        sizes = [max(min(chunk, shape[axis] - chunk * i), 0) for i in range(parts)]
    made, start = [], 0
    for size in sizes:
        new = [size if a == axis else d for a, d in enumerate(shape)]
        made.append(compute(new, lambda *i, s=start: element(x, [*i[:axis], i[axis] + s, *i[axis + 1 :]]), op.kind))
        start += size
    return made


def concat(op: Op) -> list[Tensor]:
    tensors = [op.tensor(i) for i in range(len(op.values))]
    return [concatenate(tensors, axis_of(op.attr("axis", 1), len(shape_of(tensors[0]))))]


def concatenate(tensors: Sequence[Tensor], axis: int) -> Tensor:
    tensors = [t for t in tensors if shape_of(t)[axis]] or list(tensors[:1])
    shape = shape_of(tensors[0])
    total = sum(shape_of(t)[axis] for t in tensors)

    def formula(*index: Expr) -> Expr:
        end = total
        value: Expr = None
        for t in reversed(tensors):
            start = end - shape_of(t)[axis]
            own = element(t, [*index[:axis], index[axis] - start if start else index[axis], *index[axis + 1 :]])
            value = own if value is None else tirx.if_then_else(index[axis] < end, own, value)
            end = start
        return value

    return compute([total if a == axis else d for a, d in enumerate(shape)], formula, "Concat")


def depth_to_space(op: Op) -> list[Tensor]:
    n, c, h, w = op.value(0).shape
    b = op.attr("blocksize")
    depth = c // (b * b)
    if op.attr("mode", "DCR") == "DCR":
        parts = transpose(reshape(op.tensor(0), (n, b, b, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        parts = transpose(reshape(op.tensor(0), (n, depth, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return [reshape(parts, (n, depth, h * b, w * b))]


def space_to_depth(op: Op) -> list[Tensor]:
    n, c, h, w = op.value(0).shape
    b = op.attr("blocksize")
    parts = reshape(op.tensor(0), (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if op.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return [reshape(transpose(parts, order), (n, c * b * b, h // b, w // b))]


def trilu(op: Op) -> list[Tensor]:
    x = op.tensor(0)
    k = int(op.array(1, "k").reshape(-1)[0]) if op.has(1) else 0
    zero = const(0, dtype_of(x))

    def formula(*index: Expr) -> Expr:
        offset = index[-1] - index[-2]
        kept = offset >= k if op.attr("upper", 1) else offset <= k
        return tirx.Select(kept, element(x, index), zero)

    k = max(min(k, 1 << 30), -(1 << 30))
    return [compute(shape_of(x), formula, op.kind)]


def reverse_sequence(op: Op) -> list[Tensor]:
    """The first `sequence_lens[b]` steps of each batch element, backwards."""
    x, lens = op.tensor(0), op.tensor(1)
    time, batch = op.attr("time_axis", 0), op.attr("batch_axis", 1)

    def formula(*index: Expr) -> Expr:
        length = tirx.min(index32(element(lens, [index[batch]])), shape_of(x)[time])
        t = index[time]
        source = tirx.Select(t < length, length - 1 - t, t)
        return element(x, [source if a == time else i for a, i in enumerate(index)])

    return [compute(shape_of(x), formula, op.kind)]


def compress(op: Op) -> list[Tensor]:
    """With a constant condition: the chosen positions are known."""
    condition = op.array(1, "condition").reshape(-1)
    x = op.tensor(0)
    axis = op.attr("axis")
    if axis is None:
        x, axis = reshape(x, (int(np.prod(shape_of(x), dtype=np.int64)),)), 0
    axis = axis_of(axis, len(shape_of(x)))
    chosen = np.flatnonzero(condition[: shape_of(x)[axis]]).astype(np.int32)
    table = op.materialize(chosen)
    shape = [len(chosen) if a == axis else d for a, d in enumerate(shape_of(x))]

    def formula(*index: Expr) -> Expr:
        where = element(table, [index[axis]])
        return element(x, [where if a == axis else i for a, i in enumerate(index)])

    return [compute(shape, formula, op.kind)]


def eye_like(op: Op) -> list[Tensor]:
    import onnx

    k = op.attr("k", 0)
    to = op.attr("dtype")
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(to)) if to else op.value(0).dtype
    one, zero = const(1, dtype), const(0, dtype)
    return [compute(op.value(0).shape, lambda i, j: tirx.Select(j - i == k, one, zero), op.kind)]


def constant_of_shape(op: Op) -> list[Tensor]:
    from onnx import numpy_helper

    value = op.attr("value")
    number = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    dtype = str(number.dtype)
    return [compute(op.integers(0, "shape"), lambda *_: const(number.reshape(-1)[0], dtype), op.kind)]


def one_hot(op: Op) -> list[Tensor]:
    """Indices outside of [-depth, depth) give rows of `off`."""
    indices, values = op.tensor(0), op.tensor(2)
    depth = int(op.array(1, "depth").reshape(-1)[0])
    shape = shape_of(indices)
    axis = axis_of(op.attr("axis", -1), len(shape) + 1)
    new = [*shape[:axis], depth, *shape[axis:]]

    def formula(*index: Expr) -> Expr:
        found = index32(element(indices, [*index[:axis], *index[axis + 1 :]]))
        found = tirx.Select(found < 0, found + depth, found)
        return tirx.Select(found == index[axis], element(values, [1]), element(values, [0]))

    return [compute(new, formula, op.kind)]


def bit_cast(op: Op) -> list[Tensor]:
    """The same bits read as another type of the same size."""
    import onnx

    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(op.attr("to")))
    own = op.value(0).dtype
    if np.dtype(dtype).itemsize != np.dtype(own).itemsize or "bool" in (dtype, own):
        raise Refused(f"bits of {own} as {dtype}")
    return [elementwise(lambda v: tirx.reinterpret(dtype, v), op.tensor(0), name=op.kind)]


OPERATORS: dict[str, Definition] = {
    "BitCast": bit_cast,
    "Compress": compress,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "OneHot": one_hot,
    "Pad": pad,
    "Reshape": reshape_to,
    "ReverseSequence": reverse_sequence,
    "Slice": slices,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transposed,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
