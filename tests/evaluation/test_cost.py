"""Parameters, bytes, zeros and multiply-adds of models."""

from __future__ import annotations

import numpy as np

from irc.evaluation.cost import costs
from irc.ir.builder import GraphBuilder


def test_conv_and_shared_weights() -> None:
    w = np.ones((4, 3, 3, 3), np.float32)
    w[:2] = 0
    b = GraphBuilder()
    x = b.input("x", "float32", [1, 3, 8, 8])
    shared = b.constant(w, "w")
    one = b.conv(x, shared, pads=[1, 1, 1, 1], name="one")
    two = b.conv(x, shared, pads=[1, 1, 1, 1], name="two")
    b.output(b.op("Add", one, two))
    found = costs(b.build())
    macs = 4 * 3 * 3 * 3 * 8 * 8
    assert [(c.name, c.parameters, c.macs) for c in found.layers[:2]] == [("one", 108, macs), ("two", 108, macs)]
    assert (found.parameters, found.bytes, found.sparsity) == (108, 432, 0.5)
    assert found.operators == {"Conv": 2, "Add": 1}
    assert found.inputs == {"x": "float32[1,3,8,8]"}


def test_symbolic_shapes_have_no_count() -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", ["n", 4])
    b.output(b.matmul(x, np.ones((4, 2), np.float32)))
    found = costs(b.build())
    assert found.layers[0].macs is None
    assert found.parameters == 8
