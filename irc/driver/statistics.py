"""What passes are given to work with, and the statistics files around a run of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from irc.calibrate.store import StatisticsStore
from irc.driver.options import CompileOptions
from irc.pipeline import PassContext
from irc.pipeline.contract import Samples


@contextmanager
def pass_context(options: CompileOptions, samples: Samples | None) -> Iterator[PassContext]:
    """The context of a run of passes. Statistics are written when the block ends well.

    Raises DataError where `options.statistics` is no file of statistics of these samples, OutputError.
    """
    context = PassContext(options.target, samples, options.seed)
    if options.statistics is None and options.save_statistics is None:
        yield context
        return
    keep = options.save_statistics is not None
    with closing(StatisticsStore(samples, source=options.statistics, keep=keep)) as store:
        context.store = store
        yield context
        if options.save_statistics is not None:
            store.save(options.save_statistics)
