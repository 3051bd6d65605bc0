"""Statistics that outlive the pass that asked for them: for later passes, and in a file for later runs.

An entry belongs to what it is a statistic of (`signature.py`), so a later pass finds it again as long as nothing
before that value has changed. In a file it has a place too: the texts of the passes that had changed the model, the
stage, the name. Where another CPU computes a pass with other last bits, the place still finds it.

The file is an .npz: arrays `NUMBER.PART` of each entry, and `index`, JSON text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from irc.calibrate.npz import open_npz
from irc.calibrate.observers import ChannelMean, ChannelOctaves, Histogram, Observer, PairedMoment, SecondMoment
from irc.calibrate.recorded import Recorded
from irc.calibrate.signature import model_signature
from irc.errors import DataError
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.pipeline.contract import Samples

FORMAT = 2
MEMORY = 3 << 29
"""Bytes of entries that are remembered where there is no file."""
_OLDEST = (1980, 1, 1, 0, 0, 0)  # the time stamp of every member: the same statistics give the same bytes

KINDS: dict[str, type[Observer]] = {
    c.kind: c for c in (Histogram, ChannelMean, ChannelOctaves, SecondMoment, PairedMoment, Recorded)
}


@dataclass(frozen=True)
class Entry:
    """Which statistic of which value. `signature`: of the value (of both, for a paired one); `place`: where in the
    pipeline and under which name it was asked for; `key`: the observer's."""

    signature: str
    place: str
    key: str


class StatisticsStore:
    """What has been observed of one set of samples. `samples` None: all there is comes from the file `source`.

    `keep`: for a file in the end (`save`; else `close`). Implements `irc.pipeline.contract.Store`.
    Raises DataError where `source` is no statistics file, or one of another set of samples.
    """

    def __init__(self, samples: Samples | None, *, source: Path | None = None, keep: bool = False) -> None:
        self.samples = samples
        self.source = None if source is None else _Source(source)
        self._writer = _Writer() if keep else None
        self._known: dict[tuple[str, str], Observer] = {}
        self._used = 0
        self._model = ""
        self._state = ""
        self._counts: dict[str, int] = {}
        self._changed = False
        if self.source is not None and samples is not None and len(samples) != self.source.samples:
            raise DataError(
                "the statistics are of another set of samples than the calibration data",
                where=str(source),
                expected=f"{len(samples)} samples",
                got=f"{self.source.samples}",
            )

    @property
    def count(self) -> int:
        """How many samples the statistics are of."""
        return len(self.samples) if self.samples is not None else self.source.samples if self.source is not None else 0

    # What the pipeline manager calls

    def begin(self, model: Model) -> None:
        """A pipeline starts on `model`. Raises DataError where the file is of another model."""
        self._state, self._counts = "", {}
        if self.source is None and self._writer is None:
            return
        self._model = model_signature(model)
        if self.source is not None and self.source.model != self._model:
            raise DataError(
                "these statistics are of another model",
                where=str(self.source.path),
                expected=f"statistics of '{model.name}'",
                got=f"statistics of '{self.source.name}'",
                hint="a new run with --calibration and --save-statistics",
            )
        if self._writer is not None:
            self._writer.model = {"model": self._model, "name": model.name}

    def advance(self, text: str) -> None:
        """A pass of this text has changed the model."""
        self._state = hashlib.sha256(f"{self._state}{text}\n".encode()).hexdigest()
        self._counts = {}
        self._changed = True

    # What `gather` and `walk` call

    def place(self, stage: str) -> str:
        """The place of a collection: each call gives another one."""
        number = self._counts[stage] = self._counts.get(stage, -1) + 1
        return f"{self._state}|{stage}|{number}"

    def find(self, entry: Entry) -> Observer | None:
        """What is known of it."""
        found = self._known.get((entry.signature, entry.key))
        if found is None and self._writer is not None:
            found = self._writer.find(entry)
        if found is None and self.source is not None:
            found = self.source.find(entry, by_place=self.samples is None)
            if found is not None:
                self.add(entry, found)
        return found

    def add(self, entry: Entry, observer: Observer, *, remember: bool = True) -> None:
        """`remember` False: for the file only."""
        if self._writer is not None:
            self._writer.add(entry, observer)
        elif remember:
            self._known[entry.signature, entry.key] = observer
            self._used += observer.nbytes
            while self._used > MEMORY and len(self._known) > 1:
                self._forget(next(iter(self._known)))

    def retain(self, current: set[str]) -> None:
        """After a pass has changed the model: forget, in memory, what is of none of these signatures."""
        if not self._changed:
            return
        self._changed = False
        for known in [k for k in self._known if k[0] not in current]:
            self._forget(known)

    def _forget(self, known: tuple[str, str]) -> None:
        self._used -= self._known.pop(known).nbytes

    @property
    def keeps_all(self) -> bool:
        """Whether everything is written to a file, or may be found in one."""
        return self._writer is not None or self.source is not None

    def save(self, path: Path) -> None:
        """Write all that was asked for, for `StatisticsStore(None, source=path)`. Raises OutputError."""
        if self._writer is None:
            raise ValueError("nothing was kept")
        self._writer.save(path, self.count)

    def close(self) -> None:
        """Forget everything that was not saved."""
        if self._writer is not None:
            self._writer.close()


class _Writer:
    """Entries on their way into a file: on disk at once, so that memory does not grow with their number."""

    def __init__(self) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile(prefix="irc-statistics-")  # noqa: SIM115 - open until saved
        self.archive = zipfile.ZipFile(self.file, "w", allowZip64=True)
        self.model: dict[str, str] = {"model": "", "name": ""}
        self.index: list[dict[str, str]] = []
        self.numbers: dict[tuple[str, str], int] = {}

    def add(self, entry: Entry, observer: Observer) -> None:
        known = entry.signature, entry.key
        if known in self.numbers:
            return
        number = self.numbers[known] = len(self.index)
        parts = observer.state()
        for part, array in parts.items():
            self._write(f"{number}.{part}", array)
        self.index.append(
            {"signature": entry.signature, "place": entry.place, "key": entry.key, "kind": observer.kind}
            | {"parts": ",".join(parts)}
        )

    def _write(self, name: str, array: Array) -> None:
        with self.archive.open(zipfile.ZipInfo(f"{name}.npy", _OLDEST), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)

    def find(self, entry: Entry) -> Observer | None:
        number = self.numbers.get((entry.signature, entry.key))
        if number is None:
            return None
        facts = self.index[number]
        state = {}
        for part in facts["parts"].split(","):
            with self.archive.open(f"{number}.{part}.npy") as member:
                state[part] = np.lib.format.read_array(member, allow_pickle=False)
        return KINDS[facts["kind"]].from_state(state)

    def save(self, path: Path, samples: int) -> None:
        from irc.export import replacing

        index = {"format": FORMAT, "samples": samples, **self.model, "entries": self.index}
        self._write("index", np.frombuffer(json.dumps(index).encode(), np.uint8))
        self.archive.close()
        self.file.seek(0)
        with replacing(path) as target:
            shutil.copyfileobj(self.file, target, 1 << 20)
        self.close()

    def close(self) -> None:
        self.archive.close()
        self.file.close()


class _Source:
    """A statistics file that entries are read from as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        columns = open_npz(path)
        if "index" not in columns:
            raise DataError("this is no statistics file", where=str(path), expected="one that --save-statistics wrote")
        try:
            index = json.loads(columns["index"].whole().tobytes())
            self.format = index["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("this is no statistics file", where=str(path), got=f"an index with {error}") from error
        if self.format != FORMAT:
            raise DataError(
                "statistics of another version of irc", where=str(path), expected=f"{FORMAT}", got=f"{self.format}"
            )
        self.samples: int = index["samples"]
        self.model: str = index["model"]
        self.name: str = index["name"]
        self.entries: list[dict[str, str]] = index["entries"]
        self.columns = columns
        self.by_signature = {(e["signature"], e["key"]): i for i, e in enumerate(self.entries)}
        self.by_place = {(e["place"], e["key"]): i for i, e in enumerate(self.entries)}

    def find(self, entry: Entry, *, by_place: bool) -> Observer | None:
        number = self.by_signature.get((entry.signature, entry.key))
        if number is None and by_place:
            number = self.by_place.get((entry.place, entry.key))
        if number is None:
            return None
        facts = self.entries[number]
        return KINDS[facts["kind"]].from_state(dict(self._state(number, facts["parts"].split(","))))

    def _state(self, number: int, parts: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for part in parts:
            column = self.columns.get(f"{number}.{part}")
            if column is None:
                raise DataError(f"array '{number}.{part}' is missing", where=str(self.path))
            yield part, column.whole()
