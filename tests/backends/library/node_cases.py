"""The node tests of the ONNX standard, compiled and run in this process."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx

from irc.backends.tvm.library.compile import compile_library
from irc.errors import UnsupportedError
from irc.targets.target import Target

HOST = Target("test", "any x86-64 since 2013", "x86-64", "x86_64-linux-gnu", "haswell", vector_bytes=32, dot="pmaddwd")


@lru_cache(maxsize=1)
def cases() -> dict[str, object]:
    """Node tests by name (onnx.backend.test; models with inputs and expected outputs)."""
    import onnx.backend.test.loader as loader

    return {c.name: c for c in loader.load_model_tests(kind="node")}


def aligned(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def run_model(model: onnx.ModelProto, feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Compile `model`, link it, run it once. Memory around the outputs and the scratch is checked for overruns."""
    data, info = compile_library(model.SerializeToString(), HOST, "kernel")
    with tempfile.TemporaryDirectory() as folder:
        made, shared = Path(folder) / "k.o", Path(folder) / "k.so"
        made.write_bytes(data)
        subprocess.run(["gcc", "-shared", "-o", shared, made, "-lm"], check=True, capture_output=True)
        entry = ctypes.CDLL(str(shared)).kernel
        inputs = [np.asarray(f, order="C") for f in feeds]
        types = list(zip(info.dtypes, info.shapes, strict=True))
        assert [(str(a.dtype), a.shape) for a in inputs] == types[: info.n_inputs]
        outputs, guards = [], []
        for dtype, shape in types[info.n_inputs :]:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            memory = aligned(size + 64)
            memory[:] = 0xA5
            outputs.append(memory[:size].view(dtype).reshape(shape))
            guards.append(memory[size:])
        scratch = aligned(info.scratch_bytes + 64)
        scratch[:] = 0xA5
        guards.append(scratch[info.scratch_bytes :])
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*inputs, *outputs, scratch)]
        entry(*pointers, ctypes.c_int32(1), ctypes.c_int32(2))
        entry(*pointers, ctypes.c_int32(0), ctypes.c_int32(2))
        assert all((g == 0xA5).all() for g in guards), "memory beyond the buffers was written"
        return outputs


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
        np.testing.assert_allclose(g, e, rtol=rtol, atol=case.atol)
