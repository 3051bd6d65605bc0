"""Coupled channels: removing units gives exactly what zeroing their weights gives, whatever the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pass_checks import outputs, random_feeds

from irc.frontend import default_batch, load_model
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.ir.infer import infer
from irc.ir.types import Constant
from irc.ir.verify import verify
from irc.passes.prune.dependencies import Dependencies, Group, find_dependencies
from irc.passes.prune.flow import blocks
from irc.passes.prune.shrink import emptied, remove_units
from irc.pipeline import Pipeline

ROUNDING = 1e-5
"""Sums of up to a few thousand products in another order: some tens of roundings of float32."""


def groups_of(found: Dependencies) -> list[Group]:
    return [g for g in found.groups if g.units]


def drawn(found: Dependencies, seed: int, share: float = 0.4) -> set[int]:
    """Random units of every group; less where a tensor would lose its last channel."""
    rng = np.random.default_rng(seed)
    removed: set[int] = set()
    for group in groups_of(found):
        for unit in rng.permutation(group.units)[: max(1, int(share * len(group.units)))].tolist():
            if emptied(found, {*removed, unit}) is None:
                removed.add(unit)
    return removed


def zeroed(model: Model, removed: set[int]) -> Model:
    """A copy in which what reads the removed channels multiplies them by zero. Where no layer does (queries and keys),
    they are made zero instead."""
    made = clone(model)
    found = find_dependencies(made)
    gone = np.isin(np.arange(found.units + 1), list(removed))
    read: set[int] = set()
    for group in groups_of(found):
        for reader in group.readers:
            _zero(reader.slot.value, reader.slot.axis, gone[reader.slot.units])
            read.update(reader.slot.units.tolist())
    unread = gone.copy()
    unread[list(read)] = False
    for group in groups_of(found):
        for slot in group.slots:
            if slot.value.is_constant and any(u.node.is_op("Conv", "Gemm", "MatMul", "Add") for u in slot.value.uses):
                _zero(slot.value, slot.axis, unread[slot.units])
    return made


def _zero(value: Value, axis: int, gone: np.ndarray) -> None:
    data = np.moveaxis(value.numpy().copy(), axis, 0)
    data[gone] = 0
    value.constant = Constant.of(np.ascontiguousarray(np.moveaxis(data, 0, axis)))


def check(model: Model, seed: int = 0, share: float = 0.4) -> Model:
    """Removes random channels, compares, gives the smaller model."""
    found = find_dependencies(model)
    removed = drawn(found, seed, share)
    expected = zeroed(model, removed)
    smaller = clone(model)
    changed = remove_units(smaller, find_dependencies(smaller), removed)
    assert changed == bool(removed)
    verify(smaller)
    for value in smaller.graph.values():  # what was written down must be what inference finds
        if value.producer is not None:
            value.type = None
    for old, new in zip(model.graph.outputs, smaller.graph.outputs, strict=True):
        new.type = old.type
    infer(smaller)
    feeds = random_feeds(model)
    for want, got in zip(outputs(expected, feeds), outputs(smaller, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * max(float(np.abs(want).max()), 1e-30))
    assert parameters(smaller) < parameters(model) or not removed
    return smaller


def parameters(model: Model) -> int:
    return sum(v.constant.size for v in model.graph.constants.values() if v.constant is not None)


# Random graphs


def random_network(seed: int) -> Model:
    """A dozen operators drawn at random over images, then a classifier."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 3, 8, 8])
    pool = [(conv(b, rng, x, 3, 8), 8)]
    for _ in range(12):
        pool.append(random_step(b, rng, pool))
    y, c = pool[-1]
    if rng.random() < 0.5:
        y = b.op("GlobalAveragePool", y)
        b.output(b.gemm(b.op("Flatten", y), w(rng, c, 5), w(rng, 5)))
    else:
        flat = b.op("Reshape", y, np.array([1, -1] if rng.random() < 0.5 else [0, c * 64], np.int64))
        h = b.op("Relu", b.op("Add", b.matmul(flat, w(rng, c * 64, 12)), w(rng, 12)))
        b.output(b.gemm(h, w(rng, 5, 12), transB=1))
    return b.build()


def w(rng: np.random.Generator, *shape: int) -> np.ndarray:
    fan = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def conv(b: GraphBuilder, rng: np.random.Generator, x: Value, c: int, m: int, k: int = 3, group: int = 1) -> Value:
    return b.conv(x, w(rng, m, c // group, k, k), w(rng, m), pads=[k // 2] * 4, group=group)


def random_step(b: GraphBuilder, rng: np.random.Generator, pool: list[tuple[Value, int]]) -> tuple[Value, int]:
    x, c = pool[-1] if rng.random() < 0.7 else pool[rng.integers(len(pool))]
    other, oc = pool[rng.integers(len(pool))]
    kind = rng.integers(16)
    if kind == 0:
        return conv(b, rng, x, c, m := int(rng.integers(4, 12)), int(rng.choice([1, 3]))), m
    if kind == 1:
        return conv(b, rng, x, c, c, group=c), c
    if kind == 2 and c % 4 == 0:
        return conv(b, rng, x, c, 2 * c, group=int(rng.choice([2, 4]))), 2 * c
    if kind == 3:
        scale, shift, mean, var = w(rng, c), w(rng, c), w(rng, c), np.abs(w(rng, c)) + 0.5
        return b.op("BatchNormalization", x, scale, shift, mean, var), c
    if kind == 4:
        return b.op(str(rng.choice(["Relu", "Sigmoid", "HardSwish", "Softplus"])), x), c
    if kind == 5 and oc == c:
        return b.op(str(rng.choice(["Add", "Mul", "Max"])), x, other), c
    if kind == 6:
        return b.op("Concat", x, other, axis=1), c + oc
    if kind == 7 and c > 3:
        first, _ = b.op("Split", x, np.array([3, c - 3], np.int64), outputs=2, axis=1)
        return first, 3
    if kind == 8 and c > 4:
        return b.op("Slice", x, np.array([2]), np.array([-1]), np.array([1]), np.array([1])), c - 3
    if kind == 9:
        return b.op("Pad", x, np.array([0, 2, 0, 0, 0, 1, 0, 0], np.int64)), c + 3
    if kind == 10:
        return b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c
    if kind == 11:  # squeeze and excite
        s = b.op("GlobalAveragePool", x)
        s = b.op("Relu", conv(b, rng, s, c, 6, 1))
        return b.op("Mul", x, b.op("Sigmoid", conv(b, rng, s, 6, c, 1))), c
    if kind == 12:
        t = b.op("Transpose", x, perm=[0, 2, 3, 1])
        t = b.op("Mul", t, w(rng, c))
        t = b.op("Add", b.matmul(t, w(rng, c, 6)), w(rng, 6))
        return b.op("Transpose", t, perm=[0, 3, 1, 2]), 6
    if kind == 13:  # a shuffle of two groups
        if c % 2:
            return x, c
        t = b.op("Reshape", x, np.array([1, 2, c // 2, 8, 8], np.int64))
        t = b.op("Transpose", t, perm=[0, 2, 1, 3, 4])
        return b.op("Reshape", t, np.array([1, c, 8, 8], np.int64)), c
    if kind == 14:
        return b.op("ConvTranspose", x, w(rng, c, 6, 3, 3), w(rng, 6), pads=[1] * 4), 6
    if kind == 15:
        mean = b.op("ReduceMean", x, np.array([2, 3], np.int64), keepdims=1)
        return b.op("Sub", x, mean), c
    return conv(b, rng, x, c, 8), 8


@pytest.mark.parametrize("seed", range(60))
def test_removing_is_zeroing_on_random_graphs(seed: int) -> None:
    check(random_network(seed), seed)


def test_random_graphs_do_shrink() -> None:
    """The test above says nothing where nothing can be removed."""
    found = [groups_of(find_dependencies(random_network(seed))) for seed in range(60)]
    assert sum(len(g.units) for groups in found for g in groups) > 1000


# Networks with a structure of their own


def residual_network() -> Model:
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    x = b.op("Relu", conv(b, rng, b.input("x", "float32", [1, 3, 8, 8]), 3, 8))
    y = b.op("Add", conv(b, rng, b.op("Relu", conv(b, rng, x, 8, 6)), 6, 8), x)
    z = b.op("Slice", y, np.array([0, 0]), np.array([100, 100]), np.array([2, 3]), np.array([2, 2]))
    z = b.op("Pad", z, np.array([0, 4, 0, 0, 0, 4, 0, 0], np.int64))
    y = b.op("Add", b.conv(y, w(rng, 16, 8, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]), z)
    b.output(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), w(rng, 16, 4)))
    return b.build()


def test_residual_streams_are_one_group() -> None:
    model = residual_network()
    sizes = sorted(len(g.units) for g in groups_of(find_dependencies(model)))
    assert sizes == [6, 16]  # the inner channels; those of both streams, the padded ones alone
    for seed in range(4):
        check(model, seed)


def attention(heads: int = 4, size: int = 8, fused: bool = False, norm: bool = True) -> Model:
    b = GraphBuilder()
    rng = np.random.default_rng(1)
    d, t = heads * size, 6
    x = b.matmul(b.input("x", "float32", [1, t, 5]), w(rng, 5, d))
    h = b.op("LayerNormalization", x, np.ones(d, np.float32), np.zeros(d, np.float32)) if norm else x
    if fused:
        qkv = b.op("Add", b.matmul(h, w(rng, d, 3 * d)), w(rng, 3 * d))
        qkv = b.op("Reshape", qkv, np.array([1, t, 3, heads, size], np.int64))
        qkv = b.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (b.op("Gather", qkv, np.array(i, np.int64), axis=0) for i in range(3))
    else:
        parts = [b.op("Add", b.matmul(h, w(rng, d, d)), w(rng, d)) for _ in range(3)]
        parts = [b.op("Reshape", p, np.array([0, t, heads, size], np.int64)) for p in parts]
        q, k, v = (b.op("Transpose", p, perm=[0, 2, 1, 3]) for p in parts)
    scores = b.op("Mul", b.matmul(q, b.op("Transpose", k, perm=[0, 1, 3, 2])), np.float32(0.3))
    y = b.matmul(b.op("Softmax", scores, axis=-1), v)
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), np.array([1, t, d], np.int64))
    y = b.op("Add", x, b.op("Add", b.matmul(y, w(rng, d, d)), w(rng, d)))
    z = b.op("LayerNormalization", y, np.ones(d, np.float32), np.zeros(d, np.float32))
    z = b.op("Gelu", b.op("Add", b.matmul(z, w(rng, d, 40)), w(rng, 40)))
    b.output(b.op("Add", y, b.matmul(z, w(rng, 40, d))))
    return b.build()


@pytest.mark.parametrize("fused", [False, True])
def test_heads_go_whole(fused: bool) -> None:
    model = attention(fused=fused)
    found = groups_of(find_dependencies(model))
    assert sorted(len(g.units) for g in found) == [4, 40]
    heads = next(g for g in found if len(g.units) == 4)
    assert len(heads.makers) == (1 if fused else 3)
    assert len(heads.readers) == 1
    smaller = check(model, 3, share=0.5)
    shapes = sorted(v.static_shape() for v in smaller.graph.constants.values() if len(v.static_shape()) == 2)
    assert (16, 32) in shapes  # the output projection reads two heads of eight


def test_what_layer_normalization_mixes_stays() -> None:
    refused = [g.refusal for g in find_dependencies(attention()).groups if not g.units]
    assert any("LayerNormalization" in r for r in refused)


def test_grouped_convolutions_with_many_small_groups_lose_groups() -> None:
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    y = conv(b, rng, b.input("x", "float32", [1, 3, 8, 8]), 3, 32, 1)
    y = b.op("Relu", conv(b, rng, b.op("Relu", y), 32, 32, 3, group=8))
    b.output(b.op("GlobalAveragePool", conv(b, rng, y, 32, 4, 1)))
    model = b.build()
    assert [len(g.units) for g in groups_of(find_dependencies(model))] == [8]
    smaller = check(model, 0, share=0.5)
    grouped = next(n for n in smaller.graph.nodes if n.is_op("Conv") and n.get_int("group", 1) > 1)
    assert grouped.get_int("group") == 4


def test_shared_weights_go_together() -> None:
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    x = b.op("Relu", conv(b, rng, b.input("x", "float32", [1, 3, 8, 8]), 3, 8))
    shared = b.constant(w(rng, 8, 8, 3, 3))
    for _ in range(2):
        x = b.op("Relu", b.conv(x, shared, pads=[1] * 4))
    b.output(conv(b, rng, x, 8, 2))
    model = b.build()
    assert [len(g.units) for g in groups_of(find_dependencies(model))] == [8]
    check(model)


def test_reasons() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 3, 8, 8])
    seen = b.conv(x, weights(8, 3, 1, 1), name="seen")
    hidden = b.conv(x, weights(8, 3, 1, 1), name="hidden")
    odd = b.op("LRN", b.conv(x, weights(8, 3, 1, 1), name="odd"), size=3)
    condition = b.op("Greater", b.op("ReduceMax", x, keepdims=0), np.float32(0))
    branch = [b.subgraph(lambda i, f=f: i.output(i.op(f, hidden)), f) for f in ("Relu", "Neg")]
    chosen = b.op("If", condition, then_branch=branch[0], else_branch=branch[1])
    b.output(seen, b.conv(odd, weights(2, 8, 1, 1)), chosen)
    reasons = {g.name: g.refusal for g in find_dependencies(b.build()).groups if g.makers}
    assert "output" in reasons["seen"]
    assert "subgraph" in reasons["hidden"]
    assert "LRN" in reasons["odd"]


def test_quantized_readers_are_left() -> None:
    b = GraphBuilder()
    x = b.conv(b.input("x", "float32", [1, 3, 8, 8]), weights(8, 3, 1, 1), name="first")
    b.output(b.conv(x, b.dequantize(np.ones((2, 8, 1, 1), np.int8), 0.5)))
    assert "quantized" in find_dependencies(b.build()).groups[0].refusal


def test_blocks_of_a_reshape() -> None:
    assert blocks((1, 8, 4, 4), (1, 128)) == [([1, 2, 3], [1])]
    assert blocks((2, 6, 32), (2, 6, 4, 8)) == [([0], [0]), ([1], [1]), ([2], [2, 3])]
    assert blocks(("N", 6, 32), ("N", 192)) == [([1, 2], [1])]
    assert blocks((6, 4), (4, 6)) == [([0, 1], [0, 1])]
    assert blocks((None, 4), (None, 4)) == []


@pytest.mark.parametrize("name", ["resnet20_cifar10_fp32", "resnet20_cifar10_fp32_bn", "mobilenet_v1_0.75_224_fp32"])
def test_real_networks(data_dir: Path, name: str) -> None:
    path = data_dir / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {name} in IRC_DATA")
    model = load_model(path)
    default_batch(model)
    Pipeline.parse("none").run(model)
    check(model, 1, share=0.3)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50", "vit_small", "minilm6"])
def test_zoo(zoo_dir: Path, name: str) -> None:
    model = load_model(zoo_dir / f"{name}.onnx")
    default_batch(model)
    Pipeline.parse("none").run(model)
    check(model, 1, share=0.3)
