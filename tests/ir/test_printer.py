"""The text form: goldens, and parse(print(m)) is m."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sample_models import all_constants, branches, constants_of_all_types, conv_net, everything

from irc.ir.builder import GraphBuilder
from irc.ir.compare import difference
from irc.ir.graph import Model
from irc.ir.parser import parse_model
from irc.ir.printer import print_model, print_node, print_type
from irc.ir.types import Constant, DType, Shape, TensorType


def test_a_small_model_reads_like_this() -> None:
    b = GraphBuilder("tiny")
    x = b.input("x", "float32", ["N", 2])
    y = b.op("Clip", b.op("Mul", x, np.array([0.1, -1.5], np.float32), name="scale"), None, 6.0)
    b.output(y, name="y")
    assert print_model(b.build()) == (
        "irc 1\n"
        'opset "" 26\n'
        "graph tiny(%x: float32[N, 2]) {\n"
        "  %const = constant float32[2] [0.1, -1.5]\n"
        "  %const_1 = constant float32[] [6.0]\n"
        "  %scale_out: float32[N, 2] = Mul(%x, %const) @scale\n"
        "  %y: float32[N, 2] = Clip(%scale_out, _, %const_1) @Clip\n"
        "  return %y\n"
        "}\n"
    )


def test_subgraphs_are_indented() -> None:
    text = print_model(branches())
    assert "  %If_out: float32[2, 3] = If(%c) {then_branch=graph body() {\n" in text
    assert "\n    %Loop_out: float32[2, 3] = Loop(%const_1, _, %Abs_out) {body=graph body(%i: int64[], " in text


@pytest.mark.parametrize("make", [conv_net, branches, everything])
def test_round_trip(make: Callable[[], Model]) -> None:
    model = make()
    text = print_model(model)
    store = all_constants(model)
    read = parse_model(text, store.__getitem__)
    assert print_model(read) == text
    assert difference(model, read) is None
    assert read.metadata == model.metadata
    assert read.notes == model.notes
    for ours, theirs in zip(model.graph.walk(), read.graph.walk(), strict=True):
        assert (ours.name, ours.origin, ours.overload) == (theirs.name, theirs.origin, theirs.overload)
        assert [v.type for v in ours.outputs] == [v.type for v in theirs.outputs]


def test_attributes_come_back_exactly() -> None:
    model = everything()
    read = parse_model(print_model(model), all_constants(model).__getitem__)
    ours, theirs = model.graph.nodes[0].attributes, read.graph.nodes[0].attributes
    for name in ("i", "f", "inf", "s", "raw", "ints", "floats", "mixed", "strings", "raws", "empty", "type", "types"):
        assert repr(theirs[name]) == repr(ours[name]), name
    assert repr(theirs["nan"]) == "nan"
    tensor = theirs["tensor"]
    assert isinstance(tensor, Constant)
    assert tensor.numpy().tolist() == [0, 1, 2]


@pytest.mark.parametrize("constant", constants_of_all_types(), ids=lambda c: f"{c.dtype.value}-{c.digest()[:6]}")
def test_small_constants_come_back_bit_for_bit(constant: Constant) -> None:
    b = GraphBuilder()
    b.output(b.op("Identity", b.constant(constant)))
    read = parse_model(print_model(b.build(check=False)))
    (value,) = read.graph.constants.values()
    assert value.constant is not None
    assert value.constant.type == constant.type
    assert value.constant.digest() == constant.digest()


def test_big_constants_stand_by_digest() -> None:
    b = GraphBuilder()
    inside, outside = b.constant(np.arange(16), "c"), b.constant(np.arange(17), "c")
    b.output(b.op("Concat", inside, outside, axis=0))
    text = print_model(b.build())
    assert "int64[16] [0, 1, 2" in text
    assert outside.constant is not None
    assert f"%c_1 = constant int64[17] #sha256:{outside.constant.digest()}\n" in text


def test_a_node_and_a_type_alone() -> None:
    model = conv_net()
    assert print_node(model.graph.nodes[1]) == "%Relu_out: float32[1, 4, 8, 8] = Relu(%conv1_out) @Relu"
    assert print_type(None) == "?"
    assert print_type(TensorType(DType.INT4, Shape.of("a b", None))) == 'int4["a b", ?]'


def test_real_models_round_trip(data_dir: Path) -> None:
    from irc.frontend import load_model

    for name in ("mobilenet_v2_1.0_224_quant_qdq", "silero_vad_16k_op15", "ad01_int8_qdq"):
        model = load_model(data_dir / "models" / f"{name}.onnx")
        text = print_model(model)
        read = parse_model(text, all_constants(model).__getitem__)
        assert print_model(read) == text
        assert difference(model, read) is None
