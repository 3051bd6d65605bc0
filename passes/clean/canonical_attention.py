"""The Attention operator in the operators that it is defined by, so that passes and plans need to know only those."""

from __future__ import annotations

import math

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.types import DType
from irc.rewrite import Editor, Match, Rule, op
from irc.rewrite.facts import static


class AttentionProducts(Rule):
    """Attention(q, k, v, mask) = softmax(scale * q k^T + mask) v; present keys and values = past ones, then new ones.

    Queries of several heads that share a head of keys get a dimension of their own, so nothing is repeated. A row of
    nothing but masks gives 0.
    """

    name = "attention-products"
    pattern = op("Attention")

    def check(self, m: Match) -> str | None:
        node = m.root
        shapes = [static(v) for v in node.inputs if v is not None]
        if any(s is None for s in shapes) or any(v.dtype is not DType.FLOAT for v in _data(node)):
            return "its tensors are not float32 of known shape"
        if node.input(6) is not None or any(node.get_int(f"{s}_window_size", -1) >= 0 for s in ("left", "right")):
            return "its keys are limited by lengths or windows"
        if node.get_float("softcap", 0.0) or node.get_int("softmax_precision", 1) != 1:
            return "it caps its scores or takes the softmax in another precision"
        if len(node.outputs) > 3 and (node.outputs[3].uses or node.outputs[3].is_output):
            return "its scores are read"
        if (node.input(4) is None) != (node.input(5) is None):
            return "it has past keys or past values alone"
        mask = node.input(3)
        if mask is None:
            return None
        keys = _lengths(node)[1]
        if (static(mask) or (0,))[-1] != keys:
            return "its mask does not cover all keys"
        return None if mask.dtype in (DType.FLOAT, DType.BOOL) else "its mask is neither float32 nor bool"

    def rewrite(self, m: Match, edit: Editor) -> list[Value | None]:
        node = m.root
        q, k, v = (_heads(node, i, edit) for i in range(3))
        past_key, past_value = node.input(4), node.input(5)
        if past_key is not None and past_value is not None:
            k, v = (edit.value("Concat", [p, x], {"axis": 2}) for p, x in ((past_key, k), (past_value, v)))
        present = (k, v)
        batch, count, rows, width = q.static_shape()
        groups = k.static_shape()[1]
        shared = groups != count
        if shared:
            q = _reshape(edit, q, (batch, groups, count // groups, rows, width))
            k, v = (_reshape(edit, x, (batch, groups, 1, *x.static_shape()[2:])) for x in (k, v))
        rank = len(q.static_shape())
        turned = edit.value("Transpose", [k], {"perm": (*range(rank - 2), rank - 1, rank - 2)})
        scale = node.get_float("scale", 1 / math.sqrt(width))
        scores = edit.value("MatMul", [q, turned])
        scores = edit.value("Mul", [scores, edit.constant(np.asarray(scale, np.float32), "scale")])
        mask = _mask(node, edit, groups if shared else 0)
        if mask is not None:
            scores = edit.value("Add", [scores, mask])
        p = edit.value("Softmax", [scores], {"axis": rank - 1})
        if node.input(3) is not None:
            zero = edit.constant(np.asarray(0, np.float32), "zero")
            p = edit.value("Where", [edit.value("IsNaN", [p]), zero, p])
        y = edit.value("MatMul", [p, v])
        columns = v.static_shape()[-1]
        if shared:
            y = _reshape(edit, y, (batch, count, rows, columns))
        if len(node.need(0).static_shape()) == 3:
            y = _reshape(edit, edit.value("Transpose", [y], {"perm": (0, 2, 1, 3)}), (batch, rows, count * columns))
        return [y, *present, None][: len(node.outputs)]


def _data(node: Node) -> list[Value]:
    return [v for i in (0, 1, 2, 4, 5) if (v := node.input(i)) is not None]


def _lengths(node: Node) -> tuple[int, int]:
    """(past keys, all keys)"""
    past = node.input(4)
    before = 0 if past is None else past.static_shape()[2]
    return before, before + node.need(1).static_shape()[-2]


def _reshape(edit: Editor, x: Value, shape: tuple[int, ...]) -> Value:
    return edit.value("Reshape", [x, edit.constant(np.array(shape, np.int64), "shape")])


def _heads(node: Node, index: int, edit: Editor) -> Value:
    """[batch, heads, length, width]"""
    x = node.need(index)
    shape = x.static_shape()
    if len(shape) == 4:
        return x
    count = node.get_int("q_num_heads" if index == 0 else "kv_num_heads")
    split = _reshape(edit, x, (shape[0], shape[1], count, shape[2] // count))
    return edit.value("Transpose", [split], {"perm": (0, 2, 1, 3)})


def _mask(node: Node, edit: Editor, groups: int) -> Value | None:
    """What is added to the scores; with `groups` > 0 heads are [groups, heads of a group]."""
    mask = node.input(3)
    if mask is not None and mask.dtype is DType.BOOL:
        on, off = (edit.constant(np.asarray(v, np.float32), "masked") for v in (0.0, -np.inf))
        mask = edit.value("Where", [mask, on, off])
    if mask is not None and groups:
        shape = mask.static_shape()
        if len(shape) > 2:
            batch, heads = (1, *shape)[-4:-2] if len(shape) == 3 else shape[:2]
            split = (groups, heads // groups) if heads > 1 else (1, 1)
            mask = _reshape(edit, mask, (batch, *split, *shape[-2:]))
    if not node.get_int("is_causal"):
        return mask
    past, keys = _lengths(node)
    rows = node.need(0).static_shape()[-2]
    later = np.where(np.tri(rows, keys, past, dtype=bool), 0, -np.inf).astype(np.float32)
    causal = edit.constant(later, "causal")
    return causal if mask is None else edit.value("Add", [mask, causal])


RULES: tuple[Rule, ...] = (AttentionProducts(),)
