"""Cases that the node tests of the standard leave out, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from library_harness import Const, assert_as_onnxruntime

R = np.random.default_rng(7)


def f(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32)


def ints(low: int, high: int, *shape: int, dtype: str = "int64") -> np.ndarray:
    return R.integers(low, high, shape).astype(dtype)


def floats(*values: float) -> Const:
    return Const(list(values), dtype="float32")


CASES = {
    "conv_groups": ("Conv", [f(1, 6, 9, 8), f(4, 3, 3, 2), f(4)], {"group": 2, "strides": [2, 1], "dilations": [1, 2]}),
    "conv_same_lower": ("Conv", [f(1, 2, 7, 7), f(3, 2, 4, 4)], {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "conv_tiled": ("Conv", [f(1, 5, 7, 30), f(12, 5, 3, 3), f(12)], {"pads": [1, 1, 1, 1]}),
    "conv_tiled_groups": ("Conv", [f(2, 8, 4, 33), f(20, 2, 1, 4)], {"group": 4, "strides": [1, 2]}),
    "conv_transpose_tiled": ("ConvTranspose", [f(1, 6, 5, 11), f(6, 4, 4, 4)], {"strides": [2, 2], "pads": [1] * 4}),
    "matmul_tiled": ("MatMul", [f(3, 10, 24), f(24, 48)], {}),
    "conv_same_gaps": ("Conv", [f(1, 2, 6, 9), f(3, 2, 1, 1)], {"auto_pad": "SAME_UPPER", "strides": [3, 3]}),
    "average_pool_same_gaps": (
        "AveragePool",
        [f(1, 2, 12, 9)],
        {"auto_pad": "SAME_LOWER", "strides": [4, 4], "kernel_shape": [1, 4]},
    ),
    "slice_back_from_before": (
        "Slice",
        [f(7, 6), Const(-10, -1), Const(-99, 2**31 - 1), Const(0, 1), Const(-2, -2)],
        {},
    ),
    "resize_align_fraction": (
        "Resize",
        [f(1, 2, 5, 8), None, floats(1, 1, 0.6, 1.7)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "resize_nearest_float32": (
        "Resize",
        [f(1, 2, 7, 11), None, floats(1, 1, 2.3, 1.7)],
        {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"},
    ),
    "resize_symmetric": (
        "Resize",
        [f(1, 2, 10, 5), None, floats(1, 1, 2.3, 0.75)],
        {"mode": "nearest", "coordinate_transformation_mode": "half_pixel_symmetric", "nearest_mode": "floor"},
    ),
    "conv_1d": ("Conv", [f(2, 3, 17), f(4, 3, 5), f(4)], {"pads": [3, 1]}),
    "conv_3d": ("Conv", [f(1, 2, 5, 6, 4), f(3, 2, 2, 3, 2)], {"pads": [1, 0, 1, 0, 1, 0]}),
    "conv_depthwise": ("Conv", [f(1, 8, 9, 9), f(8, 1, 3, 3), f(8)], {"group": 8, "pads": [1, 1, 1, 1]}),
    "conv_transpose_groups": (
        "ConvTranspose",
        [f(1, 4, 5, 6), f(4, 3, 3, 4), f(6)],
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 2]},
    ),
    "conv_transpose_dilated": (
        "ConvTranspose",
        [f(2, 3, 5, 4), f(3, 2, 3, 2)],
        {"strides": [3, 2], "dilations": [2, 3], "pads": [2, 1, 0, 1]},
    ),
    "conv_transpose_shape": ("ConvTranspose", [f(1, 2, 4), f(2, 1, 3)], {"strides": [2], "output_shape": [8]}),
    "conv_transpose_upper": (
        "ConvTranspose",
        [f(1, 2, 4), f(2, 1, 4)],
        {"strides": [2], "output_shape": [7], "auto_pad": "SAME_UPPER"},
    ),
    "conv_transpose_longer": ("ConvTranspose", [f(1, 2, 4), f(2, 1, 3)], {"strides": [2], "output_shape": [10]}),
    "conv_transpose_stride_over_kernel": ("ConvTranspose", [f(1, 2, 4, 3), f(2, 2, 2, 2)], {"strides": [3, 4]}),
    "max_pool_ceil": (
        "MaxPool",
        [f(1, 2, 9, 10)],
        {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1, "pads": [1, 0, 1, 1]},
    ),
    "max_pool_dilated": ("MaxPool", [f(1, 2, 12, 9)], {"kernel_shape": [3, 2], "dilations": [2, 3]}),
    "max_pool_indices": (
        "MaxPool",
        [f(2, 2, 6, 7)],
        {"kernel_shape": [2, 3], "strides": [2, 1], "outputs": 2, "pads": [1, 1, 0, 1]},
    ),
    "max_pool_uint8": ("MaxPool", [ints(0, 255, 1, 1, 6, 6, dtype="uint8")], {"kernel_shape": [2, 2]}),
    "average_pool_ceil": (
        "AveragePool",
        [f(1, 2, 9, 10)],
        {"kernel_shape": [3, 4], "strides": [2, 3], "ceil_mode": 1, "pads": [1, 0, 1, 2]},
    ),
    "average_pool_with_pad": (
        "AveragePool",
        [f(1, 2, 9, 10)],
        {"kernel_shape": [3, 4], "strides": [2, 3], "count_include_pad": 1, "pads": [1, 0, 1, 2]},
    ),
    "lp_pool": ("LpPool", [f(1, 2, 8, 7)], {"kernel_shape": [3, 2], "p": 3, "strides": [2, 2]}),
    "resize_linear_down": ("Resize", [f(1, 2, 9, 11), None, floats(1, 1, 0.6, 0.45)], {"mode": "linear"}),
    "resize_align": (
        "Resize",
        [f(1, 2, 5, 7), None, None, Const(1, 2, 11, 4)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "resize_cubic": (
        "Resize",
        [f(1, 1, 6, 7), None, None, Const(1, 1, 9, 13)],
        {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    ),
    "resize_antialias": (
        "Resize",
        [f(1, 2, 16, 13), None, floats(1, 1, 0.4, 0.55)],
        {"mode": "linear", "antialias": 1},
    ),
    "resize_nearest_ceil": (
        "Resize",
        [f(1, 2, 6, 7), None, floats(1, 1, 1.7, 0.8)],
        {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"},
    ),
    "resize_pytorch": (
        "Resize",
        [f(1, 2, 6, 7), None, None, Const(1, 2, 1, 14)],
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    ),
    "reduce_middle": ("ReduceMax", [f(3, 17, 5), Const([1])], {"keepdims": 0}),
    "reduce_first_last": ("ReduceSum", [f(7, 3, 50), Const(0, -1)], {}),
    "reduce_mean_long": ("ReduceMean", [f(3, 4, 133), Const([2])], {"keepdims": 0}),
    "reduce_all": ("ReduceMean", [f(3, 4, 133)], {"keepdims": 0}),
    "reduce_int": ("ReduceProd", [ints(-3, 4, 3, 5, 6, dtype="int32"), Const(1, 2)], {}),
    "reduce_l2": ("ReduceL2", [f(3, 5, 40), Const([2])], {"keepdims": 0}),
    "argmax_last": ("ArgMax", [ints(0, 4, 5, 9).astype(np.float32)], {"axis": 1, "select_last_index": 1}),
    "argmin_first": ("ArgMin", [ints(0, 4, 5, 9).astype(np.float32)], {"axis": -2, "keepdims": 0}),
    "softmax_middle": ("Softmax", [f(3, 35, 6)], {"axis": 1}),
    "softmax_long": ("LogSoftmax", [f(3, 301) * 30], {}),
    "pad_reflect": ("Pad", [f(1, 2, 5, 6), Const(0, 0, 3, 2, 0, 0, 4, 5)], {"mode": "reflect"}),
    "pad_edge": ("Pad", [f(2, 5, 6), Const(1, 3, 2, 0, 4, 5)], {"mode": "edge"}),
    "pad_crop": ("Pad", [f(6, 7), Const(-2, 1, 3, -3), floats(2.5)], {}),
    "pad_wrap": ("Pad", [f(5, 6), Const(3, 0, 4, 6)], {"mode": "wrap"}),
    "slice_back": ("Slice", [f(8, 9, 4), Const(-1, 7), Const(-9, 0), Const(0, 1), Const(-3, -2)], {}),
    "gather_negative": ("Gather", [f(5, 6, 3), ints(-6, 6, 2, 4)], {"axis": -2}),
    "gather_nd_batch": ("GatherND", [f(2, 4, 5, 3), ints(-4, 4, 2, 6, 1)], {"batch_dims": 1}),
    "scatter_elements_add": (
        "ScatterElements",
        [f(5, 6), ints(-5, 5, 7, 4), f(7, 4)],
        {"axis": 0, "reduction": "add"},
    ),
    "scatter_nd_rank1": ("ScatterND", [f(9), ints(0, 9, 4, 1), f(4)], {"reduction": "mul"}),
    "one_hot": ("OneHot", [ints(-7, 7, 3, 4), Const([5]), floats(0.5, 2.0)], {"axis": 1}),
    "top_k_smallest": ("TopK", [f(3, 20, 2), Const([6])], {"axis": 1, "largest": 0, "outputs": 2}),
    "top_k_ties": ("TopK", [ints(0, 5, 4, 30).astype(np.float32), Const([9])], {"outputs": 2}),
    "top_k_all": ("TopK", [f(4, 30), Const([30])], {"outputs": 2}),
    "cumsum_both": ("CumSum", [f(3, 7, 4), Const(1)], {"exclusive": 1, "reverse": 1}),
    "mod_negative": ("Mod", [ints(-20, 20, 5, 6, dtype="int32"), ints(1, 9, 6, dtype="int32")], {}),
    "mod_float": ("Mod", [f(5, 6) * 5, f(6)], {"fmod": 1}),
    "div_int": ("Div", [ints(-20, 20, 5, 6), ints(1, 9, 6)], {}),
    "pow_float_int": ("Pow", [np.abs(f(4, 5)), ints(-2, 4, 5)], {}),
    "where_broadcast": ("Where", [ints(0, 2, 4, 1, dtype="bool"), f(4, 5), f(5)], {}),
    "max_three": ("Max", [f(4, 5), f(5), f(4, 1)], {}),
    "max_nan": ("Max", [np.array([1, np.nan, 3], np.float32), np.array([2, 2, np.nan], np.float32)], {}),
    "clip_low": ("Clip", [f(4, 5), floats(-0.3)], {}),
    "round_even": ("Round", [np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1e9], np.float32)], {}),
    "cast_down": ("Cast", [np.array([-1.9, 0.4, 255.9, 3.0], np.float32)], {"to": 6}),
    "cast_bool": ("Cast", [np.array([0.0, -0.0, 0.3, np.nan], np.float32)], {"to": 9}),
    "einsum_attention": ("Einsum", [f(2, 3, 5, 4), f(2, 3, 6, 4)], {"equation": "bhid,bhjd->bhij"}),
    "einsum_diagonal": ("Einsum", [f(4, 4, 3)], {"equation": "iij->j"}),
    "einsum_outer": ("Einsum", [f(4), f(3)], {"equation": "i,j"}),
    "matmul_broadcast": ("MatMul", [f(2, 1, 4, 5), f(3, 5, 6)], {}),
    "matmul_vector": ("MatMul", [f(5), f(3, 5, 6)], {}),
    "matmul_vector_right": ("MatMul", [f(3, 4, 5), f(5)], {}),
    "gemm_transposed": ("Gemm", [f(5, 4), f(6, 5), f(6)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    "layer_norm": ("LayerNormalization", [f(2, 5, 37), f(37), f(37)], {"axis": -1, "epsilon": 1e-3}),
    "group_norm": ("GroupNormalization", [f(2, 6, 5, 4), f(6), f(6)], {"num_groups": 3}),
    "instance_norm": ("InstanceNormalization", [f(2, 3, 5, 7), f(3), f(3)], {}),
    "batch_norm": ("BatchNormalization", [f(2, 3, 5), f(3), f(3), f(3), np.abs(f(3))], {}),
    "lrn": ("LRN", [f(2, 7, 3, 4)], {"size": 5, "alpha": 0.02, "beta": 0.6, "bias": 1.5}),
    "lp_normalization": ("LpNormalization", [f(3, 7)], {"p": 1, "axis": 0}),
    "depth_to_space": ("DepthToSpace", [f(2, 12, 3, 4)], {"blocksize": 2, "mode": "CRD"}),
    "quantize_axis": (
        "QuantizeLinear",
        [f(3, 4, 5) * 9, np.array([0.1, 0.02, 0.3, 0.05], np.float32), np.array([3, -5, 0, 100], np.int8)],
        {"axis": 1},
    ),
    "dequantize_axis": (
        "DequantizeLinear",
        [ints(-128, 127, 3, 4, dtype="int8"), np.array([0.1, 0.2, 0.3], np.float32), ints(-5, 5, 3, dtype="int8")],
        {"axis": 0},
    ),
    "dynamic_quantize": ("DynamicQuantizeLinear", [f(4, 9)], {"outputs": 3}),
    "matmul_integer": ("MatMulInteger", [ints(0, 255, 4, 6, dtype="uint8"), ints(-128, 127, 6, 5, dtype="int8")], {}),
    "grid_sample": (
        "GridSample",
        [f(1, 2, 5, 6), f(1, 4, 3, 2)],
        {"mode": "bilinear", "padding_mode": "border", "opset": 16},
    ),
    "grid_sample_reflect": (
        "GridSample",
        [f(1, 2, 5, 6), f(1, 4, 3, 2)],
        {"mode": "bilinear", "padding_mode": "reflection", "align_corners": 1, "opset": 16},
    ),
    "roi_align_max": (
        "RoiAlign",
        [f(1, 2, 9, 9), np.array([[0, 0, 5, 6], [1, 2, 8, 8]], np.float32), np.zeros(2, np.int64)],
        {"mode": "max", "output_height": 3, "output_width": 2, "sampling_ratio": 2, "opset": 16},
    ),
    "roi_align_avg": (
        "RoiAlign",
        [f(1, 2, 9, 9), np.array([[0, 0, 5, 6], [1, 2, 8, 8]], np.float32), np.zeros(2, np.int64)],
        {"output_height": 3, "output_width": 2, "spatial_scale": 0.7, "opset": 16},
    ),
    "max_roi_pool": (
        "MaxRoiPool",
        [f(1, 2, 9, 9), np.array([[0, 0, 0, 5, 6], [0, 1, 2, 8, 8]], np.float32)],
        {"pooled_shape": [3, 2], "spatial_scale": 0.9, "opset": 1},
    ),
    "gru_bidirectional": (
        "GRU",
        [f(9, 2, 20), f(2, 18, 20) / 4, f(2, 18, 6) / 2, f(2, 36), np.array([9, 4], np.int32), f(2, 2, 6)],
        {"hidden_size": 6, "direction": "bidirectional", "outputs": 2},
    ),
    "gru_before_reset": (
        "GRU",
        [f(9, 2, 20), f(1, 18, 20) / 4, f(1, 18, 6) / 2, f(1, 36)],
        {"hidden_size": 6, "linear_before_reset": 1, "clip": 0.5, "outputs": 2},
    ),
    "lstm_full": (
        "LSTM",
        [
            f(9, 2, 20), f(2, 24, 20) / 4, f(2, 24, 6) / 2, f(2, 48), np.array([9, 4], np.int32), f(2, 2, 6),
            f(2, 2, 6), f(2, 18),
        ],
        {"hidden_size": 6, "direction": "bidirectional", "outputs": 3},
    ),
    "lstm_reverse_empty": (
        "LSTM",
        [f(5, 2, 9), f(1, 24, 9) / 3, f(1, 24, 6) / 2, f(1, 48), np.array([5, 0], np.int32), f(1, 2, 6), f(1, 2, 6)],
        {"hidden_size": 6, "direction": "reverse", "outputs": 3},
    ),
    "lstm_activations": (
        "LSTM",
        [f(5, 1, 9), f(1, 24, 9) / 3, f(1, 24, 6) / 2],
        {"hidden_size": 6, "activations": ["HardSigmoid", "Softsign", "Relu"], "outputs": 3},
    ),
    "rnn_affine": (
        "RNN",
        [f(5, 2, 9), f(2, 6, 9) / 3, f(2, 6, 6) / 3, f(2, 12)],
        {
            "hidden_size": 6, "direction": "bidirectional", "activations": ["LeakyRelu", "Affine"],
            "activation_alpha": [0.1, 0.5], "activation_beta": [0.2], "outputs": 2,
        },
    ),
    "dft": ("DFT", [f(2, 12, 1), Const(10)], {"onesided": 1, "opset": 20}),
    "stft": ("STFT", [f(2, 40, 1), Const(8), f(16)], {"opset": 17}),
    "det": ("Det", [f(3, 5, 5)], {}),
    "trilu": ("Trilu", [f(2, 5, 7), Const(-2)], {"upper": 0}),
    "reverse_sequence": ("ReverseSequence", [f(5, 3, 2), np.array([5, 1, 3], np.int64)], {}),
    "gelu_tanh": ("Gelu", [f(4, 30)], {"approximate": "tanh", "opset": 20}),
    "mish": ("Mish", [f(4, 30) * 8], {}),
    "erf_far": ("Erf", [f(4, 30) * 8], {}),
    "elu": ("Elu", [f(4, 30)], {"alpha": 0.7}),
    "celu": ("Celu", [f(4, 30)], {"alpha": 0.7}),
    "hardmax": ("Hardmax", [ints(0, 3, 4, 6).astype(np.float32)], {"axis": 1}),
    "log_sum_exp": ("ReduceLogSumExp", [f(4, 50) * 60, Const([1])], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_same_as_onnxruntime(name: str) -> None:
    op, operands, options = CASES[name]
    assert_as_onnxruntime(op, operands, **options)
