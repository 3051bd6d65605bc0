"""TypeProto -> ValueType."""

from __future__ import annotations

import onnx

from irc.frontend.tensors import dtype_of
from irc.ir.types import Dim, MapType, OptionalType, SequenceType, Shape, SparseType, TensorType, ValueType

_UNNAMED = frozenset({"", "?", "-1", "*", "None"})
"""Names that exporters give to a dimension they know nothing about: two of them need not be equal."""


def value_type(proto: onnx.TypeProto, where: str) -> ValueType | None:
    """None where the proto says nothing. Raises ModelError for an unknown element type."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        if proto.tensor_type.elem_type == onnx.TensorProto.UNDEFINED:
            return None
        return TensorType(dtype_of(proto.tensor_type.elem_type, where), _shape(proto.tensor_type))
    if kind == "sparse_tensor_type":
        return SparseType(dtype_of(proto.sparse_tensor_type.elem_type, where), _shape(proto.sparse_tensor_type))
    if kind in ("sequence_type", "optional_type"):
        elem = value_type(getattr(proto, kind).elem_type, where)
        if elem is None:
            return None
        return SequenceType(elem) if kind == "sequence_type" else OptionalType(elem)
    if kind == "map_type":
        elem = value_type(proto.map_type.value_type, where)
        return None if elem is None else MapType(dtype_of(proto.map_type.key_type, where), elem)
    return None


def _shape(tensor: onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor) -> Shape | None:
    if not tensor.HasField("shape"):
        return None
    return Shape(tuple(_dim(d) for d in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return None if dim.dim_param in _UNNAMED else str(dim.dim_param)
