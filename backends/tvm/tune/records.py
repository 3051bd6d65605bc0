"""What tuning found, as a JSON file: a record for each class of kernels, target and version of the code generator."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from irc.backends.tvm.cache import code_digest
from irc.backends.tvm.specs import Spec
from irc.backends.tvm.tune.classes import Choice, class_key, measured_on
from irc.errors import DataError
from irc.targets.catalogue import get_target
from irc.targets.target import Target

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """The best choice for a class of kernels. Times in seconds for one call, measured side by side.

    `code` identifies the code generator that was measured: with another one the times, and the choice, mean nothing.
    """

    kernel: str
    target: str
    code: str
    choice: Choice
    analytic: Choice
    seconds: float
    analytic_seconds: float
    text: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.kernel, self.target, self.code

    @property
    def gain(self) -> float:
        """How many times faster than the analytic choice."""
        return self.analytic_seconds / self.seconds


class Records:
    """Records by class; those of other targets and other code generators are kept, but not found."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._by_identity: dict[tuple[str, str, str], Record] = {}
        self._code = code_digest()
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        return len(self._by_identity)

    def __iter__(self) -> Any:
        return iter(self._by_identity.values())

    def add(self, record: Record) -> None:
        """Takes the place of one for the same class, target and code generator."""
        self._by_identity[record.identity] = record

    def find(self, spec: Spec, target: Target) -> Record | None:
        """The record that holds for `spec`, if there is one."""
        return self._by_identity.get((class_key(spec, target), measured_on(spec, target), self._code))

    def stale(self, target: Target) -> int:
        """How many records for `target` another code generator was measured with."""
        return sum(r.target in _keys(target) and r.code != self._code for r in self)

    def current(self, target: Target) -> int:
        return sum(r.target in _keys(target) and r.code == self._code for r in self)

    @staticmethod
    def load(path: Path) -> Records:
        """Raises DataError for a file that is no record file, or a damaged one."""
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise _bad(path, str(error).splitlines()[0]) from None
        if not isinstance(data, dict) or data.get("irc_tuning") != FORMAT or not isinstance(data.get("records"), list):
            raise _bad(path, "another kind of file")
        return Records(_record(path, i, entry) for i, entry in enumerate(data["records"]))

    def save(self, path: Path) -> None:
        """Whole or not at all; the same records give the same bytes. Raises OutputError."""
        from irc.export import replacing

        entries = [asdict(r) for _, r in sorted(self._by_identity.items())]
        text = json.dumps({"irc_tuning": FORMAT, "records": entries}, indent=1, sort_keys=True)
        with replacing(path) as file:
            file.write(f"{text}\n".encode())


def _keys(target: Target) -> set[str]:
    return {target.key, get_target(target.plain).key} if target.plain else {target.key}


def _bad(path: Path, got: str) -> DataError:
    return DataError(
        "no tuning records can be read from this file",
        where=str(path),
        expected="a file that irc tune wrote",
        got=got,
        hint="irc tune again",
    )


def _record(path: Path, index: int, entry: Any) -> Record:
    names = {f.name for f in fields(Record)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise _bad(path, f"record {index} without the fields of one")
    texts = ("kernel", "target", "code", "text")
    if not all(isinstance(entry[n], str) for n in texts) or not all(
        isinstance(entry[n], dict) for n in ("choice", "analytic")
    ):
        raise _bad(path, f"record {index} with fields of wrong types")
    for name in ("seconds", "analytic_seconds"):
        value = entry[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise _bad(path, f"record {index} with {name} {value!r}")
    return Record(**entry)
