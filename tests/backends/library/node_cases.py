"""The node tests of the ONNX standard, compiled and run in this process."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
from library_harness import run_model

from irc.errors import UnsupportedError


@lru_cache(maxsize=1)
def cases() -> dict[str, object]:
    """Node tests by name (onnx.backend.test; models with inputs and expected outputs)."""
    import onnx.backend.test.loader as loader

    return {c.name: c for c in loader.load_model_tests(kind="node")}


def as_array(data: object) -> np.ndarray:
    """Raises UnsupportedError for sequences, optionals and maps."""
    if isinstance(data, onnx.TensorProto):
        return onnx.numpy_helper.to_array(data)
    if not isinstance(data, (np.ndarray, np.generic, int, float, bool)):
        raise UnsupportedError("only tensors are compiled")
    return np.asarray(data)


def prepared(case: object) -> tuple[onnx.ModelProto, list[np.ndarray], list[np.ndarray]]:
    """Model, inputs and expected outputs. Inputs that only shapes, axes and the like come from become initializers."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs, expected = (list(map(as_array, arrays)) for arrays in case.data_sets[0])
    feeds = []
    static = static_inputs(model)
    if any(not v.type.HasField("tensor_type") for v in (*model.graph.input, *model.graph.output)):
        raise UnsupportedError("only tensors are compiled")
    for info, array in zip(list(model.graph.input), inputs, strict=True):
        if info.name in static:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), info.name))
            model.graph.input.remove(info)
        else:
            feeds.append(np.asarray(array))
            del info.type.tensor_type.shape.dim[:]
            info.type.tensor_type.shape.SetInParent()
            for d in np.shape(array):
                info.type.tensor_type.shape.dim.add().dim_value = d
    return model, feeds, expected


STATIC = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4),
    "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,), "TopK": (1,), "OneHot": (1,), "CumSum": (1,), "CumProd": (1,),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "Upsample": (1,), "CenterCropPad": (1,), "Trilu": (1,),
    "NonMaxSuppression": (2, 3, 4), "AffineGrid": (1,), "DFT": (1, 2), "STFT": (1, 3), "Dropout": (1, 2),
    "ReduceMax": (1,), "ReduceMin": (1,), "ReduceSum": (1,), "ReduceMean": (1,), "ReduceProd": (1,), "ReduceL1": (1,),
    "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceSumSquare": (1,), "Compress": (1,),
    "HannWindow": (0,), "HammingWindow": (0,), "MelWeightMatrix": (0, 1, 2, 3, 4),
    "MaxUnpool": (2,), "Col2Im": (1, 2), "Loop": (0, 1), "If": (0,), "BlackmanWindow": (0,), "SplitToSequence": (1,),
}  # fmt: skip


def static_inputs(model: onnx.ModelProto) -> set[str]:
    """Inputs that have to be constants in a compiled model, as they decide shapes or are parameters of the operator."""
    found = set()
    for node in model.graph.node:
        for i in STATIC.get(node.op_type, ()):
            if i < len(node.input):
                found.add(node.input[i])
    return found


def check(case: object) -> None:
    """Raises AssertionError where the compiled node differs from the standard's expected outputs."""
    model, feeds, expected = prepared(case)
    got = run_model(model, feeds)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert str(g.dtype) == str(e.dtype)
        assert g.shape == e.shape
        # float16: two units in the last place, as sums run in float32 and are rounded once
        rtol = max(case.rtol, 2.0**-9) if e.dtype == np.float16 else case.rtol
        rtol = 2.0**-6 if str(e.dtype) == "bfloat16" else rtol  # two units: regions round once
        # the expected transforms were made in float32 and are off by as much where they should be zero
        atol = 1e-6 if case.name.startswith("test_dft") else case.atol
        np.testing.assert_allclose(widened(g), widened(e), rtol=rtol, atol=atol)


def operator(name: str) -> str:
    """The operator that a case is about: that of its only node, else the first of several."""
    return str(cases()[name].model.graph.node[0].op_type)


KNOWN_TYPES = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16}
"""TensorProto types that are compiled."""

DISPUTED = (
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
)
"""Made with scale * extent where the standard's text, and onnxruntime, take the length of the resized tensor."""

LEFT_OUT = (
    "test_scan_sum",
    "test_training_dropout",
    "test_batchnorm_example_training",
    "test_batchnorm_epsilon_training",
    *DISPUTED,
)


def lowered() -> list[str]:
    """The cases that have to compile: known element types, operators with a road, and nothing that is known to be
    refused (shapes that a case computes at run time, random masks, sums of batch statistics, Scan before opset 9)."""
    from irc.backends.tvm.library.supported import road

    return [
        name
        for name, case in cases().items()
        if not name.startswith(LEFT_OUT)
        and "expanded" not in name
        and all(road(node.op_type, node.domain) != "none" for node in case.model.graph.node)
        and all(_is_known(value) for value in (*case.model.graph.input, *case.model.graph.output))
    ]


def _is_known(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in KNOWN_TYPES


def widened(array: np.ndarray) -> np.ndarray:
    """numpy's comparisons do not know bfloat16."""
    return array.astype(np.float32) if str(array.dtype) == "bfloat16" else array
