"""Regions: what one kernel computes."""

from __future__ import annotations

import numpy as np
import pytest

from irc.backends.tvm.plan.kinds import kind_of
from irc.backends.tvm.plan.regions import Region, find_regions
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Graph, Value


def conv(b: GraphBuilder, x: Value, seed: int = 0) -> Value:
    return b.conv(x, weights(4, 4, 1, 1, seed=seed))


def start() -> tuple[GraphBuilder, Value]:
    b = GraphBuilder()
    return b, b.input("x", "float32", [1, 4, 5, 6])


def regions(b: GraphBuilder, *outputs: Value) -> list[str]:
    b.output(*outputs)
    return [r.label for r in find_regions(b.build().graph)]


def test_a_chain_is_one_region() -> None:
    b, x = start()
    y = b.op("Relu", b.op("Add", conv(b, x), weights(4, 1, 1)))
    assert regions(b, b.op("Clip", y, np.float32(0), np.float32(6))) == ["Conv+Add+Relu+Clip"]


def test_a_diamond_is_one_region() -> None:
    """x * sigmoid(x): two readers of the sum, but both inside."""
    b, x = start()
    y = conv(b, x)
    assert regions(b, b.op("Mul", y, b.op("Sigmoid", y))) == ["Conv+Sigmoid+Mul"]


def test_a_wide_diamond_is_one_region() -> None:
    b, x = start()
    y = conv(b, x)
    z = b.op("Add", b.op("Mul", y, b.op("Tanh", y)), b.op("Mul", b.op("Exp", y), b.op("Neg", y)))
    assert len(regions(b, z)) == 1


def test_a_residual_joins_the_later_branch() -> None:
    b, x = start()
    y = b.op("Relu", conv(b, x))
    z = b.op("Relu", b.op("Add", y, conv(b, y, 1)))
    assert regions(b, z) == ["Conv+Relu", "Conv+Add+Relu"]


def test_a_value_with_other_readers_ends_the_region() -> None:
    b, x = start()
    y = b.op("Relu", conv(b, x))
    other = b.op("MaxPool", y, kernel_shape=[2, 2])
    assert sorted(regions(b, b.op("Sigmoid", y), other)) == ["Conv+Relu", "MaxPool", "Sigmoid"]


def test_an_output_ends_the_region() -> None:
    b, x = start()
    y = b.op("Relu", conv(b, x))
    assert regions(b, y, b.op("Sigmoid", y)) == ["Conv+Relu", "Sigmoid"]


def test_another_shape_ends_the_region() -> None:
    b, x = start()
    y = conv(b, x)
    wide = b.op("Add", y, weights(3, 4, 5, 6))
    assert regions(b, wide) == ["Conv", "Add"]


def test_operands_that_depend_on_the_root_do_not_join() -> None:
    """y + pool(y): the pool needs y first, so the sum cannot be y's own kernel."""
    b, x = start()
    y = conv(b, x)
    pooled = b.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    assert regions(b, b.op("Add", y, pooled)) == ["Conv", "MaxPool+Add"]


def test_views_and_weights_are_in_no_region() -> None:
    b, x = start()
    y = b.op("Transpose", conv(b, x), perm=[0, 2, 3, 1])
    w = b.dequantize(np.ones((4, 3), np.int8), np.float32(0.5))
    assert regions(b, b.matmul(b.op("Reshape", y, [30, 4]), w)) == ["Conv", "MatMul"]


def test_dequantizations_are_no_end() -> None:
    """Two readers of DQ(Q(y)): the region ends with the integers."""
    b, x = start()
    q = b.quantize(conv(b, x), np.float32(0.1), np.uint8(3))
    real = b.dequantize(q, np.float32(0.1), np.uint8(3))
    found = regions(b, conv(b, real, 1), conv(b, real, 2))
    assert found == ["Conv+QuantizeLinear", "Conv", "Conv"]


def check(graph: Graph, found: list[Region]) -> None:
    """Every node in one region, one value of each read outside, inputs ready when a region runs."""
    owner = {id(n): i for i, r in enumerate(found) for n in r.nodes}
    assert len(owner) == sum(len(r.nodes) for r in found)
    needs_kernel = [n for n in graph.nodes if kind_of(n) not in ("view", "weights", "dequantize")]
    assert {id(n) for n in needs_kernel} <= owner.keys()

    def ready(value: Value, before: int) -> bool:
        """Whether `value` comes from an earlier region (through views)."""
        if value.producer is None:
            return True
        if id(value.producer) in owner:
            return owner[id(value.producer)] < before
        return all(ready(v, before) for v in value.producer.inputs if v is not None)

    for number, region in enumerate(found):
        inside = {id(n) for n in region.nodes}
        assert region.output is region.nodes[-1].output
        for node in region.nodes:
            for value in node.inputs:
                if value is not None and (value.producer is None or id(value.producer) not in inside):
                    assert ready(value, number), f"{region.label} runs before {value.name} is there"
            if node is not region.nodes[-1]:
                assert not node.output.is_output
                assert all(id(u) in inside for u in node.output.users)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b, x = start()
    values = [x, conv(b, x)]
    for step in range(25):
        one, two = (values[int(i)] for i in rng.integers(max(len(values) - 6, 0), len(values), 2))
        kind = rng.integers(7)
        if kind < 2:
            made = b.op(str(rng.choice(["Add", "Mul", "Max"])), one, two)
        elif kind < 4:
            made = b.op(str(rng.choice(["Relu", "Sigmoid", "Tanh", "Neg"])), one)
        elif kind == 4:
            made = conv(b, one, step)
        elif kind == 5:
            q = b.quantize(one, np.float32(0.1), np.uint8(3))
            made = b.dequantize(q, np.float32(0.1), np.uint8(3))
        else:
            made = b.op("Reshape", b.op("Transpose", one, perm=[0, 1, 3, 2]), [1, 4, 5, 6])
        values.append(made)
    b.output(*[v for v in values[1:] if not v.uses] or [values[-1]])
    graph = b.build().graph
    check(graph, find_regions(graph))
