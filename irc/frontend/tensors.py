"""TensorProto -> Constant, for every element type and every field that may hold the data.

Raw data is little-endian; 4-bit types are packed two to a byte and 2-bit types four to a byte, lowest bits first;
6-bit types are a packed bit stream. Typed fields: small integers, 8- and 16-bit floats lie in `int32_data`, complex
numbers as pairs. https://onnx.ai/onnx/repo-docs/IR.html, onnx.proto (TensorProto).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from irc.errors import ModelError
from irc.frontend.external import WeightStore
from irc.ir.types import Array, Constant, DType

_FIELD = {
    DType.FLOAT: "float_data",
    DType.COMPLEX64: "float_data",
    DType.DOUBLE: "double_data",
    DType.COMPLEX128: "double_data",
    DType.INT64: "int64_data",
    DType.UINT32: "uint64_data",
    DType.UINT64: "uint64_data",
    DType.STRING: "string_data",
}  # all others: int32_data
_PACKED = {DType.FLOAT6E2M3: 6, DType.FLOAT6E3M2: 6}


def packed_bits(dtype: DType) -> int:
    """Bits of one element in ONNX raw data."""
    return _PACKED.get(dtype, dtype.bits)


def dtype_of(number: int, where: str) -> DType:
    """The element type of this TensorProto.DataType number. Raises ModelError for one that is unknown."""
    try:
        return DType.from_onnx(number)
    except KeyError:
        raise ModelError(f"element type {number} is unknown to this version", where=where) from None


def constant(tensor: onnx.TensorProto, store: WeightStore, where: str) -> Constant:
    """The data of `tensor`; read from its file when first asked for. Raises ModelError when sizes contradict."""
    what = f"{where}: weight '{tensor.name}'" if tensor.name else where
    dtype = dtype_of(tensor.data_type, what)
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"negative extent in shape {list(shape)}", where=what)
    if tensor.HasField("segment"):
        raise ModelError("its data is segmented, which ONNX has given up", where=what, hint="exporting it again")
    size = 1
    for d in shape:
        size *= d
    region = store.region(tensor, where)
    if region is not None:
        _check_raw(dtype, size, region.length, what)
        place = region
        return Constant(dtype, shape, lambda: from_raw(place.view(), dtype, size).reshape(shape))
    if tensor.HasField("raw_data"):
        raw: bytes = tensor.raw_data
        _check_raw(dtype, size, len(raw), what)
        return Constant(dtype, shape, lambda: from_raw(raw, dtype, size).reshape(shape))
    data = _typed(tensor, dtype, size, what).reshape(shape)
    return Constant(dtype, shape, lambda: data)


def _check_raw(dtype: DType, size: int, length: int, what: str) -> None:
    if dtype is DType.STRING:
        raise ModelError("strings cannot be raw data", where=what)
    expected = (size * packed_bits(dtype) + 7) // 8
    if length != expected:
        raise ModelError(
            "the data does not fit the shape",
            where=what,
            expected=f"{expected} bytes for {size} elements of {dtype.value}",
            got=f"{length} bytes",
        )


def from_raw(raw: bytes | memoryview, dtype: DType, size: int) -> Array:
    """`size` elements of raw data as a flat array: a view, but for sub-byte types, which are unpacked."""
    if size == 0:
        return np.empty(0, dtype.numpy)
    bits = packed_bits(dtype)
    if bits == dtype.numpy.itemsize * 8:
        return np.frombuffer(raw, dtype.numpy, size)
    codes = unpack(np.frombuffer(raw, np.uint8), bits, size)
    if dtype in (DType.INT4, DType.INT2):
        sign = 1 << (bits - 1)
        codes = ((codes.astype(np.int8) ^ sign) - sign).astype(np.int8)
        return codes.astype(dtype.numpy)
    return codes.view(dtype.numpy)


def unpack(data: Array, bits: int, size: int) -> Array:
    """Codes of `bits` bits from a little-endian bit stream, each in a byte of its own."""
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (data[:, None] >> shifts) & np.uint8((1 << bits) - 1)
        return codes.reshape(-1)[:size].astype(np.uint8, copy=False)
    stream = np.unpackbits(data, bitorder="little")[: size * bits].reshape(size, bits)
    return np.packbits(stream, axis=1, bitorder="little").reshape(-1)


def _typed(tensor: onnx.TensorProto, dtype: DType, size: int, what: str) -> Array:
    field = _FIELD.get(dtype, "int32_data")
    items: Any = getattr(tensor, field)
    if dtype is DType.STRING:
        data = np.empty(len(items), object)
        data[:] = [_text(item) for item in items]
    elif field == "float_data":
        data = np.array(items, np.float32).view(dtype.numpy)
    elif field == "double_data":
        data = np.array(items, np.float64).view(dtype.numpy)
    elif field in ("int64_data", "uint64_data"):
        data = np.array(items, np.int64 if field == "int64_data" else np.uint64).astype(dtype.numpy)
    else:
        data = _from_int32(np.array(items, np.int32), dtype, size)
    if data.size != size:
        raise ModelError(
            "the data does not fit the shape", where=what, expected=f"{size} elements", got=f"{data.size} in {field}"
        )
    return data


def _from_int32(words: Array, dtype: DType, size: int) -> Array:
    if dtype in (DType.INT32, DType.INT16, DType.INT8, DType.UINT16, DType.UINT8, DType.BOOL):
        return words.astype(dtype.numpy)
    if packed_bits(dtype) < 8 and dtype not in _PACKED:
        packed = words.astype(np.uint8)
        count = size if len(packed) == (size * dtype.bits + 7) // 8 else len(packed) * 8 // dtype.bits
        return from_raw(packed.tobytes(), dtype, count)
    if dtype in _PACKED:
        return (words.astype(np.uint8) & np.uint8(0x3F)).view(dtype.numpy)
    width = np.uint16 if dtype.numpy.itemsize == 2 else np.uint8
    return words.astype(np.uint32).astype(width).view(dtype.numpy)


def _text(raw: bytes) -> str | bytes:
    """ONNX strings are UTF-8; what is not stays bytes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def dense(sparse: onnx.SparseTensorProto, store: WeightStore, where: str) -> Constant:
    """A SparseTensorProto (COO; indices linear [nnz] or per axis [nnz, rank]) as a dense constant."""
    values = constant(sparse.values, store, where)
    shape = tuple(sparse.dims)

    def load() -> Array:
        indices = constant(sparse.indices, store, where).numpy().astype(np.int64)
        full: Array = np.zeros(shape, values.dtype.numpy)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        full.reshape(-1)[flat] = values.numpy()
        return full

    return Constant(values.dtype, shape, load)
