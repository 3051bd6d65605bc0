"""Pruning: which weights go, and which must not be touched."""

from __future__ import annotations

import numpy as np
import pytest

from irc.errors import OptionError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Model
from irc.ir.verify import verify
from irc.passes.prune.layers import Form, Pattern
from irc.passes.prune.prune import Prune
from irc.passes.prune.ranking import rank_scores
from irc.pipeline.contract import PassContext


def network() -> Model:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 8, 6, 6])
    y = b.conv(x, weights(32, 8, 3, 3), name="wide")
    y = b.conv(y, weights(32, 1, 3, 3), group=32, name="depthwise")
    y = b.conv(y, weights(4, 32, 1, 1), name="small")
    y = b.op("Flatten", y)
    y = b.gemm(y, weights(20, 16, seed=1), transB=1, name="dense")
    b.output(b.matmul(y, weights(20, 16, seed=2)))
    return b.build()


def zeros(model: Model) -> dict[str, float]:
    return {
        n.name: 1 - np.count_nonzero(n.need(1).numpy()) / n.need(1).numpy().size
        for n in model.graph.nodes
        if n.is_op("Conv", "Gemm", "MatMul")
    }


def test_before_and_after() -> None:
    model, before = network(), network()
    result = Prune(criterion="magnitude", sparsity=0.5).run(model, PassContext())
    verify(model)
    assert result.changed
    assert zeros(model) == {"wide": 0.5, "depthwise": 0, "small": 0, "dense": 0.5, "MatMul": 0.5}
    assert result.statistics["sparsity"] == 0.5
    for old, new in zip(before.graph.nodes, model.graph.nodes, strict=True):
        if old.is_op("Conv", "Gemm", "MatMul"):
            w, pruned = old.need(1).numpy(), new.need(1).numpy()
            kept = pruned != 0
            np.testing.assert_array_equal(pruned[kept], w[kept])  # what stays is untouched
            assert kept.all() or np.abs(w[~kept]).max() <= np.abs(w[kept]).min()


def test_refuses_with_reasons() -> None:
    reasons = {r.node: r.reason for r in Prune(criterion="magnitude").run(network(), PassContext()).refusals}
    assert "depthwise" in reasons["node 'depthwise' (Conv)"]
    assert "128 weights" in reasons["node 'small' (Conv)"]


def test_refuses_quantized_and_shared_weights() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 32])
    table = b.constant(weights(32, 32), "table")
    q = b.dequantize(np.ones((32, 32), np.int8), 0.5)
    looked_up = b.op("Gather", table, np.array([1], np.int64))
    b.output(b.op("Add", b.op("Add", b.matmul(x, table), looked_up), b.matmul(x, q)))
    model = b.build()
    before = clone(model)
    result = Prune(criterion="magnitude").run(model, PassContext())
    assert not result.changed
    assert difference(before, model) is None
    assert any("Gather" in r.reason for r in result.refusals)
    assert any("quantized already" in r.reason for r in result.refusals)


@pytest.mark.parametrize("options", [{}, {"pattern": "block", "block": "8x2"}, {"criterion": "random"}])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_running_twice_changes_nothing_more(options, scope) -> None:
    model = network()
    prune = Prune(**{"criterion": "magnitude", "sparsity": 0.6, "scope": scope, **options})
    prune.run(model, PassContext(seed=3))
    once = clone(model)
    again = prune.run(model, PassContext(seed=3))
    assert not again.changed
    assert difference(once, model) is None


def test_blocks_go_whole_and_positions_apart() -> None:
    model = network()
    Prune(criterion="magnitude", sparsity=0.5, pattern="block", block="16x4").run(model, PassContext())
    w = next(n for n in model.graph.nodes if n.name == "wide").need(1).numpy()
    alive = (w.reshape(2, 16, 2, 4, 9) != 0).transpose(0, 2, 4, 1, 3).reshape(36, 64)
    assert set(alive.sum(axis=1)) == {0, 64}
    assert (alive.sum(axis=1) == 0).sum() == 18


def test_random_depends_on_the_seed_alone() -> None:
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        Prune(criterion="random").run(model, PassContext(seed=seed))
    assert difference(models[0], models[1]) is None
    assert difference(models[0], models[2]) is not None


def test_global_takes_from_the_small_weights_first() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 32])
    y = b.matmul(x, weights(32, 32, scale=1e-6))
    b.output(b.matmul(y, weights(32, 32, seed=1, scale=10)))
    model = b.build()
    Prune(criterion="magnitude", sparsity=0.25, scope="global").run(model, PassContext())
    first, second = zeros(model).values()
    assert first == 0.5
    assert second == 0


def test_a_layer_never_loses_everything() -> None:
    form = Form.of(1, 2, 4, 1, Pattern())
    ranking = rank_scores(form, np.arange(1.0, 9.0).reshape(1, 2, 4), np.zeros((1, 2, 4), bool))
    assert ranking.kept(8).sum() == 1
    assert ranking.kept(8).reshape(-1)[-1]  # the best


def test_tied_weights_are_pruned_once_and_stay_tied() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 32])
    w = b.constant(weights(32, 32), "tied")
    b.output(b.matmul(b.op("Relu", b.matmul(x, w)), w))
    model = b.build()
    result = Prune(criterion="magnitude").run(model, PassContext())
    assert list(model.graph.constants) == ["tied"]
    assert zeros(model) == {"MatMul": 0.5, "MatMul_1": 0.5}
    assert result.statistics["layers"][0]["nodes"] == ["MatMul", "MatMul_1"]


def test_ragged_blocks() -> None:
    form = Form.of(1, 5, 3, 1, Pattern(4, 2))
    assert form.sizes().tolist() == [[[8, 4], [2, 1]]]
    rows = np.arange(15.0).reshape(1, 5, 3)
    np.testing.assert_array_equal(form.unfold(form.fold(rows)), rows)
    assert form.blocks(form.fold(rows)).tolist() == [[[0 + 1 + 3 + 4 + 6 + 7 + 9 + 10, 2 + 5 + 8 + 11], [12 + 13, 14]]]
    kept = np.array([[[True, True], [True, False]]])
    assert np.argwhere(~form.spread(kept)).tolist() == [[0, 4, 2]]


def test_positions_of_a_kernel_are_blocks_of_their_own() -> None:
    form = Form.of(1, 2, 4 * 9, 9, Pattern(2, 4))
    kept = np.ones((1, 1, 9), bool)
    kept[0, 0, 5] = False
    gone = ~form.spread(kept).reshape(2, 4, 9)
    assert np.argwhere(gone.any(axis=(0, 1))).tolist() == [[5]]
    assert gone[:, :, 5].all()


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"block": "16"}, {"block": "0x4"}])
def test_bad_options(options) -> None:
    with pytest.raises(OptionError):
        Prune(criterion="magnitude", **options)
