"""Random quantized models: Q and DQ around everything the plan has integer kernels or rules for, by seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from random_graphs import CHANNELS, RandomGraph

from irc.ir.graph import Model, Value
from irc.ir.types import DType


class QuantizedGraph(RandomGraph):
    """`floats` holds dequantized values; `bytes` the 8-bit ones below them, with their parameters."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.style = self.choose(["uint8", "int8", "mixed"])
        self.codes: list[tuple[Value, np.float32, np.ndarray]] = []

    def byte_type(self) -> Any:
        kind = self.style if self.style != "mixed" else self.choose(["uint8", "int8"])
        return np.dtype(kind)

    def parameters(self, spread: float = 1.0) -> tuple[np.float32, np.ndarray]:
        """Scale and zero point for values of about this standard deviation."""
        dtype = self.byte_type()
        middle = 128 if dtype == np.uint8 else 0
        zero = middle + self.choose([0, 0, int(self.integer(-40, 40))])
        if dtype == np.uint8 and self.chance(0.2):
            zero = 0
        scale = np.float32(spread * self.rng.uniform(2.5, 4.0) / 128)
        return scale, np.array(zero, dtype)

    def quantized(self, value: Value, spread: float = 1.0, same: Value | None = None) -> Value:
        """DQ(Q(value)), as a new float value."""
        scale, zero = self.parameters(spread)
        if same is not None:  # the parameters of another value, as behind pools and concatenations
            scale, zero = next((s, z) for q, s, z in self.codes if any(u.output is same for u in q.users))
        q = self.op(
            "QuantizeLinear",
            value,
            scale,
            *([] if zero.dtype == np.uint8 and zero == 0 and self.chance(0.3) else [zero]),
        )
        return self.dequantized(q, scale, zero)

    def dequantized(self, q: Value, scale: np.float32, zero: np.ndarray) -> Value:
        self.codes.append((q, scale, zero))
        omit = int(zero) == 0 and self.chance(0.3)
        return self.keep(self.op("DequantizeLinear", q, scale, *([] if omit else [zero])))

    def weights(self, *shape: int, axis: int, fan_in: int) -> Value:
        """DQ of constant bytes: per tensor or per channel, with zero points or without."""
        w = self.numbers(*shape, scale=1 / math.sqrt(fan_in))
        dtype = np.dtype(self.choose(["int8", "int8", "int8", "uint8"]))
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        per_channel = self.chance(0.6)
        channels = shape[axis]
        scale = np.full(channels if per_channel else (), 1.0, np.float32)
        scale = np.asarray(scale * self.rng.uniform(2.0, 4.0, scale.shape) / math.sqrt(fan_in) / 127, np.float32)
        middle = 128 if dtype == np.uint8 else 0
        zero = np.full(scale.shape, middle)
        if self.chance(0.3):
            zero = zero + self.rng.integers(-30, 31, scale.shape)
        line = [1] * len(shape)
        line[axis] = -1
        s, z = (v.reshape(line) if per_channel else v for v in (scale, zero))
        q = np.clip(np.rint(w / s) + z, low, high).astype(dtype)
        omit = not np.any(zero) and self.chance(0.4)
        attributes = {"axis": axis - len(shape) * self.integer(0, 1)} if per_channel else {}
        node = self.op("DequantizeLinear", q, scale, *([] if omit else [zero.astype(dtype)]), **attributes)
        self.weight_scale = scale
        return node

    def bias(self, x: Value, channels: int) -> list[Any]:
        """A bias in float, or int32 with the product of the scales, as quantizers write it."""
        kind = self.choose(["none", "float", "int32", "int32"])
        if kind == "none":
            return []
        data = self.numbers(channels, scale=0.5)
        if kind == "float":
            return [data]
        scale = np.asarray(self.scale_of(x) * self.weight_scale, np.float32)
        q = np.rint(data / scale).astype(np.int32)
        return [
            self.op(
                "DequantizeLinear", q, scale, *([np.zeros(scale.shape, np.int32)] if self.chance(0.5) else []), axis=0
            )
        ]

    def scale_of(self, x: Value) -> np.float32:
        node = x.producer
        return (
            np.float32(node.need(1).numpy())
            if node is not None and node.is_op("DequantizeLinear")
            else np.float32(0.02)
        )

    def activated(self, y: Value) -> Value:
        """Perhaps an activation, then Q and DQ."""
        kind = self.choose(["none", "none", "Relu", "Clip", "Sigmoid", "silu", "HardSwish", "LeakyRelu", "Tanh", "Add"])
        if kind == "Relu":
            y = self.op("Relu", y)
        elif kind == "Clip":
            y = self.op("Clip", y, np.float32(0.0), np.float32(self.choose([1.0, 6.0])))
        elif kind == "silu":
            y = self.op("Mul", y, self.op("Sigmoid", y))
        elif kind == "Add":
            shape = y.static_shape()
            form = self.choose(
                [shape[-1:], (1, shape[1], *(1 for _ in shape[2:])) if len(shape) > 1 else (), shape[1:], ()]
            )
            other = self.numbers(*form, scale=0.5)
            y = self.op("Add", *((y, other) if self.chance(0.5) else (other, y)))
        elif kind != "none":
            y = self.op(kind, y)
        if self.chance(0.1):
            return self.keep(y)  # stays float
        return self.quantized(y, 0.5 if kind in ("Sigmoid", "Tanh", "silu") else 1.0)


def conv(g: QuantizedGraph) -> None:
    x = g.with_rank(g.small(g.pick()), g.choose([3, 4, 4, 4]))
    _, c, *spatial = x.static_shape()
    kind = g.choose(["plain", "plain", "plain", "depthwise", "depthwise", "multiplier", "groups"])
    groups, out = 1, g.choose(CHANNELS)
    if kind == "depthwise":
        groups = out = c
    elif kind == "multiplier":
        groups, out = c, 2 * c
    elif kind == "groups":
        groups = g.choose([d for d in range(1, c + 1) if c % d == 0])
        out = groups * g.integer(1, 5)
    for _ in range(g.choose([1, 1, 1, 2])):  # twice: two convolutions of one value, with their own pads
        kernel = [g.integer(1, 3) for _ in spatial]
        pads = [g.integer(0, 2) for _ in range(2 * len(spatial))]
        for i, k in enumerate(kernel):
            pads[i] += max(0, k - spatial[i] - pads[i] - pads[i + len(spatial)])
        w = g.weights(out, c // groups, *kernel, axis=0, fan_in=c // groups * math.prod(kernel))
        strides = [g.integer(1, 2) for _ in spatial]
        g.activated(g.op("Conv", x, w, *g.bias(x, out), group=groups, pads=pads, strides=strides))


def gemm(g: QuantizedGraph) -> None:
    x = g.with_rank(g.small(g.pick()), 2)
    k = x.static_shape()[1]
    n, trans = g.choose(CHANNELS), g.integer(0, 1)
    w = g.weights(*((n, k) if trans else (k, n)), axis=0 if trans else 1, fan_in=k)
    extra = g.bias(x, n)
    if g.chance(0.15):
        extra = [g.numbers(x.static_shape()[0], n)]
    if g.chance(0.15):
        extra = [g.op("Relu", g.input((n,)))]
    scales = {"alpha": 0.5, "beta": 2.0} if g.chance(0.15) else {}
    g.activated(g.op("Gemm", x, w, *extra, transB=trans, **scales))


def matmul(g: QuantizedGraph) -> None:
    x = g.with_rank(g.small(g.pick()), g.choose([1, 2, 3, 3, 4]))
    k, n = x.static_shape()[-1], g.choose(CHANNELS)
    y = g.op("MatMul", x, g.weights(k, n, axis=1, fan_in=k))
    if g.chance(0.5):
        y = g.op("Add", y, g.numbers(n, scale=0.5))
    if g.chance(0.2) and len(y.static_shape()) > 1:
        order = [*range(1, len(y.static_shape())), 0]
        y = g.op("Transpose", y, perm=order)
    g.activated(y)


def attention(g: QuantizedGraph) -> None:
    x = g.with_rank(g.small(g.pick()), 3)
    other = g.op("Transpose", x, perm=[0, 2, 1])
    y = g.quantized(g.op("MatMul", x, other), 3.0)
    y = g.quantized(g.op("Softmax", g.op("Mul", y, np.float32(0.3)), axis=-1), 0.3)
    g.activated(g.op("MatMul", y, x))


def pool(g: QuantizedGraph) -> None:
    x = g.with_rank(g.small(g.pick()), g.choose([3, 4, 4]))
    spatial = x.static_shape()[2:]
    op = g.choose(["MaxPool", "AveragePool", "GlobalAveragePool", "MaxPool", "AveragePool"])
    if op.startswith("Global"):
        g.quantized(g.op(op, x))
        return
    kernel = [g.integer(1, min(3, s)) for s in spatial]
    pads = [g.integer(0, k - 1) for k in (*kernel, *kernel)] if g.chance(0.5) else [0] * (2 * len(kernel))
    count = {"count_include_pad": g.integer(0, 1)} if op == "AveragePool" else {}
    strides = [g.integer(1, 2) for _ in spatial]
    g.quantized(g.op(op, x, kernel_shape=kernel, pads=pads, strides=strides, ceil_mode=g.integer(0, 1), **count))


def arithmetic(g: QuantizedGraph) -> None:
    x = g.pick()
    same = [v for v in g.floats if v.static_shape() == x.static_shape()]
    other = g.choose(same)
    if g.chance(0.3):
        other = g.dequantized(
            g.b.constant(g.rng.integers(0, 100, x.static_shape()[1:]).astype(np.uint8)),
            np.float32(0.02),
            np.array(50, np.uint8),
        )
    op = g.choose(["Add", "Add", "Mul", "Sub", "Max"])
    g.activated(g.op(op, *((x, other) if g.chance(0.5) else (other, x))))


def unary(g: QuantizedGraph) -> None:
    op = g.choose(["Sigmoid", "Tanh", "Relu", "HardSigmoid", "Gelu", "Exp", "LeakyRelu", "Abs", "Softplus", "Erf"])
    g.quantized(g.op(op, g.pick()))


def rows(g: QuantizedGraph) -> None:
    x = g.small(g.pick())
    rank = len(x.static_shape())
    if rank == 0:
        return
    kind = g.choose(["Softmax", "LayerNormalization", "ReduceMean", "ReduceMax", "ReduceSum"])
    if kind == "Softmax":
        g.quantized(g.op("Softmax", x, axis=g.integer(0, rank - 1)), 0.3)
    elif kind == "LayerNormalization":
        n = x.static_shape()[-1]
        g.quantized(g.op("LayerNormalization", x, g.numbers(n), g.numbers(n), epsilon=0.1))
    else:
        axes = np.array([i for i in range(rank) if g.chance(0.5)] or [rank - 1])
        g.quantized(g.op(kind, x, axes, keepdims=g.integer(0, 1)))


def moves(g: QuantizedGraph) -> None:
    """Data movement between DQ and Q, with the same parameters or others, or without a Q behind."""
    x = g.pick()
    shape = x.static_shape()
    rank = len(shape)
    if rank == 0:
        return
    op = g.choose(["Transpose", "Reshape", "Slice", "Split", "Concat", "Concat", "Expand", "Flatten", "Gather", "Pad"])
    ends: list[Value]
    if op == "Transpose":
        ends = [g.op("Transpose", x, perm=g.rng.permutation(rank).tolist())]
    elif op == "Reshape":
        ends = [g.with_rank(x, g.integer(1, 4))]
    elif op == "Flatten":
        ends = [g.op("Flatten", x, axis=g.integer(0, rank))]
    elif op == "Expand":
        ends = [g.op("Expand", g.small(x), np.array([2, *shape]))] if math.prod(shape) < 2000 else []
    elif op == "Slice":
        axis, step = g.integer(0, rank - 1), g.choose([1, 2, -1])
        ends = [
            g.op(
                "Slice",
                x,
                np.array([0 if step > 0 else -1]),
                np.array([2**40 * step]),
                np.array([axis]),
                np.array([step]),
            )
        ]
    elif op == "Gather":
        axis = g.integer(0, rank - 1)
        ends = [g.op("Gather", x, g.choose([np.array(-1), np.array([0, shape[axis] - 1])]), axis=axis)]
    elif op == "Pad":
        ends = [g.op("Pad", g.small(x), np.array([g.integer(0, 1) for _ in range(2 * rank)]))]
    elif op == "Split":
        axis = g.integer(0, rank - 1)
        if shape[axis] < 2:
            return
        ends = list(g.op("Split", x, np.array([1, shape[axis] - 1]), outputs=2, axis=axis))
    else:
        axis = g.integer(0, rank - 1)
        fits = [v for v in g.floats if len(v.static_shape()) == rank]
        fits = [
            v
            for v in fits
            if all(a == b for i, (a, b) in enumerate(zip(v.static_shape(), shape, strict=True)) if i != axis)
        ]
        ends = [g.op("Concat", *(g.choose(fits) for _ in range(g.integer(1, 3))), axis=axis)]
    for value in ends:
        kind = g.choose(["same", "other", "none"])
        if kind == "none" or (kind == "same" and (x.producer is None or not x.producer.is_op("DequantizeLinear"))):
            g.keep(value)
        elif kind == "same":
            _, scale, zero = next(c for c in g.codes if c[0] is x.producer.need(0))
            g.dequantized(g.op("QuantizeLinear", value, scale, zero), scale, zero)
        else:
            g.quantized(value)


OPERATORS: list[Callable[[QuantizedGraph], None]] = [
    conv, conv, conv, conv, gemm, gemm, matmul, matmul, attention, pool, pool, arithmetic, arithmetic, unary, rows,
    moves, moves, moves,
]  # fmt: skip


def quantized_graph(seed: int) -> tuple[Model, list[np.ndarray]]:
    """A quantized model and feeds for it. Its outputs are bytes and floats."""
    g = QuantizedGraph(seed)
    rank = g.choose([2, 3, 4, 4, 4])
    shape = [g.integer(1, 9) for _ in range(rank)]
    shape[1] = g.choose(CHANNELS)
    if rank >= 3:
        shape[0] = g.choose([1, 1, 2])
    if g.chance(0.5):
        g.quantized(g.input(tuple(shape)))
    else:
        scale, zero = g.parameters()
        g.dequantized(g.input(tuple(shape), zero.dtype.name), scale, zero)
    for _ in range(g.integer(1, 6)):
        g.choose(OPERATORS)(g)
    values = [v for node in g.b.graph.nodes for v in node.outputs if v.dtype is not DType.INT32]
    values = [v for v in values if not all(i is None or i.is_constant for i in v.producer.inputs)]
    return g.finish(values)
