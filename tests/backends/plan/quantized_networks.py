"""Small quantized networks, built as QDQ graphs and computed in numpy at the same time.

The numpy side is written from docs/integer-semantics.md: int64 sums, one float32 product, clamp, round half to even,
zero point as an integer. It knows nothing of plans and kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from irc.ir.builder import GraphBuilder
from irc.ir.graph import Model, Value

F = np.float32


@dataclass
class Quantized:
    """8-bit data `q` of the graph's value `node` (its dequantization: `real`)."""

    real: Value
    q: np.ndarray
    scale: np.float32
    zero: int

    def floats(self) -> np.ndarray:
        return (self.q.astype(np.int32) - np.int32(self.zero)).astype(F) * self.scale


def rounded(y: np.ndarray, dtype: str, zero: int, low: int | None = None, high: int | None = None) -> np.ndarray:
    """Clamp, round half to even, add the zero point."""
    info = np.iinfo(dtype)
    low, high = (info.min if low is None else low), (info.max if high is None else high)
    clamped = np.clip(y.astype(F), F(low - zero), F(high - zero))
    return (np.rint(clamped).astype(np.int32) + zero).astype(dtype)


class Network:
    """Graph and reference side by side. Every method adds nodes and gives the integers they mean."""

    def __init__(self, b: GraphBuilder, name: str) -> None:
        self.b, self.name = b, name
        self.rng = np.random.default_rng([*name.encode()])
        self.feeds: dict[str, np.ndarray] = {}
        self.results: list[tuple[str, np.ndarray]] = []
        self.near: list[tuple[str, np.ndarray]] = []  # within a step of this: float32 polynomials

    # Ends
    def input(self, shape: Sequence[int], dtype: str, scale: float, zero: int, name: str = "x") -> Quantized:
        """Float data, quantized first."""
        x = (self.rng.standard_normal(shape) * (60 if np.dtype(dtype).itemsize == 1 else 9000) * scale).astype(F)
        value = self.b.input(f"{self.name}_{name}", "float32", list(shape))
        self.feeds[value.name] = x
        return self.quantize(value, x, dtype, scale, zero)

    def bytes(self, shape: Sequence[int], dtype: str, scale: float, zero: int, name: str = "x") -> Quantized:
        """Bytes as the caller's own."""
        info = np.iinfo(dtype)
        q = self.rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        value = self.b.input(f"{self.name}_{name}", dtype, list(shape))
        self.feeds[value.name] = q
        return Quantized(self.b.dequantize(value, F(scale), np.array(zero, dtype)), q, F(scale), zero)

    def quantize(self, value: Value, x: np.ndarray, dtype: str, scale: float, zero: int) -> Quantized:
        q = rounded(x * F(1 / float(F(scale))), dtype, zero)
        return self._pair(value, q, dtype, scale, zero)

    def _pair(self, value: Value, q: np.ndarray, dtype: str, scale: float, zero: int) -> Quantized:
        made = self.b.quantize(value, F(scale), np.array(zero, dtype))
        self._last = made
        return Quantized(self.b.dequantize(made, F(scale), np.array(zero, dtype)), q, F(scale), zero)

    def output(self, x: Quantized) -> None:
        """The integers of `x`, which must have been made last."""
        self._named(self._last, x.q)

    def output_floats(self, x: Quantized) -> None:
        self._named(x.real, x.floats())

    def output_reals(self, value: Value, data: np.ndarray) -> None:
        """Reals that are no bytes' any more."""
        self._named(value, np.ascontiguousarray(data))

    def _named(self, value: Value, data: np.ndarray) -> None:
        name = f"{self.name}_y{len(self.results)}"
        self.b.output(value, name=name)
        self.results.append((name, data))

    # Linear operators
    def weights(
        self, shape: Sequence[int], axis: int, *, dtype: str = "int8", zero: int | None = None, each: bool = True,
        dead: Sequence[int] = (),
    ):  # fmt: skip
        """(graph value, integers less their zero point, scales float32 [channels]). `dead`: with tiny scales."""
        info = ml_dtypes.iinfo(dtype)
        w = self.rng.integers(int(info.min), int(info.max), shape, np.int16, endpoint=True).astype(dtype)
        if dtype == "int8" and zero is None:
            w = np.maximum(w, -127).astype(dtype)
        channels = shape[axis]
        scale = self.rng.uniform(0.002, 0.02, channels if each else 1).astype(F)
        scale[list(dead)] *= F(1e-5)
        zeros = np.full(scale.shape, zero or 0, dtype)
        parameters = (scale, zeros) if each else (scale[0], zeros[0])
        value = self.b.dequantize(w, *parameters, **({"axis": axis} if each else {}))
        return value, w.astype(np.int64) - int(zero or 0), np.broadcast_to(scale, (channels,)).astype(np.float64)

    def finish(
        self,
        value: Value,
        sums: np.ndarray,
        factor: np.ndarray,
        dtype: str,
        zero: int,
        activation: str = "",
    ) -> Quantized:
        """Activation and quantization of `sums` (int64, channels last), whose step is `factor` per channel."""
        real = np.abs(sums * factor)
        scale = F(max(float(np.quantile(real, 0.9)), 1e-3) / (100 if np.dtype(dtype).itemsize == 1 else 15000))
        low = high = None
        if activation == "relu":
            value, low = self.b.op("Relu", value), max(zero, np.iinfo(dtype).min)
        elif activation == "clip":
            top = F(np.quantile(real, 0.7))
            value = self.b.op("Clip", value, np.array(0, F), np.array(top, F))
            low, high = zero, min(int(np.rint(top / scale)) + zero, np.iinfo(dtype).max)
        assert np.abs(sums).max() < 2**31
        y = sums.astype(np.int32).astype(F) * (factor / float(scale)).astype(F)
        return self._pair(value, rounded(y, dtype, zero, low, high), dtype, float(scale), zero)

    def conv(
        self,
        x: Quantized,
        channels: int,
        kernel: tuple[int, int],
        dtype: str,
        zero: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        group: int = 1,
        activation: str = "",
        w_dtype: str = "int8",
        w_zero: int | None = None,
        each: bool = True,
        bias: bool = True,
        dead: Sequence[int] = (),
    ) -> Quantized:
        c = x.q.shape[1]
        w_value, w, w_scale = self.weights(
            (channels, c // group, *kernel), 0, dtype=w_dtype, zero=w_zero, each=each, dead=dead
        )
        factor = w_scale * float(x.scale)
        bias_data = (self.rng.standard_normal(channels) * 500 * factor).astype(F) if bias else None
        if bias_data is not None:
            steps = self.rng.uniform(-(2.0**29), 2.0**29, len(dead))  # in an int32 with the sums
            bias_data[list(dead)] = (steps * factor[list(dead)]).astype(F)
        value = self.b.conv(
            x.real, w_value, bias_data, strides=[stride] * 2, dilations=[dilation] * 2, pads=list(pads), group=group
        )
        sums = conv_sums(x.q.astype(np.int64) - x.zero, w, stride, dilation, pads, group)
        if bias_data is not None:
            sums = sums + np.rint(bias_data.astype(np.float64) / factor).astype(np.int64)
        made = self.finish(value, sums, factor, dtype, zero, activation)
        made.q = np.ascontiguousarray(made.q.transpose(0, 3, 1, 2))
        return made

    def product(
        self, x: Quantized, columns: int, dtype: str, zero: int, *, gemm: bool = False, w_dtype: str = "int8",
        w_zero: int | None = None, each: bool = True, activation: str = "",
    ) -> Quantized:  # fmt: skip
        inner = x.q.shape[-1]
        shape, axis = ((columns, inner), 0) if gemm else ((inner, columns), 1)
        w_value, w, w_scale = self.weights(shape, axis, dtype=w_dtype, zero=w_zero, each=each)
        factor = w_scale * float(x.scale)
        sums = (x.q.astype(np.int64) - x.zero) @ (w.T if gemm else w)
        if gemm:
            bias = (self.rng.standard_normal(columns) * 500 * factor).astype(F)
            value = self.b.gemm(x.real, w_value, bias, transB=1)
            sums = sums + np.rint(bias.astype(np.float64) / factor).astype(np.int64)
        else:
            value = self.b.matmul(x.real, w_value)
        return self.finish(value, sums, factor, dtype, zero, activation)

    def activated(self, x: Quantized, op: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        """conv -> a smooth activation in float -> Quantize: one kernel, an output."""
        w_value, w, w_scale = self.weights((9, x.q.shape[1], 2, 2), 0)
        sums = conv_sums(x.q.astype(np.int64) - x.zero, w, 1, 1, (0, 0, 0, 0), 1)
        factor = w_scale * float(x.scale) * 0.02
        shrunk = self.b.op("Mul", self.b.conv(x.real, w_value), np.array(0.02, F))
        real = function(sums * factor).transpose(0, 3, 1, 2)
        value = self.b.op(op, shrunk) if op != "Swish" else self.b.op("Mul", shrunk, self.b.op("Sigmoid", shrunk))
        scale = float(np.abs(real).max()) / 200
        self.b.output(self.b.quantize(value, F(scale), np.array(30, np.uint8)), name=f"{self.name}_{op}")
        self.near.append((f"{self.name}_{op}", rounded(real * F(1 / scale), "uint8", 30)))

    # Others
    def add(self, x: Quantized, y: Quantized, dtype: str, scale: float, zero: int) -> Quantized:
        return self.quantize(self.b.op("Add", x.real, y.real), x.floats() + y.floats(), dtype, scale, zero)

    def max_pool(
        self, x: Quantized, size: int, stride: int, dtype: str, pads: Sequence[int] = (0, 0, 0, 0)
    ) -> Quantized:
        value = self.b.op("MaxPool", x.real, kernel_shape=[size] * 2, strides=[stride] * 2, pads=list(pads))
        low = np.iinfo(dtype).min
        data = np.pad(x.q, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=low)
        windows = np.lib.stride_tricks.sliding_window_view(data, (size, size), (2, 3))[:, :, ::stride, ::stride]
        return self._pair(value, windows.max((-2, -1)), dtype, float(x.scale), x.zero)

    def mean(
        self, value: Value, x: Quantized, sums: np.ndarray, count: int, dtype: str, scale: float, zero: int
    ) -> Quantized:
        """`sums` of q - zero point over `count` elements."""
        factor = F(float(x.scale) / count / float(F(scale)))
        return self._pair(value, rounded(sums.astype(F) * factor, dtype, zero), dtype, scale, zero)

    def average_pool(self, x: Quantized, size: int, dtype: str, scale: float, zero: int) -> Quantized:
        value = self.b.op("AveragePool", x.real, kernel_shape=[size] * 2, strides=[size] * 2)
        data = x.q.astype(np.int64) - x.zero
        windows = np.lib.stride_tricks.sliding_window_view(data, (size, size), (2, 3))[:, :, ::size, ::size]
        return self.mean(value, x, windows.sum((-2, -1)), size * size, dtype, scale, zero)

    def global_pool(self, x: Quantized, dtype: str, scale: float, zero: int) -> Quantized:
        sums = (x.q.astype(np.int64) - x.zero).sum((2, 3), keepdims=True)
        count = x.q.shape[2] * x.q.shape[3]
        return self.mean(self.b.op("GlobalAveragePool", x.real), x, sums, count, dtype, scale, zero)

    def reduce_mean(self, x: Quantized, axes: tuple[int, ...], dtype: str, scale: float, zero: int) -> Quantized:
        value = self.b.op("ReduceMean", x.real, list(axes), keepdims=1)
        sums = (x.q.astype(np.int64) - x.zero).sum(axes, keepdims=True)
        count = int(np.prod([x.q.shape[i] for i in axes]))
        return self.mean(value, x, sums, count, dtype, scale, zero)

    def move(
        self, x: Quantized, op: str, q: np.ndarray, dtype: str, *inputs: object, **attributes: object
    ) -> Quantized:
        """An operator that only moves elements."""
        value = self.b.op(op, x.real, *inputs, **attributes)  # type: ignore[arg-type]  # operands
        return self._pair(value, q, dtype, float(x.scale), x.zero)

    def concat(self, parts: Sequence[Quantized], dtype: str, scale: float, zero: int) -> Quantized:
        value = self.b.op("Concat", *(p.real for p in parts), axis=1)
        return self.quantize(value, np.concatenate([p.floats() for p in parts], 1), dtype, scale, zero)

    def unary(
        self, x: Quantized, op: str, function: Callable[[np.ndarray], np.ndarray], dtype: str, scale: float, zero: int
    ) -> Quantized:
        """A function of one byte: from its values in double precision."""
        real = function(x.floats().astype(np.float64)).astype(F)
        return self.quantize(self.b.op(op, x.real), real, dtype, scale, zero)


def conv_sums(
    x: np.ndarray, w: np.ndarray, stride: int, dilation: int, pads: tuple[int, int, int, int], group: int
) -> np.ndarray:
    """int64 [n, h, w, oc]; padding is the zero of x."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = [(k - 1) * dilation + 1 for k in w.shape[2:]]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))[
        :, :, ::stride, ::stride, ::dilation, ::dilation
    ]
    parts = [
        np.einsum("nchwkl,ockl->nhwo", part, factors)
        for part, factors in zip(np.split(windows, group, 1), np.split(w, group, 0), strict=True)
    ]
    return np.concatenate(parts, -1)


def _conv_relu(n: Network) -> None:
    x = n.conv(n.input((1, 3, 9, 7), "uint8", 0.02, 120), 10, (3, 3), "uint8", 0, pads=(1, 1, 1, 1), activation="relu")
    n.output(n.conv(x, 17, (1, 1), "uint8", 37))


def _conv_int8(n: Network) -> None:
    x = n.conv(
        n.input((2, 5, 11, 8), "int8", 0.03, -5),
        17,
        (3, 2),
        "int8",
        -100,
        stride=2,
        pads=(0, 1, 2, 0),
        activation="clip",
    )
    n.output(n.conv(x, 3, (3, 3), "int8", 4, dilation=2, pads=(2, 2, 2, 2), each=False, bias=False))


def _one_channel(n: Network) -> None:
    """Rows of the window are summed as channels, where they lie side by side."""
    x = n.input((2, 1, 13, 11), "uint8", 0.02, 120)
    y = n.conv(x, 10, (5, 4), "uint8", 0, stride=2, pads=(2, 1, 2, 2), activation="relu")
    y = n.conv(y, 1, (1, 1), "int8", -3)  # one channel again, of the other sign, without a border
    n.output(n.conv(y, 18, (2, 3), "int8", 8))


def _one_channel_row(n: Network) -> None:
    n.output(n.conv(n.input((1, 1, 9, 30), "int8", 0.02, 7), 5, (1, 9), "uint8", 100, stride=3))


def _one_channel_apart(n: Network) -> None:
    """Holes in the window, and places that lie apart."""
    x = n.input((1, 3, 9, 8), "uint8", 0.02, 100)
    y = n.conv(x, 6, (1, 1), "uint8", 80)
    middle = n.move(y, "Slice", np.ascontiguousarray(y.q[:, 2:3]), "uint8", [2], [3], [1])
    n.output(n.conv(middle, 6, (2, 4), "uint8", 66))
    one = n.conv(x, 1, (1, 1), "uint8", 70)
    n.output(n.conv(one, 5, (3, 3), "uint8", 90, dilation=2, pads=(2, 2, 2, 2)))


def _one_channel_shared(n: Network) -> None:
    """Another reader wants a border of channels, another has a zero point in its weights."""
    x = n.input((1, 1, 9, 8), "uint8", 0.02, 120)
    n.output(n.conv(x, 6, (3, 3), "uint8", 3, pads=(1, 1, 1, 1)))
    n.output(n.conv(x, 6, (3, 1), "uint8", 4))
    n.output(n.conv(x, 6, (3, 3), "uint8", 5, w_dtype="uint8", w_zero=100))


def _separable(n: Network) -> None:
    x = n.conv(
        n.input((1, 19, 8, 6), "uint8", 0.02, 0), 19, (3, 3), "uint8", 0, pads=(1, 1, 1, 1), group=19, activation="relu"
    )
    x = n.conv(x, 8, (1, 1), "uint8", 128)
    n.output(n.conv(x, 8, (5, 5), "int8", 9, stride=2, pads=(2, 2, 2, 2), group=8))


def _weight_zero_points(n: Network) -> None:
    x = n.conv(n.input((1, 6, 8, 7), "uint8", 0.02, 90), 10, (3, 3), "int8", 3, w_dtype="uint8", w_zero=128)
    x = n.conv(x, 7, (2, 2), "uint8", 100, w_dtype="uint8", w_zero=77, each=False)
    x = n.conv(x, 7, (2, 2), "int8", -20, w_dtype="uint8", w_zero=150, group=7)
    n.output(n.conv(x, 5, (1, 2), "int8", 3, w_dtype="int8", w_zero=-20))


def _residual(n: Network) -> None:
    x = n.input((1, 8, 6, 6), "uint8", 0.02, 110)
    y = n.conv(x, 8, (3, 3), "int8", -7, pads=(1, 1, 1, 1))
    z = n.add(x, y, "uint8", 0.04, 100)
    n.output(n.conv(z, 12, (1, 1), "uint8", 3, activation="relu"))


def _pools(n: Network) -> None:
    x = n.bytes((1, 21, 12, 8), "uint8", 0.05, 13)
    x = n.average_pool(x, 2, "int8", 0.1, -60)
    x = n.max_pool(x, 3, 1, "int8", (1, 1, 1, 1))
    n.output(n.global_pool(x, "uint8", 0.05, 4))


def _classifier(n: Network) -> None:
    x = n.bytes((5, 37), "int8", 0.04, 11)
    x = n.product(x, 23, "uint8", 128, gemm=True)
    n.output_floats(n.product(x, 10, "int8", 0, gemm=True))


def _products(n: Network) -> None:
    x = n.input((2, 3, 7), "int8", 0.05, 20)
    x = n.product(x, 9, "int8", -4, w_dtype="uint8", w_zero=200, each=False)
    n.output(n.product(x, 18, "uint8", 60))


def _concat(n: Network) -> None:
    x = n.input((1, 4, 6, 5), "uint8", 0.02, 128)
    y = n.conv(x, 6, (3, 3), "int8", -9, pads=(1, 1, 1, 1))
    z = n.concat([x, y], "uint8", 0.05, 111)
    n.output(n.conv(z, 9, (3, 3), "uint8", 10))


def _groups(n: Network) -> None:
    """Channels of a group that fill no dot product."""
    x = n.conv(n.input((1, 9, 6, 5), "uint8", 0.02, 77), 12, (3, 3), "int8", 5, pads=(1, 0, 1, 0), group=3)
    n.output(n.conv(x, 10, (1, 1), "uint8", 60, group=2))


def _tables(n: Network) -> None:
    x = n.unary(n.bytes((1, 5, 7), "int8", 0.05, 3), "Sigmoid", lambda v: 1 / (1 + np.exp(-v)), "uint8", 1 / 256, 0)
    n.output(n.unary(x, "Tanh", np.tanh, "int8", 1 / 128, 0))


def _means(n: Network) -> None:
    x = n.reduce_mean(n.bytes((2, 9, 5, 6), "uint8", 0.05, 99), (2, 3), "int8", 0.01, 5)
    n.output(x)
    y = n.reduce_mean(n.bytes((3, 50, 7), "int8", 0.05, -31, "v"), (1,), "int8", 0.02, 5)
    n.output(y)


def _moves(n: Network) -> None:
    """Bytes are moved, not computed."""
    x = n.conv(n.input((1, 6, 4, 8), "uint8", 0.02, 128), 8, (1, 1), "uint8", 30)
    x = n.move(x, "Transpose", np.ascontiguousarray(x.q.transpose(0, 2, 3, 1)), "uint8", perm=[0, 2, 3, 1])
    x = n.move(x, "Reshape", x.q.reshape(4, 64), "uint8", [4, 64])
    x = n.move(x, "Slice", x.q[:, 5:50:3], "uint8", [5], [50], [1], [3])
    n.output(n.product(x, 6, "int8", 2))


def _smooth(n: Network) -> None:
    x = n.input((1, 4, 9, 7), "uint8", 0.02, 100)
    n.activated(x, "Swish", lambda v: v / (1 + np.exp(-v)))
    n.activated(x, "HardSwish", lambda v: v * np.clip(v / 6 + 0.5, 0, 1))
    n.activated(x, "Tanh", np.tanh)


def _int4(n: Network) -> None:
    """Even and odd numbers of steps in a row of the reduction, on axes of the kernel as well as channels."""
    x = n.input((1, 3, 9, 7), "uint8", 0.02, 120)
    x = n.conv(x, 24, (3, 3), "uint8", 0, pads=(1, 1, 1, 1), activation="relu", w_dtype="int4")
    x = n.conv(x, 20, (1, 1), "int8", 37, w_dtype="int4")
    y = n.conv(x, 20, (3, 3), "uint8", 90, dilation=2, pads=(2, 2, 2, 2), w_dtype="int4")
    z = n.add(x, y, "uint8", 0.04, 100)
    n.output(z)
    z = n.conv(
        n.input((1, 20, 7, 9), "uint8", 0.02, 99, "z"), 33, (2, 3), "int8", -20, stride=2, w_dtype="int4", each=False
    )
    n.output(n.conv(z, 40, (1, 2), "uint8", 7, w_dtype="int4", bias=False))


def _int4_groups(n: Network) -> None:
    x = n.conv(n.input((2, 12, 6, 5), "int8", 0.02, 7), 24, (3, 3), "int8", 5, group=3, w_dtype="int4")
    x = n.conv(x, 10, (1, 1), "uint8", 60, group=2, w_dtype="int4")
    n.output(n.conv(x, 10, (2, 3), "uint8", 60, pads=(1, 1, 1, 1), group=10, w_dtype="int4"))


def _int4_one_channel(n: Network) -> None:
    x = n.input((2, 1, 13, 11), "uint8", 0.02, 120)
    n.output(n.conv(x, 10, (5, 4), "uint8", 0, stride=2, pads=(2, 1, 2, 2), activation="relu", w_dtype="int4"))
    n.output(n.conv(x, 18, (1, 3), "int8", 8, w_dtype="int4"))


def _int4_separable(n: Network) -> None:
    x = n.input((1, 19, 8, 6), "uint8", 0.02, 0)
    x = n.conv(x, 19, (3, 3), "uint8", 0, pads=(1, 1, 1, 1), group=19, activation="relu", w_dtype="int4")
    x = n.conv(x, 64, (1, 1), "uint8", 128, w_dtype="int4")
    n.output(n.conv(x, 64, (3, 3), "int8", 9, stride=2, pads=(1, 1, 1, 1), group=64, w_dtype="int4"))


def _int4_zero_points(n: Network) -> None:
    x = n.conv(n.input((1, 6, 8, 7), "uint8", 0.02, 90), 10, (3, 3), "int8", 3, w_dtype="uint4", w_zero=8)
    n.output(n.conv(x, 17, (2, 2), "uint8", 100, w_dtype="uint4", w_zero=3, each=False))
    x = n.input((1, 17, 8, 7), "int8", 0.02, 9, "z")
    x = n.conv(x, 17, (2, 2), "int8", -20, w_dtype="uint4", w_zero=11, group=17)
    n.output(n.conv(x, 5, (1, 2), "int8", 3, w_dtype="int4", w_zero=-2))


def _int4_products(n: Network) -> None:
    x = n.bytes((5, 37), "int8", 0.04, 11)
    x = n.product(x, 70, "uint8", 128, gemm=True, w_dtype="int4")
    x = n.product(x, 32, "int8", 0, w_dtype="uint4", w_zero=5, activation="relu")
    n.output(n.product(x, 10, "int8", 0, gemm=True, w_dtype="int4"))


def _int2(n: Network) -> None:
    x = n.conv(n.input((1, 21, 7, 5), "uint8", 0.02, 90), 34, (3, 2), "uint8", 3, w_dtype="int2", pads=(1, 0, 1, 1))
    x = n.conv(x, 34, (3, 3), "int8", -9, pads=(1, 1, 1, 1), group=34, w_dtype="int2")
    x = n.conv(x, 20, (1, 1), "int8", -9, w_dtype="uint2", w_zero=1)
    n.output(n.conv(x, 6, (1, 1), "uint8", 60, group=2, w_dtype="int2"))


def _int16(n: Network) -> None:
    x = n.conv(n.input((1, 3, 9, 7), "int16", 0.002, 0), 24, (3, 3), "int16", 0, pads=(1, 1, 1, 1), activation="relu")
    x = n.conv(x, 24, (3, 3), "int16", 0, pads=(1, 1, 1, 1), group=24, stride=2)
    n.output(x)
    y = n.conv(n.input((2, 21, 4, 5), "int16", 0.002, 0, "y"), 17, (1, 1), "int16", 0, w_dtype="int4")
    z = n.add(y, n.input((2, 17, 4, 5), "int16", 0.3, 0, "z"), "int16", 0.4, 0)
    n.output(n.conv(z, 5, (2, 2), "uint8", 60, group=1))
    n.output(
        n.conv(n.input((1, 9, 6, 5), "int16", 0.02, 0, "g"), 12, (3, 3), "int16", -300, pads=(1, 0, 1, 0), group=3)
    )


def _int16_others(n: Network) -> None:
    x = n.input((1, 20, 12, 8), "int16", 0.002, 0)
    y = n.average_pool(x, 2, "int16", 0.0025, 0)
    y = n.max_pool(y, 3, 1, "int16", (1, 1, 1, 1))
    n.output(n.global_pool(y, "int16", 0.0005, 0))
    n.output(n.concat([x, n.input((1, 5, 12, 8), "int16", 0.004, 7, "b")], "int16", 0.003, -5))
    z = n.product(n.input((5, 37), "int16", 0.0004, 0, "p"), 23, "int16", 0, gemm=True)
    n.output(n.product(z, 10, "int8", 0))


def _fours(n: Network) -> None:
    """Channels in fours, as kernels of microcontrollers like them; places at every edge, even and odd rows of them."""
    edge = (1, 1, 1, 1)
    x = n.conv(
        n.input((1, 3, 11, 9), "int8", 0.02, -5),
        12,
        (3, 3),
        "int8",
        -128,
        stride=2,
        pads=(0, 0, 1, 1),
        activation="relu",
    )
    x = n.conv(x, 12, (3, 3), "int8", -128, pads=edge, group=12, activation="relu")
    y = n.add(x, n.conv(x, 12, (3, 3), "int8", 7, pads=edge), "int8", 0.04, -10)
    y = n.conv(y, 12, (3, 3), "int8", -20, stride=2, pads=edge, group=12, activation="clip")
    n.output(n.conv(y, 18, (1, 1), "int8", 3, w_zero=0))


def _odd_fours(n: Network) -> None:
    x = n.conv(n.input((1, 2, 8, 7), "int8", 0.02, 9), 8, (3, 2), "int8", 30, pads=(1, 0, 0, 2))
    x = n.conv(x, 8, (3, 3), "int8", 11, pads=(2, 1, 0, 1), group=8)
    x = n.conv(x, 8, (3, 3), "int8", -7, pads=(1, 1, 1, 1), w_zero=0)
    n.output(n.conv(x, 16, (1, 1), "int8", 3, stride=2, activation="clip"))


def _single_row(n: Network) -> None:
    x = n.product(n.bytes((1, 40), "int8", 0.04, 11), 20, "int8", -128, activation="relu", each=False)
    n.output(n.product(x, 6, "int8", 0, gemm=True))


def _dead_channels(n: Network) -> None:
    """Most channels are one integer everywhere: zero, or another one, which windows beyond the edge do not see."""
    dead = [c for c in range(44) if c % 4]
    x = n.conv(n.input((1, 8, 7, 6), "int8", 0.05, -3), 44, (1, 1), "int8", -128, activation="relu", dead=dead)
    x = n.conv(x, 44, (3, 3), "int8", -128, group=44, pads=(1, 1, 1, 1), activation="relu", dead=dead[::3])
    x = n.conv(x, 36, (1, 1), "int8", -128, activation="relu", dead=range(36)[9:])
    y = n.conv(x, 12, (3, 3), "int8", 4, pads=(1, 1, 0, 0), stride=2)
    n.output(y)
    n.output(n.conv(x, 8, (1, 1), "int8", 4))


def _outside(n: Network) -> None:
    """Images of one column, and windows that lie beside them altogether."""
    x = n.conv(n.input((1, 3, 6, 1), "int8", 0.02, 6), 8, (2, 3), "int8", -9, pads=(1, 1, 0, 1))
    x = n.conv(x, 8, (3, 1), "int8", 30, stride=3, pads=(1, 2, 1, 0), group=8)
    n.output(n.conv(x, 16, (3, 3), "int8", -7, pads=(2, 3, 4, 2)))


def _depthwise_reals(n: Network) -> None:
    """What depthwise kernels give without rounding it: each whole vectors of channels."""
    x = n.bytes((1, 16, 7, 6), "int8", 0.04, -7)
    w_value, w, w_scale = n.weights((16, 1, 3, 3), 0)
    factor = (w_scale * float(x.scale)).astype(F)
    sums = conv_sums(x.q.astype(np.int64) - x.zero, w, 1, 1, (1, 1, 1, 1), 16)
    n.output_reals(n.b.conv(x.real, w_value, pads=[1] * 4, group=16), (sums.astype(F) * factor).transpose(0, 3, 1, 2))


def _powers_of_two(n: Network) -> None:
    """Factors that a compiler may take for shifts of fixed-point numbers: 2**-1 to 2**-7."""
    x = n.bytes((1, 8, 4, 4), "int8", 0.5, 0)
    for bits in range(-3, 4):
        n.output(n.global_pool(x, "int8", 0.5 * 2.0**bits, 3))
        n.output(n.add(x, x, "int8", 2.0**bits, -4))


NETWORKS: dict[str, Callable[[Network], None]] = {
    "conv_relu": _conv_relu,
    "conv_int8": _conv_int8,
    "one_channel": _one_channel,
    "one_channel_row": _one_channel_row,
    "one_channel_apart": _one_channel_apart,
    "one_channel_shared": _one_channel_shared,
    "separable": _separable,
    "weight_zero_points": _weight_zero_points,
    "residual": _residual,
    "pools": _pools,
    "classifier": _classifier,
    "products": _products,
    "concat": _concat,
    "groups": _groups,
    "tables": _tables,
    "means": _means,
    "moves": _moves,
    "smooth": _smooth,
    "int4": _int4,
    "int4_groups": _int4_groups,
    "int4_one_channel": _int4_one_channel,
    "int4_separable": _int4_separable,
    "int4_zero_points": _int4_zero_points,
    "int4_products": _int4_products,
    "int2": _int2,
    "int16": _int16,
    "int16_others": _int16_others,
    "fours": _fours,
    "odd_fours": _odd_fours,
    "single_row": _single_row,
    "dead_channels": _dead_channels,
    "outside": _outside,
    "depthwise_reals": _depthwise_reals,
    "powers_of_two": _powers_of_two,
}


def build_networks(names: Sequence[str] = tuple(NETWORKS)) -> tuple[Model, list[Network]]:
    """All of them side by side in one model."""
    b = GraphBuilder("networks")
    made = []
    for name in names:
        made.append(Network(b, name))
        NETWORKS[name](made[-1])
    return b.build(), made
