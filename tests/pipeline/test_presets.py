"""Presets: those that quantize say what they miss, and the lossless one needs nothing."""

from __future__ import annotations

import pytest

from irc.errors import DataError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model
from irc.pipeline import PRESETS, Pipeline
from irc.pipeline.presets import SUMMARIES, default_weights


def _model() -> Model:
    b = GraphBuilder()
    b.output(b.op("Relu", b.gemm(b.input("x", "float32", [1, 16]), weights(16, 16))), name="y")
    return b.build()


def test_every_preset_is_described() -> None:
    assert PRESETS.keys() == SUMMARIES.keys()


@pytest.mark.parametrize("preset", ["speed", "balanced", "size"])
def test_quantizing_presets_ask_for_calibration_data(preset: str) -> None:
    with pytest.raises(DataError, match=r"calibration data.*--calibration"):
        Pipeline.parse(preset).run(_model())


def test_the_smallest_library_is_coded_by_default() -> None:
    assert [name for name in PRESETS if default_weights(name) == "coded"] == ["size"]
    assert default_weights(PRESETS["size"]) == "plain", "a text says what it wants; only the name has a default"


def test_the_lossless_preset_needs_nothing() -> None:
    model = _model()
    Pipeline.parse("none").run(model)
    assert [n.op_type for n in model.graph.nodes] == ["Gemm", "Relu"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_round_trip(preset: str) -> None:
    assert str(Pipeline.parse(preset)) == PRESETS[preset]
