"""Factorization: the form chosen, exactness at full rank, and what calibration improves."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import assert_same, outputs

from irc.calibrate.dataset import Dataset
from irc.errors import OptionError
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.compare import difference
from irc.ir.graph import Model
from irc.ir.verify import verify
from irc.passes.factorize.factorize import Factorize
from irc.passes.factorize.lowrank import decompose
from irc.pipeline.contract import PassContext
from irc.targets import get_target

RNG = np.random.default_rng(5)
EXACT_RANK = 1e-5  # float32 products in another order, through an intermediate of the layer's size


def low_rank(rows: int, columns: int, rank: int) -> np.ndarray:
    return (RNG.normal(size=(rows, rank)) @ RNG.normal(size=(rank, columns)) / 8).astype(np.float32)


def linear_models() -> dict[str, Model]:
    models = {}
    for kind in ("matmul", "gemm", "gemm_transposed", "conv1x1", "conv3x3"):
        b = GraphBuilder()
        if kind.startswith("conv"):
            k = int(kind[-1])
            x = b.input("x", "float32", [1, 24, 9, 8])
            w = low_rank(32, 24 * k * k, 4).reshape(32, 24, k, k)
            y = b.conv(x, w, weights(32), strides=[2, 1], pads=[k // 2] * 4)
        else:
            x = b.input("x", "float32", [5, 48])
            w = low_rank(48, 40, 4)
            if kind == "matmul":
                y = b.matmul(x, w)
            elif kind == "gemm":
                y = b.gemm(x, w, weights(40))
            else:
                y = b.gemm(x, np.ascontiguousarray(w.T), weights(40), transB=1, alpha=0.5)
        b.output(y)
        models[kind] = b.build()
    return models


@pytest.mark.parametrize("kind", list(linear_models()))
def test_a_matrix_of_low_rank_is_split_without_loss(kind: str) -> None:
    before = linear_models()[kind]
    after = clone(before)
    result = Factorize(energy=0.9999999).run(after, PassContext())
    verify(after)
    assert result.changed
    assert result.statistics["layers"][0]["rank"] == 4
    assert len(after.graph.nodes) == 2
    assert sum(c.constant.size for c in after.graph.constants.values()) < 0.5 * sum(
        c.constant.size for c in before.graph.constants.values()
    )
    assert_same(before, after, EXACT_RANK)
    once = clone(after)
    assert not Factorize(energy=0.9).run(after, PassContext()).changed
    assert difference(once, after) is None


def test_spatial_split_where_it_is_cheaper() -> None:
    rows, columns = RNG.normal(size=(24, 2, 3)), RNG.normal(size=(32, 2, 3))
    w = np.einsum("irh,orw->oihw", rows, columns).astype(np.float32)  # rank 2 over (in, kh) x (out, kw)
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 24, 10, 12])
    b.output(b.conv(x, w, weights(32), pads=[1, 0, 1, 2], strides=[1, 2], dilations=[1, 2]))
    before = b.build()
    after = clone(before)
    result = Factorize(energy=0.9999999).run(after, PassContext())
    verify(after)
    line = result.statistics["layers"][0]
    assert (line["form"], line["rank"]) == ("spatial", 2)
    kernels = [n.need(1).static_shape() for n in after.graph.nodes]
    assert kernels == [(2, 24, 3, 1), (32, 2, 1, 3)]
    assert_same(before, after, EXACT_RANK)


def test_energy_and_rank_options() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4, 64])
    b.output(b.matmul(x, (low_rank(64, 64, 64) * np.geomspace(1, 1e-3, 64)).astype(np.float32)))
    by_energy, by_rank = b.build(), None
    by_rank = clone(by_energy)
    line = Factorize(energy=0.9).run(by_energy, PassContext()).statistics["layers"][0]
    assert line["energy"] >= 0.9
    assert Factorize(rank=7).run(by_rank, PassContext()).statistics["layers"][0]["rank"] == 7


def test_calibration_makes_the_output_error_smaller() -> None:
    """Inputs that live in few directions: the whitened factors must keep those."""
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(12, 64)) * np.geomspace(10, 0.1, 12)[:, None]
    samples = (rng.normal(size=(200, 12)) @ basis + 0.01 * rng.normal(size=(200, 64))).astype(np.float32)
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 64])
    b.output(b.matmul(x, weights(64, 64)))
    model = b.build()
    exact = outputs(model, {"x": samples})[0]
    errors = []
    for data in (None, Dataset.of({"x": samples[:100]}, model)):
        tried = clone(model)
        Factorize(rank=8).run(tried, PassContext(calibration=data))
        errors.append(np.square(outputs(tried, {"x": samples[100:]})[0] - exact[100:]).sum())
    assert errors[1] < 0.1 * errors[0]


def test_calibration_lets_the_bias_take_back_the_mean() -> None:
    rng = np.random.default_rng(2)
    samples = (rng.normal(size=(400, 8, 3, 3)) + 2).astype(np.float32)
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 8, 3, 3])
    b.output(b.conv(x, weights(32, 8, 3, 3)))
    before = b.build()
    after = clone(before)
    Factorize(rank=4).run(after, PassContext(calibration=Dataset.of({"x": samples}, before)))
    exact, got = outputs(before, {"x": samples})[0], outputs(after, {"x": samples})[0]
    # Seen samples: the mean is taken back up to float32 sums; without the bias it would be of the order of the output.
    np.testing.assert_allclose(got.mean(axis=0), exact.mean(axis=0), atol=1e-4)
    assert np.square(got - exact).mean() > 1e-3


def refused_models() -> dict[str, Model]:
    models = {}
    b = GraphBuilder()
    b.output(b.conv(b.input("x", "float32", [1, 32, 4, 4]), weights(32, 16, 1, 1), group=2))
    models["groups"] = b.build()
    b = GraphBuilder()
    b.output(b.matmul(b.input("x", "float32", [1, 64]), weights(64, 64)))
    models["multiply-adds"] = b.build()
    b = GraphBuilder()
    b.output(b.matmul(b.input("x", "float32", [1, 64]), weights(64, 1)))
    models["too thin"] = b.build()
    b = GraphBuilder()
    b.output(b.matmul(b.input("x", "float32", [1, 64]), b.dequantize(np.ones((64, 64), np.int8), 0.5)))
    models["quantized already"] = b.build()
    b = GraphBuilder()
    b.output(b.matmul(b.input("x", "float32", [1, 64]), np.eye(64, dtype=np.float32)))
    models["sparse"] = b.build()
    b = GraphBuilder()
    w = b.constant(low_rank(64, 64, 3))
    b.output(b.matmul(b.matmul(b.input("x", "float32", [1, 64]), w), w))
    models["other nodes"] = b.build()
    return models


@pytest.mark.parametrize("reason", list(refused_models()))
def test_refuses_with_a_reason(reason: str) -> None:
    model = refused_models()[reason]
    before = clone(model)
    result = Factorize(energy=0.999).run(model, PassContext())
    assert not result.changed
    assert difference(before, model) is None
    assert reason in result.refusals[0].reason


def test_whitening_with_blocks_equals_the_dense_metric() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 8))
    blocks = np.stack([m @ m.T for m in rng.normal(size=(2, 4, 9))])
    dense = np.zeros((1, 8, 8))
    dense[0, :4, :4], dense[0, 4:, 4:] = blocks
    mean = np.trace(dense[0]) / 8
    blocks *= (mean * 4 / np.trace(blocks, axis1=1, axis2=2))[:, None, None]  # so that both are damped alike
    dense[0, :4, :4], dense[0, 4:, 4:] = blocks
    for rank in (2, 6):
        a, b = (np.matmul(*decompose(w, m).factors(rank)) for m in (blocks, dense))
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(a, w, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        *({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}),
        *({"macs": 0.0}, {"bytes": 1.1}, {"macs": 0.5, "bytes": 0.5}, {"rank": 3, "macs": 0.5}),
    ],
)
def test_bad_options(options) -> None:
    with pytest.raises(OptionError):
        Factorize(**options)


def tucker_model(rng: np.random.Generator) -> Model:
    """A convolution of Tucker rank (5, 6), in a matrix of rank 6 only: the pair form needs more multiply-adds."""
    core = rng.normal(size=(6, 5, 3, 3))
    w = np.einsum("rexy,or,ei->oixy", core, rng.normal(size=(40, 6)), rng.normal(size=(5, 36))) / 30
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 36, 7, 8])
    b.output(b.conv(x, w.astype(np.float32), weights(40), strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2]))
    return b.build()


@pytest.mark.parametrize("calibrated", [False, True])
def test_tucker_factors_of_a_convolution_that_has_them(calibrated: bool) -> None:
    rng = np.random.default_rng(3)
    before = tucker_model(rng)
    samples = rng.normal(size=(300, 36, 7, 8)).astype(np.float32)
    after = clone(before)
    data = Dataset.of({"x": samples}, before) if calibrated else None
    line = Factorize(energy=0.9999).run(after, PassContext(calibration=data)).statistics["layers"][0]
    verify(after)
    assert (line["form"], line["rank"]) == ("tucker", 6)
    shapes = [n.need(1).static_shape() for n in after.graph.nodes]
    entry = line["entry_rank"]
    assert shapes == [(entry, 36, 1, 1), (6, entry, 3, 3), (40, 6, 1, 1)]
    assert line["multiply_adds"] < 0.35
    exact, got = outputs(before, {"x": samples[:4]})[0], outputs(after, {"x": samples[:4]})[0]
    # the metric is damped by a thousandth, which bends the factors by as much; otherwise float32 through two layers
    assert np.abs(got - exact).max() <= (1e-2 if calibrated else 1e-5) * np.abs(exact).max()
    assert not Factorize(energy=0.5, tucker=False).run(clone(after), PassContext()).changed


def test_pivoted_qr_is_exact_at_full_rank_and_near_the_svd_below() -> None:
    rng = np.random.default_rng(4)
    w = rng.normal(size=(20, 30)) @ np.diag(np.geomspace(1, 1e-3, 30))
    factor = rng.normal(size=(30, 30)) / 5 + np.eye(30)
    moment = (factor @ factor.T)[None]
    for metric in (None, moment):
        svd, qr = decompose(w, metric), decompose(w, metric, method="qr")
        np.testing.assert_allclose(np.matmul(*qr.factors(20)), w, atol=1e-6)  # float32 factors of numbers near 1
        dense = np.eye(30) if metric is None else metric[0]
        errors = []
        for found in (svd, qr):
            left, right = found.factors(8)
            error = w - left.astype(np.float64) @ right
            errors.append(float(np.einsum("oi,ij,oj->", error, dense, error)))
        assert errors[0] <= errors[1] * (1 + 1e-6)  # the SVD is the best there is
        assert errors[1] < 10 * errors[0]


def chain(rng: np.random.Generator) -> Model:
    """Three products: the first of low rank, the second of full rank, the third hardly felt by the output."""
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 48])
    y = b.op("MatMul", x, low_rank(48, 48, 6), name="low")
    y = b.op("Relu", b.op("MatMul", y, weights(48, 48), name="full"))
    z = b.op("Mul", b.op("MatMul", y, weights(48, 48, seed=9), name="quiet"), b.constant(np.float32(0.01)))
    b.output(b.op("Add", y, z))
    return b.build()


@pytest.mark.parametrize("option", ["macs", "bytes"])
def test_a_target_is_met_where_it_costs_least(option: str) -> None:
    rng = np.random.default_rng(7)
    before = chain(rng)
    data = Dataset.of({"x": rng.normal(size=(200, 48)).astype(np.float32)}, before)
    after = clone(before)
    result = Factorize(**{option: 0.6}).run(after, PassContext(calibration=data))
    verify(after)
    kept = sum(n.need(1).numpy().size for n in after.graph.nodes if n.is_op("MatMul"))
    assert 0.5 * 3 * 48 * 48 < kept <= 0.6 * 3 * 48 * 48
    lines = {line["node"]: line for line in result.statistics["layers"]}
    assert set(lines) == {"low", "quiet"}  # what is exact, and what nobody hears
    assert lines["quiet"]["sensitivity"] < 0.01
    assert any("met without it" in r.reason for r in result.refusals)


def test_a_target_out_of_reach_says_what_can_be_reached() -> None:
    before = chain(np.random.default_rng(7))
    with pytest.raises(OptionError, match=r"cannot be reached.*at least 0\.04"):
        Factorize(macs=0.01).run(before, PassContext())


def test_ranks_fill_the_vectors_of_the_target() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [4, 64])
    b.output(b.matmul(x, (low_rank(64, 64, 64) * np.geomspace(1, 1e-3, 64)).astype(np.float32)))
    line = Factorize(energy=0.9).run(b.build(), PassContext(get_target("arm"))).statistics["layers"][0]
    assert line["rank"] % 4 == 0
