"""LSTM and GRU: one matrix product for the inputs of all steps, then one kernel that walks the steps.

x @ W does not depend on the state, so it is a linear kernel over all steps (and batches) at once, its biases included.
The recurrent weights are packed in blocks of 16 hidden units with their gates side by side (`kernels/recurrent.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from irc.backends.tvm.expression import ExpressionBuilder
from irc.backends.tvm.geometry import BLOCK, block_of, lanes_of
from irc.backends.tvm.plan.integer import float_weights
from irc.backends.tvm.plan.pack import pack_for
from irc.backends.tvm.plan.tiles import Product, choose_order, choose_tile
from irc.backends.tvm.plan.views import View, row_major
from irc.backends.tvm.specs import LinearSpec, Operand, RecurrentKind, RecurrentSpec
from irc.ir.types import Array

if TYPE_CHECKING:
    from irc.backends.tvm.plan.planner import Planner
    from irc.ir.graph import Node

_GATES = {"LSTM": 4, "GRU": 3}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def lower_recurrent(p: Planner, node: Node) -> None:
    gates = _GATES[node.op_type]
    x = p.view(node.need(0))
    if x.strides[2] != 1 and x.shape[2] != 1:
        made = View(p.new_storage(x.dtype, math.prod(x.shape)), x.dtype, x.shape, row_major(x.shape))
        p.copy(x, made, "reorder")
        x = made
    w, r = (float_weights(node.need(i)).astype(np.float32) for i in (1, 2))
    directions = _DIRECTIONS[node.get_str("direction", "forward")]
    hidden = r.shape[2]
    bias = np.zeros((len(directions), 2, gates, hidden), np.float32)
    if node.input(3) is not None:
        bias = float_weights(node.need(3)).astype(np.float32).reshape(bias.shape)
    given = [p.row_major(v) for v in (node.input(5), node.input(6)) if v is not None]
    outs = _outputs(p, node, (len(directions), x.shape[1], hidden))
    for d, reverse in enumerate(directions):
        late = bias[d, 1, 2] if node.op_type == "GRU" else None
        early = bias[d].sum(0)
        if late is not None:
            early[2] = bias[d, 0, 2]
        z = _input_part(p, node, x, w[d].reshape(gates, hidden, -1), early)
        spec, args = _recurrence(p, node, z, r[d].reshape(gates, hidden, hidden), late, reverse)
        states = [replace(v, offset=v.offset + d * v.strides[0]) for v in given]
        y = outs[0]
        y = replace(y, offset=y.offset + d * y.strides[1])  # [step, direction, batch, hidden]
        last = [replace(v, offset=v.offset + d * v.strides[0]) for v in outs[1:]]
        scratch = p.new_storage("float32", 3 * x.shape[1] * _padded(hidden))
        spec = replace(spec, given=len(states), y_strides=(y.strides[0], y.strides[2]), y_size=y.extent)
        pointers = [p.pointer(v) for v in (*args, *states, y, *last)]
        pointers.append(p.pointer(View(scratch, "float32", (1,), (1,))))
        writes = (*(v.storage for v in outs), scratch)
        macs = x.shape[0] * x.shape[1] * gates * hidden * hidden
        p.call(spec, pointers, writes, node.op_type, macs=macs, parallel=False)


def _padded(hidden: int) -> int:
    return -(-hidden // BLOCK) * BLOCK


def _outputs(p: Planner, node: Node, last: tuple[int, int, int]) -> list[View]:
    """Views of Y [step, direction, batch, hidden] and of the last states [direction, batch, hidden]. What nobody reads
    is written to memory that nobody reads."""
    found = []
    for number in range(3):
        shape = (node.need(0).static_shape()[0], *last) if number == 0 else last
        view = View(p.new_storage("float32", math.prod(shape)), "float32", shape, row_major(shape))
        value = node.outputs[number] if number < len(node.outputs) else None
        if value is not None and (value.uses or value.is_output):
            wanted = p.output_view(value, range(len(shape)), innermost=len(shape) - 1)
            view = wanted if number == 0 or wanted.is_contiguous else view
            p.views[id(value)] = view
        found.append(view)
    return found


def _input_part(p: Planner, node: Node, x: View, w: Array, bias: Array) -> View:
    """x @ W + b for all steps: [steps * batch, gates * padded hidden units]."""
    steps, batch, features = x.shape
    gates, hidden, _ = w.shape
    room = ((0, 0), (0, _padded(hidden) - hidden))
    columns = gates * _padded(hidden)
    w = np.pad(w, (*room, (0, 0))).reshape(columns, 1, 1, features)
    bias_view = p.constant(np.pad(bias, room).reshape(columns), "bias")
    z = View(p.new_storage("float32", steps * batch * columns), "float32", (steps * batch, columns), (columns, 1))
    out = (1, steps) if batch == 1 else (steps, batch)
    strides = (0, x.strides[0]) if batch == 1 else (x.strides[0], x.strides[1])
    y_strides = (0, columns) if batch == 1 else (batch * columns, columns)
    tile = choose_tile(p.target, Product(out, -(-columns // lanes_of(p.target)), features))
    weights = p.constant(pack_for(p.target, w, tile.vectors, 1), node.need(1).name)
    b = ExpressionBuilder()
    total = b.add("add", "float32", b.add("accumulator", "float32"), b.operand(0, "float32"))
    spec = LinearSpec(
        "float32",
        "float32",
        (1, 1),
        out,
        (1, 1),
        features,
        columns,
        (0, 0, *strides),
        (0, 0, *y_strides),
        (0, 0),
        expression=b.finish(total),
        operands=(Operand("float32", (0, 0, 0, 0, 1), columns),),
        tile=(tile.rows, tile.columns, tile.vectors),
        order=choose_order(p.target, weights.extent * 4, x.extent * 4, out[0]),
        x_size=x.extent,
        y_size=z.extent,
        w_size=weights.extent,
        block=block_of(p.target),
    )
    args = [p.pointer(v) for v in (x, weights, bias_view, z)]
    p.call(spec, args, (z.storage,), f"{node.op_type} inputs", macs=steps * batch * gates * hidden * features)
    return z


def _recurrence(
    p: Planner, node: Node, z: View, r: Array, late: Array | None, reverse: bool
) -> tuple[RecurrentSpec, list[View]]:
    """The kernel and its constant arguments; `late`: the bias that a GRU adds to its reset product."""
    gates, hidden, _ = r.shape
    blocks = _padded(hidden) // BLOCK
    wide = np.pad(r, ((0, 0), (0, _padded(hidden) - hidden), (0, 0)))
    packed = wide.reshape(gates, blocks, BLOCK, hidden).transpose(1, 3, 0, 2)  # block, k, gate, unit
    args = [z, p.constant(np.ascontiguousarray(packed).reshape(-1), node.need(2).name)]
    if late is not None:
        args.append(p.constant(np.pad(late, (0, _padded(hidden) - hidden)), "bias"))
    shape = node.need(0).static_shape()
    kind: RecurrentKind = "lstm" if node.op_type == "LSTM" else "gru"
    return RecurrentSpec(kind, shape[0], shape[1], hidden, reverse), args
