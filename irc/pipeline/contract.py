"""The pass contract: what a pass is, what it is given, what it returns.

A pass is a frozen dataclass. Its fields are its options and give its text form
(`prune{sparsity=0.5 pattern=block}`); `run` changes the model in place. It must leave a graph that `verify`
accepts and that exports to ONNX with the same meaning (within what the pass is for).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from irc.ir.graph import Model
from irc.ir.types import Array
from irc.targets.target import Target


@dataclass(frozen=True)
class Refusal:
    """Why something that looked like a candidate was left alone. Shown by `irc explain`."""

    node: str  # Node.label
    rule: str  # rule or pass that refused
    reason: str


@dataclass(frozen=True)
class PassResult:
    """`changed`: whether the graph differs. `statistics`: plain JSON values for the report."""

    changed: bool
    statistics: Mapping[str, Any] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()


class Samples(Protocol):
    """Calibration samples, one feed (batch) at a time: {input name: array as the model takes it}."""

    def feeds(self) -> Iterator[dict[str, Array]]: ...

    def __len__(self) -> int: ...


class Store(Protocol):
    """What remembers calibration statistics (`irc.calibrate.store`), as the pipeline manager sees it."""

    def begin(self, model: Model) -> None:
        """A pipeline starts on `model`."""

    def advance(self, text: str) -> None:
        """A pass of this text has changed the model."""


@dataclass
class PassContext:
    """What a pass may ask for. Passes keep no state of their own between runs.

    Passes learn from calibration data through `irc.calibrate.gather` (or `sequential`), which reads and fills `store`.
    """

    target: Target | None = None
    calibration: Samples | None = None
    seed: int = 0
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    explain: bool = False
    crash_dir: Path | None = None  # where reproducers of crashes go; None: a new folder in the temporary directory
    store: Store | None = None
    notes: list[str] = field(default_factory=list)  # what the user should know of the calibration, each once


class Pass(ABC):
    """Base of all passes. Subclasses are `@dataclass(frozen=True)`, every field with a default where one is sound."""

    name: ClassVar[str]
    summary: ClassVar[str] = ""

    @abstractmethod
    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Transform `model` in place. Raises IrcError for what the user can mend (no calibration data, ...)."""
