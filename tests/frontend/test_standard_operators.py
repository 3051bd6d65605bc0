"""Every node test of the ONNX standard goes through import and export, and computes the same in onnxruntime."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from irc.errors import IrcError
from irc.export import to_bytes, to_proto
from irc.frontend import from_proto
from irc.ir.graph import Model

REFUSED = {
    r"(LinearAttention|CausalConvWithState|SwiGLU) changed in opset 2[78]": "new in opsets 27 and 28",
    r"changed in opset 28, .* attribute 'mode'": "SpaceToDepth has modes since opset 28",
    r"(takes \w+ only since opset 28|has unsupported type)": "element types that came with opset 27 or 28",
    r"Scan 8 runs over a batch": "Scan 8",
}
"""Messages of the only models that the importer may refuse."""

CHECKER_FAILS = {"test_mvn"}  # full_check of onnx 1.23 fails on every model with MeanVarianceNormalization


SUB_BYTE = {
    onnx.TensorProto.DataType.Value(name) for name in ("UINT4", "INT4", "UINT2", "INT2", "FLOAT4E2M1", "FLOAT6E2M3")
}


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of overflows that these cases are about
        from onnx.backend.test.case.node import collect_testcases

        return [case for case in collect_testcases(None) if case.model is not None]


def imported(proto: onnx.ModelProto) -> Model | str:
    """The model, or why it is refused."""
    try:
        return from_proto(proto)
    except IrcError as error:
        return str(error)


def test_import_export_and_checker(cases: list[Any]) -> None:
    assert len(cases) > 1500
    refused: Counter[str] = Counter()
    for case in cases:
        model = imported(case.model)
        if isinstance(model, str):
            reason = next((why for text, why in REFUSED.items() if re.search(text, model)), None)
            assert reason is not None, f"{case.name}: {model}"
            refused[reason] += 1
            continue
        proto = to_proto(model)
        onnx.checker.check_model(proto, full_check=case.name not in CHECKER_FAILS)
        assert [o.name for o in proto.graph.output] == [o.name for o in case.model.graph.output], case.name
        again = to_proto(from_proto(proto))
        assert again.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True), case.name
    assert set(refused) == set(REFUSED.values())
    assert sum(refused.values()) < 80


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return [array(v) for v in value] if isinstance(value, list) else value


def feed(value: Any) -> Any:
    """Types that numpy does not have go in as their bits."""
    value = array(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OUS" or value.dtype.isbuiltin == 1:
        return value
    if onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in SUB_BYTE:
        raise ValueError("numpy arrays of 2- and 4-bit elements cannot be fed")
    bits = value.view(np.uint16 if value.itemsize == 2 else np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def run(model: bytes, inputs: list[Any]) -> list[Any] | str:
    """Results, or why onnxruntime cannot run this."""
    try:
        loaded = session(model)
        return list(loaded.run(None, {i.name: feed(v) for i, v in zip(loaded.get_inputs(), inputs, strict=False)}))
    except Exception as error:
        return str(error)


def same(a: Any, b: Any, rtol: float) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y, rtol) for x, y in zip(a, b, strict=True))
    if not isinstance(a, np.ndarray):
        return bool(a == b)
    if a.dtype.isbuiltin != 1:
        a = a.view(np.uint16 if a.itemsize == 2 else np.uint8)  # as onnxruntime returns them
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=rtol, atol=rtol, equal_nan=True))
    return bool((a == b).all())


# onnxruntime has two kernels for these, chosen by opset, that sum in different order (ReduceLogSum from 1.32 on): the
# last bits differ between the opset of the case and the one we write. Each kernel repeats its own results exactly.
TWO_KERNELS = ("averagepool", "reduce_log_sum")


def test_same_results(cases: list[Any]) -> None:
    """Bit-equal where the same kernel runs, which is everywhere but in `TWO_KERNELS`."""
    ran = newly = 0
    for case in cases:
        model = imported(case.model)
        if isinstance(model, str):
            continue  # the test above says which may
        exported = to_bytes(model)
        inputs = case.data_sets[0][0] if case.data_sets else []
        before, after = run(case.model.SerializeToString(), inputs), run(exported, inputs)
        if isinstance(before, list):
            assert isinstance(after, list), f"{case.name}: {after}"
            rtol = 1e-6 if any(name in case.name for name in TWO_KERNELS) else 0.0
            assert same(before, after, rtol), case.name
            ran += 1
        elif isinstance(after, list):  # onnxruntime does not read the newest opset, but our export of it
            expected = [array(v) for v in case.data_sets[0][1]]
            random = case.name.startswith("test_bernoulli")
            assert random or same(expected, after, max(case.rtol, 1e-5)), case.name
            newly += 1
    assert ran > 1350
    assert ran + newly > 1490  # how many of them it reads as they are depends on onnxruntime's version
