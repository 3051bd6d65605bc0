"""What irc has to say about a compilation: one record, from which text, HTML and JSON are made.

Everything in it but `seconds` is the same for two runs on the same input, so that artifacts can be compared by bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Size:
    """A model before or after the passes. `bytes`: of its weights as ONNX stores them. `macs` None: not all static."""

    nodes: int
    parameters: int
    bytes: int
    sparsity: float
    macs: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": self.nodes,
            "parameters": self.parameters,
            "weight_bytes": self.bytes,
            "sparsity": round(self.sparsity, 4),
            "macs": self.macs,
        }


@dataclass(frozen=True)
class PassSummary:
    """One pass of the pipeline, all its executions together."""

    text: str
    runs: int
    changes: int
    statistics: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"pass": self.text, "runs": self.runs, "changes": self.changes, "statistics": dict(self.statistics)}


@dataclass(frozen=True)
class StepRow:
    """One kernel call of the compiled network."""

    label: str
    nodes: tuple[str, ...]
    macs: int
    parallel: bool

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "nodes": list(self.nodes), "macs": self.macs, "parallel": self.parallel}


@dataclass
class Report:
    """`verification`, `accuracy`, `instructions`, `interface`: as in the manifest. `damage`: rows of
    LayerDamage.to_json()."""

    version: str
    model: str
    name: str = ""
    target: str = ""
    pipeline: str = ""
    before: Size | None = None
    after: Size | None = None
    passes: list[PassSummary] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    interface: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    accuracy: dict[str, Any] | None = None
    damage: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the timings."""
        return {
            "irc": self.version,
            "model": self.model,
            "name": self.name,
            "target": self.target,
            "pipeline": self.pipeline,
            "before": self.before.to_json() if self.before else None,
            "after": self.after.to_json() if self.after else None,
            "passes": [p.to_json() for p in self.passes],
            "steps": [s.to_json() for s in self.steps],
            "sizes": self.sizes,
            "interface": self.interface,
            "verification": self.verification,
            "instructions": self.instructions,
            "accuracy": self.accuracy,
            "damage": self.damage,
            "notes": self.notes,
        }


def bytes_text(count: int) -> str:
    """A size to read: "1.5 MB" (powers of ten, as disks and flash are sold)."""
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def count_text(count: int | None) -> str:
    """A number to read: "1.5 M"; "?" where it is not known."""
    if count is None:
        return "?"
    value, unit = float(count), ""
    for bigger in ("k", "M", "G", "T"):
        if value < 1000:
            break
        value, unit = value / 1000, f" {bigger}"
    return str(count) if not unit else f"{value:.3g}{unit}" if value < 100 else f"{value:.0f}{unit}"


def shortened(names: Sequence[str], shown: int = 3) -> str:
    """A list to read: "a, b, c and 4 more"."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def plain(text: Any) -> str:
    """Statistics of a pass as words: "folded 3, kept 2"; lists by their lengths."""
    if isinstance(text, Mapping):
        counts = {k: len(v) if isinstance(v, list | tuple | Mapping) else v for k, v in text.items()}
        return ", ".join(f"{k.replace('_', '-')} {plain(v)}" for k, v in counts.items() if v != 0)
    if isinstance(text, float):
        return f"{text:.4g}"
    return str(text)


def verification_lines(verification: Mapping[str, Any]) -> list[str]:
    """The verification in words, one line for each thing compared with."""
    if not verification:
        return []
    if verification.get("where") == "none":
        return [f"not verified: {verification.get('reason', '')}"]
    lines = []
    for name, found in verification.get("against", {}).items():
        worst = max((_number(d["relative"]) for d in found), default=0.0)
        share = min((d["within_one_step"] for d in found), default=1.0)
        snr = min((d["snr_db"] for d in found), default=999.0)
        text = f"{name}: " + ("equal" if worst == 0 else f"largest difference {worst:.2g} of the largest output")
        text += f", {share:.2%} within a step" if verification.get("quantized") and worst else ""
        lines.append(text + (f", {snr:.1f} dB" if worst else ""))
    how = f"{verification['where']} ({verification.get('how', '')})"
    return [f"{how}, {verification.get('samples')} {verification.get('data', '')} samples", *lines]


def instruction_lines(instructions: Mapping[str, int]) -> list[str]:
    """The instructions of one run in words: counted by an emulator, and estimated from the code."""
    words = {"counted": "counted by the emulator", "estimated": "estimated from the code"}
    return [f"{count_text(instructions[k])} a run, {text}" for k, text in words.items() if k in instructions]


def _number(value: Any) -> float:
    return float("inf") if isinstance(value, str) else float(value)
