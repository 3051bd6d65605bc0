"""Small models for single rules of the plan, each of which was once wrong or easily is. Against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lowering_harness import Lowering, float_difference, quantized_difference

from irc.errors import UnsupportedError
from irc.evaluation.oracle import Oracle
from irc.ir.builder import GraphBuilder, weights
from irc.ir.graph import Value

SCALE, ZERO = np.float32(0.05), np.uint8(117)


def quantized(b: GraphBuilder, x: Value, scale: float = 0.05, zero: int = 117) -> Value:
    s, z = np.float32(scale), np.uint8(zero)
    return b.dequantize(b.quantize(x, s, z), s, z)


def image(b: GraphBuilder, *shape: int, name: str = "x") -> Value:
    return b.input(name, "float32", shape)


def byte_weights(b: GraphBuilder, *shape: int) -> Value:
    return b.dequantize(np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8), np.float32(0.01))


def average_over_padding(b: GraphBuilder) -> None:
    x = image(b, 1, 5, 7, 6)
    options = {"kernel_shape": (3, 3), "count_include_pad": 1}
    b.output(b.op("AveragePool", x, auto_pad="SAME_UPPER", strides=(2, 2), **options))
    b.output(b.op("AveragePool", quantized(b, x), pads=(1, 1, 1, 1), **options))
    b.output(b.op("AveragePool", quantized(b, x), pads=(1, 1, 0, 1), kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1))


def computed_c_before_a_quantization(b: GraphBuilder) -> None:
    x, c = quantized(b, image(b, 3, 8)), image(b, 3, 5, name="c")
    y = b.gemm(x, byte_weights(b, 8, 5), b.op("Relu", c), beta=0.5)
    b.output(b.quantize(y, SCALE, ZERO))


def row_of_an_image_is_no_bias(b: GraphBuilder) -> None:
    x = quantized(b, image(b, 1, 6, 5, 6))
    y = b.op("Add", weights(6, scale=1.0), b.conv(x, byte_weights(b, 6, 6, 1, 1)))
    b.output(b.quantize(y, SCALE, ZERO))


def matrix_times_vector(b: GraphBuilder) -> None:
    x = image(b, 2, 5, 8)
    b.output(b.op("Add", b.matmul(x, weights(8)), weights(5, seed=2)))
    b.output(b.op("Mul", b.matmul(x, b.op("Relu", image(b, 8, name="v"))), weights(5, seed=2)))
    b.output(b.matmul(b.op("Relu", image(b, 8, name="w")), weights(8, seed=3)))


def transposed_behind_a_product(b: GraphBuilder) -> None:
    y = b.matmul(image(b, 3, 4, 8), weights(8, 5))
    b.output(b.op("Relu", b.op("Transpose", y, perm=(1, 0, 2))))


def repeated_rows_as_second_factor(b: GraphBuilder) -> None:
    w = b.op("Expand", b.op("Relu", image(b, 1, 16, name="w")), np.array([8, 16]))
    b.output(b.matmul(image(b, 3, 8), w))
    b.output(b.matmul(image(b, 3, 1, name="u"), b.op("Neg", image(b, 1, 7, name="v"))))


def functions_of_libm_behind_layers(b: GraphBuilder) -> None:
    x = image(b, 1, 4, 6, 6)
    y = b.conv(x, weights(5, 4, 3, 3))
    b.output(b.op("Softplus", y), b.op("Sin", b.op("MaxPool", x, kernel_shape=(2, 2))))
    b.output(b.op("Log", b.op("Softmax", x, axis=1)))


def one_value_for_many_readers(b: GraphBuilder) -> None:
    x = image(b, 1, 5, 6, 6)
    y = b.op("Relu", x)
    b.output(y, b.conv(y, weights(4, 5, 3, 3), pads=(1, 1, 1, 1)), b.conv(y, weights(4, 5, 3, 3), pads=(2, 0, 0, 3)))
    b.output(b.op("Concat", y, y, axis=1), b.op("Add", y, y), b.op("Identity", y), b.op("Identity", x))


def bytes_for_many_readers(b: GraphBuilder) -> None:
    q = b.quantize(image(b, 1, 5, 6, 6), SCALE, ZERO)
    x = b.dequantize(q, SCALE, ZERO)
    b.output(q, b.quantize(b.conv(x, byte_weights(b, 4, 5, 3, 3), pads=(1, 1, 1, 1)), SCALE, ZERO))
    b.output(b.quantize(b.conv(x, byte_weights(b, 5, 1, 3, 3), pads=(2, 0, 0, 3), group=5), SCALE, ZERO))
    b.output(b.op("Exp", b.op("Min", x, np.float32(1.0))), b.op("Identity", q), b.op("Cast", q, to=1))


def sign_flips_and_early_readers(b: GraphBuilder) -> None:
    q = b.input("q", "int8", (5, 16))
    x = b.dequantize(q, SCALE, np.int8(3))
    first = b.op("Reshape", x, np.array([5, 16, 1, 1]))
    pooled = b.op("MaxPool", first, kernel_shape=(1, 1))
    b.output(b.gemm(x, byte_weights(b, 16, 4)), pooled, b.op("Identity", q))


def slices_backwards(b: GraphBuilder) -> None:
    x = image(b, 3, 5, 8)
    back = b.op("Slice", x, np.array([-1, -1]), np.array([-9, -99]), np.array([1, 2]), np.array([-2, -1]))
    b.output(back, b.op("ReduceSum", back, np.array([1])), b.matmul(back, weights(8, 3)))
    b.output(b.op("Softmax", back, axis=1), b.conv(back, weights(4, 3, 3)))


def scalars(b: GraphBuilder) -> None:
    x = b.input("x", "float32", ())
    b.output(b.op("Mul", x, np.float32(2.0)), b.op("Add", x, weights(2, 3)), b.op("ReduceSum", weights(4), keepdims=0))
    b.output(b.op("ReduceMax", image(b, 3, 4, name="y"), keepdims=0), b.op("Identity", np.float32(3.0)))


def empty_tensors(b: GraphBuilder) -> None:
    x = image(b, 2, 0, 3)
    b.output(b.op("Relu", x), b.op("Reshape", x, np.array([0, 3, 2]), allowzero=1))
    b.output(b.op("ReduceSum", x, np.array([1])), b.op("Concat", x, weights(2, 4, 3), axis=1))
    b.output(b.op("Add", b.matmul(image(b, 2, 0, name="y"), weights(0, 4)), weights(4)))


def bounds_of_large_integers(b: GraphBuilder) -> None:
    x = b.input("x", "int64", (5,))
    b.output(b.op("Clip", x, np.int64(-2)), b.op("Clip", x, None, np.int64(2)), b.op("Max", x, np.int64(2**53 + 1)))


def wide_rows(b: GraphBuilder) -> None:
    b.output(b.op("Softmax", image(b, 2, 20000)))


def leaves_unread_outputs_out(b: GraphBuilder) -> None:
    x = image(b, 3, 1, 4)
    values = b.op("LSTM", x, weights(1, 20, 4), weights(1, 20, 5), hidden_size=5, outputs=3)
    b.output(values[1], b.op("TopK", image(b, 2, 9, name="y"), np.array([3]), outputs=2)[1])


CASES: list[Callable[[GraphBuilder], None]] = [
    average_over_padding,
    bounds_of_large_integers,
    bytes_for_many_readers,
    computed_c_before_a_quantization,
    empty_tensors,
    functions_of_libm_behind_layers,
    leaves_unread_outputs_out,
    matrix_times_vector,
    one_value_for_many_readers,
    repeated_rows_as_second_factor,
    row_of_an_image_is_no_bias,
    scalars,
    sign_flips_and_early_readers,
    slices_backwards,
    transposed_behind_a_product,
    wide_rows,
]


@pytest.mark.parametrize("fill", CASES, ids=lambda f: f.__name__)
def test_as_onnxruntime(fill: Callable[[GraphBuilder], None], native: Lowering) -> None:
    b = GraphBuilder()
    fill(b)
    model = b.build()
    rng = np.random.default_rng(5)
    feeds = []
    for value in model.graph.inputs:
        shape, dtype = value.static_shape(), value.tensor.dtype.numpy
        data = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(-9, 10, shape)
        feeds.append(np.asarray(data).astype(dtype))
    wanted = Oracle(model).run(dict(zip((v.name for v in model.graph.inputs), feeds, strict=True)))
    is_quantized = any(n.is_op("QuantizeLinear") for n in model.graph.nodes)
    difference = quantized_difference if is_quantized else float_difference
    for value, result in zip(model.graph.outputs, native.run(model, feeds), strict=True):
        assert not difference(result, wanted[value.name]), f"{value.name}: {difference(result, wanted[value.name])}"


def test_every_unsupported_node_is_named(native: Lowering) -> None:
    b = GraphBuilder()
    x = b.input("x", "float32", (4,))
    y = b.op("Bernoulli", b.op("RandomNormalLike", x, name="noise"), name="toss")
    b.output(y)
    with pytest.raises(UnsupportedError, match=r"(?s)2 operator.*noise.*random.*toss.*random"):
        native.build(b.build())


def test_a_string_input_is_refused(native: Lowering) -> None:
    b = GraphBuilder()
    b.output(b.op("Identity", b.input("names", "string", (4,))))
    with pytest.raises(UnsupportedError, match="'names': strings"):
        native.build(b.build())
