"""What every test of a lossless pass asks: same numbers as onnxruntime, and nothing more to do the second time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from irc.export import to_bytes
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.pipeline import Pipeline, PipelineReport

EXACT = 0.0
ROUNDING = 1e-6
"""A few roundings of float32 (2^-24 = 6e-8 each) relative to the largest output."""

Arrays = dict[str, npt.NDArray[Any]]


def ops(model: Model) -> list[str]:
    """Operator types in order, bodies of control flow after the node that holds them."""
    return [n.op_type for n in model.graph.walk()]


def count(model: Model) -> dict[str, int]:
    return dict(Counter(ops(model)))


def random_feeds(model: Model, seed: int = 0) -> Arrays:
    """Normal floats, small non-negative integers; symbolic extents become 3."""
    rng = np.random.default_rng(seed)
    feeds: Arrays = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else 3 for d in value.shape or ()]
        kind = value.tensor.dtype.numpy
        data = rng.standard_normal(shape) if value.tensor.dtype.is_float else rng.integers(0, 2, shape)
        feeds[value.name] = np.asarray(data).astype(kind)
    return feeds


def outputs(model: Model, feeds: Arrays) -> list[Any]:
    """What onnxruntime computes, without optimizations of its own."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def assert_same(before: Model, after: Model, tolerance: float, feeds: Arrays | None = None) -> None:
    """Equal outputs within `tolerance` times the largest magnitude of each output (0: bit for bit, NaN equal NaN)."""
    assert [v.name for v in before.graph.outputs] == [v.name for v in after.graph.outputs]
    assert [v.name for v in before.graph.inputs] == [v.name for v in after.graph.inputs]
    feeds = random_feeds(before) if feeds is None else feeds
    for expected, got in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        assert expected.shape == got.shape
        assert expected.dtype == got.dtype
        if tolerance == 0 or expected.size == 0:
            np.testing.assert_array_equal(got, expected)
        else:
            scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=1e-30))
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def run(model: Model, pipeline: str, tolerance: float = EXACT, feeds: Arrays | None = None) -> Model:
    """The optimized copy of `model`; checks numbers, and that a second run changes nothing."""
    after, _ = report(model, pipeline, tolerance, feeds)
    return after


def report(
    model: Model, pipeline: str, tolerance: float = EXACT, feeds: Arrays | None = None
) -> tuple[Model, PipelineReport]:
    """`run`, with the report of the first run."""
    after = clone(model)
    first = Pipeline.parse(pipeline).run(after)
    assert_same(model, after, tolerance, feeds)
    again = Pipeline.parse(pipeline).run(after)
    assert not again.changed, f"a second run still changes: {[p.to_json() for p in again.passes if p.changed]}"
    return after, first


def assert_refused(model: Model, pipeline: str, reason: str) -> None:
    """Nothing changes, and a refusal gives this reason."""
    after, first = report(model, pipeline)
    assert not first.changed, first.to_json()
    assert ops(after) == ops(model)
    reasons = [r.reason for r in first.refusals]
    assert any(reason in r for r in reasons), reasons
