"""How far a changed network is from the original, on calibration samples and without labels.

The measure is relative noise: the energy of what changed in the outputs over the energy by which the outputs differ
from sample to sample. It is that of the logits where a network ends in a softmax, and it is about the same for samples
that were not calibrated on, which the share of changed decisions on samples that a network was trained on is not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from irc.calibrate.collect import Statistics
from irc.calibrate.gather import gather, need_samples
from irc.calibrate.recorded import Recorded
from irc.calibrate.sessions import feed_samples
from irc.ir.graph import Model, Node, Value
from irc.ir.types import Array
from irc.pipeline.contract import PassContext, Samples

# Points of changed top-1 decisions for each unit of the root of relative noise, ten classes. Measured on samples of the
# five tasks of docs/compression.md (2 to 1000 classes, noise of 0.03 to 0.4): between 20 and 45; with more classes the
# two highest logits are closer.
_DECISIONS = 35.0
_TEN = math.log(10.0)
_LOST = 1.0 / 3.0
"""Points of accuracy that are lost for each point of changed decisions: the other changes were wrong before, too, or
mend what was wrong."""
_MARGIN = 1.5  # changed decisions over those that independent noise on each logit would make


@dataclass(frozen=True)
class Damage:
    """What to expect on samples that were not calibrated on.

    `noise`: relative energy. `disagreement`: points of changed top-1 decisions. `drop`: points of accuracy, taken to be
    a third of these; for networks that do not classify, what one with ten classes would lose with this noise.
    """

    noise: float
    disagreement: float

    @property
    def drop(self) -> float:
        return self.disagreement * _LOST

    def to_json(self) -> dict[str, Any]:
        snr = 200.0 if self.noise <= 1e-20 else -10 * math.log10(self.noise)
        return {
            "output_snr_db": round(snr, 2),
            "disagreement": round(self.disagreement, 2),
            "drop": round(self.drop, 2),
        }


def noise_for(drop: float) -> float:
    """The relative noise at which a network of ten classes is expected to lose `drop` points."""
    return (drop / (_LOST * _DECISIONS)) ** 2


class Reference:
    """The outputs of `model`, and how far others are from them."""

    def __init__(self, model: Model, ctx: PassContext) -> None:
        self.ctx = ctx
        self.outputs = outputs(model, ctx, "reference")

    def compare(self, model: Model, stage: str) -> Damage:
        """`model`: one with the same outputs."""
        return damage(self.outputs, outputs(model, self.ctx, stage))


_EVERY = 4
"""One feed of so many is kept from fitting. What weights are fitted to looks up to fifty times better than the rest."""
_FEWEST = 8


def split(ctx: PassContext, model: Model) -> tuple[PassContext, PassContext]:
    """Contexts with the samples to fit to, and with those to measure on; the same for both where there are too few.

    Raises DataError without samples.
    """
    samples = need_samples(ctx, model)
    sizes = [feed_samples(feed) for feed in samples.feeds()]
    if len(sizes) < _FEWEST:
        return ctx, ctx
    kept = [i % _EVERY == _EVERY - 1 for i in range(len(sizes))]
    parts = [_Part(samples, [k is held for k in kept], sizes) for held in (False, True)]
    return replace(ctx, calibration=parts[0], store=None), replace(ctx, calibration=parts[1], store=None)


class _Part:
    """Some of the feeds of other samples."""

    def __init__(self, samples: Samples, chosen: Sequence[bool], sizes: Sequence[int]) -> None:
        self.samples, self.chosen = samples, chosen
        self.count = sum(size for size, c in zip(sizes, chosen, strict=True) if c)

    def feeds(self) -> Iterator[dict[str, Array]]:
        return itertools.compress(self.samples.feeds(), self.chosen)

    def __len__(self) -> int:
        return self.count


def outputs(model: Model, ctx: PassContext, stage: str) -> list[Array]:
    """What the network says on every sample, [samples, numbers] each; logits instead of probabilities."""
    values = [_before_softmax(v) for v in model.graph.outputs]
    wanted = {v.name: [Recorded()] for v in values if v.dtype is not None and v.dtype.is_float}
    found: Statistics = gather(ctx, model, wanted, stage=stage)
    return [found.get(name, Recorded).rows for name in wanted]


def _before_softmax(value: Value) -> Value:
    """The logits of an output, through nodes that only move numbers."""
    node: Node | None = value.producer
    while node is not None and node.is_op("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"):
        value, node = node.need(0), node.need(0).producer
    if node is not None and node.is_op("Softmax", "LogSoftmax"):
        return node.need(0)
    return value


def damage(reference: Sequence[Array], changed: Sequence[Array]) -> Damage:
    """The worst of the outputs."""
    found = [_of_output(a, b) for a, b in zip(reference, changed, strict=True)]
    return max(found, key=lambda d: d.disagreement, default=Damage(0.0, 0.0))


def _of_output(reference: Array, changed: Array) -> Damage:
    exact, other = reference.astype(np.float64), changed.astype(np.float64)
    if not np.isfinite(exact).all() or exact.size == 0:
        return Damage(0.0, 0.0)
    if not np.isfinite(other).all():
        return Damage(1e9, 100.0)
    error = other - exact
    classes = exact.shape[1]
    spread = exact - exact.mean(axis=0) if len(exact) > 1 else exact
    if classes > 1:  # what all logits have in common decides nothing
        error = error - error.mean(axis=1, keepdims=True)
        spread = spread - spread.mean(axis=1, keepdims=True)
    signal = float(np.square(spread).sum())
    if signal <= 0:
        signal = float(np.square(exact).sum()) or 1.0
    noise = float(np.square(error).sum()) / signal
    factor = _DECISIONS * math.sqrt(max(1.0, math.log(max(classes, 2)) / _TEN))
    return Damage(noise, min(100.0, max(factor * math.sqrt(noise), _flips(exact, error))))


def _flips(exact: Array, error: Array) -> float:
    """Points of decisions that independent errors of this size on the logits of these samples would change."""
    if exact.shape[1] < 2:
        return 0.0
    top = np.partition(exact, -2, axis=1)[:, -2:]
    margin = top[:, 1] - top[:, 0]
    sigma = math.sqrt(2 * float(np.square(error).mean()))
    if sigma <= 0:
        return 0.0
    share = [0.5 * math.erfc(float(m) / (sigma * math.sqrt(2))) for m in margin]
    return _MARGIN * 100 * float(np.mean(share))
