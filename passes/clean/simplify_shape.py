"""Neighbours that move data: two steps become one. All exact."""

from __future__ import annotations

import numpy as np

from irc.ir.graph import Node, Value
from irc.passes.clean.canonical_shape import reshape, reshape_target
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, op, var
from irc.rewrite.facts import ints, normalized, rank, static


class TransposeChain(Rule):
    """Transpose(Transpose(x, p), q) = Transpose(x, p[q]), as axis i of the result is axis q[i] of the inner one."""

    name = "transpose-chain"
    pattern = op("Transpose", op("Transpose", var("x"), name="inner"))

    def check(self, m: Match) -> str | None:
        known = m.node("inner").get_ints("perm") and m.root.get_ints("perm")
        return None if known else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        p, q = m.node("inner").get_ints("perm"), m.root.get_ints("perm")
        return edit.value("Transpose", [m["x"]], {"perm": tuple(p[i] for i in q)})


class ReshapeChain(Rule):
    """Reshape(Reshape(x, s), t) = Reshape(x, t), where t copies no extent of the inner result."""

    name = "reshape-chain"
    pattern = op("Reshape", op("Reshape|Squeeze|Unsqueeze|Flatten", name="inner"), var("target"))

    def check(self, m: Match) -> str | None:
        target = ints(m["target"])
        if target is None or 0 in target:
            return "its target is not constant, or copies an extent"
        return None

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return edit.value("Reshape", [m.node("inner").need(0), m["target"]])


class TransposeAsReshape(Rule):
    """A Transpose that only moves axes of extent 1 past others keeps the order of the data: a Reshape."""

    name = "transpose-as-reshape"
    pattern = op("Transpose", var("x"))

    def check(self, m: Match) -> str | None:
        shape, perm = m["x"].shape, m.root.get_ints("perm")
        if shape is None or not perm or reshape_target(m.root.output) is None:
            return NOT_A_CANDIDATE
        moved = [p for p in perm if shape[p] != 1]
        return None if moved == sorted(moved) else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        target = reshape_target(m.root.output)
        assert target is not None
        return reshape(edit, m["x"], target)


class TransposePastUnits(Rule):
    """Transpose(Reshape(z)) = Reshape(Transpose'(z)), where the Reshape only adds or drops extents of 1.

    Only done where z is itself transposed, so that two Transposes become one (attention transposes its keys twice).
    """

    name = "transpose-past-units"
    pattern = op("Transpose", op("Reshape", name="units"))

    def check(self, m: Match) -> str | None:
        z = m.node("units").need(0)
        if z.producer is None or not z.producer.is_op("Transpose") or _moved_perm(m) is None:
            return NOT_A_CANDIDATE
        if len(z.uses) != 1 or z.is_output:
            return f"'{z.name}' has other readers"
        return m.shared()

    def rewrite(self, m: Match, edit: Editor) -> Value:
        perm, target = _moved_perm(m), reshape_target(m.root.output)
        assert perm is not None
        assert target is not None
        return reshape(edit, edit.value("Transpose", [m.node("units").need(0)], {"perm": perm}), target)


def _moved_perm(m: Match) -> tuple[int, ...] | None:
    """The perm before the Reshape that orders the extents above 1 as the root does; None where they differ."""
    before, after, perm = static(m.node("units").need(0)), static(m.root.need(0)), m.root.get_ints("perm")
    if before is None or after is None or not perm or 0 in before:
        return None
    wide_before, wide_after = ([i for i, d in enumerate(shape) if d != 1] for shape in (before, after))
    if [before[i] for i in wide_before] != [after[i] for i in wide_after]:
        return None
    axis_before = dict(zip(wide_after, wide_before, strict=True))
    order = iter([axis_before[p] for p in perm if p in axis_before])
    return tuple(next(order) if d != 1 else i for i, d in enumerate(before))


class SliceChain(Rule):
    """Slice(Slice(x)) on different axes = one Slice over both sets of axes."""

    name = "slice-chain"
    pattern = op("Slice")

    def check(self, m: Match) -> str | None:
        x = m.root.need(0)
        if x.producer is None or not x.producer.is_op("Slice"):
            return NOT_A_CANDIDATE
        first, second = _slice(x.producer), _slice(m.root)
        if first is None or second is None:
            return "a bound is not constant"
        if set(first) & set(second):
            return "both cut the same axis"
        return None if len(x.uses) == 1 and not x.is_output else f"'{x.name}' has other readers"

    def rewrite(self, m: Match, edit: Editor) -> Value:
        inner = m.root.need(0).producer
        assert inner is not None
        both = {**(_slice(inner) or {}), **(_slice(m.root) or {})}
        axes = sorted(both)
        columns = ([both[a][0] for a in axes], [both[a][1] for a in axes], axes, [both[a][2] for a in axes])
        names = ("starts", "ends", "axes", "steps")
        inputs = [
            edit.constant(np.array(column, np.int64), f"{m.root.name}_{name}")
            for column, name in zip(columns, names, strict=True)
        ]
        return edit.value("Slice", [inner.need(0), *inputs])


def _slice(node: Node) -> dict[int, tuple[int, int, int]] | None:
    """axis -> (start, end, step) of a Slice with constant bounds."""
    starts, ends = ints(node.input(1)), ints(node.input(2))
    n = rank(node.input(0))
    if starts is None or ends is None or n is None:
        return None
    axes = tuple(range(len(starts))) if node.input(3) is None else ints(node.input(3))
    steps = (1,) * len(starts) if node.input(4) is None else ints(node.input(4))
    if axes is None or steps is None:
        return None
    return dict(zip(normalized(axes, n), zip(starts, ends, steps, strict=True), strict=True))


class ConcatOfConcat(Rule):
    """Concat(Concat(a, b), c) = Concat(a, b, c) along the same axis."""

    name = "concat-of-concat"
    pattern = op("Concat")

    def check(self, m: Match) -> str | None:
        return None if _inner_concat(m.root) is not None else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        index = _inner_concat(m.root)
        assert index is not None
        inner = m.root.need(index).producer
        assert inner is not None
        return edit.like_root([*m.root.inputs[:index], *inner.inputs, *m.root.inputs[index + 1 :]])


def _inner_concat(node: Node) -> int | None:
    for i, value in enumerate(node.inputs):
        inner = None if value is None else value.producer
        if value is None or inner is None or not inner.is_op("Concat") or len(value.uses) != 1 or value.is_output:
            continue
        if inner.get_int("axis") == node.get_int("axis") and inner.graph is node.graph:
            return i
    return None


RULES: tuple[Rule, ...] = (
    TransposeChain(),
    ReshapeChain(),
    TransposeAsReshape(),
    TransposePastUnits(),
    SliceChain(),
    ConcatOfConcat(),
)
