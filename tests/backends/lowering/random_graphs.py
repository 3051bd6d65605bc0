"""Random models: chains and graphs of everything the plan has rules for, by seed.

Sizes are small and odd on purpose: less than a vector of channels, one more than a vector, single rows. Values stay
near 1, so that float32 rounding stays near 1e-7 and a wrong plan is off by the size of the data. Functions with jumps
(Floor, Cast to integers, comparisons) read inputs only, whose bits both sides share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model, Value
from irc.ir.infer import infer_node
from irc.ir.types import DType

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 24, 33)


class RandomGraph:
    """`model` and `feeds` for a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = GraphBuilder()
        self.feeds: list[np.ndarray] = []
        self.floats: list[Value] = []
        self.exact: list[Value] = []  # inputs, and what is made of them without rounding

    # Choices
    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def integer(self, low: int, high: int) -> int:
        """low <= n <= high."""
        return int(self.rng.integers(low, high + 1))

    def choose(self, options: Any) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def pick(self) -> Value:
        """Late values are likelier: chains are what regions are made of."""
        back = min(int(self.rng.geometric(0.55)) - 1, len(self.floats) - 1)
        return self.floats[-1 - back]

    def numbers(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    # Building
    def input(self, shape: tuple[int, ...], dtype: str = "float32") -> Value:
        value = self.b.input(f"x{len(self.feeds)}", dtype, shape)
        if dtype == "float32":
            data = self.numbers(*shape)
        elif dtype == "bool":
            data = self.rng.random(shape) < 0.5
        else:
            low, high = (0, 256) if dtype == "uint8" else (-128, 128) if dtype == "int8" else (-9, 10)
            data = self.rng.integers(low, high, shape)
        self.feeds.append(np.asarray(data).astype(DType(dtype).numpy))
        if dtype == "float32":
            self.floats.append(value)
        self.exact.append(value)
        return value

    def op(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        node = self.b.node(op_type, *inputs, outputs=outputs, **attributes)
        infer_node(node)
        for value in node.outputs:
            value.static_shape()  # fails here where the generator made something dynamic
        return node.output if outputs == 1 else node.outputs

    def keep(self, value: Value) -> Value:
        if value.dtype is DType.FLOAT:
            self.floats.append(value)
        return value

    def finish(self, values: list[Value]) -> tuple[Model, list[np.ndarray]]:
        """Values nobody reads become outputs, and some others too."""
        named: list[Value] = []
        for value in values:
            unread = not value.uses
            if (unread or self.chance(0.12)) and value not in named and value.producer is not None:
                named.append(value)
        if self.chance(0.1):
            named.append(self.op("Identity", self.choose(self.exact)))
        if self.chance(0.1):
            named.append(self.op("Identity", self.numbers(self.integer(1, 5), 3)))
        self.b.output(*named)
        return self.b.build(), self.feeds

    # Shapes
    def with_rank(self, value: Value, rank: int) -> Value:
        """`value` reshaped to `rank` dimensions."""
        shape = list(value.static_shape())
        while len(shape) > rank:
            if self.chance(0.5):
                shape[:2] = [shape[0] * shape[1]]
            else:
                shape[-2:] = [shape[-2] * shape[-1]]
        while len(shape) < rank:
            at = self.integer(0, len(shape))
            divisors = [d for d in range(1, 10) if at < len(shape) and shape[at] % d == 0] or [1]
            d = self.choose(divisors)
            if at < len(shape):
                shape[at : at + 1] = [d, shape[at] // d]
            else:
                shape.append(1)
        if tuple(shape) == value.static_shape():
            return value
        return self.op("Reshape", value, np.array(shape, np.int64))

    def small(self, value: Value) -> Value:
        """Keeps graphs from growing."""
        shape = value.static_shape()
        if math.prod(shape) <= 6000:
            return value
        axis = int(np.argmax(shape))
        stop = max(1, shape[axis] * 3000 // math.prod(shape))
        return self.op("Slice", value, np.array([0]), np.array([stop]), np.array([axis]))


# Operators. Each takes the graph, adds nodes, and leaves its result among `floats`.


def conv(g: RandomGraph) -> None:
    x = g.with_rank(g.small(g.pick()), g.choose([3, 4, 4]))
    _, c, *spatial = x.static_shape()
    kind = g.choose(["plain", "plain", "depthwise", "multiplier", "groups"])
    groups, out = 1, g.choose(CHANNELS)
    if kind == "depthwise":
        groups = out = c
    elif kind == "multiplier":
        groups, out = c, c * g.integer(1, 3)
    elif kind == "groups":
        groups = g.choose([d for d in range(1, c + 1) if c % d == 0])
        out = groups * g.integer(1, 9)
    kernel = [g.integer(1, 4) for _ in spatial]
    attributes: dict[str, Any] = {"group": groups}
    if g.chance(0.4):
        attributes["strides"] = [g.integer(1, 3) for _ in spatial]
    if g.chance(0.3):
        attributes["dilations"] = [g.integer(1, 2) for _ in spatial]
    dilations = attributes.get("dilations", [1] * len(spatial))
    pads = [g.integer(0, 2) for _ in range(2 * len(spatial))]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    for i, r in enumerate(reach):
        pads[i] += max(0, r - spatial[i] - pads[i] - pads[i + len(spatial)])
    if g.chance(0.2) and set(dilations) == {1}:  # onnxruntime refuses both together
        attributes["auto_pad"] = g.choose(["SAME_UPPER", "SAME_LOWER"])
    elif g.chance(0.8) or any(r > s for r, s in zip(reach, spatial, strict=True)):
        attributes["pads"] = pads
    w = g.numbers(out, c // groups, *kernel, scale=1 / math.sqrt(c // groups * math.prod(kernel)))
    bias = [g.numbers(out)] if g.chance(0.6) else []
    g.keep(g.op("Conv", x, w, *bias, **attributes))


def conv_transpose(g: RandomGraph) -> None:
    x = g.with_rank(g.small(g.pick()), g.choose([3, 4]))
    _, c, *spatial = x.static_shape()
    groups = g.choose([d for d in range(1, c + 1) if c % d == 0])
    kernel = [g.integer(1, 3) for _ in spatial]
    w = g.numbers(c, g.integer(1, 4), *kernel, scale=1 / math.sqrt(c * math.prod(kernel)))
    g.keep(g.op("ConvTranspose", x, w, group=groups, strides=[g.integer(1, 2) for _ in spatial]))


def gemm(g: RandomGraph) -> None:
    x = g.with_rank(g.small(g.pick()), 2)
    trans_a, trans_b = g.integer(0, 1), g.integer(0, 1)
    m, k = x.static_shape()[::-1] if trans_a else x.static_shape()
    n = g.choose(CHANNELS)
    shape = (n, k) if trans_b else (k, n)
    w: Any = g.numbers(*shape, scale=1 / math.sqrt(k))
    if g.chance(0.2) and k * n < 3000:
        w = g.input(shape)
        w = g.op("Mul", w, np.float32(1 / math.sqrt(k)))
    extra: list[Any] = []
    if g.chance(0.7):
        form = g.choose([(n,), (1, n), (m, n), (m, 1), (1,), (), (1, 1)])
        extra = [g.input(form) if g.chance(0.3) else g.numbers(*form)]
    scales = {"alpha": 0.5, "beta": 2.0} if g.chance(0.4) else {}
    g.keep(g.op("Gemm", x, w, *extra, transA=trans_a, transB=trans_b, **scales))


def matmul(g: RandomGraph) -> None:
    x = g.with_rank(g.small(g.pick()), g.integer(1, 5))
    *batch, k = x.static_shape()
    n = g.choose(CHANNELS)
    scale = 1 / math.sqrt(k)
    form = g.choose(["matrix", "matrix", "vector", "batched", "broadcast"])
    if form == "vector":
        shape: tuple[int, ...] = (k,)
    elif form == "matrix" or len(batch) < 2:
        shape = (k, n)
    elif form == "batched":
        shape = (*batch[:-1], k, n)
    else:
        shape = (*(d if g.chance(0.5) else 1 for d in batch[:-1]), k, n)[g.integer(0, len(batch) - 1) :]
    if math.prod(shape) > 20000:
        shape = (k, n)
    w: Any = g.numbers(*shape, scale=scale)
    if g.chance(0.5):
        w = g.op("Mul", g.input(shape), np.float32(scale))
        if len(shape) >= 2 and g.chance(0.4):
            order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
            w = g.op("Transpose", g.op("Identity", g.op("Transpose", w, perm=order)), perm=order)
    if g.chance(0.15) and len(shape) >= 2 and len(x.static_shape()) >= 2:
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        back = [*range(len(batch) - 1), len(batch), len(batch) - 1]
        left = w if isinstance(w, Value) else g.b.constant(w)
        g.keep(g.op("MatMul", g.op("Transpose", left, perm=order), g.op("Transpose", x, perm=back)))
        return
    g.keep(g.op("MatMul", x, w))


def self_attention(g: RandomGraph) -> None:
    x = g.with_rank(g.small(g.pick()), 3)
    n, s, c = x.static_shape()
    heads, width = g.choose([1, 2, 3]), g.choose([1, 3, 4, 8])

    def part(order: list[int]) -> Value:
        y = g.op("MatMul", x, g.numbers(c, heads * width, scale=1 / math.sqrt(c)))
        if g.chance(0.5):
            y = g.op("Add", y, g.numbers(heads * width))
        y = g.op("Reshape", y, np.array([n, s, heads, width]))
        return g.op("Transpose", y, perm=order)

    scores = g.op("MatMul", part([0, 2, 1, 3]), part([0, 2, 3, 1]))
    scores = g.op("Softmax", g.op("Mul", scores, np.float32(width**-0.5)), axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", scores, part([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    g.keep(g.op("Reshape", mixed, np.array([n, s, heads * width])))


def pool(g: RandomGraph) -> None:
    x = g.with_rank(g.small(g.pick()), g.choose([3, 4, 4]))
    spatial = x.static_shape()[2:]
    op = g.choose(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if op.startswith("Global"):
        g.keep(g.op(op, x))
        return
    kernel = [g.integer(1, min(4, s)) for s in spatial]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [g.integer(1, 3) for _ in spatial]}
    if g.chance(0.5):
        attributes["pads"] = [g.integer(0, k - 1) for k in (*kernel, *kernel)]
    elif g.chance(0.3):
        attributes["auto_pad"] = g.choose(["SAME_UPPER", "SAME_LOWER"])
    if (
        g.chance(0.3)
        and "auto_pad" not in attributes
        and all(s > 2 * (k - 1) for k, s in zip(kernel, spatial, strict=True))
    ):
        attributes["dilations"] = [2] * len(spatial)
    if g.chance(0.3) and "auto_pad" not in attributes:
        attributes["ceil_mode"] = 1
    if op == "AveragePool" and g.chance(0.5):
        attributes["count_include_pad"] = 1
    g.keep(g.op(op, x, **attributes))


def normalize_rows(g: RandomGraph) -> None:
    x = g.small(g.pick())
    rank = len(x.static_shape())
    if rank == 0:
        return
    op = g.choose(["Softmax", "LogSoftmax", "LayerNormalization"])
    if op != "LayerNormalization":
        g.keep(g.op(op, x, axis=g.integer(-rank, rank - 1)))
        return
    axis = g.choose([-1, -1, g.integer(-rank, rank - 1)])
    shape = x.static_shape()[axis % rank :]
    x = g.op("Mul", x, np.float32(3.0))  # variance well above epsilon
    shift = [g.numbers(*shape)] if g.chance(0.7) else []
    g.keep(g.op("LayerNormalization", x, g.numbers(*shape), *shift, axis=axis, epsilon=1e-2))


def reduce(g: RandomGraph) -> None:
    x = g.small(g.pick())
    rank = len(x.static_shape())
    op = g.choose(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"])
    axes = [i - rank * g.integer(0, 1) for i in range(rank) if g.chance(0.5)]
    keep = {"keepdims": g.integer(0, 1)} if g.chance(0.8) else {}
    y = g.op(op, x, *([np.array(axes, np.int64)] if axes else []), **keep)
    count = math.prod(x.static_shape()) // max(math.prod(y.static_shape()), 1)
    if op in ("ReduceSum", "ReduceL1", "ReduceSumSquare", "ReduceL2"):
        y = g.op("Mul", y, np.float32(1 / max(count, 1)))
    g.keep(y)


def unary(g: RandomGraph) -> None:
    x = g.pick()
    op = g.choose(
        ["Relu", "Sigmoid", "Tanh", "Erf", "Abs", "Neg", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Gelu", "Elu",
         "Softplus", "Exp", "Sqrt", "Softsign", "Selu", "Identity", "Mish", "Sin", "Square", "Celu", "ThresholdedRelu"]
    )  # fmt: skip
    if op == "Clip":
        bounds = g.choose([(-0.5, 0.7), (None, 0.6), (-0.2, None), (0.0, 6.0)])
        y = g.op("Clip", x, *(None if v is None else np.float32(v) for v in bounds))
    elif op == "Gelu":
        y = g.op("Gelu", x, approximate=g.choose(["none", "tanh"]))
    elif op == "Exp":
        y = g.op("Exp", g.op("Min", x, np.float32(1.0)))
    elif op == "Sqrt":
        y = g.op("Sqrt", g.op("Add", g.op("Abs", x), np.float32(0.5)))
    elif op == "Square":
        y = g.op("Tanh", g.op("Pow", x, np.float32(g.choose([2.0, 3.0, 1.0]))))
    elif op == "ThresholdedRelu":
        y = g.op("ThresholdedRelu", g.choose([v for v in g.exact if v.dtype is DType.FLOAT]), alpha=0.3)
    else:
        y = g.op(op, x)
    g.keep(y)


def binary(g: RandomGraph) -> None:
    x = g.pick()
    shape = x.static_shape()
    op = g.choose(["Add", "Sub", "Mul", "Max", "Min", "PRelu", "Div", "Add", "Mul"])
    kept = [d if g.chance(0.5) else 1 for d in shape][g.integer(0, len(shape)) :]
    other: Any = g.input(tuple(kept)) if g.chance(0.3) else g.numbers(*kept)
    if g.chance(0.2) and math.prod(shape) < 1000:  # the other one is larger
        stretched = (g.integer(1, 3), *(g.integer(2, 4) if d == 1 else d for d in shape))
        other = g.numbers(*stretched)
    same = [v for v in g.floats if v.static_shape() == shape]
    if g.chance(0.4):
        other = g.choose(same)
    if op == "Div":
        other = g.op("Add", g.op("Abs", other), np.float32(1.0))
    if op == "PRelu":
        other = g.numbers(*kept)
    elif g.chance(0.4):
        x, other = other, x
    y = g.op(op, x, other)
    g.keep(g.op("Mul", y, np.float32(0.5)) if op in ("Add", "Sub") and g.chance(0.5) else y)


def where(g: RandomGraph) -> None:
    x = g.pick()
    shape = x.static_shape()
    kept = tuple(d if g.chance(0.6) else 1 for d in shape)
    kind = g.choose(["bool", "compare"])
    if kind == "bool":
        condition = g.input(kept, "bool")
        if g.chance(0.5):
            condition = g.op(g.choose(["And", "Or", "Xor"]), condition, g.op("Not", g.input(shape, "bool")))
    else:
        dtype = g.choose(["int64", "int32", "float32"])
        operator = g.choose(["Less", "GreaterOrEqual", "Equal", "LessOrEqual", "Greater"])
        condition = g.op(operator, g.input(kept, dtype), g.input(shape[1:], dtype))
    g.keep(g.op("Where", condition, x, g.choose([np.float32(0.5), g.numbers(*shape)])))


def integers(g: RandomGraph) -> None:
    dtype = g.choose(["int64", "int32", "int8", "uint8"])
    shape = tuple(g.integer(1, 7) for _ in range(g.integer(0, 3)))
    x = g.input(shape, dtype)
    for _ in range(g.integer(1, 4)):
        op = g.choose(["Add", "Sub", "Mul", "Max", "Min", "Abs", "Neg", "Sign", "Clip", "Cast", "Relu"])
        if x.dtype in (DType.INT8, DType.UINT8) and op not in ("Max", "Min", "Cast", "Sign", "Clip"):
            continue  # onnxruntime has no such kernels
        unsigned = x.dtype is DType.UINT8
        data = g.rng.integers(0 if unsigned else -5, 6, shape[g.integer(0, len(shape)) :]).astype(x.dtype.numpy)
        if op in ("Add", "Sub", "Mul", "Max", "Min"):
            x = g.op(op, *((x, data) if g.chance(0.5) else (data, x)))
        elif op == "Clip":
            low, high = (np.array(v, x.dtype.numpy) for v in (2 if unsigned else -3, 4))
            x = g.op("Clip", x, *g.choose([(low, high), (low,), (None, high)]))
        elif op == "Cast":
            to = g.choose([DType.INT64, DType.INT32, DType.FLOAT, DType.BOOL])
            x = g.op("Cast", x, to=to.onnx)
            if to is DType.BOOL:
                x = g.op("Cast", x, to=g.choose([DType.INT64, DType.FLOAT]).onnx)
            if x.dtype is DType.FLOAT:
                g.keep(g.op("Mul", x, np.float32(0.1)))
                return
        elif not (op == "Relu" and x.dtype is DType.INT64) and not unsigned:
            x = g.op(op, x)
    if g.chance(0.4) and shape and x.dtype in (DType.INT32, DType.INT64):
        op = g.choose(["ReduceSum", "ReduceMax", "ReduceMin"])
        x = g.op(op, x, np.array([g.integer(0, len(shape) - 1)]), keepdims=g.integer(0, 1))
    g.keep(g.op("Mul", g.op("Cast", x, to=DType.FLOAT.onnx), np.float32(0.05)))


def jumps(g: RandomGraph) -> None:
    """Functions with jumps, on inputs."""
    x = g.choose([v for v in g.exact if v.dtype is DType.FLOAT])
    op = g.choose(["Floor", "Ceil", "Round", "Sign", "Cast", "IsNaN"])
    if op == "Cast":
        to = g.choose([DType.INT32, DType.INT64, DType.INT8, DType.BOOL])
        x = g.op("Cast", g.op("Mul", x, np.float32(8.0)), to=to.onnx)
        g.keep(g.op("Mul", g.op("Cast", x, to=DType.FLOAT.onnx), np.float32(0.1)))
    elif op == "IsNaN":
        g.keep(g.op("Where", g.op("IsNaN", x), np.float32(1.0), x))
    else:
        g.keep(g.op(op, x))


def moves(g: RandomGraph) -> None:
    x = g.pick()
    shape = x.static_shape()
    rank = len(shape)
    op = g.choose(["Transpose", "Reshape", "Slice", "Split", "Concat", "Expand", "Squeeze", "Unsqueeze", "Gather",
                   "Flatten", "Pad", "Tile"])  # fmt: skip
    if op == "Reshape":
        g.keep(g.with_rank(x, g.integer(1, 5)))
    elif op == "Unsqueeze":
        g.keep(g.op("Unsqueeze", x, np.array([g.integer(0, rank)])))
    elif op == "Squeeze":
        g.keep(g.op("Squeeze", x))
    elif rank == 0:
        return
    elif op == "Transpose":
        g.keep(g.op("Transpose", x, perm=g.rng.permutation(rank).tolist()))
    elif op == "Flatten":
        g.keep(g.op("Flatten", x, axis=g.integer(0, rank)))
    elif op == "Expand":
        g.keep(
            g.op("Expand", g.small(x), np.array([g.integer(1, 2), *(g.integer(1, 3) if d == 1 else d for d in shape)]))
        )
    elif op == "Tile":
        g.keep(g.small(g.op("Tile", g.small(x), np.array([g.integer(1, 2) for _ in shape]))))
    elif op == "Pad":
        pads = np.array([g.integer(0, 2) for _ in range(2 * rank)])
        g.keep(g.op("Pad", g.small(x), pads, *([np.float32(0.5)] if g.chance(0.5) else [])))
    elif op == "Slice":
        axes = [i for i in range(rank) if g.chance(0.6)] or [0]
        starts, ends, steps = [], [], []
        for a in axes:
            step = g.choose([1, 1, 2, 3, -1, -2])
            first = g.integer(0, shape[a] - 1)
            starts.append(first)
            ends.append(-(2**40) if step < 0 else g.choose([2**40, shape[a], first + 1]))
            steps.append(step)
        g.keep(g.op("Slice", x, *(np.array(v, np.int64) for v in (starts, ends, axes, steps))))
    elif op == "Split":
        axis = g.integer(0, rank - 1)
        if shape[axis] < 2:
            return
        first = g.integer(1, shape[axis] - 1)
        for part in g.op("Split", x, np.array([first, shape[axis] - first]), outputs=2, axis=axis - rank):
            g.keep(part)
    elif op == "Gather":
        axis = g.integer(0, rank - 1)
        index = g.choose([np.array(g.integer(-shape[axis], shape[axis] - 1)), g.rng.integers(0, shape[axis], (2, 2))])
        g.keep(g.op("Gather", x, index, axis=axis))
    else:
        axis = g.integer(0, rank - 1)
        same = [v for v in g.floats if v.static_shape()[:axis] == shape[:axis] and len(v.static_shape()) == rank]
        same = [v for v in same if v.static_shape()[axis + 1 :] == shape[axis + 1 :]]
        g.keep(g.small(g.op("Concat", *(g.choose([x, *same]) for _ in range(g.integer(1, 3))), axis=axis)))


def diamonds(g: RandomGraph) -> None:
    x = g.pick()
    kind = g.choose(["silu", "residual", "hard", "both", "gate"])
    if kind == "silu":
        g.keep(g.op("Mul", x, g.op("Sigmoid", x)))
    elif kind == "residual":
        y = g.op("Relu", g.op("Mul", x, np.float32(0.7)))
        g.keep(g.op("Add", g.op("Tanh", y), x))
    elif kind == "hard":
        y = g.op("Clip", g.op("Add", x, np.float32(3.0)), np.float32(0.0), np.float32(6.0))
        g.keep(g.op("Div", g.op("Mul", x, y), np.float32(6.0)))
    elif kind == "both":
        y, z = g.op("Relu", x), g.op("Tanh", x)
        g.keep(g.op("Add", y, z))
        g.keep(g.op("Mul", y, z))
    elif len(x.static_shape()) == 4:
        pooled = g.op("Sigmoid", g.op("GlobalAveragePool", x))
        g.keep(g.op("Mul", x, pooled))


OPERATORS: list[Callable[[RandomGraph], None]] = [
    conv, conv, conv, conv_transpose, gemm, gemm, matmul, matmul, self_attention, pool, pool, normalize_rows, reduce,
    reduce, unary, unary, unary, binary, binary, binary, where, integers, jumps, moves, moves, moves, moves, diamonds,
    diamonds,
]  # fmt: skip


def float_graph(seed: int) -> tuple[Model, list[np.ndarray]]:
    """A model of float operators (and a few of integers), and feeds for it."""
    g = RandomGraph(seed)
    rank = g.choose([1, 2, 3, 4, 4, 4])
    shape = [g.integer(1, 9) for _ in range(rank)]
    if rank >= 2:
        shape[1] = g.choose(CHANNELS)
    if rank >= 3:
        shape[0] = g.choose([1, 1, 2, 3])
    g.input(tuple(shape))
    for _ in range(g.integer(1, 9)):
        g.choose(OPERATORS)(g)
    values = [v for node in g.b.graph.nodes for v in node.outputs]
    return g.finish(values)
