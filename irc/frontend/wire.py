"""Read an ONNX file without reading its weights: a scan over the protobuf wire format.

Every `raw_data` of a TensorProto larger than `INLINE_BYTES` is left out of the bytes handed to the protobuf parser
and remembered as a slice of the (memory-mapped) file. So the parser, the function inliner and shape inference see a
small model however big its weights are, and a weight is read from disk when it is first asked for.

Wire format: https://protobuf.dev/programming-guides/encoding/. A message is a sequence of (tag, payload); the tag's
low three bits are the wire type, the rest is the field number. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

INLINE_BYTES = 4096
"""Tensors up to this size stay in the proto: shape inference reads values of small ones."""

SLOT_KEY = "irc.slot"
"""`external_data` key that stands for a slice of the model file itself (its value indexes the slices)."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> field number -> message of that field; only the paths that lead to a TensorProto
_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 10: "Tensor", 6: "Graph", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_RAW_DATA = 9


@dataclass(frozen=True)
class Slice:
    """Bytes [offset, offset + length) of the model file."""

    offset: int
    length: int


class WireError(ValueError):
    """The bytes are not a protobuf message, or end too early. `offset` says where."""

    def __init__(self, text: str, offset: int) -> None:
        super().__init__(text)
        self.offset = offset


def strip(data: memoryview) -> tuple[bytes, list[Slice]]:
    """The model's bytes without its big raw data, and where those are. Raises WireError."""
    slices: list[Slice] = []
    return b"".join(_message(data, 0, len(data), "Model", slices)), slices


def _message(data: memoryview, start: int, end: int, kind: str, slices: list[Slice]) -> Iterator[bytes]:
    if end - start <= INLINE_BYTES:  # nothing inside can be big
        yield bytes(data[start:end])
        return
    inner, at = _PATHS.get(kind, {}), start
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type != _BYTES:
            at = _skip(data, at, end, wire_type)
            yield bytes(data[begin:at])
            continue
        length, at = _varint(data, at, end)
        if at + length > end:
            raise WireError(f"a field of {length} bytes ends {at + length - end} bytes beyond its message", begin)
        if kind == "Tensor" and number == _RAW_DATA and length > INLINE_BYTES:
            slices.append(Slice(at, length))
            yield _slot(len(slices) - 1)
        elif number in inner and length > INLINE_BYTES:
            payload = b"".join(_message(data, at, at + length, inner[number], slices))
            yield _encode(tag)
            yield _encode(len(payload))
            yield payload
        else:
            yield bytes(data[begin : at + length])
        at += length


def _slot(index: int) -> bytes:
    """The fields `external_data` and `data_location` of a TensorProto that refers to slice `index`."""
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key=SLOT_KEY, value=str(index))
    encoded: bytes = tensor.SerializeToString()
    return encoded


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value, shift, begin = 0, 0, at
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError("a number is cut off or too long", begin)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _skip(data: memoryview, at: int, end: int, wire_type: int) -> int:
    begin = at
    if wire_type == _VARINT:
        _, at = _varint(data, at, end)
    elif wire_type == _FIXED64:
        at += 8
    elif wire_type == _FIXED32:
        at += 4
    else:
        raise WireError(f"wire type {wire_type} does not occur in ONNX files", begin)
    if at > end:
        raise WireError("a field is cut off", begin)
    return at
