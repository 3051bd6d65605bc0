"""What a pipeline did, pass by pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from irc.pipeline.contract import Refusal


@dataclass(frozen=True)
class PassRecord:
    """One execution of one pass. `round` counts the repetitions of the group it stands in, from 1 (0: no group)."""

    name: str
    text: str
    changed: bool
    statistics: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
    seconds: float
    round: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "pass": self.text,
            "round": self.round,
            "changed": self.changed,
            "statistics": dict(self.statistics),
            "refusals": [{"node": r.node, "rule": r.rule, "reason": r.reason} for r in self.refusals],
            "seconds": round(self.seconds, 4),
        }


@dataclass
class PipelineReport:
    """The pipeline text and a record per executed pass, in order. `stopped`: an instrument ended the run early."""

    text: str
    passes: list[PassRecord] = field(default_factory=list)
    stopped: bool = False

    @property
    def changed(self) -> bool:
        return any(p.changed for p in self.passes)

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in self.passes)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Every refusal that still held at the end: of each pass, those of its last execution."""
        last = {p.text: p.refusals for p in self.passes}
        return tuple(dict.fromkeys(r for refusals in last.values() for r in refusals))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values (no timings of the machine but `seconds`)."""
        return {"pipeline": self.text, "stopped": self.stopped, "passes": [p.to_json() for p in self.passes]}
