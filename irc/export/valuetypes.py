"""ValueType -> TypeProto."""

from __future__ import annotations

import onnx

from irc.ir.types import MapType, OptionalType, SequenceType, Shape, SparseType, TensorType, ValueType


def type_proto(type: ValueType) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if isinstance(type, TensorType):
        proto.tensor_type.elem_type = type.dtype.onnx
        _shape(proto.tensor_type, type.shape)
    elif isinstance(type, SparseType):
        proto.sparse_tensor_type.elem_type = type.dtype.onnx
        _shape(proto.sparse_tensor_type, type.shape)
    elif isinstance(type, SequenceType):
        proto.sequence_type.elem_type.CopyFrom(type_proto(type.elem))
    elif isinstance(type, OptionalType):
        proto.optional_type.elem_type.CopyFrom(type_proto(type.elem))
    elif isinstance(type, MapType):
        proto.map_type.key_type = type.key.onnx
        proto.map_type.value_type.CopyFrom(type_proto(type.elem))
    return proto


def _shape(proto: onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor, shape: Shape | None) -> None:
    if shape is None:
        return
    proto.shape.SetInParent()
    for dim in shape:
        entry = proto.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
        elif dim is not None:
            entry.dim_param = dim
