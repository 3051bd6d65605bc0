"""Normal forms of what moves or averages data. Exact, but for the order in which means are summed."""

from __future__ import annotations

import numpy as np

from irc.ir.graph import Value
from irc.ir.types import DType
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, op
from irc.rewrite.facts import ints, rank


def reshape_target(value: Value) -> tuple[int, ...] | None:
    """The target of a Reshape that makes the shape of `value`: -1 for the unknown extent, if there is one.

    None where two extents are unknown, or where one is 0 (which a target reads as "copy").
    """
    if value.shape is None:
        return None
    target = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return None if target.count(-1) > 1 or 0 in target else target


def reshape(edit: Editor, x: Value, target: tuple[int, ...]) -> Value:
    """A Reshape node with a constant target."""
    return edit.value("Reshape", [x, edit.constant(np.array(target, np.int64), f"{edit.root.name}_shape")])


class ToReshape(Rule):
    """Flatten, Squeeze, Unsqueeze and Reshape = Reshape with a constant target, where at most one extent is unknown."""

    name = "to-reshape"
    pattern = op("Flatten|Squeeze|Unsqueeze|Reshape")

    def check(self, m: Match) -> str | None:
        node, target = m.root, reshape_target(m.root.output)
        if node.need(0).is_constant:
            return NOT_A_CANDIDATE  # fold-constants takes it
        if target is None:
            return "more than one extent of its result is unknown" if rank(node.output) is not None else NOT_A_CANDIDATE
        done = node.op_type == "Reshape" and ints(node.input(1)) == target and not node.get_int("allowzero")
        return NOT_A_CANDIDATE if done else None

    def rewrite(self, m: Match, edit: Editor) -> Value:
        target = reshape_target(m.root.output)
        assert target is not None
        return reshape(edit, m.root.need(0), target)


class MeanToGlobalPool(Rule):
    """ReduceMean over all spatial axes of [N, C, H, W, ...] = GlobalAveragePool, then a Reshape when keepdims = 0.

    Not for rank 3: there the mean over the last axis is usually the first step of a layer normalization.
    """

    name = "mean-to-global-pool"
    pattern = op("ReduceMean")

    def check(self, m: Match) -> str | None:
        node, axes, n = m.root, ints(m.root.input(1)), rank(m.root.input(0))
        if axes is None or n is None or n < 4 or sorted(axes) != list(range(2, n)):
            return NOT_A_CANDIDATE
        if node.need(0).dtype is not DType.FLOAT:
            return NOT_A_CANDIDATE
        if not node.get_int("keepdims", 1) and reshape_target(node.output) is None:
            return "more than one extent of its result is unknown"
        return None

    def rewrite(self, m: Match, edit: Editor) -> Value:
        pooled = edit.value("GlobalAveragePool", [m.root.need(0)])
        if m.root.get_int("keepdims", 1):
            return pooled
        target = reshape_target(m.root.output)
        assert target is not None
        return reshape(edit, pooled, target)


class PoolToGlobalPool(Rule):
    """AveragePool and MaxPool with one window over everything, no pads = GlobalAveragePool and GlobalMaxPool."""

    name = "pool-to-global-pool"
    pattern = op("AveragePool|MaxPool")

    def check(self, m: Match) -> str | None:
        node, shape = m.root, m.root.need(0).shape
        if len(node.outputs) > 1 or node.need(0).dtype is not DType.FLOAT or shape is None:
            return NOT_A_CANDIDATE
        whole = node.get_ints("kernel_shape") == shape.dims[2:] and "auto_pad" not in node.attributes
        flat = not any(node.get_ints("pads")) and set(node.get_ints("dilations", (1,))) == {1}
        return None if whole and flat else NOT_A_CANDIDATE

    def rewrite(self, m: Match, edit: Editor) -> Value:
        kind = "GlobalAveragePool" if m.root.op_type == "AveragePool" else "GlobalMaxPool"
        return edit.value(kind, [m.root.need(0)])


RULES: tuple[Rule, ...] = (ToReshape(), MeanToGlobalPool(), PoolToGlobalPool())
