"""The lossless clean-up on real models: same results, and what should go is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pass_checks import ROUNDING, assert_same, count, random_feeds

from irc.frontend import default_batch, load_model
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.pipeline import Pipeline

# Folded weights are rounded once more, in up to 50 layers one after another.
DEEP = 5 * ROUNDING

REAL = {
    "ad01_fp32": {"MatMul": 10, "Add": 10, "Relu": 9},
    "ic_resnet8_fp32": {"Conv": 9, "Relu": 7, "Add": 4, "GlobalAveragePool": 1},
    "kws_dscnn_fp32": {"Conv": 9, "Relu": 9, "GlobalAveragePool": 1},
    "vww_mobilenet_v1_025_fp32": {"Conv": 27, "Relu": 27, "GlobalAveragePool": 1},
    "mobilenet_v1_0.75_224_fp32": {"Conv": 28, "Clip": 27, "Pad": 0},
    "resnet20_cifar10_fp32": {"Conv": 19, "Relu": 19, "Add": 9, "Slice": 2, "Pad": 2, "Gemm": 1, "Concat": 0},
    "resnet20_cifar10_fp32_bn": {"Conv": 19, "Relu": 19, "Add": 9, "Slice": 2, "Pad": 2, "Gemm": 1, "Shape": 0},
    "mnist_cntk": {"Conv": 2, "Relu": 2, "MaxPool": 2, "Reshape": 1, "MatMul": 1, "Add": 1},
    "ch_ppocr_mobile_v2.0_cls_infer": {"Conv": 53, "HardSwish": 18, "BatchNormalization": 0, "Shape": 0},
    "ad01_int8_qdq": {"MatMul": 10, "DequantizeLinear": 30, "QuantizeLinear": 10},
    "mobilenet_v2_1.0_224_quant_qdq": {"Conv": 53, "DequantizeLinear": 171, "QuantizeLinear": 65},
}

ZOO = {
    "mobilenet_v1": {"Conv": 27, "Clip": 27, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1},
    "resnet50": {"Conv": 53, "GlobalAveragePool": 1},
    "minilm6": {"Gelu": 6, "Erf": 0, "IsNaN": 0, "LayerNormalization": 13, "Softmax": 6},
    "vit_small": {"Gelu": 12, "Erf": 0, "IsNaN": 0, "Where": 0, "LayerNormalization": 25},
}


def _check(model: Model, expected: dict[str, int], feeds: dict[str, np.ndarray] | None = None) -> None:
    after = clone(model)
    Pipeline.parse("none").run(after)
    found = count(after)
    assert {k: found.get(k, 0) for k in expected} == expected
    assert_same(model, after, DEEP, feeds)
    assert not Pipeline.parse("none").run(after).changed


@pytest.mark.parametrize("name", REAL)
def test_real_model(name: str, data_dir: Path) -> None:
    model = load_model(data_dir / "models" / f"{name}.onnx")
    default_batch(model)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 48, 192)).astype(np.float32)}
    _check(model, REAL[name], feeds if name.startswith("ch_") else random_feeds(model))


def test_voice_model_with_branches(data_dir: Path) -> None:
    model = load_model(data_dir / "models" / "silero_vad_16k_op15.onnx")
    default_batch(model)
    rng = np.random.default_rng(0)
    feeds = {
        "input": rng.standard_normal((1, 576)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    _check(model, {"LSTM": 1, "Transpose": 0}, feeds)


def test_symbolic_batch_stays_symbolic(data_dir: Path) -> None:
    model = load_model(data_dir / "models" / "resnet20_cifar10_fp32_bn.onnx")
    feeds = {"input": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}
    _check(model, {"Conv": 19, "BatchNormalization": 0, "Shape": 0}, feeds)


@pytest.mark.parametrize("name", ZOO)
def test_zoo_model(name: str, zoo_dir: Path) -> None:
    _check(load_model(zoo_dir / f"{name}.onnx"), ZOO[name])
