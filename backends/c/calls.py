"""The calls of kernels, one after the other, as C text; blocks that repeat become loops.

Networks repeat blocks of layers of the same shape. Their kernels are the same functions then, and what they are called
with lies at equal distances in the arrays of weights and in the workspace, or at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST = 12  # calls of a block
_WORTH_A_LOOP = 3
"""Calls that a loop must save."""


@dataclass(frozen=True)
class Argument:
    """A pointer: `text` with the offset in place of `{}`, or without one (`offset` 0)."""

    text: str
    offset: int = 0

    def at(self, step: int = 0) -> str:
        """As C text; `step`: how far it moves with each turn of the loop."""
        moved = f"i * {step}" if step > 0 else f"i * ({step})"
        return self.text.replace("{}", f"{self.offset} + {moved}" if step else str(self.offset))


@dataclass(frozen=True)
class KernelCall:
    name: str
    arguments: tuple[Argument, ...]

    def line(self, steps: Sequence[int] = ()) -> str:
        """The call; `steps`: of each argument, in a loop."""
        moved = [a.at(step) for a, step in zip(self.arguments, steps or [0] * len(self.arguments), strict=True)]
        return f"{self.name}({', '.join(moved)});"

    def steps_to(self, other: KernelCall) -> tuple[int, ...] | None:
        """How far each argument of `other` is from its own here; None where more than offsets differ."""
        if self.name != other.name or [a.text for a in self.arguments] != [a.text for a in other.arguments]:
            return None
        return tuple(b.offset - a.offset for a, b in zip(self.arguments, other.arguments, strict=True))


def call_lines(calls: Sequence[KernelCall]) -> list[str]:
    """Statements for all `calls`, indented by a level."""
    out: list[str] = []
    at = 0
    while at < len(calls):
        length, turns, steps = _best_block(calls, at)
        if turns == 1:
            out.append("    " + calls[at].line())
        else:
            out.append(f"    for (ptrdiff_t i = 0; i < {turns}; i++) {{")
            out += ["        " + call.line(s) for call, s in zip(calls[at : at + length], steps, strict=True)]
            out.append("    }")
        at += length * turns
    return out


def _best_block(calls: Sequence[KernelCall], at: int) -> tuple[int, int, list[tuple[int, ...]]]:
    """(calls of a block, how often it comes from `at` on, steps of its calls' arguments): what saves most calls."""
    best: tuple[int, int, list[tuple[int, ...]]] = (1, 1, [])
    saved = _WORTH_A_LOOP - 1
    for length in range(1, _LONGEST + 1):
        steps = _steps(calls, at, length, 1)
        turns = 1
        while steps is not None and _steps(calls, at, length, turns) == [tuple(turns * s for s in of) for of in steps]:
            turns += 1
        if steps is not None and length * (turns - 1) > saved:
            best, saved = (length, turns, steps), length * (turns - 1)
    return best


def _steps(calls: Sequence[KernelCall], at: int, length: int, turn: int) -> list[tuple[int, ...]] | None:
    """From each call of the first block to that of block `turn`."""
    there = at + turn * length
    if there + length > len(calls):
        return None
    found = [calls[at + i].steps_to(calls[there + i]) for i in range(length)]
    return [steps for steps in found if steps is not None] if None not in found else None
