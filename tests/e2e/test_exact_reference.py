"""Quantized networks against the exact meaning of their file: every node evaluated in float64.

onnxruntime computes QDQ models partly in float32, where sums that end on exact halves fall to either side; its own two
optimization levels differ from float64 in up to 2 % of ic's outputs. irc's integers have no such freedom, so the bound
here is tighter than any against onnxruntime.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import irc

Array = np.ndarray[Any, Any]

SHARE = 0.995
"""Of outputs within one step of the float64 result. What is left: float32 factors (24 bits) at rounding ties, which a
Softmax over the logits enlarges. Measured: 0.9995 or better."""


def _conv(x: Array, w: Array, bias: Array | None, a: dict[str, Any]) -> Array:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    (sh, sw), groups = a.get("strides", [1, 1]), a.get("group", 1)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = (x.shape[2] - w.shape[2]) // sh + 1, (x.shape[3] - w.shape[3]) // sw + 1
    n, outputs = x.shape[0], w.shape[0] // groups
    total = np.zeros((n, groups, outputs, height, width))
    split = x.reshape(n, groups, -1, *x.shape[2:])
    taps = w.reshape(groups, outputs, *w.shape[1:])
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            part = split[:, :, :, i : i + height * sh : sh, j : j + width * sw : sw][..., :height, :width]
            total += np.einsum("ngchw,goc->ngohw", part, taps[..., i, j], optimize=True)
    total = total.reshape(n, -1, height, width)
    return total if bias is None else total + bias.reshape(1, -1, 1, 1)


def _pool(x: Array, a: dict[str, Any]) -> Array:
    kh, kw = a["kernel_shape"]
    assert not any(a.get("pads", ())), "these models pool without padding"
    sh, sw = a.get("strides", [1, 1])
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(2, 3))[:, :, ::sh, ::sw]
    return np.asarray(windows.mean(axis=(-2, -1)))


def _dequantize(q: Array, scale: Array, zero: Array | None, axis: int) -> Array:
    shape = [1] * q.ndim
    if scale.size > 1:
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero = zero.reshape(shape) if zero is not None and zero.size > 1 else zero
    return np.asarray(
        (q.astype(np.float64) - (0 if zero is None else zero.astype(np.float64))) * scale.astype(np.float64)
    )


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def evaluate(path: Path, x: Array) -> Array:
    """The only output of a QDQ model for its only input, in float64 between the quantizations."""
    model = onnx.load(path)
    values: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    values[model.graph.input[0].name] = x
    for node in model.graph.node:
        a = {t.name: onnx.helper.get_attribute_value(t) for t in node.attribute}
        i = [values[name] if name else None for name in node.input]
        first = i[0]
        assert first is not None
        match node.op_type:
            case "DequantizeLinear":
                result = _dequantize(first, i[1], i[2] if len(i) > 2 else None, a.get("axis", 1))
            case "QuantizeLinear":
                low, high = np.iinfo(i[2].dtype).min, np.iinfo(i[2].dtype).max
                steps = np.rint(first / i[1].astype(np.float64)) + i[2]
                result = np.clip(steps, low, high).astype(i[2].dtype)
            case "Conv":
                result = _conv(first, i[1], i[2] if len(i) > 2 else None, a)
            case "AveragePool":
                result = _pool(first, a)
            case "Relu":
                result = np.maximum(first, 0)
            case "Add":
                result = first + i[1]
            case "MatMul":
                result = first @ i[1]
            case "Softmax":
                result = _softmax(first)
            case "Transpose":
                result = first.transpose(a["perm"])
            case "Reshape":
                result = first.reshape([first.shape[k] if d == 0 else int(d) for k, d in enumerate(i[1])])
            case other:
                raise NotImplementedError(f"{other} is in none of these models")
        values[node.output[0]] = np.asarray(result)
    return values[model.graph.output[0].name]


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("ic", "pretrainedResnet_quant_qdq.onnx"),
        ("kws", "kws_ref_model_qdq.onnx"),
        ("vww", "vww_96_int8_qdq.onnx"),
        ("ad", "ad01_int8_qdq.onnx"),
    ],
)
def test_integers_are_those_of_float64(
    task: str, file: str, data_dir: Path, tmp_path: Path, kernel_cache: Path
) -> None:
    spec = importlib.util.spec_from_file_location("irc_exact_data", data_dir / "load.py")
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    path = data_dir / "models" / file
    x = data.load(task)[0][:100]
    entry = onnx.load(path).graph
    reader = next(n for n in entry.node if n.op_type == "DequantizeLinear" and _comes_from_input(entry, n))
    constants = {t.name: numpy_helper.to_array(t) for t in entry.initializer}
    scale, zero = constants[reader.input[1]], constants[reader.input[2]]
    q = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
    irc.compile(path, output=tmp_path / "out", cache_dir=kernel_cache)
    net = irc.load(tmp_path / "out")
    got = np.concatenate([np.asarray(net(q[k : k + 1])) for k in range(len(q))])
    difference = np.abs(got.astype(int) - evaluate(path, q).astype(int))
    assert (difference <= 1).mean() >= SHARE


def _comes_from_input(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether the node reads the network's input, directly or behind operators that only move bytes."""
    makers = {output: n for n in graph.node for output in n.output}
    name = node.input[0]
    while name in makers and makers[name].op_type in ("Transpose", "Reshape"):
        name = makers[name].input[0]
    return bool(name == graph.input[0].name)
