"""Compile a model of a few nodes, link it, run it in this process; and the same by onnxruntime."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

import ml_dtypes  # noqa: F401  # makes numpy know bfloat16
import numpy as np
import onnx
from onnx import helper

from irc.backends.tvm.library.compile import compile_library
from irc.targets.target import Target

HOST = Target("test", "any x86-64 since 2013", "x86-64", "x86_64-linux-gnu", "haswell", vector_bytes=32, dot="pmaddwd")


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


class Const:
    """An operand that is an initializer."""

    def __init__(self, *values: object, dtype: str = "int64") -> None:
        self.array = np.asarray(values[0] if len(values) == 1 else values, dtype)


def one_node(op: str, operands: list, outputs: int = 1, opset: int = 22, **attributes: object) -> onnx.ModelProto:
    """A model of one node. Operands: arrays (graph inputs), `Const` (initializers), None (left out)."""
    names, inputs, constants = [], [], []
    for i, operand in enumerate(operands):
        names.append("" if operand is None else f"i{i}")
        if isinstance(operand, Const):
            constants.append(onnx.numpy_helper.from_array(operand.array, names[-1]))
        elif operand is not None:
            kind = helper.np_dtype_to_tensor_dtype(operand.dtype)
            inputs.append(helper.make_tensor_value_info(names[-1], kind, operand.shape))
    results = [onnx.ValueInfoProto(name=f"o{i}") for i in range(outputs)]
    node = helper.make_node(op, names, [r.name for r in results], **attributes)
    graph = helper.make_graph([node], "g", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def onnxruntime_results(model: onnx.ModelProto, feeds: list[np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: f for i, f in zip(session.get_inputs(), feeds, strict=True)})


def assert_as_onnxruntime(op: str, operands: list, *, rtol: float = 1e-4, atol: float = 1e-5, **kwargs: object) -> None:
    """The compiled node gives what onnxruntime gives. Tolerances: float sums in another order."""
    model = one_node(op, operands, **kwargs)
    feeds = [o for o in operands if o is not None and not isinstance(o, Const)]
    for got, wanted in zip(run_model(model, feeds), onnxruntime_results(model, feeds), strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if got.dtype.kind in "biu":
            np.testing.assert_array_equal(got, wanted)
        else:
            np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)
