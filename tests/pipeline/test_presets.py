"""Presets: those that quantize say what they miss, and the lossless one needs nothing."""

from __future__ import annotations

import pytest

from irc.errors import DataError, OptionError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Model
from irc.pipeline import PRESETS, Pipeline
from irc.pipeline.presets import SUMMARIES, default_weights, with_io


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


def test_types_of_ports_become_a_pass_behind_the_others() -> None:
    assert with_io("speed", []) == "speed"
    assert with_io("speed", ["float32"]) == "speed"
    assert str(Pipeline.parse(with_io("", ["int8"]))) == "quantize-io"
    assert str(Pipeline.parse(with_io("", ["uint8", "a b=float32"]))) == 'quantize-io{type=uint8 float32="a b"}'
    named = with_io("eliminate-dead", ["x=int8", "y=int8", "a=b=uint8"])
    assert str(Pipeline.parse(named)) == 'eliminate-dead,quantize-io{type=float32 int8=x,y uint8="a=b"}'
    assert default_weights(with_io("size", ["int8", "y=float32"])) == "coded"


@pytest.mark.parametrize("text", ["", "int", "x=", "=int8", "x=int16"])
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(OptionError, match="--io"):
        with_io("speed", [text])
