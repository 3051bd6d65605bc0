"""Statistics are collected once for what stays the same, and a file of them does the work of the samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from irc.calibrate.dataset import Dataset
from irc.calibrate.gather import calibrated, gather, sample_count
from irc.calibrate.observers import ChannelMean, ChannelOctaves, Histogram, Observer, PairedMoment, SecondMoment
from irc.calibrate.recorded import Recorded
from irc.calibrate.sequential import refit, walk
from irc.calibrate.signature import model_signature, signatures
from irc.calibrate.store import KINDS, Entry, StatisticsStore
from irc.errors import DataError, ModelError
from irc.export import to_bytes
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.graph import Graph, Model, Value
from irc.ir.types import Array
from irc.pipeline import Pass, PassContext, PassResult, Pipeline

RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 3, 6, 6)).astype(np.float32)
W = [RNG.normal(size=s).astype(np.float32) for s in ((4, 3, 3, 3), (4, 4, 3, 3), (5, 64))]


def network(last: float = 1.0) -> Model:
    b = GraphBuilder()
    y = b.op("Relu", b.conv(b.input("x", "float32", [1, 3, 6, 6]), W[0], outputs=["a"]))
    y = b.op("Relu", b.conv(y, W[1] * np.float32(last), pads=[1, 1, 1, 1]))
    b.output(b.gemm(b.op("Reshape", y, [1, 64]), W[2], np.zeros(5, np.float32), transB=1), name="out")
    return b.build()


class Counted:
    """Samples that count how often they are run through."""

    def __init__(self, model: Model) -> None:
        self.data = Dataset.of({"x": X}, model)
        self.runs = 0

    def feeds(self) -> Iterator[dict[str, Array]]:
        self.runs += 1
        return self.data.feeds()

    def __len__(self) -> int:
        return len(self.data)


def inner(model: Model) -> list[str]:
    return [n.need(0).name for n in model.graph.nodes if n.is_op("Conv", "Gemm")]


def test_what_stays_the_same_is_collected_once() -> None:
    model = network()
    samples = Counted(model)
    ctx = PassContext(calibration=samples)
    first = gather(ctx, model, {n: [Histogram()] for n in inner(model)})
    again = gather(ctx, model, {n: [Histogram()] for n in inner(model)}, stage="again")
    assert samples.runs == 1
    assert first.entries == again.entries
    changed = network(last=2.0)
    names = inner(changed)
    later = gather(ctx, changed, {n: [Histogram()] for n in names})
    assert samples.runs == 2
    for before, after in zip(inner(model)[:2], names[:2], strict=True):  # what stands before the change
        assert later.get(after, Histogram) is first.get(before, Histogram)
    assert later.get(names[2], Histogram).high > first.get(inner(model)[2], Histogram).high


def test_other_observers_of_a_value_are_other_statistics() -> None:
    model = network()
    samples = Counted(model)
    ctx = PassContext(calibration=samples)
    for observer in (ChannelOctaves(1, 1.0), ChannelOctaves(1, 2.0), Histogram(), Histogram(bins=64)):
        assert gather(ctx, model, {"x": [observer]}).entries["x", observer.key] is observer
    assert samples.runs == 4


def test_a_context_with_other_samples_shares_nothing() -> None:
    model = network()
    ctx = PassContext(calibration=Dataset.of({"x": X}, model))
    gather(ctx, model, {"x": [Histogram()]})
    other = PassContext(calibration=Dataset.of({"x": X[:5]}, model), store=ctx.store)
    assert gather(other, model, {"x": [Histogram()]}).get("x", Histogram).seen == X[:5].size


def test_an_unknown_value() -> None:
    model = network()
    ctx = PassContext(calibration=Dataset.of({"x": X}, model))
    with pytest.raises(ModelError, match="no value 'nowhere'"):
        gather(ctx, model, {"nowhere": [Histogram()]})


def saved(model: Model, path: Path, text: str = "quantize") -> Model:
    """`model` after the passes, with the statistics they took in `path`."""
    made = clone(model)
    ctx = PassContext(calibration=Dataset.of({"x": X}, model))
    store = ctx.store = StatisticsStore(ctx.calibration, keep=True)
    Pipeline.parse(text).run(made, ctx)
    store.save(path)
    return made


@pytest.mark.parametrize(
    "text",
    [
        "quantize",
        "quantize{rounding=nearest}",
        "quantize{weights=int4}",
        "none,factorize{energy=0.8},quantize",
        "none,prune{sparsity=0.5},quantize",
        "cluster{bits=3}",
    ],
)
def test_a_file_gives_the_same_model_as_the_samples(text: str, tmp_path: Path) -> None:
    model = network()
    wanted = saved(model, tmp_path / "s.npz", text)
    plain = clone(model)
    Pipeline.parse(text).run(plain, PassContext(calibration=Dataset.of({"x": X}, model)))
    again = clone(model)
    ctx = PassContext(store=StatisticsStore(None, source=tmp_path / "s.npz"))
    assert calibrated(ctx)
    assert sample_count(ctx) == len(X)
    Pipeline.parse(text).run(again, ctx)
    assert to_bytes(plain) == to_bytes(wanted) == to_bytes(again)


def test_the_same_statistics_are_the_same_bytes(tmp_path: Path) -> None:
    model = network()
    saved(model, tmp_path / "a.npz")
    saved(model, tmp_path / "b.npz")
    ctx = PassContext(store=StatisticsStore(None, source=tmp_path / "a.npz", keep=True))
    Pipeline.parse("quantize").run(clone(model), ctx)
    assert isinstance(ctx.store, StatisticsStore)
    ctx.store.save(tmp_path / "c.npz")
    a, b, c = ((tmp_path / f"{n}.npz").read_bytes() for n in "abc")
    assert a == b == c


def test_what_a_file_lacks_is_named(tmp_path: Path) -> None:
    model = network()
    saved(model, tmp_path / "s.npz", "quantize{rounding=nearest}")
    ctx = PassContext(store=StatisticsStore(None, source=tmp_path / "s.npz"))
    with pytest.raises(DataError, match=r"no moment of value 'x'.*--calibration"):
        Pipeline.parse("quantize{sequential=false}").run(clone(model), ctx)
    data = Dataset.of({"x": X}, model)
    both = PassContext(calibration=data, store=StatisticsStore(data, source=tmp_path / "s.npz"))
    completed, plain = clone(model), clone(model)
    Pipeline.parse("quantize").run(completed, both)
    Pipeline.parse("quantize").run(plain, PassContext(calibration=data))
    assert to_bytes(completed) == to_bytes(plain)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    model = network()
    saved(model, tmp_path / "s.npz")
    with pytest.raises(DataError, match="another model"):
        Pipeline.parse("none").run(network(2.0), PassContext(store=StatisticsStore(None, source=tmp_path / "s.npz")))
    few = Dataset.of({"x": X[:4]}, model)
    with pytest.raises(DataError, match=r"another set of samples.*4 samples.*24"):
        StatisticsStore(few, source=tmp_path / "s.npz")
    np.savez(tmp_path / "x.npz", x=X)
    with pytest.raises(DataError, match="no statistics file"):
        StatisticsStore(None, source=tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", index=np.frombuffer(b'{"format": 1}', np.uint8))
    with pytest.raises(DataError, match="another version"):
        StatisticsStore(None, source=tmp_path / "y.npz")
    (tmp_path / "z.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:-100])
    with pytest.raises(DataError, match="not an"):
        StatisticsStore(None, source=tmp_path / "z.npz")


@dataclass(frozen=True)
class Spoil(Pass):
    """Rounds layer after layer and refits those behind, for the tests of walks with files."""

    name: ClassVar[str] = "spoil"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        nodes = [n for n in model.graph.nodes if n.is_op("Conv", "Gemm")]
        for wave in walk(model, clone(model), nodes, ctx):
            for layer in wave:
                weight = layer.node.need(1)
                rows = weight.numpy().reshape(1, weight.static_shape()[0], -1)
                fitted, _ = refit(rows, layer, bias=False)
                made = (np.rint(fitted * 2) / 2).astype(np.float32).reshape(weight.static_shape())
                model.graph.set_input(layer.node, 1, model.graph.add_constant(made))
        return PassResult(True)


def test_walks_are_saved_too(tmp_path: Path) -> None:
    model = network()
    data = Dataset.of({"x": X}, model)
    store = StatisticsStore(data, keep=True)
    wanted, again = clone(model), clone(model)
    Pipeline([Spoil()]).run(wanted, PassContext(calibration=data, store=store))
    store.save(tmp_path / "s.npz")
    Pipeline([Spoil()]).run(again, PassContext(store=StatisticsStore(None, source=tmp_path / "s.npz")))
    assert to_bytes(wanted) == to_bytes(again)


def test_a_place_finds_what_another_machine_computed_in_other_digits(tmp_path: Path) -> None:
    data = Dataset.of({"x": X}, network())
    store = StatisticsStore(data, keep=True)
    ctx = PassContext(calibration=data, store=store)
    store.begin(network())
    store.advance("prune")
    name = inner(network())[2]
    wanted = gather(ctx, network(1.5), {name: [SecondMoment(64)]}, stage="late").get(name, SecondMoment)
    store.save(tmp_path / "s.npz")
    source = StatisticsStore(None, source=tmp_path / "s.npz")
    source.begin(network())
    source.advance("prune")
    elsewhere = PassContext(store=source)
    found = gather(elsewhere, network(np.nextafter(1.5, 2)), {name: [SecondMoment(64)]}, stage="late")
    np.testing.assert_array_equal(found.get(name, SecondMoment).moment, wanted.moment)
    source.advance("another pass")
    with pytest.raises(DataError, match="as the passes leave it"):
        gather(elsewhere, network(1.25), {name: [SecondMoment(64)]}, stage="late")


def test_signatures_are_of_what_is_computed() -> None:
    one, two, other = network(), network(), network(2.0)
    two.graph.rename(two.graph.nodes[0].output, "renamed")
    assert [*signatures(one).values()] == [*signatures(two).values()]
    assert model_signature(one) == model_signature(two) != model_signature(other)
    same = [a == b for a, b in zip(signatures(one).values(), signatures(other).values(), strict=True)]
    assert any(same)
    assert not all(same)


def test_signatures_look_into_bodies() -> None:
    def made(scale: float) -> str:
        b = GraphBuilder()
        flag, x = b.input("flag", "bool", []), b.input("x", "float32", [2])
        with_bodies = b.op("If", flag, then_branch=body(b, x, scale), else_branch=body(b, x, 1.0))
        b.output(with_bodies, name="out")
        return model_signature(b.build())

    assert made(2.0) == made(2.0)
    assert made(2.0) != made(3.0)


def body(b: GraphBuilder, x: Value, scale: float) -> Graph:
    return b.subgraph(lambda inside: inside.output(inside.op("Mul", x, np.array([scale, scale], np.float32))))


@pytest.mark.parametrize(
    "observer",
    [Histogram(), ChannelMean(1), ChannelOctaves(1), SecondMoment(6), PairedMoment(6), Recorded()],
    ids=lambda o: o.kind,
)
@pytest.mark.parametrize("seen", [False, True])
def test_every_observer_survives_the_file(observer: Observer, seen: bool, tmp_path: Path) -> None:
    made = type(observer).from_state(observer.state())
    if seen:
        made.update(RNG.normal(size=(7, 6)).astype(np.float32))
    store = StatisticsStore(Dataset.of({"x": X}, network()), keep=True)
    store.begin(network())
    entry = Entry("signature", "place", made.key)
    store.add(entry, made)
    store.save(tmp_path / "s.npz")
    found = StatisticsStore(None, source=tmp_path / "s.npz").find(entry)
    assert found is not None
    assert type(found) is KINDS[made.kind]
    assert found.key == made.key
    parts: tuple[dict[str, Array], dict[str, Array]] = (found.state(), made.state())
    assert parts[0].keys() == parts[1].keys()
    for name, array in parts[0].items():
        np.testing.assert_array_equal(array, parts[1][name])
