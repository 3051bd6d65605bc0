"""How channels flow through operators: one rule for each, from which axis of the inputs to which axis of the output.

A rule reads the variables of each input axis that it understands (`Sweep.read`), makes those of the output and ties
them. What it does not read is frozen afterwards, so a rule needs to know only what is safe: an operator without a rule
freezes all that it reads. Axes without variables carry no channels (batch, height, tokens).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.ops import is_elementwise
from irc.ir.types import Array
from irc.passes.prune.dependencies import Sweep
from irc.rewrite.facts import ints, rank


def sweep(s: Sweep, node: Node) -> None:
    """Apply the rule of `node`."""
    if node.domain != "":
        return
    rule = _RULES.get(node.op_type, _elementwise if is_elementwise(node) and node.op_type != "CastLike" else None)
    if rule is not None and all(v is None or v.shape is not None for v in (*node.inputs, *node.outputs)):
        rule(s, node)


# Linear layers


def _conv(s: Sweep, node: Node) -> None:
    weight, groups = node.need(1), node.get_int("group", 1)
    if not weight.is_constant:
        return
    outputs, per_group = weight.static_shape()[:2]
    x, out = s.read(node, 0, 1), s.make(node.output, 1)
    rows = s.read(node, 1, 0)
    s.role("make", node, 1, 0)
    s.tie(rows, out)
    _tie_bias(s, node, 2, rows)
    columns = s.read(node, 1, 1)
    if groups == 1:
        s.role("read", node, 1, 1)
        if x is None:
            s.freeze(columns, "it reads an input of the model, or what no layer makes")
        else:
            s.tie(x, columns)
        return
    if x is None or rows is None:
        s.freeze(rows, "its channels come in groups, from an input of the model")
        s.freeze(columns, "its channels come in groups, from an input of the model")
        return
    of_output, of_input = np.arange(outputs) * groups // outputs, np.arange(groups * per_group) // per_group
    if per_group == 1 or groups >= per_group:  # a whole group goes, inputs and outputs
        s.tie(x, x[of_input * per_group])
        s.tie(rows, x[of_output * per_group])
        s.freeze(columns, "its inputs go by whole groups")
        return
    s.role("read", node, 1, 1)
    assert columns is not None
    s.tie(x, columns[np.arange(len(x)) % per_group])  # the same places of every group go
    size = outputs // groups
    s.tie(rows, rows[np.arange(outputs) % size])


def _conv_transpose(s: Sweep, node: Node) -> None:
    weight, groups = node.need(1), node.get_int("group", 1)
    if not weight.is_constant:
        return
    inputs, per_group = weight.static_shape()[:2]
    x, rows, columns = s.read(node, 0, 1), s.read(node, 1, 0), s.read(node, 1, 1)
    if groups == 1:
        s.role("make", node, 1, 1)
        s.role("read", node, 1, 0)
        s.tie(columns, s.make(node.output, 1))
        _tie_bias(s, node, 2, columns)
        if x is None:
            s.freeze(rows, "it reads an input of the model, or what no layer makes")
        else:
            s.tie(x, rows)
        return
    s.freeze(columns, "its outputs go by whole groups")
    if x is None or groups != inputs:
        s.freeze(x, f"{node.label} has channels in groups")
        s.freeze(rows, f"{node.label} has channels in groups")
        _tie_bias(s, node, 2, None)
        return
    out = s.make(node.output, 1)
    s.tie(x, rows)
    if out is not None:
        s.tie(out, x[np.arange(len(out)) // per_group])
        _tie_bias(s, node, 2, out)


def _gemm(s: Sweep, node: Node) -> None:
    if node.get_int("transA"):
        return
    inner, outer = (1, 0) if node.get_int("transB") else (0, 1)
    _product(s, node, 1, inner, outer)
    bias = node.input(2)
    if bias is None:
        return
    out, last = _variables(s, node.output, 1), (rank(bias) or 0) - 1
    if last >= 0 and s.extent(bias, last) != 1:
        s.tie(s.read(node, 2, last), out)


def _matmul(s: Sweep, node: Node) -> None:
    a, b = rank(node.need(0)) or 0, rank(node.need(1)) or 0
    if a < 2 or b < 2:
        return
    _product(s, node, a - 1, b - 2, b - 1)
    out_rank = rank(node.output) or 0
    if out_rank < 2:
        return
    if s.is_live(node, 0, a - 2) or (node.need(0).is_constant and s.is_live(node, 1, b - 2)):
        if node.need(0).is_constant:
            s.role("make", node, 0, a - 2)
        s.tie(s.read(node, 0, a - 2), s.make(node.output, out_rank - 2))
    for axis in range(out_rank - 2):
        _broadcast_axis(s, node, axis, out_rank, (0, 1))


def _product(s: Sweep, node: Node, left: int, inner: int, outer: int) -> None:
    """The sum over axis `left` of input 0 and `inner` of input 1; `outer` of input 1 becomes the last axis."""
    a, b = node.need(0), node.need(1)
    x, w = s.read(node, 0, left), s.read(node, 1, inner)
    if x is not None and w is not None:
        s.tie(x, w)
        for index, axis in ((0, left), (1, inner)):
            if node.need(index).is_constant:
                s.role("read", node, index, axis)
    else:
        s.freeze(x, f"{node.label} sums over it, with what no layer makes")
        s.freeze(w, "it reads an input of the model, or what no layer makes")
    if b.is_constant and not a.is_constant:
        s.role("make", node, 1, outer)
    columns = s.read(node, 1, outer)
    if columns is not None:
        s.tie(columns, s.make(node.output, (rank(node.output) or 1) - 1))


def _tie_bias(s: Sweep, node: Node, index: int, variables: Array | None) -> None:
    bias = s.read(node, index, 0)
    if bias is None:
        if node.input(index) is not None:
            s.freeze(variables, f"{node.label} has a computed bias")
        return
    if variables is None:
        s.freeze(bias, "its channels are needed")
    else:
        s.tie(bias, variables)


# Elementwise, normalization, pooling


def _elementwise(s: Sweep, node: Node) -> None:
    if not s.any_live(node):
        return
    out_rank = rank(node.output)
    if out_rank is None:
        return
    for axis in range(out_rank):
        _broadcast_axis(s, node, axis, out_rank, tuple(range(len(node.inputs))))


def _broadcast_axis(s: Sweep, node: Node, axis: int, out_rank: int, indices: tuple[int, ...]) -> None:
    """Tie the operands along one axis of the broadcast output (of rank `out_rank`)."""
    operands: list[tuple[int, int]] = []
    for index in indices:
        value = node.input(index)
        own = axis - (out_rank - (rank(value) or 0)) if value is not None else -1
        if value is not None and own >= 0 and value.shape is not None and value.shape[own] != 1:
            operands.append((index, own))
    if not any(s.is_live(node, i, a) for i, a in operands):
        return
    found = [s.read(node, i, a) for i, a in operands]
    out = s.make(node.output, axis) if all(f is not None for f in found) else None
    for variables in found:
        if out is None:
            s.freeze(variables, f"{node.label} combines it with what no layer makes")
        else:
            s.tie(variables, out)


def _through(s: Sweep, node: Node) -> None:
    """Axis by axis from the first input to the first output, whose extents along live axes are the same."""
    for axis in range(rank(node.need(0)) or 0):
        if s.is_live(node, 0, axis):
            s.tie(s.read(node, 0, axis), s.make(node.output, axis))


def _channelwise(s: Sweep, node: Node) -> None:
    """Axis 1 only, with parameters [C] (BatchNormalization, InstanceNormalization) or none (pooling)."""
    if not s.is_live(node, 0, 1):
        return
    x = s.read(node, 0, 1)
    out = s.make(node.output, 1)
    s.tie(x, out)
    for index in range(1, len(node.inputs)):
        parameters = s.read(node, index, 0)
        s.tie(x, parameters) if parameters is not None else s.freeze(x, f"{node.label} has computed parameters")


def _batch_norm(s: Sweep, node: Node) -> None:
    if not node.get_int("training_mode"):
        _channelwise(s, node)


def _max_pool(s: Sweep, node: Node) -> None:
    if len(node.outputs) == 1:
        _channelwise(s, node)


def _softmax(s: Sweep, node: Node) -> None:
    n = rank(node.need(0)) or 0
    over = node.get_int("axis", -1) % max(n, 1)
    for axis in range(n):
        if axis != over and s.is_live(node, 0, axis):
            s.tie(s.read(node, 0, axis), s.make(node.output, axis))


def _normalization(s: Sweep, node: Node) -> None:
    """LayerNormalization, RMSNormalization: axes before `axis` pass, those behind are mixed."""
    n = rank(node.need(0)) or 0
    first = node.get_int("axis", -1) % max(n, 1)
    for axis in range(first):
        if s.is_live(node, 0, axis):
            s.tie(s.read(node, 0, axis), s.make(node.output, axis))


def _reduce(s: Sweep, node: Node) -> None:
    x = node.need(0)
    n = rank(x) or 0
    given = node.input(1)
    axes = ints(given) if given is not None else ()
    if axes is None or (not axes and not node.get_int("noop_with_empty_axes")):
        return
    over = {a % n for a in axes}
    keep = bool(node.get_int("keepdims", 1))
    _renumbered(s, node, [a for a in range(n) if a not in over], lambda a: a if keep else a - sum(o < a for o in over))


def _arg(s: Sweep, node: Node) -> None:
    n = rank(node.need(0)) or 0
    over = node.get_int("axis", 0) % max(n, 1)
    keep = bool(node.get_int("keepdims", 1))
    _renumbered(s, node, [a for a in range(n) if a != over], lambda a: a if keep or a < over else a - 1)


def _renumbered(s: Sweep, node: Node, axes: list[int], target: Callable[[int], int]) -> None:
    for axis in axes:
        if s.is_live(node, 0, axis):
            s.tie(s.read(node, 0, axis), s.make(node.output, target(axis)))


# Movement


def _transpose(s: Sweep, node: Node) -> None:
    n = rank(node.need(0)) or 0
    order = node.get_ints("perm", tuple(range(n))[::-1])
    _renumbered(s, node, list(range(n)), order.index)


def _squeeze(s: Sweep, node: Node) -> None:
    _reshape(s, node)


def _reshape(s: Sweep, node: Node) -> None:
    """Axes that stay, fall apart or run together. One of several carries the channels: see `Sweep.splits`."""
    x, y = node.need(0), node.output
    assert x.shape is not None
    assert y.shape is not None
    if node.op_type == "Reshape" and not node.need(1).is_constant:
        return
    for left, right in blocks(x.shape.dims, y.shape.dims):
        live = [a for a in left if s.is_live(node, 0, a)]
        if not live:
            continue
        if len(left) == 1 and len(right) == 1:
            s.tie(s.read(node, 0, left[0]), s.make(y, right[0]))
        elif len(left) == 1:
            _split_axis(s, node, left[0], right)
        elif len(right) == 1:
            _merge_axes(s, node, left, live, right[0])


def _split_axis(s: Sweep, node: Node, axis: int, right: list[int]) -> None:
    place = s.splits.get(id(node), 0)
    variables = s.read(node, 0, axis)
    assert variables is not None
    s.options[id(node)] = (len(right), variables)
    if place >= len(right):
        s.freeze(variables, f"{node.label} cuts it into axes of which none can be pruned")
        return
    extents = [s.extent(node.output, a) for a in right]
    made = s.make(node.output, right[place])
    assert made is not None
    s.tie(variables, made[np.unravel_index(np.arange(len(variables)), extents)[place]])


def _merge_axes(s: Sweep, node: Node, left: list[int], live: list[int], axis: int) -> None:
    carrier = live[0]
    for other in live[1:]:
        s.freeze(s.read(node, 0, other), f"{node.label} joins it with another axis of channels")
    extents = [s.extent(node.need(0), a) for a in left]
    made = s.make(node.output, axis)
    variables = s.read(node, 0, carrier)
    if made is None or variables is None:
        s.freeze(variables, "a shape along its way is not known")
        return
    s.tie(made, variables[np.unravel_index(np.arange(len(made)), extents)[left.index(carrier)]])


def blocks(before: tuple[object, ...], after: tuple[object, ...]) -> list[tuple[list[int], list[int]]]:
    """The least runs of axes of two shapes with equal products, axes of extent 1 left out; what follows an extent that
    is not known and differs is left out too."""
    a = [(i, d) for i, d in enumerate(before) if d != 1]
    b = [(i, d) for i, d in enumerate(after) if d != 1]
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        (first, x), (second, y) = a[i], b[j]
        if not (isinstance(x, int) and isinstance(y, int)):
            if x is None or x != y:
                break
            i, j = i + 1, j + 1
            continue
        left, right = [first], [second]
        i, j = i + 1, j + 1
        while x != y:
            if x < y and i < len(a) and isinstance(a[i][1], int):
                left.append(a[i][0])
                x *= int(str(a[i][1]))
                i += 1
            elif x > y and j < len(b) and isinstance(b[j][1], int):
                right.append(b[j][0])
                y *= int(str(b[j][1]))
                j += 1
            else:
                return found
        found.append((left, right))
    return found


def _concat(s: Sweep, node: Node) -> None:
    n = rank(node.output) or 0
    along = node.get_int("axis", 0) % max(n, 1)
    for axis in range(n):
        indices = range(len(node.inputs))
        if not any(s.is_live(node, i, axis) for i in indices):
            continue
        parts = [s.read(node, i, axis) for i in indices]
        out = s.make(node.output, axis)
        if axis != along:
            for part in parts:
                s.tie(part, out) if part is not None else s.freeze(out, f"{node.label} joins what no layer makes")
            continue
        start = 0
        for index, part in enumerate(parts):
            size = s.extent(node.need(index), axis)
            own = out[start : start + size] if out is not None else None
            s.tie(part, own) if part is not None else s.freeze(own, f"{node.label} joins what no layer makes")
            start += size


def _split(s: Sweep, node: Node) -> None:
    n = rank(node.need(0)) or 0
    along = node.get_int("axis", 0) % max(n, 1)
    if node.input(1) is not None and not node.need(1).is_constant:
        return
    for axis in range(n):
        if not s.is_live(node, 0, axis):
            continue
        x = s.read(node, 0, axis)
        start = 0
        for value in node.outputs:
            out = s.make(value, axis)
            size = 0 if out is None else len(out)
            s.tie(x if axis != along or x is None else x[start : start + size], out)
            start += size


def _slice(s: Sweep, node: Node) -> None:
    n = rank(node.need(0)) or 0
    starts, ends = ints(node.input(1)), ints(node.input(2))
    axes = ints(node.input(3)) if node.input(3) is not None else tuple(range(len(starts or ())))
    steps = ints(node.input(4)) if node.input(4) is not None else (1,) * len(starts or ())
    if starts is None or ends is None or axes is None or steps is None:
        return
    cut = {a % n: (b, e, t) for a, b, e, t in zip(axes, starts, ends, steps, strict=True)}
    for axis in range(n):
        if not s.is_live(node, 0, axis):
            continue
        if axis not in cut:
            s.tie(s.read(node, 0, axis), s.make(node.output, axis))
        elif cut[axis][2] == 1:
            x, out = s.read(node, 0, axis), s.make(node.output, axis)
            assert x is not None
            s.tie(x[slice(*cut[axis][:2])], out)


def _pad(s: Sweep, node: Node) -> None:
    """Channels of zeros (or another constant) can go by themselves."""
    n = rank(node.need(0)) or 0
    pads = ints(node.input(1))
    axes = ints(node.input(3)) if node.input(3) is not None else tuple(range(n))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return
    before = dict.fromkeys(range(n), 0) | {a % n: p for a, p in zip(axes, pads, strict=False)}
    after = dict.fromkeys(range(n), 0) | {a % n: p for a, p in zip(axes, pads[len(axes) :], strict=True)}
    constant = node.get_str("mode", "constant") == "constant"
    for axis in range(n):
        if not s.is_live(node, 0, axis) or min(before[axis], after[axis]) < 0:
            continue
        if (before[axis] or after[axis]) and not constant:
            continue
        x, out = s.read(node, 0, axis), s.make(node.output, axis)
        s.tie(x, out[before[axis] : len(out) - after[axis]] if out is not None else None)


def _gather(s: Sweep, node: Node) -> None:
    """Axes that are not looked up; the columns of a constant table are made by it."""
    table, indices = node.need(0), node.need(1)
    n, m = rank(table) or 0, rank(indices) or 0
    along = node.get_int("axis", 0) % max(n, 1)
    if not indices.is_constant and any(s.is_live(node, 1, a) for a in range(m)):
        return
    for axis in range(n):
        if axis == along or not (s.is_live(node, 0, axis) or table.is_constant):
            continue
        s.tie(s.read(node, 0, axis), s.make(node.output, axis if axis < along else axis - 1 + m))


def _expand(s: Sweep, node: Node) -> None:
    n, out_rank = rank(node.need(0)) or 0, rank(node.output) or 0
    if not node.need(1).is_constant:
        return
    for axis in range(n):
        to = axis + out_rank - n
        if s.is_live(node, 0, axis) and s.extent(node.need(0), axis) == _extent(node.output, to):
            s.tie(s.read(node, 0, axis), s.make(node.output, to))


def _same_extent(s: Sweep, node: Node) -> None:
    """Resize, Upsample: axes whose extent stays."""
    if node.get_ints("axes") or (rank(node.need(0)) or 0) < 3:
        return
    sizes, scales = node.input(3), node.input(2)
    if (sizes is not None and not sizes.is_constant) or (scales is not None and not scales.is_constant):
        return
    cropped = node.get_str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if s.is_live(node, 0, 1) and _extent(node.need(0), 1) == _extent(node.output, 1) and not cropped:
        s.tie(s.read(node, 0, 1), s.make(node.output, 1))


def _variables(s: Sweep, value: Value, axis: int) -> Array | None:
    start = s.starts.get((id(value), axis))
    return None if start is None else np.arange(start, start + s.extent(value, axis))


def _extent(value: Value, axis: int) -> object:
    return value.shape[axis] if value.shape is not None and axis < value.shape.rank else None


def _words(text: str) -> list[str]:
    return text.split()


_Rule = Callable[[Sweep, Node], None]

_RULES: dict[str, _Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _channelwise,
    "MaxPool": _max_pool,
    "LayerNormalization": _normalization,
    "RMSNormalization": _normalization,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Expand": _expand,
    "Resize": _same_extent,
    "Dropout": _through,
    **dict.fromkeys(_words("AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool"), _channelwise),
    **dict.fromkeys(_words("Softmax LogSoftmax Hardmax"), _softmax),
    **dict.fromkeys(_words("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare"), _reduce),
    **dict.fromkeys(_words("ArgMax ArgMin"), _arg),
}
