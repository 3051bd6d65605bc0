"""Operators of the long tail: one-node models for `irc.backends.tvm.library`, row-major in and out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View, row_major
from irc.backends.tvm.specs import LibrarySpec
from irc.ir.graph import Graph, Model, Node, Value

if TYPE_CHECKING:
    from irc.backends.tvm.plan.planner import Planner

_SMALL = 4096
"""Constants up to this many bytes are part of the kernel; larger ones are handed in."""


def lower_library(p: Planner, node: Node) -> None:
    model, data = one_node_model(node)
    views = [p.row_major(v) for v in data]
    outs = []
    for value in read_outputs(node):
        shape, dtype = value.static_shape(), storage_dtype(value.dtype)
        out = p.output_view(value, range(len(shape)))
        if not out.is_contiguous or out.offset:
            out = View(p.new_storage(dtype, math.prod(shape)), dtype, shape, row_major(shape))
        outs.append(out)
    args = [p.pointer(v) for v in (*views, *outs)]
    p.call(LibrarySpec(model), args, tuple(v.storage for v in outs), node.op_type)
    for value, view in zip(read_outputs(node), outs, strict=True):
        p.views[id(value)] = view


def read_outputs(node: Node) -> list[Value]:
    """The outputs that somebody reads; the others have no kernel argument (and often no type)."""
    return [v for v in node.outputs if v.uses or v.is_output]


def one_node_model(node: Node) -> tuple[bytes, list[Value]]:
    """(serialized model, the values to hand in): names are those of the model's own numbering, so that equal
    operators give equal bytes whatever their values are called. Its outputs are those of `read_outputs`."""
    import onnx

    from irc.export import to_proto

    graph = Graph("kernel")
    known: dict[int, Value] = {}
    inputs: list[Value | None] = []
    handed: list[Value] = []
    for value in node.inputs:
        if value is None:
            inputs.append(None)
            continue
        if id(value) not in known:
            if value.constant is not None and value.constant.nbytes <= _SMALL:
                known[id(value)] = graph.add_constant(value.constant, f"c{len(known)}")
            else:
                known[id(value)] = graph.add_input(f"i{len(known)}", value.type)
                handed.append(value)
        inputs.append(known[id(value)])
    names = [f"o{i}" for i in range(len(node.outputs))]
    made = graph.add(
        node.op_type,
        inputs,
        names,
        node.attributes,
        types=[v.type for v in node.outputs],
        domain=node.domain,
        name="node",
    )
    read = {id(v) for v in read_outputs(node)}
    graph.set_outputs([new for old, new in zip(node.outputs, made.outputs, strict=True) if id(old) in read])
    proto = to_proto(Model(graph))
    proto.producer_name = ""
    assert isinstance(proto, onnx.ModelProto)
    return proto.SerializeToString(deterministic=True), handed
