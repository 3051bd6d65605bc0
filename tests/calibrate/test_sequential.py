"""Layer by layer: moments of what a layer really gets, and weights that make the best of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from irc.calibrate.collect import collect
from irc.calibrate.dataset import Dataset
from irc.calibrate.layers import from_rows, moment_observer, spread_outputs, sum_outputs, to_rows
from irc.calibrate.observers import PairedMoment, SecondMoment, Window
from irc.calibrate.segments import Kept, cut
from irc.calibrate.sequential import LayerMoments, refit, walk
from irc.errors import DataError
from irc.evaluation.oracle import Oracle
from irc.export import to_proto
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Model, Node
from irc.ir.types import Array
from irc.pipeline.contract import PassContext

RNG = np.random.default_rng(5)
X = RNG.normal(size=(96, 4, 9, 9)).astype(np.float32)


def weights(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network(batch: int | str = 1) -> Model:
    """Two residual blocks, one with a convolution in groups, and a matrix at the end."""
    b = GraphBuilder()
    x = b.input("x", "float32", [batch, 4, 9, 9])
    y = b.op("Relu", b.conv(x, weights(8, 4, 3, 3), weights(8), pads=[1, 1, 1, 1]))
    z = b.op("Relu", b.conv(y, weights(8, 4, 3, 3), weights(8), pads=[1, 1, 1, 1], group=2))
    y = b.op("Relu", b.op("Add", b.conv(z, weights(8, 8, 1, 1), weights(8)), y))
    z = b.conv(y, weights(8, 8, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    y = b.op("Add", z, b.conv(y, weights(8, 8, 1, 1), weights(8), strides=[2, 2]))
    y = b.op("Reshape", b.op("Relu", y), [-1 if batch == "n" else 1, 200])
    b.output(b.gemm(y, weights(200, 10)), name="out")
    return b.build()


def layers(model: Model) -> list[Node]:
    return [n for n in model.graph.nodes if n.is_op("Conv", "Gemm")]


def context(model: Model, samples: Array = X) -> PassContext:
    return PassContext(calibration=Dataset.of({"x": samples}, model))


def outputs(model: Model, samples: Array = X) -> Array:
    run = Oracle(to_proto(model).SerializeToString())
    return np.concatenate([run.run({"x": x[None]})["out"] for x in samples])


def coarse(node: Node) -> None:
    """Round the weights of a layer to very few steps."""
    weight = node.need(1)
    step = np.abs(weight.numpy()).max() / 1.5
    assert node.graph is not None
    node.graph.set_input(node, 1, node.graph.add_constant((np.rint(weight.numpy() / step) * step).astype(np.float32)))


@pytest.mark.parametrize("batch", [1, "n"])
def test_moments_are_the_plain_ones_where_the_model_is_the_reference(batch: int | str) -> None:
    model = network(batch)
    ctx = context(model)
    assert ctx.calibration is not None
    wanted = {n: moment_observer(n, len(X)) for n in layers(model)}
    statistics = collect(model, ctx.calibration, {n.need(0).name: [o] for n, o in wanted.items() if o is not None})
    seen = [m for wave in walk(model, clone(model), layers(model), ctx, cross=True) for m in wave]
    assert [m.node for m in seen] == layers(model)
    for found in seen[:2]:
        plain = statistics.get(found.node.need(0).name, SecondMoment)
        assert found.count == plain.count
        # other batches are added up in another order
        np.testing.assert_allclose(found.moment, plain.moment, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.mean, plain.mean, rtol=1e-4, atol=1e-6)
    for found in seen:
        np.testing.assert_array_equal(found.cross, found.moment)
        np.testing.assert_array_equal(found.reference_mean, found.mean)


def test_waves_are_levels_and_can_be_bounded() -> None:
    model = network()
    ctx, nodes = context(model), layers(model)
    free = [[m.node for m in wave] for wave in walk(model, clone(model), nodes, ctx)]
    assert free == [[nodes[0]], [nodes[1]], [nodes[2]], [nodes[3], nodes[4]], [nodes[5]]]
    two = [[m.node for m in wave] for wave in walk(model, clone(model), nodes, ctx, waves=2)]
    assert two == [nodes[:3], nodes[3:]]


def test_moments_are_those_of_the_model_as_it_is_now() -> None:
    model = network()
    reference = clone(model)
    ctx = context(model)
    assert ctx.calibration is not None
    for wave in walk(model, reference, layers(model), ctx):
        for found in wave:
            name = found.node.need(0).name
            plain = moment_observer(found.node, len(X))
            assert plain is not None
            now = collect(model, ctx.calibration, {name: [plain]}).get(name, SecondMoment)
            np.testing.assert_allclose(found.moment, now.moment, rtol=1e-4, atol=1e-5)
            coarse(found.node)


def test_cross_moments_are_of_the_same_rows() -> None:
    model = network()
    reference = clone(model)
    for wave in walk(model, reference, layers(model), context(model), cross=True):
        for found in wave:
            if found.node is layers(model)[-1]:
                here, there = (features(m, found.node.need(0).name) for m in (model, reference))
                np.testing.assert_allclose(found.cross[0], there.T @ here / len(here), rtol=1e-3, atol=1e-5)
                np.testing.assert_allclose(found.reference_mean[0], there.mean(axis=0), rtol=1e-3, atol=1e-5)
                return
            coarse(found.node)
    pytest.fail("the last layer never came")


def features(model: Model, name: str) -> Array:
    """What the last layer gets: one row per sample, so all of them are used."""
    copy = clone(model)
    copy.graph.set_outputs([copy.graph.find(name)])
    run = Oracle(to_proto(copy).SerializeToString())
    return np.concatenate([run.run({"x": x[None]})[name] for x in X]).astype(np.float64)


def test_refitted_layers_mend_what_was_spoilt_before_them() -> None:
    wanted = outputs(model := network())
    errors = []
    for mend in (False, True):
        trial = clone(model)
        for wave in walk(trial, model, layers(trial), context(trial)):
            for found in wave:
                if found.node is layers(trial)[0]:
                    coarse(found.node)
                elif mend:
                    apply(found)
        errors.append(float(np.square(outputs(trial) - wanted).mean()))
    plain, mended = errors
    assert mended < 0.5 * plain


def apply(found: LayerMoments) -> None:
    node, graph = found.node, found.node.graph
    assert graph is not None
    weight = node.need(1)
    rows, shift = refit(to_rows(node, weight.numpy(), found.groups), found, bias=node.input(2) is not None)
    made = from_rows(node, rows, weight.static_shape()).astype(np.float32)
    graph.set_input(node, 1, graph.add_constant(made))
    bias = node.input(2)
    if bias is not None:
        graph.set_input(node, 2, graph.add_constant((bias.numpy() + sum_outputs(node, shift)).astype(np.float32)))


def moments_of(paired: PairedMoment) -> LayerMoments:
    return LayerMoments(layers(network())[0], paired)


def test_refit_recovers_weights_and_bias_exactly() -> None:
    """x = A x0 + t with A invertible: the best W' is W A^-1 and the bias takes -W' t back."""
    rows, a, t = RNG.normal(size=(1, 5, 6)), RNG.normal(size=(6, 6)) + 3 * np.eye(6), RNG.normal(size=6)
    x0 = RNG.normal(size=(400, 6))
    paired = PairedMoment(6)
    paired.update_pair(x0.astype(np.float32), (x0 @ a.T + t).astype(np.float32))
    fitted, shift = refit(rows, moments_of(paired), damping=0)
    np.testing.assert_allclose(fitted[0], rows[0] @ np.linalg.inv(a), atol=1e-3)  # moments are float32 products
    np.testing.assert_allclose(shift[0], -fitted[0] @ t, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", ["constant", "zero", "dead channel", "one row"])
def test_refit_does_not_blow_up(case: str, bias: bool) -> None:
    x0 = RNG.normal(size=(1 if case == "one row" else 50, 8)).astype(np.float32)
    x = x0 + 0.1 * RNG.normal(size=x0.shape).astype(np.float32)
    if case == "constant":
        x0[:], x[:] = 3.0, 2.0
    elif case == "zero":
        x[:] = 0
    elif case == "dead channel":
        x[:, 2] = 0
    paired = PairedMoment(8)
    paired.update_pair(x0, x)
    rows = RNG.normal(size=(1, 4, 8))
    fitted, shift = refit(rows, moments_of(paired), bias=bias)
    assert np.isfinite(fitted).all()
    assert np.isfinite(shift).all()
    assert np.abs(fitted).max() < 3 * np.abs(rows).max()
    if case == "dead channel":
        np.testing.assert_allclose(fitted[:, :, 2], rows[:, :, 2])
    error = np.square(x0 @ rows[0].T - x @ fitted[0].T - shift[0]).mean()
    assert error <= np.square(x0 @ rows[0].T - x @ rows[0].T).mean() * (1 + 1e-6)


def test_layers_that_the_reference_lacks_fit_themselves() -> None:
    model, other = network(), network()
    other.graph.rename(layers(other)[1].need(0), "another")
    coarse(layers(other)[0])
    found = [m for wave in walk(model, other, layers(model), context(model), cross=True) for m in wave]
    np.testing.assert_array_equal(found[1].cross, found[1].moment)
    assert not np.array_equal(found[2].cross, found[2].moment)


def test_without_samples_there_is_nothing_to_walk_on() -> None:
    model = network()
    with pytest.raises(DataError, match="calibration"):
        next(walk(model, clone(model), layers(model), replace(context(model), calibration=None)))


def test_wide_moments_in_float32_agree_with_float64() -> None:
    x = (RNG.normal(size=(64, 32, 1300)) + 0.3).astype(np.float32)
    observer = SecondMoment(1300, most=32)
    for batch in np.split(x, 16):
        observer.update(batch)
    rows = x.reshape(-1, 1300).astype(np.float64)
    exact = rows.T @ rows / len(rows)
    assert observer.sum.dtype == np.float32
    np.testing.assert_allclose(observer.moment[0], exact, atol=2e-6 * exact.max())


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        (Window((3,), (2,), (1, 1), (1,)), (2, 4, 11)),
        (Window((2, 3, 2), (1,) * 3, (0,) * 6, (1,) * 3), (2, 3, 4, 5, 4)),
    ],
)
def test_rows_of_convolutions_of_other_dimensions(window: Window, shape: tuple[int, ...]) -> None:
    x = RNG.normal(size=shape).astype(np.float32)
    w = weights(5, shape[1], *window.kernel)
    b = GraphBuilder()
    y = b.conv(b.input("x", "float32", shape), w, strides=window.strides, pads=window.pads)
    b.output(y, name="y")
    wanted = Oracle(to_proto(b.build()).SerializeToString()).run({"x": x})["y"]
    rows = window.rows(x, 10**6).reshape(shape[0], -1, w[0].size) @ w.reshape(5, -1).T
    np.testing.assert_allclose(rows.transpose(0, 2, 1).reshape(wanted.shape), wanted, atol=1e-4)
    observer = SecondMoment(w[0].size, window)
    observer.update(x)
    assert SecondMoment.from_state(observer.state()).key == observer.key


def test_kept_activations_come_back_from_memory_and_from_disk() -> None:
    kept = Kept(memory=100)
    feeds = [{"a": np.full((3, i + 1), i, np.float32), "b": np.arange(i)} for i in range(6)]
    for feed in feeds:
        kept.add(feed)
    assert kept.file is not None
    for found, feed in zip(kept.take(), feeds, strict=True):
        for name, array in feed.items():
            np.testing.assert_array_equal(found[name], array)
    assert kept.file is None


def test_a_cut_holds_what_the_rest_needs_and_no_more() -> None:
    b = GraphBuilder()
    x, mask = b.input("x", "float32", [2]), b.input("mask", "float32", [2])
    a = b.op("Relu", x, outputs=["a"])[0]
    c = b.op("Mul", a, mask, outputs=["c"])[0]
    d = b.op("Neg", c, outputs=["d"])[0]
    b.output(b.op("Add", b.op("Add", d, a), mask), name="out")
    graph = b.build().graph
    assert cut(graph, ["c", "out"]) == ["c", "a", "mask"]
    assert cut(graph, ["d"]) == ["d"]
    assert cut(graph, []) == []


def test_spread_and_sum_undo_each_other() -> None:
    node = layers(network())[1]
    values = np.arange(8.0)
    np.testing.assert_array_equal(sum_outputs(node, spread_outputs(node, values, 2)), values)


def test_layers_with_one_input_share_its_moments_and_fit_as_alone() -> None:
    """Few outputs: only what the weights see of the difference is measured, for both layers at once."""
    b = GraphBuilder()
    y = b.op("Relu", b.matmul(b.input("x", "float32", ["n", 20]), weights(20, 20)))
    b.output(b.op("Concat", *(b.matmul(y, weights(20, n)) for n in (3, 5)), axis=1), name="out")
    model = b.build()
    reference, samples = clone(model), RNG.normal(size=(64, 20)).astype(np.float32)
    first, *pair = [n for n in model.graph.nodes if n.is_op("MatMul")]
    coarse(first)
    results = []
    for nodes, cross in ((pair, False), (pair[:1], False), (pair[1:], False), (pair, True)):
        (wave,) = walk(model, reference, nodes, context(model, samples), cross=cross)
        results.append([refit(to_rows(m.node, m.node.need(1).numpy(), 1), m, bias=False)[0] for m in wave])
        assert all((m.paired.weights is None) is cross for m in wave)
    together, alone, exact = results[0], [*results[1], *results[2]], results[3]
    for a, c, d in zip(together, alone, exact, strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a, d, rtol=1e-4, atol=1e-5)


def test_weights_behind_a_dequantization_may_change_too() -> None:
    """What is made of constants alone is no activation: it is computed anew behind every cut."""
    b = GraphBuilder()
    y = b.input("x", "float32", [1, 4, 9, 9])
    for number in range(4):
        q = RNG.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
        w = b.dequantize(q, np.full(4, 2e-3, np.float32), axis=0)
        y = b.op("Relu", b.conv(y, w, pads=[1, 1, 1, 1], name=f"c{number}"))
    b.output(y, name="out")
    model = b.build()
    reference = clone(model)
    walked: dict[str, Array] = {}
    convolutions = [n for n in model.graph.nodes if n.is_op("Conv")]
    for wave in walk(model, reference, convolutions, context(model)):
        for moments in wave:
            walked[moments.node.name] = moments.mean
            restore = moments.node.need(1).producer
            assert restore is not None
            half = model.graph.add_constant(restore.need(0).numpy() // 2)
            model.graph.set_input(restore, 0, half)
    final = {n.name: moment_observer(n, len(X)) for n in convolutions}
    wanted = {n.need(0).name: [o] for n in convolutions if (o := final[n.name]) is not None}
    collect(model, Dataset.of({"x": X}, model), wanted)
    for name, observer in final.items():
        assert observer is not None
        # float32 activations, joined in other batches
        np.testing.assert_allclose(walked[name], observer.mean, rtol=1e-5, atol=1e-6)
