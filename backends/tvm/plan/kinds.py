"""Which kernel family computes an operator, decided by its type, attributes and shapes."""

from __future__ import annotations

from typing import Literal

from irc.backends.tvm.plan.translate import builder_of, quantization
from irc.backends.tvm.plan.window import all_inside_padding, two, window
from irc.backends.tvm.specs import ReduceKind
from irc.ir.graph import Node, Value
from irc.ir.types import DType

QUANTIZED = (DType.INT8, DType.UINT8, DType.INT16)
"""Types of data that kernels sum as integers."""

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
REDUCTIONS: dict[str, ReduceKind] = {
    "ReduceSum": "sum",
    "ReduceMean": "sum",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceProd": "prod",
    "ReduceSumSquare": "sum",
    "ReduceL1": "sum",
    "ReduceL2": "sum",
}
_WIDEST_ROW = 16384  # elements: row kernels keep one row on the stack


def kind_of(node: Node) -> str:
    """One of view, weights, concat, dequantize, linear, depthwise, transposed, pool, rows, reduce, resize,
    elementwise, recurrent, library."""
    if is_view(node):
        return "view"
    if node.is_op("DequantizeLinear", "Cast") and is_weight(node.output):
        return "weights"
    if node.is_op("DequantizeLinear") and builder_of(node) is not None:
        return "dequantize"
    if node.is_op("Concat") and node.output.dtype is not DType.STRING:
        return "concat"
    if node.is_op("Conv") and _is_conv(node):
        return "depthwise" if _is_depthwise(node) else "linear"
    if node.is_op("ConvTranspose") and _is_transposed(node):
        return "transposed"
    if node.is_op("Gemm", "MatMul") and _is_product(node):
        return "linear"
    if node.is_op("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool") and _is_pool(node):
        return "pool"
    if node.is_op("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization") and _is_rows(node):
        return "rows"
    if node.op_type in REDUCTIONS and node.domain == "" and _is_reduce(node):
        return "reduce"
    if node.is_op("Resize") and _is_resize(node):
        return "resize"
    if builder_of(node) is not None:
        return "elementwise"
    if _is_recurrent(node):
        return "recurrent"
    return "library"


def _constant(node: Node, index: int) -> bool:
    value = node.input(index)
    return value is None or value.is_constant


def is_view(node: Node) -> bool:
    """Operators that only rename, reorder or select elements by constants."""
    if node.domain != "" or any(v.shape is None or not v.shape.is_static for v in node.outputs):
        return False
    if node.op_type in ("Transpose", "Identity", "Expand", *_RESHAPES):
        return True
    if node.op_type == "Slice":
        return all(_constant(node, i) for i in range(1, 5))
    if node.op_type == "Split":
        return True
    if node.op_type == "Gather":  # one fixed index
        index = node.need(1)
        return index.is_constant and index.numpy().size == 1
    return False


def dequantized(value: Value) -> tuple[Value, float, int] | None:
    """(integers, scale, zero point) when `value` is a per-tensor dequantization of 8-bit or int16 data."""
    node = value.producer
    if node is None or not node.is_op("DequantizeLinear"):
        return None
    parameters = quantization(node)
    source = node.need(0)
    if parameters is None or source.dtype not in QUANTIZED:
        return None
    return source, *parameters


def stored_half(value: Value) -> Literal["float16", "bfloat16"] | None:
    """How `value`, float32 numbers that a Cast makes of a constant, is stored; None for any other value."""
    node = value.producer
    if node is None or not node.is_op("Cast") or not node.need(0).is_constant or value.dtype is not DType.FLOAT:
        return None
    if node.need(0).dtype is DType.BFLOAT16:
        return "bfloat16"
    return "float16" if node.need(0).dtype is DType.FLOAT16 else None


def is_weight(value: Value) -> bool:
    """A constant, the dequantization of one, or one stored in 16 bits."""
    if value.is_constant or stored_half(value) is not None:
        return True
    node = value.producer
    return node is not None and node.is_op("DequantizeLinear") and all(v is None or v.is_constant for v in node.inputs)


def _is_conv(node: Node) -> bool:
    x, w = node.need(0), node.need(1)
    bias = node.input(2)
    return (
        x.dtype is DType.FLOAT
        and x.shape is not None
        and x.shape.rank in (3, 4)
        and is_weight(w)
        and (bias is None or is_weight(bias))
        and node.get_str("auto_pad", "NOTSET") in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    )


def _is_depthwise(node: Node) -> bool:
    groups = node.get_int("group", 1)
    x_shape, w_shape = node.need(0).static_shape(), node.need(1).static_shape()
    return groups > 1 and groups == x_shape[1] == w_shape[0]


def _is_transposed(node: Node) -> bool:
    """Every phase of the stride has taps, and the padding is written out."""
    if not _is_conv(node) or node.get_str("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        return False
    spatial = node.need(1).static_shape()[2:]
    strides = node.get_ints("strides", (1,) * len(spatial))
    pads = node.get_ints("pads", (0,) * (2 * len(spatial)))
    dilated = any(d != 1 for d in node.get_ints("dilations", (1,) * len(spatial)))
    return not dilated and min(pads) >= 0 and all(s <= k for s, k in zip(strides, spatial, strict=True))


def _is_product(node: Node) -> bool:
    a, b = node.need(0), node.need(1)
    if a.dtype is not DType.FLOAT or a.shape is None or b.shape is None:
        return False
    if node.op_type == "Gemm":
        return True
    return a.shape.rank >= 1 and b.shape.rank >= 1


def _is_pool(node: Node) -> bool:
    x = node.need(0)
    if x.shape is None or x.shape.rank not in (3, 4) or len(node.outputs) > 1:
        return False
    if node.op_type == "MaxPool":
        return x.dtype in (DType.FLOAT, *QUANTIZED)
    if node.op_type == "AveragePool" and node.get_int("count_include_pad", 0):
        spatial, out = x.static_shape()[2:], node.output.static_shape()[2:]
        g = window(node, spatial, node.get_ints("kernel_shape"))
        if not all_inside_padding(g, two(spatial), two(out)):
            return False  # the last window's divisor is a number of its own
    return x.dtype is DType.FLOAT


_SAMPLED = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def _is_resize(node: Node) -> bool:
    """Only places of images with a vector of channels change, and where they come from is known."""
    x, out = node.need(0), node.output
    if x.shape is None or out.shape is None or not (x.shape.is_static and out.shape.is_static):
        return False
    shape, made = x.static_shape(), out.static_shape()
    nearest = node.get_str("mode", "nearest") == "nearest"
    if len(shape) not in (3, 4) or shape[:2] != made[:2] or shape[1] < 4 or 0 in (*shape, *made):
        return False
    if x.dtype is not DType.FLOAT and not (nearest and x.dtype in QUANTIZED):
        return False
    if node.get_str("coordinate_transformation_mode", "half_pixel") not in _SAMPLED or node.get_int("antialias", 0):
        return False
    stretched = node.get_str("keep_aspect_ratio_policy", "stretch") == "stretch" and not node.get_ints("axes")
    return stretched and _constant(node, 2) and _constant(node, 3)


def _is_rows(node: Node) -> bool:
    x = node.need(0)
    if x.dtype is not DType.FLOAT or x.shape is None or x.shape.rank == 0 or len(node.outputs) > 1:
        return False
    axis = node.get_int("axis", -1) % x.shape.rank
    if x.static_shape()[axis] > _WIDEST_ROW:
        return False
    return axis == x.shape.rank - 1 or node.op_type in ("Softmax", "LogSoftmax")


def _is_reduce(node: Node) -> bool:
    x = node.need(0)
    if x.shape is None or not _constant(node, 1):
        return False
    if node.op_type in ("ReduceMean", "ReduceL2", "ReduceL1", "ReduceSumSquare"):
        return x.dtype is DType.FLOAT
    return x.dtype in (DType.FLOAT, DType.INT32)


_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}
_RECURRENT = {"direction", "hidden_size", "linear_before_reset", "activations"}


def _is_recurrent(node: Node) -> bool:
    """Float32 with constant weights and the standard's activations; every sequence has all steps, no peepholes."""
    if node.op_type not in _ACTIVATIONS or node.domain != "" or node.get_int("layout", 0):
        return False
    if not set(node.attributes) <= _RECURRENT | {"layout"}:
        return False
    x, weights = node.need(0), [node.need(1), node.need(2), node.input(3)]
    if x.dtype is not DType.FLOAT or x.shape is None or not x.shape.is_static or 0 in x.static_shape():
        return False
    if any(v is not None and not is_weight(v) for v in weights) or any(node.input(i) is not None for i in (4, 7)):
        return False
    if node.input(6) is not None and node.input(5) is None:
        return False
    if node.op_type == "GRU" and not node.get_int("linear_before_reset", 0):
        return False
    count = 2 if node.get_str("direction", "forward") == "bidirectional" else 1
    named = node.attributes.get("activations")
    wanted = _ACTIVATIONS[node.op_type] * count
    return named is None or tuple(str(a).lower() for a in named) == wanted  # type: ignore[union-attr]  # a list of names
