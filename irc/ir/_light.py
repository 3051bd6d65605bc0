"""A model as an ONNX proto without its weights: all that shape inference reads, in a few kilobytes.

Constants of 1 KiB and more become graph inputs of the same type; smaller ones keep their data, because Reshape, Slice
and the like take their shape from it. Not for running: `irc.export` writes real models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from irc.ir.graph import AttributeValue, Graph, Model, Node, Value
from irc.ir.ops import attribute_kind, value_kind
from irc.ir.types import (
    Constant,
    DType,
    MapType,
    OptionalType,
    SequenceType,
    Shape,
    SparseType,
    TensorType,
    ValueType,
)

SMALL_BYTES = 1024


def type_to_proto(type: ValueType | None) -> onnx.TypeProto:
    """An empty TypeProto stands for an unknown type."""
    proto = onnx.TypeProto()
    match type:
        case TensorType():
            _set_tensor(proto.tensor_type, type)
        case SparseType():
            _set_tensor(proto.sparse_tensor_type, type)
        case SequenceType():
            proto.sequence_type.elem_type.CopyFrom(type_to_proto(type.elem))
        case OptionalType():
            proto.optional_type.elem_type.CopyFrom(type_to_proto(type.elem))
        case MapType():
            proto.map_type.key_type = type.key.onnx
            proto.map_type.value_type.CopyFrom(type_to_proto(type.elem))
    return proto


def _set_tensor(proto: Any, type: TensorType | SparseType) -> None:
    proto.elem_type = type.dtype.onnx
    if type.shape is None:
        return
    proto.shape.SetInParent()
    for extent in type.shape:
        dim = proto.shape.dim.add()
        if isinstance(extent, int):
            dim.dim_value = extent
        elif extent is not None:
            dim.dim_param = extent


def type_from_proto(proto: onnx.TypeProto) -> ValueType | None:
    """None for an empty proto or one whose element type is undefined."""
    kind = proto.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        part = getattr(proto, kind)
        if part.elem_type == onnx.TensorProto.UNDEFINED:
            return None
        shape = Shape(tuple(_dim(d) for d in part.shape.dim)) if part.HasField("shape") else None
        make = TensorType if kind == "tensor_type" else SparseType
        return make(DType.from_onnx(part.elem_type), shape)
    if kind == "map_type":
        elem = type_from_proto(proto.map_type.value_type)
        return None if elem is None else MapType(DType.from_onnx(proto.map_type.key_type), elem)
    if kind == "sequence_type":
        elem = type_from_proto(proto.sequence_type.elem_type)
        return None if elem is None else SequenceType(elem)
    if kind == "optional_type":
        elem = type_from_proto(proto.optional_type.elem_type)
        return None if elem is None else OptionalType(elem)
    return None


def _dim(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return None if dim.dim_param in ("", "?") else str(dim.dim_param)  # exporters write "?" for "not known"


def tensor(constant: Constant, name: str = "") -> onnx.TensorProto:
    """Type and shape, and the data where it is small enough to matter for shapes."""
    if constant.nbytes < SMALL_BYTES and constant.dtype.bits >= 8:
        return onnx.numpy_helper.from_array(np.ascontiguousarray(constant.numpy()).reshape(constant.shape), name)
    proto = onnx.TensorProto(name=name, data_type=constant.dtype.onnx)
    proto.dims.extend(constant.shape)
    return proto


def node(node: Node) -> onnx.NodeProto:
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name, overload=node.overload)
    proto.input.extend("" if v is None else v.name for v in node.inputs)
    proto.output.extend(v.name for v in node.outputs)
    for name, value in node.attributes.items():
        proto.attribute.append(_attribute(node, name, value))
    if node.is_op("STFT") and "onesided" not in node.attributes:
        proto.attribute.add(name="onesided", type="INT", i=1)  # onnx's inference takes the default for 0
    return proto


def _attribute(owner: Node, name: str, value: AttributeValue) -> onnx.AttributeProto:
    wanted = attribute_kind(owner, name)
    kind = wanted if isinstance(value, tuple) and not value and wanted else value_kind(value)
    if kind == "INT" and wanted == "FLOAT":
        kind = "FLOAT"
    proto = onnx.AttributeProto(name=name, type=onnx.AttributeProto.AttributeType.Value(kind))
    items = value if isinstance(value, tuple) else (value,)
    for item in items:
        _put(proto, kind, item)
    return proto


def _put(proto: onnx.AttributeProto, kind: str, item: Any) -> None:
    match kind:
        case "INT":
            proto.i = int(item)
        case "FLOAT":
            proto.f = item
        case "STRING":
            proto.s = item if isinstance(item, bytes) else item.encode()
        case "TENSOR":
            proto.t.CopyFrom(tensor(item))
        case "GRAPH":
            proto.g.CopyFrom(graph(item))
        case "TYPE_PROTO":
            proto.tp.CopyFrom(type_to_proto(item))
        case "INTS":
            proto.ints.append(int(item))
        case "FLOATS":
            proto.floats.append(item)
        case "STRINGS":
            proto.strings.append(item if isinstance(item, bytes) else item.encode())
        case "TENSORS":
            proto.tensors.append(tensor(item))
        case "GRAPHS":
            proto.graphs.append(graph(item))
        case "TYPE_PROTOS":
            proto.type_protos.append(type_to_proto(item))


def graph(graph: Graph) -> onnx.GraphProto:
    proto = onnx.GraphProto(name=graph.name)
    for value in graph.inputs:
        proto.input.append(_info(value))
    for value in graph.constants.values():
        assert value.constant is not None
        if value.constant.nbytes < SMALL_BYTES and value.constant.dtype.bits >= 8:
            proto.initializer.append(tensor(value.constant, value.name))
        else:
            proto.input.append(_info(value))
    proto.node.extend(node(n) for n in graph.nodes)
    proto.output.extend(_info(v) for v in graph.outputs)
    for n in graph.nodes:
        proto.value_info.extend(_info(v) for v in n.outputs if v.type is not None and not v.is_output)
    return proto


def _info(value: Value) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=value.name, type=type_to_proto(value.type))


def model(model: Model) -> onnx.ModelProto:
    proto = onnx.ModelProto(ir_version=onnx.IR_VERSION, graph=graph(model.graph))
    for domain, version in model.opsets.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        proto.functions.append(onnx.FunctionProto.FromString(function.proto))
    return proto
