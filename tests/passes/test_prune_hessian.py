"""Pruning by the Hessian: what goes, what the rest becomes, and that zeros stay."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest

from irc.calibrate.dataset import Dataset
from irc.calibrate.masked import conjugate, fit_kept, fit_rows
from irc.errors import DataError, OptionError
from irc.export import to_proto
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Model
from irc.ir.types import Array
from irc.ir.verify import verify
from irc.passes.prune import obs
from irc.passes.prune.obs import Grid, damped, eliminate
from irc.passes.prune.prune import Prune
from irc.passes.quantize.quantize import Quantize
from irc.pipeline.contract import PassContext
from irc.targets.catalogue import get_target


def metric_of(k: int, seed: int = 0) -> Array:
    """Inputs that depend on each other, as those of a network do."""
    rng = np.random.default_rng(seed)
    rows = np.maximum(rng.standard_normal((500, k)) @ rng.standard_normal((k, k)) * 0.3 + rng.standard_normal(k), 0)
    return damped(rows.T @ rows / len(rows), 0.01, len(rows))


def error(target: Array, found: Array, metric: Array) -> float:
    off = (found - target).reshape(-1, target.shape[-1])
    return float(np.sum((off @ metric) * off))


def plain_obs(weights: Array, metric: Array) -> list[int]:
    """The textbook procedure for one row: the order of removal."""
    inverse, left, order = np.linalg.inv(metric), weights.copy(), []
    for _ in weights:
        cost = np.array([np.inf if j in order else left[j] ** 2 / inverse[j, j] for j in range(len(left))])
        j = int(cost.argmin())
        column = inverse[:, j].copy()
        left = left - column * (left[j] / column[j])
        inverse = inverse - np.outer(column, column) / column[j] + 0.0
        inverse[j, j] = 1.0  # not used again
        order.append(j)
    return order


def test_order_is_that_of_the_textbook() -> None:
    metric, rows = metric_of(20), np.random.default_rng(1).standard_normal((3, 20))
    found = eliminate(rows[:, None], metric, Grid(), np.zeros((3, 20), bool), 1.0)
    for unit, row in enumerate(rows):
        own = [int(b) - 20 * unit for b in found.blocks if b // 20 == unit]
        # a block of lower cost than the one before it goes with that one: the order within a row is kept
        assert own == plain_obs(row, metric)
    assert (np.diff(found.growth) >= 0).all()


def test_one_block_is_the_best_one() -> None:
    """Every choice of one block, refitted, against the first that goes, for blocks of 2 rows x 3 columns."""
    metric, rows = metric_of(12), np.random.default_rng(2).standard_normal((1, 2, 12))
    found = eliminate(rows, metric, Grid(3), np.zeros((1, 4), bool), 0.5)
    costs = []
    for b in range(4):
        kept = np.ones((1, 4), bool)
        kept[0, b] = False
        costs.append(error(rows, fit_kept(rows, metric, kept, 3), metric))
    assert found.blocks[0] == int(np.argmin(costs))
    assert found.growth[0] == pytest.approx(min(costs), rel=1e-3)  # the inverse is carried in float32


def test_growth_is_the_error() -> None:
    metric, rows = metric_of(24), np.random.default_rng(3).standard_normal((4, 1, 24))
    found = eliminate(rows, metric, Grid(), np.zeros((4, 24), bool), 0.5)
    kept = np.ones(96, bool)
    kept[found.blocks[:48]] = False
    real = error(rows, fit_kept(rows, metric, kept.reshape(4, 24), 1), metric)
    assert found.growth[:48].sum() == pytest.approx(real, rel=0.1)  # costs that fall are counted as if they did not


@pytest.mark.parametrize("grid", [Grid(), Grid(4), Grid(1, 4, 2)])
def test_the_ladder_is_nearly_as_good(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    metric, rows = metric_of(48), np.random.default_rng(4).standard_normal((6, 2, 48))
    blocks = 48 // grid.width
    gone = np.zeros((6, blocks), bool)
    errors = []
    for limit in (obs._EXACT, 0):
        monkeypatch.setattr(obs, "_EXACT", limit)
        found = eliminate(rows, metric, grid, gone, 0.5)
        kept = np.ones(6 * blocks, bool)
        kept[found.blocks[: 3 * blocks]] = False
        assert len(set(found.blocks.tolist())) == len(found.blocks)
        errors.append(error(rows, fit_kept(rows, metric, kept.reshape(6, blocks), grid.width), metric))
    assert errors[1] <= 1.15 * errors[0]
    smallest = np.argsort(np.square(rows).reshape(6, 2, blocks, -1).sum(axis=(1, 3)).reshape(-1))
    kept = np.ones(6 * blocks, bool)
    kept[smallest[: 3 * blocks]] = False
    if not grid.run:
        assert errors[1] < error(rows, fit_kept(rows, metric, kept.reshape(6, blocks), grid.width), metric)


@pytest.mark.parametrize("limit", [obs._EXACT, 0])
def test_of_every_run_as_many_stay(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "_EXACT", limit)
    metric, rows = metric_of(32), np.random.default_rng(5).standard_normal((5, 1, 32))
    found = eliminate(rows, metric, Grid(1, 4, 3), np.zeros((5, 32), bool), 0.5)
    kept = np.ones(160, bool)
    kept[found.blocks] = False
    assert set(kept.reshape(-1, 4).sum(axis=1)) == {1}


def test_zeros_go_first_and_are_not_listed() -> None:
    metric, rows = metric_of(16), np.random.default_rng(6).standard_normal((2, 1, 16))
    gone = np.zeros((2, 16), bool)
    gone[0, :5] = True
    found = eliminate(rows, metric, Grid(), gone, 0.5)
    assert not set(found.blocks.tolist()) & set(range(5))


def test_least_squares_on_a_mask() -> None:
    """No small change of a kept weight makes the error smaller; conjugate gradients find the same."""
    metric, rng = metric_of(18), np.random.default_rng(7)
    target, kept = rng.standard_normal((5, 18)), rng.random((5, 18)) < 0.5
    found = fit_rows(target, metric, kept)
    assert not found[~kept].any()
    slope = (found - target) @ metric
    assert np.abs(slope[kept]).max() < 1e-9
    np.testing.assert_allclose(conjugate(target, metric, kept, np.where(kept, target, 0), 40), found, atol=1e-6)


def network() -> Model:
    b = GraphBuilder()
    y = b.input("x", "float32", [1, 8, 8, 8])
    y = b.op("Relu", b.conv(y, weights(16, 8, 3, 3), b.constant(weights(16)), pads=[1, 1, 1, 1], name="first"))
    skip = y
    y = b.op("Relu", b.conv(y, weights(16, 4, 3, 3, seed=1), pads=[1, 1, 1, 1], group=4, name="grouped"))
    y = b.op("Relu", b.op("Add", b.conv(y, weights(16, 16, 1, 1, seed=2), name="point"), skip))
    y = b.op("Reshape", b.op("GlobalAveragePool", y), np.array([1, 16]))
    y = b.op("Relu", b.gemm(y, weights(32, 16, seed=3), b.constant(weights(32, seed=5)), transB=1, name="dense"))
    y = b.op("Add", b.matmul(y, weights(32, 10, seed=4)), b.constant(weights(10, seed=6)))
    b.output(y)
    return b.build()


def samples(model: Model, count: int = 64) -> Dataset:
    rng = np.random.default_rng(8)
    field = rng.standard_normal((count, 8, 4, 4)).repeat(2, axis=2).repeat(2, axis=3)
    return Dataset.of({"x": (field + 0.3 * rng.standard_normal(field.shape)).astype(np.float32)}, model)


def context(model: Model, count: int = 64) -> PassContext:
    return PassContext(calibration=samples(model, count), target=get_target("x86-64-v3"))


def outputs(model: Model, count: int = 64) -> Array:
    session = onnxruntime.InferenceSession(to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in samples(model, count).feeds()])


def linear_weights(model: Model) -> dict[str, Array]:
    return {n.name: n.need(1).numpy() for n in model.graph.nodes if n.is_op("Conv", "Gemm", "MatMul")}


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.6},
        {"sparsity": 0.6, "scope": "global"},
        {"sparsity": 0.6, "scope": "sensitivity"},
        {"sparsity": 0.5, "pattern": "block", "block": "4x4"},
        {"pattern": "2:4"},
        {"sparsity": 0.6, "criterion": "magnitude", "update": True},
    ],
)
def test_beats_magnitude_and_reaches_the_goal(options: dict[str, object]) -> None:
    model = network()
    wanted = outputs(model)
    result = Prune(**options).run(model, context(model))
    verify(model)
    assert result.changed
    share = options.get("sparsity", 0.5)
    assert result.statistics["sparsity"] == pytest.approx(share, abs=0.02)  # whole blocks, and one of each layer stays
    control = network()
    plain = {k: v for k, v in options.items() if k in ("sparsity", "pattern", "block")}
    Prune(criterion="magnitude", **plain).run(control, PassContext())
    assert np.square(outputs(model) - wanted).sum() < 0.5 * np.square(outputs(control) - wanted).sum()


def test_zero_blocks_are_whole() -> None:
    model = network()
    Prune(sparsity=0.5, pattern="block", block="target").run(model, context(model))
    first = linear_weights(model)["first"].reshape(2, 8, 2, 4, 9) != 0  # AVX2: 8 sums of 4 products
    alive = first.transpose(0, 2, 4, 1, 3).reshape(36, 32).sum(axis=1)
    assert set(alive) == {0, 32}


def test_running_twice_changes_nothing_more() -> None:
    model = network()
    prune = Prune(sparsity=0.6)
    prune.run(model, context(model))
    once = clone(model)
    assert not prune.run(model, context(model)).changed
    assert difference(once, model) is None


def test_more_sparsity_keeps_the_zeros() -> None:
    model = network()
    Prune(sparsity=0.3).run(model, context(model))
    before = linear_weights(model)
    Prune(sparsity=0.6).run(model, context(model))
    for name, after in linear_weights(model).items():
        assert not after[before[name] == 0].any(), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"equalize": False, "scheme": "symmetric"},
        {"weights": "int4"},
        {"weights": "ternary"},
        {"rounding": "nearest"},
        {"bits": "free", "drop": 5.0},
        {"activations": "none"},
    ],
)
def test_zeros_stay_through_quantization(options: dict[str, object]) -> None:
    model = network()
    Prune(sparsity=0.6).run(model, context(model))
    zero = {name: data == 0 for name, data in linear_weights(model).items()}
    Quantize(**options).run(model, context(model))
    verify(model)
    checked = 0
    for node in model.graph.nodes:
        source = node.need(1).producer if node.is_op("Conv", "Gemm", "MatMul") else None
        if source is None or not source.is_op("DequantizeLinear"):
            continue
        steps = source.need(0).numpy().astype(np.int16)
        point = source.input(2)
        if point is not None and point.numpy().size > 1:  # per output channel
            shape = [-1 if i == source.get_int("axis", 1) else 1 for i in range(steps.ndim)]
            steps = steps - point.numpy().astype(np.int16).reshape(shape)
        assert not steps[zero[node.name]].any(), node.name
        checked += 1
    assert checked >= 4


def test_shared_weights_are_pruned_for_both_readers() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 32])
    w = b.constant(weights(32, 32), "tied")
    b.output(b.matmul(b.op("Relu", b.matmul(x, w)), w))
    model = b.build()
    data = Dataset.of({"x": np.random.default_rng(9).standard_normal((200, 32)).astype(np.float32)}, model)
    result = Prune(sparsity=0.5).run(model, PassContext(calibration=data))
    assert list(model.graph.constants) == ["tied"]
    assert result.statistics["sparsity"] == 0.5


def test_conv_of_one_dimension() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 8, 20])
    b.output(b.conv(x, weights(16, 8, 5), pads=[2, 2]))
    model = b.build()
    data = Dataset.of({"x": np.random.default_rng(9).standard_normal((64, 8, 20)).astype(np.float32)}, model)
    result = Prune(sparsity=0.5).run(model, PassContext(calibration=data))
    assert result.statistics["sparsity"] == 0.5
    assert "error" in result.statistics["layers"][0]


def test_goals_in_work_and_bytes() -> None:
    model = network()
    result = Prune(macs=0.6).run(model, context(model))
    left = sum(line["macs_left"] for line in result.statistics["layers"])
    assert left / sum(line["macs"] for line in result.statistics["layers"]) == pytest.approx(0.6, abs=0.01)
    model = network()
    total = sum(w.nbytes for w in linear_weights(model).values())
    Prune(bytes=total // 2).run(model, context(model))
    assert 4 * sum(np.count_nonzero(w) for w in linear_weights(model).values()) == pytest.approx(total / 2, rel=0.01)


def test_impossible_goals_say_what_is_reachable() -> None:
    for options, scope in itertools.product([{"bytes": 8}, {"macs": 1e-6}], ["uniform", "global"]):
        model = network()
        before = clone(model)
        with pytest.raises(OptionError, match=r"% left"):
            Prune(scope=scope, **options).run(model, context(model))
        assert difference(before, model) is None


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "4:2"},
        {"pattern": "columns"},
        {"pattern": "2:4", "sparsity": 0.5},
        {"sparsity": 0.5, "macs": 0.5},
        {"macs": 0.0},
        {"bytes": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        Prune(**options)


def test_needs_samples() -> None:
    model = network()
    with pytest.raises(DataError, match="calibration"):
        Prune().run(model, PassContext())
    with pytest.raises(DataError, match="too few"):
        Prune().run(model, context(model, 3))


def test_constant_input_and_dead_weights() -> None:
    """A layer whose input never varies, and one whose weights are all zero: nothing but the goal is lost."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 16])
    y = b.op("Mul", x, np.zeros(16, np.float32))
    y = b.op("Add", b.matmul(y, weights(16, 16)), b.matmul(x, np.zeros((16, 16), np.float32)))
    b.output(b.matmul(y, weights(16, 16, seed=1)))
    model = b.build()
    data = Dataset.of({"x": np.ones((64, 16), np.float32)}, model)
    Prune(sparsity=0.5).run(model, PassContext(calibration=data))
    verify(model)
    assert all(np.isfinite(w).all() for w in linear_weights(model).values())


def test_notes_say_what_zeros_are_good_for() -> None:
    def notes(**options: object) -> list[str]:
        model = network()
        found = Prune(criterion="magnitude", sparsity=0.5, **options).run(model, context(model))
        return list(found.statistics["notes"])

    assert "coded" in notes()[0]
    assert "8x4" in notes(pattern="block", block="4x4")[0]
    assert notes(pattern="block", block="target") == []
    assert notes(pattern="block", block="16x4") == []
