"""Random graphs through the whole lossless clean-up: rules must stay right when they meet in ways nobody thought of."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import run

from irc.ir.builder import GraphBuilder
from irc.ir.graph import Value

# Chains of up to 25 operators; scales are merged and folded, each with one rounding of 6e-8, and grow or cancel on
# the way (a sum that cancels loses up to two digits). A wrong rewrite is off by the size of the data, not by 1e-4.
LOOSE = 1e-4
SEEDS = 60


class _Random:
    """Adds one random operator after another to a pool of values of rank 4 and small extents."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = GraphBuilder()
        shape = [int(n) for n in self.rng.integers(1, 7, 4)]
        self.pool = [self.b.input("x", "float32", shape), self.b.input("z", "float32", shape)]

    def pick(self) -> Value:
        # Late values are likelier: chains are what rules match.
        return self.pool[-1 - int(min(self.rng.geometric(0.6) - 1, len(self.pool) - 1))]

    def shape(self, v: Value) -> tuple[int, ...]:
        from irc.ir.graph import Model
        from irc.ir.infer import infer

        if v.type is None:
            infer(Model(self.b.graph))
        return v.static_shape()

    def numbers(self, *shape: int) -> np.ndarray:
        special = self.rng.random() < 0.2
        value = self.rng.choice([0.0, 1.0, 0.5, -1.0]) if special else None
        data = self.rng.standard_normal(shape) if value is None else np.full(shape, value)
        return data.astype(np.float32)

    def operand(self, shape: tuple[int, ...]) -> np.ndarray:
        kept = [n if self.rng.random() < 0.5 else 1 for n in shape]
        kept = [1, shape[1], 1, 1] if self.rng.random() < 0.5 else kept
        return self.numbers(*kept[int(self.rng.integers(0, 4)) :])

    def step(self) -> None:
        kind = self.rng.choice(
            [
                "unary",
                "constant",
                "binary",
                "transpose",
                "reshape",
                "conv",
                "norm",
                "pad",
                "slice",
                "clip",
                "pool",
                "axes",
            ],
            p=[0.15, 0.17, 0.08, 0.15, 0.08, 0.1, 0.05, 0.05, 0.06, 0.05, 0.03, 0.03],
        )
        made: Value = getattr(self, f"_{kind}")(self.pick())
        if int(np.prod(self.shape(made))) > 0 and len(self.shape(made)) == 4:
            self.pool.append(made)

    def _unary(self, x: Value) -> Value:
        names = ["Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Identity", "HardSigmoid", "Softplus", "Erf", "Elu"]
        return self.b.op(str(self.rng.choice(names)), x)

    def _constant(self, x: Value) -> Value:
        op_type, c = str(self.rng.choice(["Add", "Mul", "Sub", "Max", "Min"])), self.operand(self.shape(x))
        return self.b.op(op_type, *((x, c) if self.rng.random() < 0.7 else (c, x)))

    def _binary(self, x: Value) -> Value:
        same = [v for v in self.pool if self.shape(v) == self.shape(x)]
        return self.b.op(str(self.rng.choice(["Add", "Mul", "Sub"])), x, same[int(self.rng.integers(len(same)))])

    def _transpose(self, x: Value) -> Value:
        perms = [[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [1, 0, 2, 3], [0, 1, 2, 3]]
        return self.b.op("Transpose", x, perm=perms[int(self.rng.integers(len(perms)))])

    def _reshape(self, x: Value) -> Value:
        a, b, c, d = self.shape(x)
        targets = [[a, b * c, d, 1], [a, b, -1, 1], [0, 0, d, c], [a, d, b, c], [1, a, b, c * d], [a, b, c, d]]
        return self.b.op("Reshape", x, targets[int(self.rng.integers(len(targets)))])

    def _conv(self, x: Value) -> Value:
        channels, k = self.shape(x)[1], int(self.rng.choice([1, 3]))
        w = self.numbers(int(self.rng.integers(1, 5)), channels, k, k)
        bias = self.numbers(w.shape[0]) if self.rng.random() < 0.5 else None
        return self.b.conv(x, w, bias, pads=[k // 2] * 4)

    def _norm(self, x: Value) -> Value:
        c = self.shape(x)[1]
        parameters = [self.numbers(c), self.numbers(c), self.numbers(c), np.abs(self.numbers(c)) + np.float32(0.5)]
        return self.b.op("BatchNormalization", x, *parameters)

    def _pad(self, x: Value) -> Value:
        pads = [0, 0, *self.rng.integers(0, 2, 2), 0, 0, *self.rng.integers(0, 2, 2)]
        return self.b.op("Pad", x, [int(p) for p in pads], *([] if self.rng.random() < 0.7 else [1.0]))

    def _slice(self, x: Value) -> Value:
        axis = int(self.rng.integers(-4, 4))
        n = self.shape(x)[axis]
        start, step = int(self.rng.integers(0, n)), int(self.rng.choice([1, 1, 2]))
        return self.b.op("Slice", x, [start], [int(self.rng.choice([n, 2**62]))], [axis], [step])

    def _clip(self, x: Value) -> Value:
        low, high = sorted(float(v) for v in self.rng.choice([-1.0, 0.0, 0.5, 6.0], 2, replace=False))
        bounds = [(low, high), (low, None), (None, high)][int(self.rng.integers(3))]
        return self.b.op("Clip", x, *bounds) if bounds[1] is not None else self.b.op("Clip", x, bounds[0])

    def _pool(self, x: Value) -> Value:
        kind = str(self.rng.choice(["AveragePool", "MaxPool"]))
        return self.b.op(kind, x, kernel_shape=[2, 2], pads=[1, 1, 1, 1], strides=[1, 1])

    def _axes(self, x: Value) -> Value:
        mean = self.b.op("ReduceMean", x, [[-1, -2], [2, 3], [1], [3]][int(self.rng.integers(4))])
        return self.b.op("Add", x, mean)  # Sub would leave nothing but rounding where x is constant


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_graph(seed: int) -> None:
    made = _Random(seed)
    for _ in range(int(made.rng.integers(4, 25))):
        made.step()
    outputs = {made.pool[-1], made.pick()} - set(made.pool[:2]) or {made.b.op("Relu", made.pool[0])}
    made.b.output(*sorted(outputs, key=lambda v: v.name))
    run(made.b.build(), "none", LOOSE)
