"""Whether there is something to learn from: enough samples, and numbers in the model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from irc.calibrate.observers import ChannelMean, Observer, SecondMoment
from irc.errors import DataError
from irc.ir.graph import Model
from irc.ir.types import Constant, DType
from irc.pipeline.contract import PassContext

FEW = 16
"""Samples below which ranges and moments are guesses."""


def note_few(ctx: PassContext, samples: int) -> None:
    """Tell the user, once, that there are few samples."""
    text = f"only {samples} calibration sample{'s' if samples > 1 else ''}: ranges and moments are rough"
    if 0 < samples < FEW and text not in ctx.notes:
        ctx.notes.append(text)


def check_weights(model: Model) -> None:
    """Raises DataError where weights of a linear layer hold NaN or infinity. A Relu may hide them from later layers."""
    for node in model.graph.walk():
        if not node.is_op("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        for value in node.inputs:
            if value is not None and value.constant is not None and not _numbers(value.constant):
                raise DataError(
                    f"'{value.name}' holds NaN or infinity",
                    where=f"{model.name}: weights of {node.label}",
                    expected="finite numbers",
                    hint="the model from an earlier point of its training",
                )


def _numbers(constant: Constant) -> bool:
    return constant.dtype not in (DType.FLOAT, DType.DOUBLE, DType.FLOAT16) or bool(np.isfinite(constant.numpy()).all())


def check_finite(model: Model, observed: Iterable[tuple[str, Observer]]) -> None:
    """Raises DataError where moments of a value (by name) hold NaN or infinity: least squares has no answer then."""
    for name, observer in observed:
        if not _finite(observer):
            raise DataError(
                f"NaN or infinity at value '{name}' in at least one calibration sample",
                where=model.name,
                expected="finite numbers",
                got=_cause(model, name),
                hint="other samples, or a look at the model in its framework",
            )


def _finite(observer: Observer) -> bool:
    if isinstance(observer, SecondMoment):
        return bool(np.isfinite(observer.row_sum).all())
    if isinstance(observer, ChannelMean):
        return observer.sum is None or bool(np.isfinite(observer.sum).all())
    return True


def _cause(model: Model, name: str) -> str:
    """What computes a value."""
    made = next((v.producer for v in model.graph.values() if v.name == name), None)
    return f"what {made.label} computes" if made is not None else "samples that are none"
