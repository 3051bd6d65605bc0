"""Constant -> TensorProto, raw data in ONNX's little-endian packing."""

from __future__ import annotations

import numpy as np
import onnx

from irc.ir.types import Array, Constant, DType

_SIX_BITS = frozenset({DType.FLOAT6E2M3, DType.FLOAT6E3M2})


def tensor_header(constant: Constant, name: str = "") -> onnx.TensorProto:
    """Name, type and shape, without data."""
    return onnx.TensorProto(name=name, data_type=constant.dtype.onnx, dims=constant.shape)


def tensor_proto(constant: Constant, name: str = "") -> onnx.TensorProto:
    """The whole tensor; strings in `string_data`, all others as raw data."""
    tensor = tensor_header(constant, name)
    if constant.dtype is DType.STRING:
        items = constant.numpy().reshape(-1)
        tensor.string_data.extend(item if isinstance(item, bytes) else str(item).encode() for item in items)
    else:
        tensor.raw_data = raw_bytes(constant)
    return tensor


def raw_bytes(constant: Constant) -> bytes:
    """Data as ONNX raw data."""
    return bytes(raw_view(constant))


def raw_view(constant: Constant) -> memoryview:
    """The same without a copy where memory already holds it so."""
    data = np.ascontiguousarray(constant.numpy()).reshape(-1)
    bits = 6 if constant.dtype in _SIX_BITS else constant.dtype.bits
    if data.size == 0:
        return memoryview(b"")
    flat: Array = data.view(np.uint8)
    if bits < 8:
        flat = pack(flat, bits)
    return flat.data


def raw_size(constant: Constant) -> int:
    """Bytes of the raw data."""
    bits = 6 if constant.dtype in _SIX_BITS else constant.dtype.bits
    return (constant.size * bits + 7) // 8


def pack(codes: Array, bits: int) -> Array:
    """Low `bits` bits of each byte as a little-endian bit stream."""
    if bits in (2, 4):
        per = 8 // bits
        padded = np.zeros(-(-len(codes) // per) * per, np.uint8)
        padded[: len(codes)] = codes & np.uint8((1 << bits) - 1)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        out: Array = np.bitwise_or.reduce(padded.reshape(-1, per) << shifts, axis=1)
        return out
    stream = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little").reshape(-1)
    return np.packbits(stream, bitorder="little")
