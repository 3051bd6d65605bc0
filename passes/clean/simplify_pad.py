"""A Pad in front of a convolution or a pool becomes its pads."""

from __future__ import annotations

import math

import numpy as np

from irc.ir.graph import Node, Value
from irc.passes.clean.simplify_arith import is_nonnegative
from irc.rewrite import NOT_A_CANDIDATE, Editor, Match, Rule, op, uniform
from irc.rewrite.facts import ints, normalized, rank


class PadInto(Rule):
    """Conv(Pad0(x)) = Conv(x) with the pads added, and so for pools where the meaning stays:

    - Conv pads with zeros, so the Pad must be of zeros, over spatial axes only, and not negative (a crop).
    - AveragePool with pads p and count_include_pad = 1 divides by the whole window and sums zeros: that is
      AveragePool(Pad0(x)). Without count_include_pad it would divide by less. ceil_mode changes the last window.
    - MaxPool ignores its pads. That equals a Pad by -inf; a Pad by zeros where x >= 0 and every window sees an element
      of x, as then max(0, x...) = max(x...).
    """

    name = "pad-into"
    pattern = op("Conv|AveragePool|MaxPool")

    def check(self, m: Match) -> str | None:
        node, pad = m.root, m.root.need(0).producer
        if pad is None or not pad.is_op("Pad"):
            return NOT_A_CANDIDATE
        if pad.get_str("mode", "constant") != "constant":
            return f"the Pad before it has mode {pad.get_str('mode')}"
        if not ("pads" in node.attributes and "kernel_shape" in node.attributes):
            return "its own pads are not resolved"
        pads = _spatial_pads(pad)
        if pads is None:
            return "the Pad before it is not constant, negative, or pads batch or channels"
        if node.op_type == "Conv":
            return None if _fill(pad) == 0 else "the Pad before it does not pad with zeros"
        return _check_average(node, pad, pads) if node.op_type == "AveragePool" else _check_max(node, pad, pads)

    def rewrite(self, m: Match, edit: Editor) -> Value:
        node, pad = m.root, m.root.need(0).producer
        assert pad is not None
        extra = _spatial_pads(pad)
        assert extra is not None
        pads = tuple(a + b for a, b in zip(node.get_ints("pads"), extra, strict=True))
        inputs = [pad.need(0), *node.inputs[1:]]
        if node.op_type == "AveragePool":
            return edit.like_root(inputs, pads=pads, count_include_pad=1)
        return edit.like_root(inputs, pads=pads)


def _check_average(node: Node, pad: Node, pads: tuple[int, ...]) -> str | None:
    if _fill(pad) != 0:
        return "the Pad before it does not pad with zeros"
    if any(node.get_ints("pads")) and not node.get_int("count_include_pad"):
        return "it averages without its own pads, but over those of the Pad"
    if node.get_int("ceil_mode"):
        return "ceil_mode drops elements of the last window"
    return _check_windows(node, pads)


def _check_max(node: Node, pad: Node, pads: tuple[int, ...]) -> str | None:
    fill = _fill(pad)
    if len(node.outputs) > 1:
        return "the indices it gives count the padded elements"
    if node.get_int("ceil_mode"):
        return "ceil_mode may drop the last window"
    lowest = fill is not None and (fill == -math.inf or fill <= -3.0e38)
    if not lowest and not (fill == 0 and is_nonnegative(pad.need(0))):
        return "the Pad before it pads with a number that may win over the data"
    return _check_windows(node, pads)


def _check_windows(node: Node, extra: tuple[int, ...]) -> str | None:
    """Every window must see an element of the data, which pads smaller than the window make sure of (and engines ask
    for)."""
    kernel, n = node.get_ints("kernel_shape"), len(node.get_ints("kernel_shape"))
    total = [a + b for a, b in zip(node.get_ints("pads"), extra, strict=True)]
    small = all(total[i] < kernel[i] and total[i + n] < kernel[i] for i in range(n))
    flat = set(node.get_ints("dilations", (1,))) == {1}
    return None if small and flat else "a window may lie entirely in the padding"


def _fill(pad: Node) -> float | None:
    """The number that a Pad writes; None where it is not a constant."""
    value = pad.input(2)
    if value is None:
        return 0.0
    number = uniform(value)
    return None if number is None else float(number)


def _spatial_pads(pad: Node) -> tuple[int, ...] | None:
    """(heads..., tails...) over the spatial axes, or None (docstring of PadInto)."""
    amounts, n = ints(pad.input(1)), rank(pad.input(0))
    if amounts is None or n is None or min(amounts, default=0) < 0:
        return None
    axes = tuple(range(n)) if pad.input(3) is None else ints(pad.input(3))
    if axes is None:
        return None
    full = np.zeros((2, n), np.int64)
    full[:, list(normalized(axes, n))] = np.array(amounts).reshape(2, len(axes))
    if full[:, :2].any():
        return None
    return tuple(int(v) for v in full[:, 2:].reshape(-1))


RULES: tuple[Rule, ...] = (PadInto(),)
