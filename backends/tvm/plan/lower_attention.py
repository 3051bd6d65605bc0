"""Attention: two products of computed matrices with a softmax between them become one kernel.

It is found among the regions, so whatever their kernels would fuse is in it: scales, masks, quantizations before and
after. What lies around it (Transpose, Reshape, heads split or not) is stride arithmetic, as everywhere. Where one of
the three regions has another reader or another shape, each gets a kernel of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from irc.backends.tvm.expression import Expression, ExpressionBuilder
from irc.backends.tvm.geometry import lanes_of
from irc.backends.tvm.plan.kinds import dequantized, is_weight
from irc.backends.tvm.plan.planner import Planner, RegionOperands
from irc.backends.tvm.plan.regions import Region
from irc.backends.tvm.plan.tiles import retiled
from irc.backends.tvm.plan.translate import builder_of, data_inputs
from irc.backends.tvm.plan.views import View, collapse, row_major
from irc.backends.tvm.specs import AttentionSpec, Operand
from irc.ir.graph import Value
from irc.ir.types import Array, DType
from irc.targets.target import Target

_STACK = 160 * 1024  # bytes that a kernel may take of a thread's stack


@dataclass(frozen=True)
class Attention:
    """The regions of q k^T, of the softmax, and of the product with v."""

    scores: Region
    softmax: Region
    values: Region

    @property
    def inner(self) -> tuple[Region, Region]:
        return self.scores, self.softmax

    @property
    def label(self) -> str:
        return "+".join(r.label for r in (*self.inner, self.values))

    @property
    def origin(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for r in (*self.inner, self.values) for name in r.origin))


def find_attention(regions: Sequence[Region], target: Target) -> list[Attention]:
    """All that one kernel computes: no intermediate has another reader, and a block's scores fit the stack."""
    made = {id(r.output): r for r in regions}
    rooted = {id(r.root): r for r in regions}
    found = []
    for softmax in regions:
        match = _match(softmax, made, rooted)
        if match is not None and _vectors(match, target):
            found.append(match)
    return found


def _match(softmax: Region, made: dict[int, Region], rooted: dict[int, Region]) -> Attention | None:
    root = softmax.root
    if not root.is_op("Softmax") or softmax.kind != "rows":
        return None
    rank = len(root.output.static_shape())
    if root.get_int("axis", -1) % rank != rank - 1 or _reads_more(softmax):
        return None
    source = _source(root.need(0))
    scores = made.get(id(source))
    if scores is None or not _is_product(scores) or _readers(source) != [root]:
        return None
    readers = _readers(softmax.output)
    values = rooted.get(id(readers[0])) if len(readers) == 1 else None
    if values is None or not _is_product(values) or _source(values.root.need(0)) is not softmax.output:
        return None
    p, v = values.root.need(0), values.root.need(1)
    if p is v or _source(v) is softmax.output:
        return None
    lead = p.static_shape()[:-2]
    if np.broadcast_shapes(lead, v.static_shape()[:-2]) != lead or scores.root.output.static_shape()[:-2] != lead:
        return None
    return Attention(scores, softmax, values)


def _source(value: Value) -> Value:
    found = dequantized(value)
    return value if found is None else found[0]


def _readers(value: Value) -> list[object]:
    """The nodes that read a value, those of its dequantizations in their place; none where it leaves the network."""
    if value.is_output:
        return []
    found: list[object] = []
    for user in value.users:
        if user.is_op("DequantizeLinear") and dequantized(user.output) is not None:
            if user.output.is_output:
                return []
            found.extend(user.output.users)
        else:
            found.append(user)
    return found


def _is_product(region: Region) -> bool:
    """A MatMul whose second factor is computed (the first may be learned queries)."""
    node = region.root
    if region.kind != "linear" or not node.is_op("MatMul") or is_weight(node.need(1)):
        return False
    return all(len(v.static_shape()) >= 2 for v in (node.need(0), node.need(1)))


def _reads_more(softmax: Region) -> bool:
    """Whether something after the softmax reads another tensor than its result."""
    inside = {id(n.output) for n in softmax.nodes}
    for node in softmax.nodes[1:]:
        assert builder_of(node) is not None, "a region holds only what translates"
        for value in data_inputs(node):
            if id(value) not in inside and not (value.is_constant and value.numpy().size == 1):
                return True
    return False


def _integers(a: Value, b: Value) -> bool:
    found = (dequantized(a), dequantized(b))
    return all(f is not None and f[0].dtype is not DType.INT16 for f in found)


def _sizes(attention: Attention) -> tuple[int, int, int, int]:
    """(queries, keys, width of a query, columns of v)."""
    q, v = attention.scores.root.need(0).static_shape(), attention.values.root.need(1).static_shape()
    return q[-2], v[-2], q[-1], v[-1]


def _vectors(attention: Attention, target: Target) -> int:
    """Vectors of queries in a block; 0 where not even one fits the stack."""
    rows, keys, width, columns = _sizes(attention)
    lanes = lanes_of(target)
    if 0 in attention.scores.root.output.static_shape() or 0 in (width, columns):
        return 0
    size = 1 if _integers(attention.values.root.need(0), attention.values.root.need(1)) else 0
    most = 4 if target.vector_registers >= 32 and lanes <= 4 else 2
    for vectors in (4, 2, 1):
        block = vectors * lanes
        if vectors > max(1, min(most, -(-rows // lanes))):
            continue
        if block * (keys * (4 + size) + width * 4) + size * keys * (columns + lanes) <= _STACK:
            return vectors
    return 0


def lower_attention(p: Planner, attention: Attention) -> None:
    first, last = attention.scores.root, attention.values.root
    rows, keys, width, columns = _sizes(attention)
    lead = first.output.static_shape()[:-2]
    real_scores = not _integers(first.need(0), first.need(1))
    real_values = not _integers(last.need(0), last.need(1))
    q, q_scale, q_zero = _factor(p, first.need(0), real_scores)
    k, k_scale, k_zero = _factor(p, first.need(1), real_scores)
    v, v_scale, v_zero = _factor(p, last.need(1), real_values)
    k = k.transposed((*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2))
    if not real_scores:
        q, k = _contiguous(p, q), _contiguous(p, k)
        k, k_zero = _signed(p, k, k_zero)
    v = _contiguous(p, v)
    probabilities, p_dtype, p_scale, p_zero = _probabilities(p, attention, real_values)
    scores, score_values = _scores(p, attention, 1.0 if real_scores else q_scale * k_scale, real_scores)
    expression, values = _result(p, attention, 1.0 if real_values else p_scale * v_scale, real_values)

    shape = attention.values.output.static_shape()
    full = (*lead, rows, columns)
    out = p.output_view(attention.values.output, range(len(shape)), innermost=len(shape) - 1)
    assert tuple(shape) == full, "a region keeps its root's shape"
    q, k, v = (view.broadcast_to((*lead, *view.shape[-2:])) for view in (q, k, v))
    lanes = lanes_of(p.target)
    s_views = [_across_rows(p, value, (*lead, rows, keys), lanes) for value in score_values]
    e_views = [_along_columns(p, p.operand_view(value, shape)) for value in values]
    vectors = _vectors(attention, p.target)
    pieces = (q, k, v, out, *s_views, *e_views)
    dims, strides = collapse(lead, [view.strides[:-2] for view in pieces])
    extra, batch = dims[: max(len(dims) - 2, 0)], (1, 1, *dims)[-2:]
    layouts = [(*(0, 0, *s)[-2:], *view.strides[-2:]) for s, view in zip(strides, pieces, strict=True)]
    read = [Operand(w.dtype, s, _addressed(w, batch, s)) for w, s in zip(pieces, layouts, strict=True)]
    scored = [replace(o, size=o.size + -rows % lanes * o.strides[2]) for o in read[4 : 4 + len(s_views)]]
    untiled = AttentionSpec(
        q_dtype=q.dtype,
        k_dtype=k.dtype,
        v_dtype=v.dtype,
        p_dtype=p_dtype,
        y_dtype=out.dtype,
        batch=(batch[0], batch[1]),
        rows=rows,
        keys=keys,
        width=width,
        columns=columns,
        q_strides=layouts[0],
        k_strides=layouts[1],
        v_strides=layouts[2],
        y_strides=layouts[3],
        scores=scores,
        score_operands=tuple(scored),
        probabilities=probabilities,
        expression=expression,
        operands=tuple(read[4 + len(s_views) :]),
        zeros=(q_zero, k_zero, p_zero, v_zero),
        score_tile=(1, vectors),
        value_tile=(1, 1),
        q_size=read[0].size,
        k_size=read[1].size,
        v_size=read[2].size,
        y_size=read[3].size,
    )
    spec = retiled(untiled, p.target)
    macs = math.prod(batch) * rows * keys * (width + columns)
    for index in itertools.product(*(range(d) for d in extra)):
        at = [
            replace(view, offset=view.offset + sum(i * t for i, t in zip(index, s, strict=False)))
            for view, s in zip(pieces, strides, strict=True)
        ]
        args = [p.pointer(view) for view in (*at[:3], *at[4:], at[3])]
        p.call(spec, args, (out.storage,), attention.label, macs=macs)
    p.views[id(attention.values.output)] = out


def _addressed(view: View, batch: Sequence[int], strides: Sequence[int]) -> int:
    return 1 + sum((d - 1) * s for d, s in zip((*batch, *view.shape[-2:]), strides, strict=True))


def _factor(p: Planner, value: Value, real: bool) -> tuple[View, float, int]:
    """(view, scale, zero point) of a factor: its 8-bit numbers, or reals."""
    found = None if real else dequantized(value)
    return (p.view(value), 1.0, 0) if found is None else (p.view(found[0]), found[1], found[2])


def _contiguous(p: Planner, view: View) -> View:
    """With the last dimension's stride 1, copied where it is not."""
    if view.strides[-1] == 1 or view.shape[-1] == 1:
        return view
    made = View(p.new_storage(view.dtype, math.prod(view.shape)), view.dtype, view.shape, row_major(view.shape))
    p.copy(view, made, "reorder")
    return made


def _signed(p: Planner, view: View, zero: int) -> tuple[View, int]:
    """8-bit data of the sign that the dot product wants (normalization has seen to it nearly everywhere)."""
    wanted = p.target.activations
    if view.dtype == wanted or p.target.dot == "widening":
        return view, zero
    made = View(p.new_storage(wanted, math.prod(view.shape)), wanted, view.shape, row_major(view.shape))
    b = ExpressionBuilder()
    p.elementwise(made, b.finish(b.add("flip", wanted, b.operand(0, view.dtype))), [view], "flip")
    return made, zero + (128 if wanted == "uint8" else -128)


def _scores(p: Planner, attention: Attention, scale: float, real: bool) -> tuple[Expression, list[Value | Array]]:
    b, operands = ExpressionBuilder(), RegionOperands()
    start = _real(b, scale, real)
    result = p.translate(attention.scores, b, operands, start)
    found = dequantized(attention.softmax.root.need(0))
    if found is not None:
        result = b.dequantize(result, found[1], found[2])
    return b.finish(result), operands.values


def _real(b: ExpressionBuilder, scale: float, real: bool) -> int:
    """The sum of a product as a real number."""
    if real:
        return b.add("accumulator", "float32")
    total = b.add("cast", "float32", b.add("accumulator", "int32"))
    return b.add("mul", "float32", total, b.constant(float(np.float32(scale)), "float32"))


def _probabilities(p: Planner, attention: Attention, real: bool) -> tuple[Expression, str, float, int]:
    """(expression, type, scale, zero point) of what the second product reads; no expression where nothing follows."""
    b = ExpressionBuilder()
    start = b.add("accumulator", "float32")
    result = p.translate(attention.softmax, b, RegionOperands(), start)
    found = dequantized(attention.values.root.need(0))
    if found is not None and not real:
        return b.finish(result), b.dtype(result), found[1], found[2]
    if found is not None:
        result = b.dequantize(result, found[1], found[2])
    return (() if result == start else b.finish(result)), "float32", 1.0, 0


def _result(p: Planner, attention: Attention, scale: float, real: bool) -> tuple[Expression, list[Value | Array]]:
    b, operands = ExpressionBuilder(), RegionOperands()
    start = _real(b, scale, real)
    return b.finish(p.translate(attention.values, b, operands, start)), operands.values


def _across_rows(p: Planner, value: Value | Array, shape: Sequence[int], lanes: int) -> View:
    """An operand of the scores: the same for all rows, or rows innermost (whole vectors of them)."""
    view = p.operand_view(value, shape)
    rows = shape[-2]
    if view.strides[-2] == 0 or rows == 1:
        return replace(view, strides=(*view.strides[:-2], 0, view.strides[-1]))
    if view.strides[-2] == 1 and rows % lanes == 0:
        return view
    key = (id(value), lanes)
    if key not in p.turned:
        p.turned[key] = _turned(p, value, rows, lanes)
    return p.turned[key].broadcast_to(shape)


def _turned(p: Planner, value: Value | Array, rows: int, lanes: int) -> View:
    """[..., rows, keys] with the rows innermost, a multiple of `lanes` of them in memory."""
    padded = -(-rows // lanes) * lanes
    data = value.numpy() if isinstance(value, Value) and value.is_constant else value
    if not isinstance(data, Value):
        turned = np.swapaxes(data, -1, -2)
        view = p.constant(np.pad(turned, [(0, 0)] * (data.ndim - 1) + [(0, padded - rows)]))
    else:
        source = p.view(data)
        memory = (*source.shape[:-2], source.shape[-1], padded)
        view = View(p.new_storage(source.dtype, math.prod(memory)), source.dtype, memory, row_major(memory))
        order = (*range(len(source.shape) - 2), len(source.shape) - 1, len(source.shape) - 2)
        p.copy(source.transposed(order), replace(view, shape=(*memory[:-1], rows)), "reorder")
    view = replace(view, shape=(*view.shape[:-1], rows))
    rank = len(view.shape)
    return view.transposed((*range(rank - 2), rank - 1, rank - 2))


def _along_columns(p: Planner, view: View) -> View:
    return view if view.strides[-1] in (0, 1) else _contiguous(p, view)
