"""Instruments: things that look on while a pipeline runs. They never change the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from irc.errors import OptionError, OutputError, suggest
from irc.ir.graph import Model
from irc.pipeline.contract import Pass
from irc.pipeline.report import PassRecord
from irc.pipeline.table import known_passes


class Instrument:
    """Base: every method does nothing. `number` counts executed passes from 1."""

    def wants(self, number: int, next_pass: Pass) -> bool:
        """Whether the pass may run. False ends the whole pipeline."""
        return True

    def before(self, number: int, next_pass: Pass, model: Model) -> None: ...

    def after(self, number: int, record: PassRecord, model: Model) -> None: ...


@dataclass
class PrintAfter(Instrument):
    """Prints the IR after the named passes ("all": after every pass that changed something)."""

    names: tuple[str, ...]
    write: Callable[[str], object] = field(default=lambda text: print(text, file=sys.stderr))

    def __post_init__(self) -> None:
        known = [*known_passes(), "all"]
        for name in self.names:
            if name not in known:
                raise OptionError(f"unknown pass '{name}'", where="print-after", hint=suggest(name, known))

    def after(self, number: int, record: PassRecord, model: Model) -> None:
        if record.name in self.names or ("all" in self.names and record.changed):
            from irc.ir.printer import print_model

            self.write(f"// after {number} {record.text}\n{print_model(model)}")


@dataclass
class Dump(Instrument):
    """Writes `NN-pass.irc` (IR text) and `NN-pass.onnx` into a folder, at the start and after each changing pass."""

    folder: Path
    onnx: bool = True

    def before(self, number: int, next_pass: Pass, model: Model) -> None:
        if number == 1:
            write_model(model, self.folder, "00-start", onnx=self.onnx)

    def after(self, number: int, record: PassRecord, model: Model) -> None:
        if record.changed:
            write_model(model, self.folder, f"{number:02d}-{record.name}", onnx=self.onnx)


@dataclass
class Limit(Instrument):
    """Stops after `passes` executed passes (to bisect a pipeline by hand)."""

    passes: int

    def wants(self, number: int, next_pass: Pass) -> bool:
        return number <= self.passes


@dataclass
class Timing(Instrument):
    """Seconds per pass text, summed over repetitions."""

    seconds: dict[str, float] = field(default_factory=dict)

    def after(self, number: int, record: PassRecord, model: Model) -> None:
        self.seconds[record.text] = self.seconds.get(record.text, 0.0) + record.seconds

    def table(self) -> str:
        """Slowest first, one line per pass."""
        order = sorted(self.seconds.items(), key=lambda item: -item[1])
        return "\n".join(f"{seconds:9.3f} s  {text}" for text, seconds in order)


def write_model(model: Model, folder: Path, name: str, *, onnx: bool = True) -> None:
    """`folder/name.irc` and `folder/name.onnx`. Raises OutputError."""
    from irc.export import replacing, save
    from irc.ir.printer import print_model

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", where=str(folder), hint="another folder") from error
    with replacing(folder / f"{name}.irc") as file:
        file.write(print_model(model).encode())
    if onnx:
        save(model, folder / f"{name}.onnx")
