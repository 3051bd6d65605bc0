"""Sets of samples for calibration and evaluation: an .npz file whose keys are the model's input names.

The first axis of every array counts samples. Labels may stand beside them under `labels`, `label` or `y`. Everything
is checked against the model when the file is opened; samples are then streamed, never held as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from irc.calibrate.npz import Column, open_npz
from irc.errors import DataError, suggest
from irc.ir.graph import Model, Value
from irc.ir.quantization import NO_PORTS, Ports
from irc.ir.types import Array, Dim, TensorType

LABEL_NAMES = ("labels", "label", "y")
ONLY_INPUT_NAMES = ("x", "arr_0")  # what a model with one input may be fed from
_SYMBOLIC_BATCH = 32
_SCAN_ROWS = 64


@dataclass(frozen=True)
class _Input:
    """How one model input is fed. `whole`: the sample has every dimension of the input, so one sample is one feed."""

    name: str
    column: Column
    dims: tuple[Dim, ...]
    whole: bool

    @property
    def fixed_batch(self) -> int | None:
        """Samples per feed where the model says so."""
        first = self.dims[0] if self.dims and not self.whole else None
        return 1 if self.whole else first if isinstance(first, int) else None


@dataclass(frozen=True)
class Dataset:
    """Samples that fit a model. Implements `irc.pipeline.contract.Samples`.

    `labels`: array [samples, ...], or fewer, each for a run of samples, or None. `len()` counts samples (those of an
    incomplete last batch are left out where the model fixes the batch). `ports`: inputs that are quantized when fed.
    """

    source: str
    inputs: tuple[_Input, ...]
    labels: Array | None
    samples: int
    ports: Ports = NO_PORTS

    @staticmethod
    def load(path: str | Path, model: Model, ports: Ports = NO_PORTS) -> Dataset:
        """Open an .npz file. Raises DataError where it does not fit `model`. Inputs of `ports` may be float32, too."""
        return _dataset(str(path), open_npz(Path(path)), model, ports)

    @staticmethod
    def of(arrays: Mapping[str, Array], model: Model, source: str = "samples", ports: Ports = NO_PORTS) -> Dataset:
        """The same from arrays in memory (labels under one of LABEL_NAMES). Raises DataError."""
        columns = {}
        for name, given in arrays.items():
            array = np.asarray(given)
            if array.dtype.hasobject:
                raise DataError(f"array '{name}' holds Python objects", where=source, expected="a plain numeric array")
            columns[name] = Column.of(name, array)
        return _dataset(source, columns, model, ports)

    def __len__(self) -> int:
        batch = self.batch
        return self.samples if batch is None else self.samples // batch * batch

    @property
    def batch(self) -> int | None:
        """Samples per feed where the model fixes it, None where its batch is symbolic."""
        return next((i.fixed_batch for i in self.inputs if i.fixed_batch is not None), None)

    def feeds(self, batch: int | None = None) -> Iterator[dict[str, Array]]:
        """Feeds in file order, as the model takes them. `batch` counts only where the model's is symbolic."""
        fixed = self.batch
        rows = fixed or batch or _SYMBOLIC_BATCH
        for parts in zip(*(i.column.blocks(rows) for i in self.inputs), strict=True):
            if fixed is not None and len(parts[0]) < fixed:
                return
            feed = {i.name: part[0] if i.whole else part for i, part in zip(self.inputs, parts, strict=True)}
            yield self.ports.feed(feed)

    def quantized(self, ports: Ports) -> Dataset:
        """The same samples, whose feeds have the integers that `ports` make of real numbers."""
        return replace(self, ports=ports)


def _dataset(source: str, columns: dict[str, Column], model: Model, ports: Ports) -> Dataset:
    values = model.graph.inputs
    names = [v.name for v in values]
    labels = next((columns[n] for n in LABEL_NAMES if n in columns and n not in names), None)
    rest = {n: c for n, c in columns.items() if c is not labels}
    if len(names) == 1 and len(rest) == 1 and next(iter(rest)) in ONLY_INPUT_NAMES:
        rest = {names[0]: next(iter(rest.values()))}
    _check_names(source, names, rest)
    inputs = tuple(_input(source, value, rest[value.name], real=value.name in ports.inputs) for value in values)
    samples = _check_lengths(source, inputs, labels)
    _check_batches(source, inputs, samples)
    for entry in inputs:
        _check_finite(source, entry.column)
    return Dataset(source, inputs, labels.whole() if labels is not None else None, samples)


def _check_names(source: str, names: list[str], found: Mapping[str, Column]) -> None:
    wanted = "arrays named " + ", ".join(f"'{n}'" for n in names) + " (labels: " + ", ".join(LABEL_NAMES) + ")"
    for name in found:
        if name not in names:
            raise DataError(
                f"the model has no input '{name}'",
                where=source,
                expected=wanted,
                got=f"'{name}'",
                hint=suggest(name, names),
            )
    for name in names:
        if name not in found:
            got = ", ".join(f"'{n}'" for n in found) or "no array"
            raise DataError(f"there is no array for input '{name}'", where=source, expected=wanted, got=got)


def _input(source: str, value: Value, column: Column, *, real: bool) -> _Input:
    if not isinstance(value.type, TensorType) or value.type.shape is None:
        raise DataError(f"input '{value.name}' is not a tensor of known rank", where=source, got=str(value.type))
    dims = value.type.shape.dims
    dtype = value.type.dtype.numpy
    if column.dtype != dtype and not (real and column.dtype == np.float32):
        raise DataError(
            f"array '{column.name}' has the wrong type",
            where=source,
            expected=f"{dtype}, or float32 to be quantized" if real else str(dtype),
            got=str(column.dtype),
            hint=f"array.astype('{dtype}')",
        )
    if dims and _fits(column.shape[1:], dims[1:]) and len(column.shape) > 0:
        return _Input(value.name, column, dims, whole=False)
    if _fits(column.shape[1:], dims) and len(column.shape) > 0:
        return _Input(value.name, column, dims, whole=True)
    tail = "".join(f",{'?' if d is None else d}" for d in dims[1:])
    raise DataError(
        f"array '{column.name}' has the wrong shape",
        where=source,
        expected=f"[samples{tail}] (one sample of input '{value.name}' per row)",
        got="[" + ",".join(map(str, column.shape)) + "]",
    )


def _fits(shape: tuple[int, ...], dims: tuple[Dim, ...]) -> bool:
    return len(shape) == len(dims) and all(not isinstance(d, int) or d == s for s, d in zip(shape, dims, strict=True))


def _check_lengths(source: str, inputs: tuple[_Input, ...], labels: Column | None) -> int:
    if not inputs:
        raise DataError("the model has no input", where=source)
    counts = {i.column.name: i.column.shape[0] for i in inputs}
    rows = next(iter(counts.values()))
    if labels is not None:
        found = labels.shape[0] if labels.shape else 0
        # One label may stand for a run of samples, all of the same length (the windows of one recording).
        counts[labels.name] = rows if found and rows % found == 0 else found
    if len(set(counts.values())) > 1:
        if labels is not None:
            counts[labels.name] = labels.shape[0] if labels.shape else 0
        got = ", ".join(f"'{n}' {c}" for n, c in counts.items())
        raise DataError("the arrays differ in their number of samples", where=source, expected="one number", got=got)
    samples = next(iter(counts.values()))
    if samples == 0:
        raise DataError("there are no samples in it", where=source, expected="at least one", got="0 samples")
    return samples


def _check_batches(source: str, inputs: tuple[_Input, ...], samples: int) -> None:
    fixed = {i.name: i.fixed_batch for i in inputs if i.fixed_batch is not None}
    if len(set(fixed.values())) > 1:
        got = ", ".join(f"'{n}' {b}" for n, b in fixed.items())
        raise DataError(
            "the model's inputs differ in their first dimension, so a row is not a sample for all of them",
            where=source,
            got=got,
            hint="arrays with one more axis in front, of shape [samples, *input shape]",
        )
    batch = next(iter(fixed.values()), 1)
    if samples < batch:
        raise DataError("there are too few samples for one batch", where=source, expected=f"{batch}", got=f"{samples}")


def _check_finite(source: str, column: Column) -> None:
    if column.dtype.kind not in "fc":
        return
    start = 0
    for block in column.blocks(_SCAN_ROWS):
        finite = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise DataError(
                f"array '{column.name}' holds NaN or infinity",
                where=source,
                expected="finite numbers",
                got=f"sample {row}",
            )
        start += len(block)
