"""Running pipelines: checks between passes, origins, repetition, errors, reproducers, bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from irc.errors import DataError, InternalError, ModelError, OptionError
from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model
from irc.pipeline import (
    Dump,
    Limit,
    Pass,
    PassContext,
    PassResult,
    Pipeline,
    PrintAfter,
    Refusal,
    Repeat,
    Timing,
    bisect,
)
from irc.pipeline import table as table_module


@dataclass(frozen=True)
class AddNode(Pass):
    """Appends Add(y, amount) to the output until there are `most` nodes."""

    name: ClassVar[str] = "add-node"

    amount: float = 1.0
    most: int = 100

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        graph = model.graph
        if len(graph) >= self.most:
            return PassResult(False, refusals=(Refusal("y", "add-node", "enough nodes"),))
        old = graph.outputs[0]
        made = graph.add("Add", [old, graph.add_constant(np.float32(self.amount))])
        graph.set_outputs([made.output])
        name = old.name
        graph.rename(old, graph.unique_name("inner"))
        graph.rename(made.output, name)
        return PassResult(True, {"added": 1})


@dataclass(frozen=True)
class Faulty(Pass):
    """Fails in the way asked for, after having changed the model."""

    name: ClassVar[str] = "faulty"

    how: str = "crash"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        AddNode().run(model, ctx)
        if self.how == "crash":
            raise KeyError("secret")
        if self.how == "user":
            raise DataError("no calibration data", hint="--calibration FILE")
        model.graph.nodes[-1].attributes["nonsense"] = 1
        return PassResult(True)


@pytest.fixture(autouse=True)
def more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table_module.TABLE, "add-node", f"{__name__}:AddNode")
    monkeypatch.setitem(table_module.TABLE, "faulty", f"{__name__}:Faulty")


def _model() -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [2])
    b.output(b.op("Relu", x, name="first"), name="y")
    return b.build()


def test_report() -> None:
    report = Pipeline.parse("add-node{amount=2.0},add-node{most=1}").run(_model())
    first, second = report.passes
    assert (first.text, first.changed, dict(first.statistics)) == ("add-node{amount=2.0}", True, {"added": 1})
    assert (second.changed, second.refusals[0].reason) == (False, "enough nodes")
    assert report.to_json()["pipeline"] == "add-node{amount=2.0},add-node{most=1}"
    assert report.changed
    assert [r.reason for r in report.refusals] == ["enough nodes"]


def test_origins_name_the_pass_that_touched_a_node_and_no_other() -> None:
    model = _model()
    Pipeline.parse("add-node").run(model)
    assert [n.origin.passes for n in model.graph.nodes] == [(), ("add-node",)]


def test_types_are_inferred_after_a_pass() -> None:
    model = _model()
    Pipeline.parse("add-node").run(model)
    assert model.graph.outputs[0].static_shape() == (2,)


def test_a_group_runs_until_nothing_changes() -> None:
    model = _model()
    report = Pipeline([Repeat((AddNode(most=4),))]).run(model)
    assert len(model.graph) == 4
    assert [(p.round, p.changed) for p in report.passes] == [(1, True), (2, True), (3, True), (4, False)]


def test_a_group_without_end_is_an_error() -> None:
    with pytest.raises(InternalError, match="still change the model after 20 rounds"):
        Pipeline.parse("(add-node)*").run(_model())


def test_a_users_error_names_the_passes_before_it() -> None:
    with pytest.raises(DataError) as caught:
        Pipeline.parse("add-node,faulty{how=user}").run(_model())
    assert str(caught.value) == "graph: no calibration data; after passes [add-node]; try --calibration FILE"


def test_an_invalid_graph_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"pass 'faulty' left an invalid model: .*nonsense") as caught:
        Pipeline.parse("add-node,faulty{how=invalid},add-node").run(_model(), PassContext(crash_dir=tmp_path))
    assert "after passes [add-node]" in str(caught.value)
    assert (tmp_path / "pipeline.txt").read_text() == "faulty{how=invalid},add-node\n"


def test_a_model_that_is_invalid_from_the_start_is_the_users() -> None:
    model = _model()
    model.graph.nodes[0].attributes["nonsense"] = 1
    with pytest.raises(ModelError, match="nonsense"):
        Pipeline([]).run(model)


def test_a_crash_leaves_a_reproducer(tmp_path: Path) -> None:
    folder = tmp_path / "crash"
    with pytest.raises(InternalError) as caught:
        Pipeline.parse("add-node,faulty,add-node").run(_model(), PassContext(crash_dir=folder))
    assert "pass 'faulty' failed: KeyError: 'secret'; after passes [add-node]" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert (folder / "pipeline.txt").read_text() == "faulty,add-node\n"
    assert "in run" in (folder / "traceback.txt").read_text()
    assert "Relu" in (folder / "before.irc").read_text()

    from irc.frontend import load_model

    before = load_model(folder / "before.onnx")
    assert [n.op_type for n in before.graph.nodes] == ["Relu", "Add"]
    with pytest.raises(InternalError, match="KeyError"):
        Pipeline.parse((folder / "pipeline.txt").read_text()).run(before, PassContext(crash_dir=tmp_path / "again"))


def test_limit() -> None:
    model = _model()
    report = Pipeline.parse("add-node,add-node,add-node").run(model, instruments=[Limit(2)])
    assert (len(model.graph), report.stopped) == (3, True)


def test_print_after() -> None:
    lines: list[str] = []
    Pipeline.parse("add-node,eliminate-dead").run(_model(), instruments=[PrintAfter(("all",), lines.append)])
    assert len(lines) == 1
    assert lines[0].startswith("// after 1 add-node\n")
    with pytest.raises(OptionError, match="did you mean 'add-node'"):
        PrintAfter(("ad-node",))


def test_dump(tmp_path: Path) -> None:
    Pipeline.parse("add-node,eliminate-dead,add-node").run(_model(), instruments=[Dump(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "00-start.irc",
        "00-start.onnx",
        "01-add-node.irc",
        "01-add-node.onnx",
        "03-add-node.irc",
        "03-add-node.onnx",
    ]


def test_timing() -> None:
    timing = Timing()
    Pipeline.parse("add-node,add-node").run(_model(), instruments=[timing])
    assert list(timing.seconds) == ["add-node"]
    assert timing.table().endswith("add-node")


def _no_five(model: Model) -> bool:
    return not any(v.numpy() == 5 for v in model.graph.constants.values())


@pytest.mark.parametrize("position", range(6))
def test_bisect_finds_the_pass(position: int) -> None:
    amounts = [1.0] * 6
    amounts[position] = 5.0
    model = _model()
    found = bisect(model, Pipeline([AddNode(a) for a in amounts]), _no_five)
    assert found is not None
    assert found.text == "add-node{amount=5.0}"
    assert len(model.graph) == 1, "the model itself must not change"


def test_bisect_looks_into_groups() -> None:
    def few(model: Model) -> bool:
        return len(model.graph) < 4

    found = bisect(_model(), Pipeline([Repeat((AddNode(most=6),))]), few)
    assert found is not None
    assert found.round == 3


@pytest.mark.parametrize(("good", "message"), [(lambda m: True, None), (lambda m: False, "not good before")])
def test_bisect_without_a_culprit(good: Callable[[Model], bool], message: str | None) -> None:
    if message is None:
        assert bisect(_model(), Pipeline([AddNode()]), good) is None
        return
    with pytest.raises(ValueError, match=message):
        bisect(_model(), Pipeline([AddNode()]), good)
