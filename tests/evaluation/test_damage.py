"""Which layer does the damage."""

from __future__ import annotations

import numpy as np

from irc.evaluation.damage import damage
from irc.ir.builder import GraphBuilder, weights
from irc.ir.clone import clone
from irc.ir.graph import Model


def chain() -> Model:
    b = GraphBuilder()
    y = b.input("x", "float32", [4, 16])
    for i in range(4):
        y = b.op("MatMul", y, weights(16, 16, seed=i, scale=0.25), name=f"layer{i}")
    b.output(y, name="y")
    return b.build()


def spoiled(model: Model, name: str) -> Model:
    """The same with noise on the weights of one layer."""
    copy = clone(model)
    node = next(n for n in copy.graph.nodes if n.name == name)
    noise = np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32) * 0.05
    copy.graph.set_input(node, 1, copy.graph.add_constant(node.need(1).numpy() + noise, "noisy"))
    return copy


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((4, 16)).astype(np.float32)} for _ in range(4)]


def test_blames_the_layer_that_was_changed() -> None:
    model = chain()
    rows = damage(model, spoiled(model, "layer2"), feeds())
    assert [r.name for r in rows] == ["layer0", "layer1", "layer2", "layer3"]
    assert rows[0].snr_db > 900
    assert rows[1].snr_db > 900
    assert rows[2].snr_db < 40
    # What the last layer adds is only how it mixes the noise it gets, so most of the damage is the changed layer's.
    assert max(rows, key=lambda r: r.share).name == "layer2"
    assert abs(sum(r.share for r in rows) - 1.0) < 1e-9


def test_no_damage() -> None:
    model = chain()
    assert all(r.share == 0.0 for r in damage(model, clone(model), feeds()))


def test_nodes_without_a_counterpart_are_left_out() -> None:
    model = chain()
    copy = clone(model)
    first, second = copy.graph.nodes[:2]
    fused = first.need(1).numpy() @ second.need(1).numpy()
    copy.graph.set_input(second, 0, copy.graph.inputs[0])
    copy.graph.set_input(second, 1, copy.graph.add_constant(fused, "fused"))
    copy.graph.remove(first)
    assert [r.name for r in damage(model, copy, feeds())] == ["layer1", "layer2", "layer3"]


def test_rescaled_channels_are_no_damage() -> None:
    """Cross-layer equalization: a convolution times s, the next one divided by s, for each channel."""
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 3, 6, 6])
    y = b.op("Relu", b.conv(x, weights(4, 3, 3, 3), name="one"), name="relu")
    b.output(b.conv(y, weights(2, 4, 3, 3, seed=1), name="two"), name="y")
    model = b.build()
    copy = clone(model)
    one, _, two = copy.graph.nodes
    factors = np.float32([0.25, 1, 8, 100])
    scaled = one.need(1).numpy() * factors[:, None, None, None]
    copy.graph.set_input(one, 1, copy.graph.add_constant(scaled, "scaled"))
    divided = two.need(1).numpy() / factors[None, :, None, None]
    copy.graph.set_input(two, 1, copy.graph.add_constant(divided, "divided"))
    images = [{"x": np.random.default_rng(i).standard_normal((1, 3, 6, 6)).astype(np.float32)} for i in range(3)]
    assert all(r.snr_db > 100 for r in damage(model, copy, images))


def test_infinities_of_masks_are_no_damage() -> None:
    """-inf where a mask is: equal in both, and in no way part of a sum of squares. Warnings are errors here."""
    b = GraphBuilder()
    mask = np.where(np.tri(4, 16, dtype=bool), np.float32(0), np.float32(-np.inf))
    y = b.op("Add", b.op("MatMul", b.input("x", "float32", [4, 16]), weights(16, 16), name="layer2"), mask, name="mask")
    b.output(b.op("Softmax", y, axis=-1, name="softmax"), name="y")
    model = b.build()
    with np.errstate(all="raise"):
        rows = damage(model, spoiled(model, "layer2"), feeds())
    assert all(np.isfinite(r.snr_db) and np.isfinite(r.share) for r in rows)
    assert max(rows, key=lambda r: r.share).name == "layer2"
