"""Operators that give back their input."""

from __future__ import annotations

import numpy as np

from irc.ir.graph import Value
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, is_uniform, op, var
from irc.rewrite.facts import ints, rank, same_type, static


class _NoOp(Rule):
    """A node that is its first input. Subclasses say when."""

    def rewrite(self, m: Match, edit: Editor) -> Value:
        return m.root.need(0)


class Identity(_NoOp):
    """Identity(x) = x, unless it carries the name of an output that x cannot take."""

    name = "identity"
    pattern = op("Identity")

    def check(self, m: Match) -> str | None:
        x, node = m.root.need(0), m.root
        if not node.output.is_output:
            return None
        renamable = x.producer is not None and not x.is_output and x.graph is node.graph
        return None if renamable else NOT_A_CANDIDATE


class SameType(_NoOp):
    """Operators that only change type or shape, where both stay: Cast, Reshape, Expand, Flatten, ..."""

    name = "same-type"
    pattern = op("Cast|CastLike|Reshape|Expand|Flatten|Squeeze|Unsqueeze")

    def check(self, m: Match) -> str | None:
        return None if same_type(m.root.need(0), m.root.output) else NOT_A_CANDIDATE


class TransposeNothing(_NoOp):
    """Transpose with perm = 0, 1, 2, ..."""

    name = "transpose-nothing"
    pattern = op("Transpose")

    def check(self, m: Match) -> str | None:
        perm = m.root.get_ints("perm")
        return None if perm and perm == tuple(range(len(perm))) else NOT_A_CANDIDATE


class PadNothing(_NoOp):
    """Pad by zeros everywhere."""

    name = "pad-nothing"
    pattern = op("Pad")

    def check(self, m: Match) -> str | None:
        return None if is_uniform(m.root.input(1), 0) else NOT_A_CANDIDATE


class SliceEverything(_NoOp):
    """Slice with positive steps whose result has the shape of its input."""

    name = "slice-everything"
    pattern = op("Slice")

    def check(self, m: Match) -> str | None:
        steps = ints(m.root.input(4)) if m.root.input(4) is not None else (1,)
        forward = steps is not None and all(s > 0 for s in steps)
        # A step above 1 over an extent of 1 also keeps the shape, and also gives everything.
        if not forward:
            return NOT_A_CANDIDATE
        if same_type(m.root.need(0), m.root.output) and static(m.root.output) is not None:
            return None
        starts, ends = ints(m.root.input(1)), ints(m.root.input(2))
        whole = starts is not None and ends is not None and not any(starts) and min(ends, default=2**31) >= 2**31 - 1
        return None if whole and set(steps or ()) <= {1} else NOT_A_CANDIDATE


class TileOnce(_NoOp):
    """Tile with repeats of 1."""

    name = "tile-once"
    pattern = op("Tile", var("x"), var("repeats"))

    def check(self, m: Match) -> str | None:
        return None if is_uniform(m["repeats"], 1) else NOT_A_CANDIDATE


class PoolNothing(_NoOp):
    """Pooling over single elements: global pools of 1x1 planes, 1x1 windows with stride 1."""

    name = "pool-nothing"
    pattern = op("GlobalAveragePool|GlobalMaxPool|AveragePool|MaxPool")

    def check(self, m: Match) -> str | None:
        node, shape = m.root, static(m.root.input(0))
        if len(node.outputs) > 1:
            return NOT_A_CANDIDATE
        if node.op_type.startswith("Global"):
            return None if shape is not None and set(shape[2:]) == {1} else NOT_A_CANDIDATE
        unit = set(node.get_ints("kernel_shape")) == {1} and set(node.get_ints("strides", (1,))) == {1}
        return None if unit and not any(node.get_ints("pads")) and same_type(node.need(0), node.output) else ""


class SplitOnce(_NoOp):
    """Split into one part."""

    name = "split-once"
    pattern = op("Split")

    def check(self, m: Match) -> str | None:
        return None if len(m.root.outputs) == 1 else NOT_A_CANDIDATE


class GatherEverything(_NoOp):
    """Gather of 0, 1, 2, ... n-1 along an axis of n."""

    name = "gather-everything"
    pattern = op("Gather", var("x"), var("i"))

    def check(self, m: Match) -> str | None:
        index, n, axis = m["i"], rank(m["x"]), m.root.get_int("axis")
        if not index.is_constant or index.constant is None or len(index.constant.shape) != 1 or n is None:
            return NOT_A_CANDIDATE
        shape = m["x"].shape
        extent = None if shape is None else shape[axis]
        same = isinstance(extent, int) and np.array_equal(index.numpy(), np.arange(extent))
        return None if same else NOT_A_CANDIDATE


RULES: tuple[Rule, ...] = (
    Identity(),
    SameType(),
    TransposeNothing(),
    PadNothing(),
    SliceEverything(),
    TileOnce(),
    PoolNothing(),
    SplitOnce(),
    GatherEverything(),
)
