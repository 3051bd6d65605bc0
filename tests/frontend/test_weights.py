"""Weights of every element type, in every field of TensorProto, in and out again."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from irc.errors import ModelError
from irc.export.tensors import raw_size, tensor_proto
from irc.frontend.external import WeightStore
from irc.frontend.tensors import constant
from irc.ir.types import Constant, DType

STORE = WeightStore()
NUMBERS = [d for d in DType if d is not DType.STRING]


def sample(dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Every bit pattern of narrow types, random bits of wide ones (without NaN, which has many patterns)."""
    rng = np.random.default_rng(dtype.onnx)
    size = int(np.prod(shape))
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.numpy.kind in "iufc" and dtype.numpy.isbuiltin == 1:
        return (rng.standard_normal(shape) * 100).astype(dtype.numpy)
    if dtype is DType.INT4 or dtype is DType.INT2:
        half = 1 << (dtype.bits - 1)
        return (np.arange(size) % (2 * half) - half).astype(np.int8).reshape(shape).astype(dtype.numpy)
    bits = 6 if dtype.name.startswith("FLOAT6") else min(dtype.bits, 8)
    if dtype is DType.BFLOAT16:
        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    return (np.arange(size) % (1 << bits)).astype(np.uint8).reshape(shape).view(dtype.numpy)


def equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda d: d.value)
@pytest.mark.parametrize("shape", [(3, 7), (5,), (), (0, 4)], ids=str)
def test_raw_data_agrees_with_onnx_both_ways(dtype: DType, shape: tuple[int, ...]) -> None:
    array = sample(dtype, shape)
    written = tensor_proto(Constant.of(array, dtype), "w")
    assert written.data_type == dtype.onnx
    assert len(written.raw_data) == raw_size(Constant.of(array, dtype))
    assert equal_bits(numpy_helper.to_array(written), array)
    theirs = numpy_helper.from_array(array, "w")
    assert equal_bits(constant(theirs, STORE, "m").numpy(), array)


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda d: d.value)
def test_typed_fields_agree_with_onnx(dtype: DType) -> None:
    array = sample(dtype, (3, 5))
    tensor = onnx.TensorProto(name="w", data_type=dtype.onnx, dims=(3, 5))
    field = getattr(tensor, helper.tensor_dtype_to_field(dtype.onnx))
    if dtype.numpy.kind == "c":
        field.extend(array.reshape(-1).view(np.float32 if dtype is DType.COMPLEX64 else np.float64).tolist())
    elif dtype is DType.BOOL:
        field.extend(array.reshape(-1).astype(int).tolist())
    elif dtype.numpy.kind in "iuf" and dtype.numpy.isbuiltin == 1 and dtype is not DType.FLOAT16:
        field.extend(array.reshape(-1).tolist())
    else:
        raw = np.frombuffer(tensor_proto(Constant.of(array, dtype)).raw_data, np.uint8)
        if dtype.name.startswith("FLOAT6"):
            raw = array.reshape(-1).view(np.uint8)
        field.extend((raw.view(np.uint16) if dtype.numpy.itemsize == 2 else raw).tolist())
    assert equal_bits(numpy_helper.to_array(tensor), array)
    assert equal_bits(constant(tensor, STORE, "m").numpy(), array)


def test_every_type_of_onnx_is_covered() -> None:
    known = {int(v) for v in TensorProto.DataType.values()} - {TensorProto.UNDEFINED}
    assert {d.onnx for d in DType} == known


def test_strings_and_bytes() -> None:
    tensor = onnx.TensorProto(name="s", data_type=TensorProto.STRING, dims=[3])
    tensor.string_data.extend([b"a", "é".encode(), b"\xff\xfe"])
    read = constant(tensor, STORE, "m")
    assert read.numpy().tolist() == ["a", "é", b"\xff\xfe"]
    assert tensor_proto(read, "s") == tensor


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8)), "expected 12 bytes"),
        (TensorProto(name="w", data_type=1, dims=[3], float_data=[1, 2]), "got 2 in float_data"),
        (TensorProto(name="w", data_type=99, dims=[1], raw_data=bytes(4)), "element type 99"),
        (TensorProto(name="w", data_type=1, dims=[-1], raw_data=bytes(4)), "negative extent"),
        (TensorProto(name="w", data_type=8, dims=[1], raw_data=bytes(4)), "strings cannot be raw"),
        (TensorProto(name="w", data_type=1, dims=[2**40], raw_data=bytes(4)), "does not fit the shape"),
    ],
)
def test_contradictions_name_the_weight(tensor: TensorProto, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        constant(tensor, STORE, "m.onnx")
    assert said in str(caught.value)
    assert "m.onnx: weight 'w'" in str(caught.value)
