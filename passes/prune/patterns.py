"""Patterns as text: `element`, `block` with `block=16x4` or `block=target`, and n:m such as `2:4`."""

from __future__ import annotations

import re

from irc.errors import OptionError
from irc.passes.prune.layers import Pattern
from irc.targets.target import Target

_STEP = 4  # input channels that 8-bit dot products sum at once


def parse_pattern(pattern: str, block: str, target: Target | None) -> Pattern:
    """Raises OptionError for what is no pattern."""
    if pattern == "element":
        return Pattern()
    if pattern == "block":
        return target_block(target) if block == "target" else _block(block)
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if found is None or not 0 < int(found[1]) < int(found[2]) <= 64:
        raise OptionError(
            "this is no pattern",
            where="pass 'prune'",
            expected="element, block, or n:m such as 2:4 (at most 2 of 4 neighbouring inputs stay; m up to 64)",
            got=f"'{pattern}'",
        )
    return Pattern(run=int(found[2]), zeros=int(found[2]) - int(found[1]))


def target_block(target: Target | None) -> Pattern:
    """Output channels of a vector of 32-bit sums by the input channels of a dot product step.

    A library with kernels for several vector widths takes 16 output channels, the widest.
    """
    if target is None:
        raise OptionError("block=target needs a target", where="pass 'prune'", hint="block=16x4")
    return Pattern(16 if target.upgrades else target.vector_bytes // 4, _STEP)


def prospects(pattern: Pattern, target: Target | None) -> str:
    """What zeros of this pattern are good for, where that is less than people may hope; otherwise nothing."""
    if pattern.outputs == pattern.inputs == 1:
        return "single zeros make coded weights smaller (--weights coded), not the run faster: kernels pass over blocks"
    fits = target_block(target) if target is not None else pattern
    if pattern.outputs % fits.outputs or pattern.inputs % fits.inputs:
        name = target.name if target is not None else ""
        return (
            f"kernels for {name} pass over blocks of {fits.outputs}x{fits.inputs}, few of which are zero as a whole "
            f"where blocks of {pattern.outputs}x{pattern.inputs} are pruned; try block=target"
        )
    return ""


def _block(text: str) -> Pattern:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise OptionError(
            "this is no block",
            where="pass 'prune'",
            expected="outputs x inputs such as 16x4, or target",
            got=f"'{text}'",
        )
    return Pattern(int(found[1]), int(found[2]))
