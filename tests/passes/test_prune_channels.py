"""Structured pruning: targets are met, what can be rebuilt is rebuilt, and what cannot be done is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pass_checks import outputs

from irc.calibrate.dataset import Dataset
from irc.errors import DataError, OptionError
from irc.frontend import default_batch, load_model
from irc.ir.analysis import model_macs
from irc.ir.builder import GraphBuilder
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Model
from irc.ir.types import Constant
from irc.ir.verify import verify
from irc.passes.prune.branches import find_branches, remove_branches
from irc.passes.prune.budget import rounded_levels
from irc.passes.prune.channels import PruneChannels
from irc.passes.prune.dependencies import find_dependencies
from irc.passes.prune.fit import Elimination, Sums, eliminate
from irc.pipeline import Pipeline
from irc.pipeline.contract import PassContext
from irc.targets import get_target


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


def residual(branch: float = 1.0, batch: int | str = 1) -> Model:
    """A stem, two residual blocks, a classifier; the second branch is scaled."""
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.input("x", "float32", [batch, 3, 8, 8])
    y = b.op("Relu", b.conv(x, normal(rng, 16, 3, 3, 3), normal(rng, 16), pads=[1] * 4, name="stem"))
    for i, scale in enumerate((1.0, branch)):
        h = b.op("Relu", b.conv(y, normal(rng, 16, 16, 3, 3), normal(rng, 16), pads=[1] * 4, name=f"first{i}"))
        h = b.conv(h, scale * normal(rng, 16, 16, 3, 3), name=f"second{i}", pads=[1] * 4)
        y = b.op("Relu", b.op("Add", h, y, name=f"add{i}"))
    b.output(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), normal(rng, 16, 4), name="last"))
    return b.build()


def context(model: Model, samples: int = 48, target: str | None = None, seed: int = 1) -> PassContext:
    value = model.graph.inputs[0]
    extents = [d for d in (value.shape or ())[1:] if isinstance(d, int)]
    data = np.random.default_rng(seed).standard_normal((samples, *extents)).astype(np.float32)
    return PassContext(get_target(target) if target else None, Dataset.of({value.name: data}, model))


def error(before: Model, after: Model) -> float:
    """Squared change of the outputs over their square, on samples not calibrated on."""
    feeds = list(context(before, 16, seed=7).calibration.feeds())  # type: ignore[union-attr]  # it has samples
    wanted = np.concatenate([outputs(before, f)[0] for f in feeds])
    given = np.concatenate([outputs(after, f)[0] for f in feeds])
    return float(np.square(given - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum())


@pytest.mark.parametrize("allocation", ["sensitivity", "global", "uniform"])
@pytest.mark.parametrize("criterion", ["hessian", "activation", "magnitude", "random"])
def test_every_way_meets_the_target(criterion: str, allocation: str) -> None:
    model = residual()
    before = clone(model)
    options = {"criterion": criterion, "allocation": allocation, "round": 1}
    result = PruneChannels(macs=0.7, **options).run(model, context(model))  # type: ignore[arg-type]  # literals
    verify(model)
    assert result.changed
    assert (model_macs(model) or 0) <= 0.7 * (model_macs(before) or 0)
    assert result.statistics["macs"] <= 0.7
    assert result.statistics["groups"] or result.statistics["branches"]
    assert error(before, model) < 1e3  # it runs, and gives numbers


def test_fitting_beats_leaving_weights_alone() -> None:
    errors = {}
    for criterion in ("hessian", "random"):
        model, before = residual(), residual()
        options = PruneChannels(macs=0.75, criterion=criterion, allocation="uniform")  # type: ignore[arg-type]  # one of its names
        options.run(model, context(model))
        errors[criterion] = error(before, model)
    assert errors["hessian"] < 0.5 * errors["random"]


def test_repeated_channels_cost_nothing() -> None:
    rng = np.random.default_rng(3)
    b = GraphBuilder()
    first, bias = normal(rng, 8, 3, 3, 3), normal(rng, 8)
    y = b.conv(b.input("x", "float32", [1, 3, 8, 8]), np.tile(first, (2, 1, 1, 1)), np.tile(bias, 2), name="first")
    y = b.conv(b.op("Relu", y), normal(rng, 6, 16, 3, 3), name="second")
    b.output(b.op("GlobalMaxPool", y))
    model = b.build()
    before = clone(model)
    PruneChannels(macs=0.55, round=8, damping=1e-9).run(model, context(model))
    assert model.graph.nodes[0].need(1).static_shape() == (8, 3, 3, 3)
    assert error(before, model) < 1e-8  # float32 weights, and a damping of 1e-9


def test_a_branch_that_does_nothing_goes_whole() -> None:
    model, before = residual(branch=1e-3), residual(branch=1e-3)
    result = PruneChannels(macs=0.6, round=16).run(model, context(model))
    assert result.statistics["branches"] == ["add1"]
    assert [n.name for n in model.graph.nodes if n.is_op("Conv")] == ["stem", "first0", "second0"]
    assert error(before, model) < 1e-3
    again = residual(branch=1e-3)
    kept = PruneChannels(macs=0.6, branches=False, round=1).run(again, context(again))
    assert kept.statistics["branches"] == []


def test_a_batch_without_a_number_changes_nothing() -> None:
    models = [residual(), residual(batch="n")]
    results = [PruneChannels(macs=0.7).run(m, context(m)) for m in models]
    assert results[0].statistics["groups"] == results[1].statistics["groups"]
    assert results[0].statistics["branches"] == results[1].statistics["branches"]
    assert error(residual(batch="n"), models[1]) == pytest.approx(error(residual(), models[0]), rel=1e-2)


def test_little_and_empty_data_is_enough_to_run() -> None:
    model = residual()
    samples = Dataset.of({"x": np.zeros((1, 3, 8, 8), np.float32)}, model)
    assert PruneChannels(macs=0.7, round=1).run(model, PassContext(None, samples)).changed
    for value in model.graph.constants.values():
        assert np.isfinite(value.numpy()).all()


def test_weights_that_are_no_numbers() -> None:
    model = residual()
    weight = next(n for n in model.graph.nodes if n.name == "second0").need(1)
    data = weight.numpy().copy()
    data[0, 0, 0, 0] = np.nan
    weight.constant = Constant.of(data)
    before = [n.name for n in model.graph.nodes]
    PruneChannels(macs=0.9, criterion="magnitude", allocation="uniform", round=1).run(model, PassContext())
    assert [n.name for n in model.graph.nodes] == before


def test_counts_are_rounded_for_the_target() -> None:
    for target, lanes in (("arm", 4), ("x86-64-v3", 8)):
        model = residual()
        options = PruneChannels(macs=0.7, allocation="uniform")
        result = options.run(model, context(model, target=target))
        assert result.changed
        for node in model.graph.nodes:
            if node.is_op("Conv"):
                assert node.need(1).static_shape()[0] % lanes == 0


@pytest.mark.parametrize("target", [{"bytes": 0.6}, {"sparsity": 0.4}])
def test_other_targets(target: dict[str, float]) -> None:
    model = residual()
    before = clone(model)
    PruneChannels(**target, round=1, allocation="global").run(model, context(model))  # type: ignore[arg-type]
    sizes = [sum(v.constant.nbytes for v in m.graph.constants.values() if v.constant) for m in (before, model)]
    assert sizes[1] <= (0.61 if "bytes" in target else 0.8) * sizes[0]


def test_what_cannot_be_reached() -> None:
    model = residual()
    before = clone(model)
    with pytest.raises(OptionError, match=r"expected macs of at least 0\.\d+; got 0.0001"):
        PruneChannels(macs=0.0001, round=8).run(model, context(model))
    assert difference(before, model) is None


def test_nothing_to_do_and_nothing_to_prune() -> None:
    model = residual()
    assert not PruneChannels(macs=1.0).run(model, context(model)).changed
    b = GraphBuilder()
    b.output(b.conv(b.input("x", "float32", [1, 3, 8, 8]), np.ones((4, 3, 1, 1), np.float32), name="only"))
    result = PruneChannels().run(b.build(), PassContext())
    assert not result.changed
    assert "output" in result.refusals[0].reason


def test_data_is_asked_for_only_where_it_is_needed() -> None:
    with pytest.raises(DataError, match="calibration"):
        PruneChannels().run(residual(), PassContext())
    model = residual()
    assert PruneChannels(criterion="magnitude", allocation="uniform").run(model, PassContext()).changed


@pytest.mark.parametrize(
    "options",
    [{"macs": 0.5, "bytes": 0.5}, {"macs": 0.0}, {"bytes": 2.0}, {"sparsity": 1.0}, {"round": 0}, {"damping": -1.0}],
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        PruneChannels(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_text_form() -> None:
    text = "prune-channels{macs=0.5 round=8 branches=false}"
    assert str(Pipeline.parse(text)) == text


# Parts


def test_branches_of_a_graph() -> None:
    model = residual()
    found = find_branches(model)
    assert [b.name for b in found] == ["add0", "add1"]
    assert [sorted(n.name for n in b.nodes if n.is_op("Conv")) for b in found] == [
        ["first0", "second0"],
        ["first1", "second1"],
    ]
    remove_branches(model, ["add0", "add1"])
    verify(model)
    assert [n.name for n in model.graph.nodes if n.is_op("Conv")] == ["stem"]


def test_elimination_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 1).astype(np.float32)
    w = rng.standard_normal((3, 6))
    t = (x @ w.T + 2).astype(np.float32)
    sums = Sums(1, None, 1000)
    sums.update(x, t)
    problem = sums.problem(w[None], 1e-12, bias=True)
    order, errors = eliminate([Elimination(problem, np.arange(6)[None])], range(6), 4, lambda unit: True)
    stays = ~np.isin(np.arange(6), order)
    found, bias = problem.solve(stays[None])
    left = np.c_[x[:, stays], np.ones(len(x))]
    best, residue, _, _ = np.linalg.lstsq(left, t, rcond=None)
    np.testing.assert_allclose(found[0][:, stays], best[:-1].T, rtol=1e-3, atol=1e-3)  # float32 sums of 400 rows
    np.testing.assert_allclose(bias[0], best[-1], rtol=1e-3, atol=1e-2)
    power = np.square(t - t.mean(axis=0)).sum()
    np.testing.assert_allclose(errors[-1], residue.sum() / power, rtol=1e-2)


def test_levels_are_multiples() -> None:
    model = residual()
    group = next(g for g in find_dependencies(model).groups if g.name == "first0")
    assert rounded_levels(group, 15, 4) == (0, 4, 8, 12)
    assert rounded_levels(group, 15, 16) == (0,)
    assert rounded_levels(group, 3, 1) == (0, 1, 2, 3)


def test_pruned_to_the_same_every_time() -> None:
    models = [residual(), residual()]
    for model in models:
        PruneChannels(macs=0.7).run(model, context(model))
    assert difference(models[0], models[1]) is None


def test_heads_and_hidden_units_of_a_transformer() -> None:
    from test_prune_dependencies import attention

    model = attention()
    before = clone(model)
    result = PruneChannels(macs=0.8, round=1).run(model, context(model))
    assert result.changed
    assert (model_macs(model) or 0) <= 0.8 * (model_macs(before) or 0)
    assert error(before, model) < 1.0


def test_a_real_network(data_dir: Path) -> None:
    path = data_dir / "models" / "ic_resnet8_fp32.onnx"
    model = load_model(path)
    default_batch(model)
    Pipeline.parse("none").run(model)
    before = clone(model)
    with np.load(data_dir / "cifar10_train.npz") as file:
        images = file["x"][:64].astype(np.float32)
    samples = Dataset.of({model.graph.inputs[0].name: images}, model)
    result = PruneChannels(macs=0.7, allocation="global").run(model, PassContext(None, samples))
    assert (model_macs(model) or 0) <= 0.7 * (model_macs(before) or 0)
    assert result.statistics["macs"] <= 0.7
