"""Function operators of the standard -> the primitive operators that their definition is made of.

Source: the function bodies in `onnx.defs` (a body may depend on the node's attributes and input types).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

OPSET = 26


def opset_of(model: onnx.ModelProto, domain: str = "") -> int:
    """The version of `domain` that the model imports (0 if none)."""
    return next((o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx")), 0)


def function_of(
    node: onnx.NodeProto, input_types: Sequence[onnx.TypeProto], opset: int = OPSET
) -> onnx.FunctionProto | None:
    """The body of `node` in the standard of `opset`, None where the operator is primitive."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    function = onnx.FunctionProto()
    if schema.has_function:
        fitting = [v for v in schema.function_opset_versions if v <= opset]
        body = schema.get_function_with_opset_version(max(fitting)) if fitting else b""
    elif schema.has_context_dependent_function:
        fitting = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        types = [t.SerializeToString() for t in input_types]
        body = b""
        if fitting:
            body = schema.get_context_dependent_function_with_opset_version(
                max(fitting), node.SerializeToString(), types
            )
    else:
        return None
    if not body:
        return None
    function.ParseFromString(body)
    return function if function.node else None


def instantiate(function: onnx.FunctionProto, node: onnx.NodeProto, opset: int = OPSET) -> list[onnx.NodeProto]:
    """The nodes of the body with the node's attributes, inputs and outputs put in; inner names get the node's prefix.

    Inputs that the node leaves out become empty names, as in an ordinary node.
    """
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    attributes = {a.name: a for a in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in attributes and attribute.default_value.type:
            attributes[name] = attribute.default_value
    names = dict(zip(function.input, [*node.input, *[""] * len(function.input)], strict=False))
    names |= {f: a for f, a in zip(function.output, node.output, strict=False) if a}
    prefix = (node.output[0] if node.output else node.op_type) + "/"
    return [_copy(inner, names, attributes, prefix) for inner in function.node]


def _copy(
    node: onnx.NodeProto, names: dict[str, str], attributes: dict[str, onnx.AttributeProto], prefix: str
) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.op_type, made.domain, made.name = node.op_type, node.domain, prefix + (node.name or node.op_type)
    made.input.extend(_renamed(n, names, prefix) for n in node.input)
    made.output.extend(_renamed(n, names, prefix) for n in node.output)
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            given = attributes.get(attribute.ref_attr_name)
            if given is not None:
                made.attribute.add().CopyFrom(given)
                made.attribute[-1].name = attribute.name
            continue
        copy = made.attribute.add()
        copy.CopyFrom(attribute)
        if attribute.HasField("g"):
            del copy.g.node[:]
            copy.g.node.extend(_copy(n, names, attributes, prefix) for n in attribute.g.node)
            for value in (*copy.g.input, *copy.g.output, *copy.g.initializer):
                value.name = _renamed(value.name, names, prefix)
    return made


def _renamed(name: str, names: dict[str, str], prefix: str) -> str:
    if not name:
        return ""
    return names.get(name, prefix + name)


def expand_function(model_bytes: bytes) -> onnx.ModelProto | None:
    """A model of one function operator as a model of its primitive operators; None if the operator is primitive.

    One level only: the body may use function operators again.
    """
    model = onnx.ModelProto.FromString(model_bytes)
    types = {v.name: v.type for v in (*model.graph.input, *model.graph.value_info)}
    for tensor in model.graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    (node,) = model.graph.node
    opset = opset_of(model, node.domain)
    function = function_of(node, [types.get(n, onnx.TypeProto()) for n in node.input], opset)
    if function is None:
        return None
    nodes = instantiate(function, node, opset)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
