"""Palettes: their form in the graph, what they cost, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import outputs

from irc.calibrate.dataset import Dataset
from irc.errors import OptionError
from irc.export import to_bytes
from irc.frontend import from_proto
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Node
from irc.ir.palette import Palette, palette_of
from irc.ir.types import Array, DType
from irc.ir.verify import verify
from irc.pipeline import Pipeline
from irc.pipeline.contract import PassContext, PassResult
from irc.pipeline.presets import PRESETS

RNG = np.random.default_rng(11)


def network() -> Model:
    b = GraphBuilder("net")
    y = b.op("Relu", b.conv(b.input("x", "float32", [1, 8, 6, 6]), weights(16, 8, 3, 3), weights(16, seed=1), name="c"))
    y = b.op("Relu", b.conv(y, weights(32, 4, 3, 3, seed=2), weights(32, seed=7), group=4, name="grouped"))
    y = b.gemm(b.op("Flatten", y), weights(128, 32, seed=3), weights(32, seed=4), name="fc")
    b.output(b.op("MatMul", y, weights(32, 40, seed=5), name="last"), name="y")
    return b.build()


MIXED = RNG.normal(size=(12, 8 * 6 * 6)) / 3


def data(model: Model, count: int = 256) -> dict[str, Array]:
    """Images of few causes, as real ones are, and a little noise."""
    noise = 0.2 * RNG.normal(size=(count, 8 * 6 * 6))
    found = RNG.normal(size=(count, 12)) @ MIXED + noise
    return {v.name: found.reshape(count, *v.static_shape()[1:]).astype(np.float32) for v in model.graph.inputs}


def clustered(model: Model, passes: str, calibrated: bool = True) -> tuple[Model, PassResult]:
    after = clone(model)
    context = PassContext(calibration=Dataset.of(data(model), model) if calibrated else None)
    report = Pipeline.parse(passes).run(after, context)
    verify(after)
    last = report.passes[-1]
    return after, PassResult(last.changed, last.statistics, tuple(report.refusals))


def palettes(model: Model) -> dict[str, Palette]:
    found = {}
    for node in model.graph.nodes:
        if node.is_op("Conv", "Gemm", "MatMul"):
            made = source(node)
            if made is not None:
                found[node.name] = made
    return found


def source(node: Node) -> Palette | None:
    """The palette of a layer, also behind a scale."""
    value = node.need(1)
    behind = value.producer
    if behind is not None and behind.is_op("DequantizeLinear", "Mul"):
        value = behind.need(0)
    return palette_of(value)


def noise(before: Model, after: Model) -> float:
    """Power of the error over that of the output, over a few inputs."""
    wrong = right = 0.0
    for _ in range(6):
        feeds = data(before, 1)
        exact, got = outputs(before, feeds)[0], outputs(after, feeds)[0]
        wrong, right = wrong + float(np.square(exact - got).sum()), right + float(np.square(exact).sum())
    return wrong / right


LAYERS = ["c", "fc", "grouped", "last"]


@pytest.mark.parametrize("bits", [1, 2, 4, 5])
def test_every_layer_has_at_most_as_many_values_as_asked_for(bits: int) -> None:
    after, result = clustered(network(), f"cluster{{bits={bits}}}")
    found = palettes(after)
    assert sorted(found) == LAYERS
    for palette in found.values():
        assert palette.entries <= 2**bits
        assert palette.indices.dtype is (DType.UINT4 if bits <= 4 else DType.UINT8)
    assert [line["bits"] for line in result.statistics["layers"]] == [bits] * 4


def test_more_values_and_calibration_make_less_noise() -> None:
    model = network()
    found = {bits: noise(model, clustered(model, f"cluster{{bits={bits}}}")[0]) for bits in (2, 3, 4)}
    # A bit more is worth 5 dB in a normal distribution, a factor of 3; noise near the signal itself grows more slowly.
    assert found[2] > 2 * found[3] > 4 * found[4]
    assert found[3] < noise(model, clustered(model, "cluster{bits=3}", calibrated=False)[0])


def test_groups_of_channels_have_palettes_of_their_own() -> None:
    after, result = clustered(network(), "cluster{bits=3 scope=group group=5}")
    found = palettes(after)
    lines = {line["node"]: line for line in result.statistics["layers"]}
    assert lines["c"]["palettes"] == 4  # 16 channels: 5, 5, 5, 1
    assert found["c"].offsets is not None
    made = found["c"].numpy()
    assert all(len(np.unique(made[i : i + 5])) <= 8 for i in (0, 5, 10))
    assert len(np.unique(made)) > 8
    assert lines["grouped"]["palettes"] == 1


def test_one_palette_for_the_whole_model() -> None:
    after, _ = clustered(network(), "cluster{bits=6 scope=model}")
    found = palettes(after)
    assert sorted(found) == LAYERS
    assert len({id(p.codebook) for p in found.values()}) == 1
    assert noise(network(), after) < 0.01


def test_quantized_weights_get_a_palette_of_bytes() -> None:
    model = network()
    after, _ = clustered(model, "quantize,cluster{bits=4}")
    found = palettes(after)
    assert sorted(found) == LAYERS
    assert all(p.codebook.dtype is DType.INT8 for p in found.values())
    alone = noise(model, clustered(model, "quantize")[0])
    assert noise(model, after) < alone + 0.03  # four bits of a normal distribution are 20 dB in each of four layers


def test_pruned_weights_stay_zero() -> None:
    model = network()
    for node in model.graph.nodes:
        if node.name in ("c", "fc"):
            weight = node.need(1)
            kept = RNG.random(weight.static_shape()) < 0.4
            model.graph.set_input(node, 1, model.graph.add_constant((weight.numpy() * kept).astype(np.float32)))
    before = {n.name: n.need(1).numpy() == 0 for n in model.graph.nodes if n.name in ("c", "fc")}
    after, _ = clustered(model, "cluster{bits=3}")
    for name, zeros in before.items():
        assert (palettes(after)[name].numpy()[zeros] == 0).all()


def test_clean_up_and_a_second_run_leave_palettes_alone() -> None:
    after, _ = clustered(network(), "quantize,cluster{bits=4}")
    count = len(palettes(after))
    Pipeline.parse(PRESETS["none"]).run(after)
    assert len(palettes(after)) == count
    report = Pipeline.parse("cluster{bits=4}").run(after)
    assert not report.changed
    assert any("a palette already" in r.reason for r in report.refusals)


def test_the_exported_file_has_the_same_palettes_and_results() -> None:
    after, _ = clustered(network(), "cluster{bits=4 scope=group}")
    import onnx

    back = from_proto(onnx.load_from_string(to_bytes(after)))
    assert sorted(palettes(back)) == LAYERS
    feeds = data(after, 1)
    np.testing.assert_array_equal(outputs(after, feeds)[0], outputs(back, feeds)[0])


def test_what_cannot_have_a_palette_is_refused_with_the_reason() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4, 6])
    y = b.op("MatMul", x, weights(6, 20), name="small")
    constant = np.where(np.arange(20 * 40).reshape(20, 40) % 2, 1.0, -1.0).astype(np.float32)
    y = b.op("MatMul", y, constant, name="two")
    bad = weights(40, 40)
    bad[3, 3] = np.nan
    y = b.op("MatMul", y, bad, name="bad")
    b.output(b.op("MatMul", y, b.op("Transpose", y, perm=[1, 0]), name="computed"))
    after, result = clustered(b.build(), "cluster{bits=4}", calibrated=False)
    assert not result.changed
    assert not palettes(after)
    reasons = {r.node: r.reason for r in result.refusals}
    for name, reason in {
        "small": "too few",
        "two": "no more than 16 values",
        "bad": "NaN",
        "computed": "not constant",
    }.items():
        assert any(name in node and reason in text for node, text in reasons.items()), (name, reasons)


@pytest.mark.parametrize("text", ["cluster{bits=0}", "cluster{bits=9}", "cluster{group=0}"])
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(OptionError, match="out of range"):
        Pipeline.parse(text)


def test_skip_must_name_a_node() -> None:
    with pytest.raises(OptionError, match="names no node"):
        clustered(network(), "cluster{skip=fcc}")
    after, _ = clustered(network(), "cluster{skip=fc}")
    assert "fc" not in palettes(after)
