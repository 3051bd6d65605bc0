"""Trains the model of this folder: a small convolutional network on scikit-learn's handwritten digits.

    pip install .[train]
    python examples/digits/train.py        # about half a minute on one core; rewrites the three files beside it

The digits are 1797 grey images of 8x8 pixels with values 0 to 16 (E. Alpaydin, C. Kaynak, UCI "Optical Recognition
of Handwritten Digits", CC BY 4.0). 540 of them are held out for `digits_eval.npz`; `digits_calibration.npz` is 128
of the others. The network goes to ONNX as it was trained, with its BatchNormalization nodes: folding them is the
compiler's work.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
SEED = 0
EPOCHS = 60
BATCH = 64
CALIBRATION_SAMPLES = 128


def data() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Training images [N,1,8,8] in 0..1 and labels, then the same of the held-out part."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    x, x_eval, y, y_eval = train_test_split(images, labels, test_size=540, random_state=SEED, stratify=labels)
    return x, y, x_eval, y_eval


def network() -> nn.Sequential:
    """Plain convolution, a depthwise separable one, pooling, another convolution, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def train(net: nn.Sequential, images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Adam with a cosine learning rate; each batch is shifted by up to one pixel."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH]
        for batch in order.split(BATCH):
            dy, dx = (int(v) for v in torch.randint(-1, 2, (2,)))
            loss = nn.functional.cross_entropy(net(torch.roll(x[batch], (dy, dx), (2, 3))), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def to_onnx(net: nn.Sequential) -> onnx.ModelProto:
    """The trained network, one ONNX node per layer; the batch extent stays symbolic."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, value: torch.Tensor) -> str:
        weights.append(numpy_helper.from_array(value.detach().numpy(), name))
        return name

    last = "image"
    for i, layer in enumerate(net):
        name = f"{type(layer).__name__.lower()}_{i}"
        out = "scores" if i == len(net) - 1 else f"{name}_out"
        inputs, attributes, op = [last], {}, ""
        if isinstance(layer, nn.Conv2d):
            op = "Conv"
            inputs.append(weight(f"{name}_weight", layer.weight))
            pad, k = int(layer.padding[0]), int(layer.kernel_size[0])
            attributes = {"group": layer.groups, "kernel_shape": [k, k], "pads": [pad] * 4}
        elif isinstance(layer, nn.BatchNorm2d):
            op = "BatchNormalization"
            parts = {"scale": layer.weight, "bias": layer.bias, "mean": layer.running_mean, "var": layer.running_var}
            inputs += [weight(f"{name}_{part}", value) for part, value in parts.items() if value is not None]
            attributes = {"epsilon": layer.eps}
        elif isinstance(layer, nn.ReLU):
            op = "Relu"
        elif isinstance(layer, nn.MaxPool2d):
            op, attributes = "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}
        elif isinstance(layer, nn.AvgPool2d):
            op = "GlobalAveragePool"  # the window is the whole image
        elif isinstance(layer, nn.Flatten):
            op = "Flatten"
        elif isinstance(layer, nn.Linear):
            op, attributes = "Gemm", {"transB": 1}
            inputs += [weight(f"{name}_weight", layer.weight), weight(f"{name}_bias", layer.bias)]
        else:
            raise TypeError(f"no ONNX form for {layer}")
        nodes.append(helper.make_node(op, inputs, [out], name=name, **attributes))
        last = out

    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    x, y, x_eval, y_eval = data()
    net = network()
    train(net, x, y)
    net.eval()
    with torch.no_grad():
        right = (net(torch.from_numpy(x_eval)).argmax(1).numpy() == y_eval).mean()
    onnx.save(to_onnx(net), HERE / "digits.onnx")
    np.savez_compressed(HERE / "digits_eval.npz", image=x_eval, labels=y_eval)
    n = CALIBRATION_SAMPLES
    np.savez_compressed(HERE / "digits_calibration.npz", image=x[:n], labels=y[:n])
    print(f"top-1 on {len(y_eval)} held-out digits: {right:.4f}")


if __name__ == "__main__":
    main()
