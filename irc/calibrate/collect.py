"""One calibration run: the exported model in onnxruntime, with the wanted values as extra outputs.

Samples are taken one batch at a time and forgotten; what stays in memory is the observers. Where they, or the values
of one batch, would take more than `memory` bytes, the samples are run again for each part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from irc.calibrate.observers import Observer
from irc.calibrate.sessions import (
    Feed,
    ahead,
    batches,
    call,
    feed_samples,
    feeds_for,
    make_session,
    same_for_batches,
    symbolic_batch,
)
from irc.errors import DataError, ModelError
from irc.ir.graph import Model, Value
from irc.pipeline.contract import Samples

if TYPE_CHECKING:
    import onnx

Wanted = Mapping[str, Sequence[Observer]]
Progress = Callable[[str, int, int], None]
O = TypeVar("O", bound=Observer)  # noqa: E741 - the usual short name of a type variable

_MEMORY = 1 << 30
_BATCH_MEMORY = 192 << 20  # two batches are held at a time
_MOST_BATCH = 32


@dataclass
class Statistics:
    """What was observed: (value name, observer key) -> observer. `samples`: how many samples were seen."""

    entries: dict[tuple[str, str], Observer] = field(default_factory=dict)
    samples: int = 0

    def get(self, name: str, kind: type[O], key: str | None = None) -> O:
        """The observer of this class (and key, where a value has several). Raises KeyError."""
        for (value, found), observer in self.entries.items():
            if value == name and isinstance(observer, kind) and key in (None, found):
                return observer
        raise KeyError(f"{kind.__name__} of '{name}'")

    def has(self, name: str, key: str) -> bool:
        return (name, key) in self.entries


def collect(
    model: Model,
    samples: Samples,
    wanted: Wanted,
    *,
    threads: int = 1,
    memory: int = _MEMORY,
    progress: Progress = lambda what, done, total: None,
) -> Statistics:
    """Run `samples` through `model` and let the observers of each named value see it.

    Where the model's batch is 1, several samples go through together if that provably gives the same values.
    Deterministic for one thread. Raises DataError without samples, ModelError where onnxruntime refuses the model.
    """
    statistics = Statistics(samples=len(samples))
    if len(samples) == 0:
        raise DataError("there are no calibration samples", expected="at least one")
    values = {v.name: v for v in model.graph.values()}
    missing = [name for name in wanted if name not in values]
    if missing:
        raise ModelError(f"there is no value '{missing[0]}' to observe", where=model.name)
    chunks = _chunks(wanted, values, memory)
    for number, chunk in enumerate(chunks):
        what = "calibrate" if len(chunks) == 1 else f"calibrate ({number + 1} of {len(chunks)})"
        _run(model, samples, chunk, values, threads, partial(progress, what))
    for name, observers in wanted.items():
        for observer in observers:
            statistics.entries[name, observer.key] = observer
    return statistics


def _chunks(wanted: Wanted, values: Mapping[str, Value], memory: int) -> list[dict[str, Sequence[Observer]]]:
    """Split so that observers and one sample's values of each part fit into `memory` (parts are never empty)."""
    chunks: list[dict[str, Sequence[Observer]]] = [{}]
    used = 0
    for name, observers in wanted.items():
        need = sum(o.nbytes for o in observers) + _sample_bytes(values[name])
        if chunks[-1] and used + need > memory:
            chunks.append({})
            used = 0
        chunks[-1][name] = observers
        used += need
    return [c for c in chunks if c]


def _sample_bytes(value: Value) -> int:
    shape = value.shape
    if shape is None:
        return 0
    return 4 * int(np.prod([d if isinstance(d, int) else 1 for d in shape], dtype=np.int64))


def _run(
    model: Model,
    samples: Samples,
    chunk: Mapping[str, Sequence[Observer]],
    values: Mapping[str, Value],
    threads: int,
    progress: Callable[[int, int], None],
) -> None:
    runner = _Runner(model, list(chunk), threads)
    batch = max(1, min(_MOST_BATCH, _BATCH_MEMORY // max(1, sum(_sample_bytes(values[n]) for n in chunk))))
    done = 0
    found = ((feed, runner(feed)) for feed in _grouped(model, feeds_for(model, samples), runner, batch))
    for feed, arrays in ahead(found):
        for name, array in arrays.items():
            for observer in chunk[name]:
                observer.update(array)
        done += feed_samples(feed)
        progress(min(done, len(samples)), len(samples))


def _grouped(model: Model, feeds: Iterator[Feed], runner: _Runner, batch: int) -> Iterator[Feed]:
    """Feeds as they are, or several of one sample joined where `runner` can be made to take them."""
    first = list(itertools.islice(feeds, min(batch, 2)))
    if len(first) < 2 or not all(v.shape and v.shape[0] == 1 for v in model.graph.inputs) or not runner.rebind(first):
        yield from first
        yield from feeds
        return
    rest = itertools.chain(first, feeds)
    yield from batches(rest, batch)


class _Runner:
    """onnxruntime on the model with `names` as its only outputs (graph inputs among them are passed through)."""

    def __init__(self, model: Model, names: Sequence[str], threads: int) -> None:
        from irc.export import to_proto

        self.inputs = {v.name for v in model.graph.inputs}
        self.names = list(names)
        self.threads = threads
        self.where = model.name
        self.proto = to_proto(model)
        computed = [n for n in names if n not in self.inputs]
        types = {v.name: v.tensor.dtype.onnx for v in model.graph.values() if v.name in set(computed)}
        _set_outputs(self.proto, computed, types)
        self.session = make_session(self.proto, self.where, threads) if computed else None
        self.computed = computed

    def __call__(self, feed: Feed) -> Feed:
        found = {name: feed[name] for name in self.names if name in self.inputs}
        if self.session is not None:
            found.update(zip(self.computed, call(self.session, self.computed, feed, self.where), strict=True))
        return found

    def rebind(self, feeds: Sequence[Feed]) -> bool:
        """Make the batch symbolic if joined feeds then give exactly what single ones give; says whether it did."""
        if self.session is None:
            return True
        try:
            session = make_session(symbolic_batch(self.proto), self.where, self.threads)
        except ModelError:
            return False
        if not same_for_batches(self.session, session, self.computed, feeds):
            return False
        self.session = session
        return True


def _set_outputs(proto: onnx.ModelProto, names: Sequence[str], types: Mapping[str, int]) -> None:
    del proto.graph.output[:]
    for name in names:
        output = proto.graph.output.add()
        output.name = name
        output.type.tensor_type.elem_type = types[name]
