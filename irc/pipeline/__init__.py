"""Passes in order: the contract, the text form, the manager, the presets."""

from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal, Samples
from irc.pipeline.instruments import Dump, Instrument, Limit, PrintAfter, Timing
from irc.pipeline.manager import Pipeline, bisect
from irc.pipeline.presets import PRESETS
from irc.pipeline.report import PassRecord, PipelineReport
from irc.pipeline.text import Repeat

__all__ = [
    "PRESETS",
    "Dump",
    "Instrument",
    "Limit",
    "Pass",
    "PassContext",
    "PassRecord",
    "PassResult",
    "Pipeline",
    "PipelineReport",
    "PrintAfter",
    "Refusal",
    "Repeat",
    "Samples",
    "Timing",
    "bisect",
]
