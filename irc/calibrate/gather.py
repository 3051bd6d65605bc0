"""The way of every pass to calibration statistics.

A pass asks for what it wants of the model as it is now and reads the answer from the `Statistics` it gets back, never
from the observers it handed in: they may be those of an earlier run over the same values, or of a file.
"""

from __future__ import annotations

from irc.calibrate.collect import Statistics, Wanted, collect
from irc.calibrate.observers import Observer
from irc.calibrate.signature import signatures
from irc.calibrate.sound import check_finite, check_weights, note_few
from irc.calibrate.store import Entry, StatisticsStore
from irc.errors import DataError, ModelError
from irc.ir.graph import Model
from irc.pipeline.contract import PassContext, Samples


def calibrated(ctx: PassContext) -> bool:
    """Whether `gather` can answer: there are samples, or statistics of them."""
    return ctx.calibration is not None or (isinstance(ctx.store, StatisticsStore) and ctx.store.source is not None)


def sample_count(ctx: PassContext) -> int:
    """How many samples the statistics of `gather` are of; 0 without any."""
    if ctx.calibration is not None:
        return len(ctx.calibration)
    return ctx.store.count if isinstance(ctx.store, StatisticsStore) else 0


def need_samples(ctx: PassContext, model: Model) -> Samples:
    """The samples themselves. Raises DataError without them."""
    if ctx.calibration is not None:
        return ctx.calibration
    raise DataError(
        "this needs calibration data",
        where=model.name,
        expected="samples of real inputs",
        got="statistics alone" if calibrated(ctx) else "none",
        hint="--calibration samples.npz",
    )


def need_calibration(ctx: PassContext, model: Model) -> None:
    """Raises DataError where `gather` has nothing to learn from."""
    if not calibrated(ctx):
        need_samples(ctx, model)


def store_of(ctx: PassContext) -> StatisticsStore | None:
    """Where statistics of the samples of `ctx` are remembered; made when first asked for. None: nowhere, for a context
    that was given other samples than its store."""
    if ctx.store is None and ctx.calibration is not None:
        ctx.store = StatisticsStore(ctx.calibration)
    if not isinstance(ctx.store, StatisticsStore) or ctx.calibration is not ctx.store.samples:
        return None
    return ctx.store


def gather(ctx: PassContext, model: Model, wanted: Wanted, *, stage: str = "") -> Statistics:
    """The statistics `wanted` (value name -> fresh observers) of `model` as it is now.

    What is known of values that are computed as before comes from there; samples run through the model for the rest.
    `stage` names a collection within a pass that makes several, for the statistics file. Raises DataError where there
    is nothing to learn from, or NaN where least squares need numbers, ModelError for a name that the model has not.
    """
    need_calibration(ctx, model)
    note_few(ctx, sample_count(ctx))
    check_weights(model)
    found = _gather(ctx, model, wanted, stage)
    check_finite(model, ((name, observer) for (name, _), observer in found.entries.items()))
    return found


def _gather(ctx: PassContext, model: Model, wanted: Wanted, stage: str) -> Statistics:
    store = store_of(ctx)
    if store is None:
        return collect(model, need_samples(ctx, model), wanted, progress=ctx.progress)
    known = {value.name: signature for value, signature in signatures(model).items()}
    store.retain(set(known.values()))
    place = store.place(stage)
    statistics = Statistics(samples=store.count)
    missing: dict[str, list[Observer]] = {}
    for name, observers in wanted.items():
        if name not in known:
            raise ModelError(f"there is no value '{name}' to observe", where=model.name)
        for observer in observers:
            found = store.find(Entry(known[name], f"{place}|{name}", observer.key))
            if found is None:
                missing.setdefault(name, []).append(observer)
            else:
                statistics.entries[name, observer.key] = found
    if missing:
        samples = samples_for(ctx, model, missing)
        for (name, key), observer in collect(model, samples, missing, progress=ctx.progress).entries.items():
            statistics.entries[name, key] = observer
            store.add(Entry(known[name], f"{place}|{name}", key), observer)
    return statistics


def samples_for(ctx: PassContext, model: Model, missing: Wanted) -> Samples:
    """The samples to observe what the statistics file lacks. Raises DataError without them."""
    if ctx.calibration is not None:
        return ctx.calibration
    name, observers = next(iter(missing.items()))
    more = len(missing) - 1
    raise DataError(
        f"the statistics file has no {observers[0].kind} of value '{name}' as the passes leave it here"
        + (f" (nor of {more} others)" if more else ""),
        where=model.name,
        expected="statistics of the same passes on the same model",
        hint="--calibration samples.npz beside --statistics",
    )
