"""Model -> ModelProto."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import onnx

from irc import __version__
from irc.errors import ModelError
from irc.export.opsets import compatible_opset, opset_problem
from irc.export.tensors import tensor_proto
from irc.export.valuetypes import type_proto
from irc.ir.graph import CANONICAL_OPSET, AttributeValue, Graph, Model, Node, Value
from irc.ir.ops import schema
from irc.ir.types import Constant, DType, MapType, OptionalType, SequenceType, SparseType, TensorType, ValueType

ORIGIN_KEY = "irc.origin"
"""Node metadata key of `Node.origin`, read back by irc.frontend."""

MIN_IR_VERSION = 10  # the first with node metadata; readers of opset 21 on have it

_IR_VERSION_OF_DTYPE = {
    DType.FLOAT4E2M1: 11,
    DType.FLOAT8E8M0: 12,
    DType.UINT2: 13,
    DType.INT2: 13,
    DType.FLOAT6E2M3: 14,
    DType.FLOAT6E3M2: 14,
}

TensorMaker = Callable[[Constant, str], onnx.TensorProto]


def to_proto(model: Model, *, opset: int | None = None) -> onnx.ModelProto:
    """The model as ONNX, weights in it.

    `opset` None: the oldest opset (from 18 on) under which every node means the same, because readers lag behind:
    onnxruntime itself has no kernel for the newest version of some operators. Another opset: ModelError when a node
    would mean something else under it.
    """
    return build(model, tensor_proto, opset=opset)


def build(model: Model, tensor: TensorMaker, *, opset: int | None = None) -> onnx.ModelProto:
    """`to_proto` with a choice of how weights of the main graph become TensorProtos."""
    proto = onnx.ModelProto(producer_name="irc", producer_version=__version__)
    opsets = dict(model.opsets)
    if opset is None:
        opset = compatible_opset(model)
    elif opset != opsets.get(""):
        _check_opset(model, opset)
    opsets[""] = opset
    for domain in sorted({n.domain for n in model.graph.walk()} - opsets.keys()):
        opsets[domain] = 1
    for domain in sorted(opsets):
        proto.opset_import.add(domain=domain, version=opsets[domain])
    for function in model.functions.values():
        proto.functions.append(onnx.FunctionProto.FromString(function.proto))
    for key in sorted(model.metadata):
        proto.metadata_props.add(key=key, value=model.metadata[key])
    _graph(proto.graph, model.graph, tensor)
    proto.ir_version = ir_version(opsets, _dtypes(model.graph))
    return proto


def ir_version(opsets: Mapping[str, int], dtypes: Iterable[DType]) -> int:
    """The lowest that the opsets and the element types allow."""
    needed = [MIN_IR_VERSION]
    rows = [(row[1], row[2], row[3]) for row in onnx.helper.VERSION_TABLE]
    for domain, column in (("", 1), ("ai.onnx.ml", 2)):
        if domain in opsets:
            fitting = [row[0] for row in rows if row[column] >= opsets[domain]]
            needed.append(min(fitting, default=onnx.IR_VERSION))
    needed.extend(_IR_VERSION_OF_DTYPE.get(dtype, 0) for dtype in dtypes)
    return max(needed)


def _dtypes(graph: Graph) -> Iterator[DType]:
    for value in graph.values():
        yield from _type_dtypes(value.type)
    for node in graph.nodes:
        for attribute in node.attributes.values():
            if isinstance(attribute, Constant):
                yield attribute.dtype
        for sub in node.subgraphs:
            yield from _dtypes(sub)


def _type_dtypes(type: ValueType | None) -> Iterator[DType]:
    if isinstance(type, TensorType | SparseType):
        yield type.dtype
    elif isinstance(type, SequenceType | OptionalType | MapType):
        yield from _type_dtypes(type.elem)


def _check_opset(model: Model, opset: int) -> None:
    if opset > CANONICAL_OPSET:
        raise ModelError(f"irc writes no opset above {CANONICAL_OPSET}", where=model.name, got=f"opset {opset}")
    for node in model.graph.walk():
        reason = opset_problem(node, opset)
        if reason:
            raise ModelError(
                f"cannot be written at opset {opset}: {reason}",
                where=f"{model.name}: {node.label}",
                hint=f"opset {compatible_opset(model)} or newer",
            )


def region_proto(
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    constants: Sequence[Value],
    outputs: Sequence[Value],
    opsets: Mapping[str, int],
) -> onnx.ModelProto:
    """These nodes as the graph of a model."""
    proto = onnx.ModelProto(producer_name="irc", producer_version=__version__)
    proto.graph.name = "region"
    for domain in sorted(opsets):
        proto.opset_import.add(domain=domain, version=opsets[domain])
    for value in inputs:
        _value_info(proto.graph.input.add(), value)
    for value in constants:
        assert value.constant is not None
        proto.graph.initializer.append(tensor_proto(value.constant, value.name))
    for node in nodes:
        _node(proto.graph.node.add(), node, tensor_proto)
    for value in outputs:
        _value_info(proto.graph.output.add(), value)
    values = [*inputs, *constants, *(v for node in nodes for v in node.outputs)]
    proto.ir_version = ir_version(opsets, (d for v in values for d in _type_dtypes(v.type)))
    return proto


# graphs


def _graph(proto: onnx.GraphProto, graph: Graph, tensor: TensorMaker) -> None:
    proto.name = graph.name
    for value in graph.inputs:
        _value_info(proto.input.add(), value)
    for value in graph.constants.values():
        assert value.constant is not None
        proto.initializer.append(tensor(value.constant, value.name))
    for node in graph.nodes:
        _node(proto.node.add(), node, tensor)
    outputs = _output_names(proto, graph)
    for name, value in zip(outputs, graph.outputs, strict=True):
        _value_info(proto.output.add(), value, name)
    skip = {id(v) for v in (*graph.inputs, *graph.constants.values(), *graph.outputs)}
    for value in graph.values():
        if id(value) not in skip and value.type is not None:
            _value_info(proto.value_info.add(), value)


def _output_names(proto: onnx.GraphProto, graph: Graph) -> list[str]:
    """Names of the outputs. ONNX lets no graph return a value twice, but bodies of Loop and If want to."""
    names: list[str] = []
    for value in graph.outputs:
        name = value.name
        if graph.parent is not None and name in names:
            n = len(names)
            name = graph.unique_name(f"{value.name}_returned{n}")
            proto.node.add(op_type="Identity", name=name, input=[value.name], output=[name])
        names.append(name)
    return names


def _value_info(proto: onnx.ValueInfoProto, value: Value, name: str = "") -> None:
    proto.name = name or value.name
    if value.type is not None:
        proto.type.CopyFrom(type_proto(value.type))


# nodes


def _node(proto: onnx.NodeProto, node: Node, tensor: TensorMaker) -> None:
    proto.op_type, proto.domain, proto.name, proto.overload = node.op_type, node.domain, node.name, node.overload
    proto.input.extend("" if value is None else value.name for value in node.inputs)
    proto.output.extend(_output_slots(node))
    for name in sorted(node.attributes):
        _attribute(proto.attribute.add(), node, name, node.attributes[name], tensor)
    if node.origin.passes or node.origin.nodes not in ((), (node.name,)):
        kept = json.dumps({"nodes": node.origin.nodes, "passes": node.origin.passes})
        proto.metadata_props.add(key=ORIGIN_KEY, value=kept)


def _output_slots(node: Node) -> list[str]:
    """Output names; optional outputs that nobody reads are left out, so that nobody computes them."""
    found = schema(node.op_type, node.domain)
    formal = list(found.outputs) if found is not None else []
    names = [value.name for value in node.outputs]
    for i, value in enumerate(node.outputs[: len(formal)]):
        if formal[i].option == onnx.defs.OpSchema.FormalParameterOption.Optional and not (
            value.uses or value.is_output
        ):
            names[i] = ""
    while len(names) > 1 and not names[-1]:
        names.pop()
    return names


def _attribute(proto: onnx.AttributeProto, node: Node, name: str, value: AttributeValue, tensor: TensorMaker) -> None:
    kinds = onnx.AttributeProto.AttributeType
    proto.name = name
    if isinstance(value, int) and _schema_kind(node, name) == kinds.FLOAT:
        value = float(value)
    if isinstance(value, bool | int):
        proto.type, proto.i = kinds.INT, int(value)
    elif isinstance(value, float):
        proto.type, proto.f = kinds.FLOAT, value
    elif isinstance(value, str | bytes):
        proto.type, proto.s = kinds.STRING, _encoded(value)
    elif isinstance(value, Constant):
        proto.type = kinds.TENSOR
        proto.t.CopyFrom(tensor_proto(value))
    elif isinstance(value, Graph):
        proto.type = kinds.GRAPH
        _graph(proto.g, value, tensor)
    elif isinstance(value, tuple):
        _list(proto, node, name, value, tensor)
    else:
        proto.type = kinds.TYPE_PROTO
        proto.tp.CopyFrom(type_proto(value))


def _list(
    proto: onnx.AttributeProto,
    node: Node,
    name: str,
    items: tuple[object, ...],
    tensor: TensorMaker,
) -> None:
    kinds = onnx.AttributeProto.AttributeType
    first = items[0] if items else None
    if first is None:
        proto.type = _schema_kind(node, name) or kinds.INTS
    elif isinstance(first, str | bytes):
        proto.type = kinds.STRINGS
        proto.strings.extend(_encoded(item) for item in items if isinstance(item, str | bytes))
    elif isinstance(first, Constant):
        proto.type = kinds.TENSORS
        proto.tensors.extend(tensor_proto(item) for item in items if isinstance(item, Constant))
    elif isinstance(first, Graph):
        proto.type = kinds.GRAPHS
        for item in items:
            assert isinstance(item, Graph)
            _graph(proto.graphs.add(), item, tensor)
    elif all(isinstance(item, int) for item in items) and _schema_kind(node, name) != kinds.FLOATS:
        proto.type = kinds.INTS
        proto.ints.extend(item for item in items if isinstance(item, int))
    elif isinstance(first, int | float):
        proto.type = kinds.FLOATS
        proto.floats.extend(float(item) for item in items if isinstance(item, int | float))
    else:
        proto.type = kinds.TYPE_PROTOS
        types = (TensorType, SequenceType, OptionalType, MapType, SparseType)
        proto.type_protos.extend(type_proto(item) for item in items if isinstance(item, types))


def _schema_kind(node: Node, name: str) -> int:
    """The attribute type that the schema asks for (0 where there is none): an empty list does not show its own, and a
    whole number may stand for a float.
    """
    found = schema(node.op_type, node.domain)
    if found is None or name not in found.attributes:
        return 0
    return int(found.attributes[name].type.value)


def _encoded(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
