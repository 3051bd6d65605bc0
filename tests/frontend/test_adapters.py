"""Each change of an operator between opsets: onnxruntime gives the same for the old node and the upgraded one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from irc.errors import ModelError
from irc.export import to_bytes, to_proto
from irc.export.opsets import CHANGED, OLDEST
from irc.frontend import from_proto
from irc.frontend.adapters import ADAPTERS

RNG = np.random.default_rng(7)
X = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
IMAGE = RNG.standard_normal((1, 1, 4, 6)).astype(np.float32)


@dataclass
class Case:
    op: str
    opset: int
    inputs: list[np.ndarray]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: dict[int, np.ndarray] = field(default_factory=dict)  # input position -> weight
    outputs: int = 1
    expect: str = ""  # an operator that the upgraded model must hold

    def __str__(self) -> str:
        shown = "_".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}-{self.opset}-{shown}".replace(" ", "")

    def model(self) -> onnx.ModelProto:
        names = [f"in{i}" for i in range(len(self.inputs) + len(self.constants))]
        given = [n for i, n in enumerate(names) if i not in self.constants]
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(given, self.inputs, strict=True)
        ]
        weights = [onnx.numpy_helper.from_array(a, names[i]) for i, a in self.constants.items()]
        outputs = [f"out{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name="it", **self.attributes)
        graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=n) for n in outputs], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7)
        return onnx.shape_inference.infer_shapes(model)  # the runtime wants typed outputs


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ROIS = f32(0.3, 0.2, 3.1, 2.6, 0, 0, 5, 3).reshape(2, 4)
GRID = RNG.uniform(-1.2, 1.2, (1, 3, 2, 2)).astype(np.float32)

CASES = [
    Case("BatchNormalization", 7, [X], {"epsilon": 1e-3}, {i: np.abs(f32(1, 2, 3)) + i for i in (1, 2, 3, 4)}),
    Case("BatchNormalization", 9, [X], {"momentum": 0.8}, {i: np.abs(f32(1, 2, 3)) + i for i in (1, 2, 3, 4)}),
    Case("Clip", 6, [X], {"min": -0.5, "max": 0.5}),
    Case("Clip", 6, [X], {"max": 0.25}),
    Case("Clip", 6, [X]),
    Case("DFT", 17, [X[..., None]], {"axis": 2}),
    Case("DFT", 17, [X[..., None]]),
    Case("Dropout", 7, [X], {"ratio": 0.3}),
    Case("Dropout", 10, [X], {"ratio": 0.3}),
    Case("GridSample", 16, [IMAGE, GRID], {"mode": "bilinear"}),
    Case("GridSample", 16, [IMAGE, GRID], {"mode": "bicubic"}),
    Case("GridSample", 16, [IMAGE, GRID], {"mode": "nearest"}),
    Case("GridSample", 16, [IMAGE, GRID]),
    *(
        Case(op, opset, [X], attributes)
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset, attributes in ((7, {}), (11, {"axis": 0}), (11, {"axis": 2}), (11, {"axis": -1}), (12, {"axis": 3}))
    ),
    Case("Softmax", 11, [X[:, :, :1, :1]], {"axis": 1}),
    Case("Pad", 2, [IMAGE], {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 1.5}),
    Case("Pad", 10, [IMAGE], {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "mode": "reflect"}),
    *(Case(f"Reduce{kind}", 11, [np.abs(X) + 1], {"axes": [1, -1]}) for kind in ("Sum", "Mean", "Max", "L2", "Prod")),
    Case("ReduceSum", 11, [X], {"keepdims": 0}),
    Case("ReduceLogSumExp", 13, [X], {"axes": [0], "keepdims": 0}),
    Case("ReduceMax", 13, [X]),
    Case("Resize", 10, [IMAGE], {"mode": "nearest"}, {1: f32(1, 1, 2, 3)}),
    Case("Resize", 10, [IMAGE], {"mode": "nearest"}, {1: f32(1, 1, 1.5, 1.3)}),
    Case("Resize", 10, [IMAGE], {"mode": "nearest"}, {1: f32(1, 1, 0.5, 0.6)}),
    Case("Resize", 10, [IMAGE], {"mode": "linear"}, {1: f32(1, 1, 2, 1.5)}),
    Case("Resize", 10, [IMAGE], {"mode": "linear"}, {1: f32(1, 1, 0.5, 0.6)}),
    Case(
        "Resize",
        11,
        [IMAGE],
        {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"},
        {1: f32(), 2: f32(1, 1, 1.6, 0.7)},
    ),
    Case("Resize", 11, [IMAGE], {"mode": "cubic", "cubic_coeff_a": -0.5}, {1: f32(), 2: f32(1, 1, 2, 2)}),
    Case("Resize", 12, [IMAGE], {"mode": "linear"}, {1: f32(), 2: f32(1, 1, 2, 2)}),
    Case("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 3.0]}),
    Case("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}),
    Case("Upsample", 9, [IMAGE], {"mode": "nearest"}, {1: f32(1, 1, 2.5, 2)}),
    Case("Upsample", 9, [IMAGE], {"mode": "linear"}, {1: f32(1, 1, 2, 2)}),
    Case("RoiAlign", 10, [IMAGE, ROIS, i64(0, 0)], {"output_height": 2, "output_width": 3, "sampling_ratio": 2}),
    Case("RoiAlign", 16, [IMAGE, ROIS, i64(0, 0)], {"output_height": 2, "output_width": 3, "sampling_ratio": 2}),
    Case("Scatter", 9, [X[0, 0], i64(1, 0).reshape(1, 2), f32(8, 9).reshape(1, 2)], {"axis": 1}),
    Case("Slice", 9, [X], {"starts": [1, -3], "ends": [2, 1000], "axes": [1, 3]}),
    Case("Slice", 1, [X], {"starts": [1, 1], "ends": [2, 3]}),
    Case("Split", 11, [X], {"axis": 3, "split": [1, 4]}, outputs=2),
    Case("Split", 11, [X], {"axis": 2}, outputs=2),
    Case("Split", 13, [X], {"axis": 2}, outputs=4),
    Case("Squeeze", 11, [IMAGE], {"axes": [0, -3]}),
    Case("Squeeze", 11, [IMAGE]),
    Case("Unsqueeze", 11, [X], {"axes": [0, -1]}),
    Case("TopK", 9, [X], {"k": 2, "axis": 2}, outputs=2),
    Case("TopK", 10, [X], {"axis": 2}, {1: i64(2)}, outputs=2),
    Case("Cast", 9, [X], {"to": onnx.TensorProto.INT32}),
    Case("MaxPool", 8, [X], {"kernel_shape": [2, 2], "storage_order": 1}, outputs=2),
    Case("AveragePool", 7, [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("Gemm", 7, [X[0, 0], X[0, 1].T.copy(), f32(1, 2, 3, 4)], {"alpha": 0.5}),
    Case("DequantizeLinear", 10, [np.arange(6, dtype=np.int8)], {}, {1: np.float32(0.5), 2: np.int8(2)}),
    Case("LSTM", 7, [X[0]], {"hidden_size": 2}, {1: np.ones((1, 8, 5), np.float32), 2: np.ones((1, 8, 2), np.float32)}),
    Case("ScatterND", 11, [X[0, 0], i64(1).reshape(1, 1), X[0, 0, :1]]),
    Case("Gather", 1, [X, i64(1, 0)], {"axis": 2}),
    Case("Shape", 1, [X]),
    Case("Reshape", 5, [X], {}, {1: i64(0, -1)}),
    Case("Add", 7, [X, X[0, 0]]),
    Case("Equal", 7, [i64(1, 2), i64(1, 3)]),
    Case("ArgMax", 11, [X], {"axis": -2, "keepdims": 0}),
    Case("CumSum", 11, [X], {"reverse": 1}, {1: np.int64(2)}),
    Case("OneHot", 9, [i64(0, 2)], {}, {1: np.int64(3), 2: f32(0, 1)}),
    Case("NonMaxSuppression", 10, [np.abs(X[:1, 0, :, :4]), np.abs(X[:1, :1, 0, :4])], {}, {2: np.int64(2)}),
]


def run(model: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_upgraded_node_computes_the_same(case: Case) -> None:
    old = case.model()
    upgraded = from_proto(old)
    new = to_proto(upgraded)
    onnx.checker.check_model(new, full_check=True)
    feeds = dict(zip([i.name for i in old.graph.input], case.inputs, strict=True))
    for before, after in zip(run(old.SerializeToString(), feeds), run(to_bytes(upgraded), feeds), strict=True):
        # The same kernels run; only a different order of additions (Softmax over a reshaped input) may round otherwise.
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)
        assert after.dtype == before.dtype


def refused(op: str, opset: int, inputs: list[np.ndarray], **attributes: Any) -> str:
    case = Case(op, opset, inputs, attributes, outputs=attributes.pop("outputs", 1))
    with pytest.raises(ModelError) as caught:
        from_proto(case.model())
    return str(caught.value)


def test_what_has_no_equivalent_is_refused_by_name() -> None:
    per_element = refused("BatchNormalization", 7, [X, *[np.ones((3, 4, 5), np.float32)] * 4], spatial=0)
    assert "node 'it' (BatchNormalization)" in per_element
    assert "spatial=0" in per_element
    assert "opset 7 to 26" in per_element
    assert "mask is read" in refused("Dropout", 7, [X], outputs=2)
    scales = Case("Resize", 10, [IMAGE, f32(1, 1, 2, 2)])
    with pytest.raises(ModelError, match="scales are not constant"):
        from_proto(scales.model())


def test_softmax_over_several_axes_keeps_the_name_of_the_output() -> None:
    model = from_proto(Case("Softmax", 11, [X], {"axis": 1}).model())
    assert [v.name for v in model.graph.outputs] == ["out0"]
    assert [n.op_type for n in model.graph.nodes] == ["Shape", "Flatten", "Softmax", "Reshape"]


def test_softmax_whose_other_axes_are_1_stays_one_node() -> None:
    model = from_proto(Case("Softmax", 11, [X[:, :, :1, :1]], {"axis": 1}).model())
    assert [n.op_type for n in model.graph.nodes] == ["Softmax"]


def test_adapters_are_known_operators_and_versions_ascend() -> None:
    for op, steps in ADAPTERS.items():
        assert any(s.name == op for s in onnx.defs.get_all_schemas_with_history()), op
        versions = [version for version, _ in steps]
        assert versions == sorted(versions), op


def test_export_knows_which_changes_are_real() -> None:
    """What irc.export takes for a change of meaning is what the adapters rewrite."""
    real = {op: steps[-1][0] for op, steps in ADAPTERS.items() if steps[-1][0] > OLDEST}
    assert real == CHANGED
