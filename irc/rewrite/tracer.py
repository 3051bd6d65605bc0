"""Collects why rules did not fire, for `irc explain`."""

from __future__ import annotations

from irc.ir.graph import Node
from irc.pipeline.contract import Refusal


class Tracer:
    """Refusals of one sweep, each once."""

    def __init__(self, pass_name: str = "") -> None:
        self.prefix = f"{pass_name}/" if pass_name else ""
        self._refusals: dict[Refusal, None] = {}

    def refuse(self, node: Node, rule: str, reason: str) -> None:
        self._refusals[Refusal(node.label, self.prefix + rule, reason)] = None

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        return tuple(self._refusals)
