"""Operators of the long tail: one-node models for `irc.backends.tvm.library`, row-major in and out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from irc.backends.tvm.plan.translate import storage_dtype
from irc.backends.tvm.plan.views import View, row_major
from irc.backends.tvm.specs import LibrarySpec
from irc.ir.graph import Node

if TYPE_CHECKING:
    from irc.backends.tvm.plan.planner import Planner

_SMALL = 4096
"""Constants up to this many bytes are part of the kernel; larger ones are handed in."""


def lower_library(p: Planner, node: Node) -> None:
    model, data = one_node_model(node)
    views = [p.row_major(v) for v in data]
    outs = []
    for value in node.outputs:
        shape, dtype = value.static_shape(), storage_dtype(value.dtype)
        rank = len(shape)
        if value.uses or value.is_output:
            outs.append(p.output_view(value, range(rank)))
            if not outs[-1].is_contiguous or outs[-1].offset:
                outs[-1] = View(p.new_storage(dtype, math.prod(shape)), dtype, shape, row_major(shape))
        else:
            outs.append(View(p.new_storage(dtype, math.prod(shape)), dtype, shape, row_major(shape)))
    args = [p.pointer(v) for v in (*views, *outs)]
    p.call(LibrarySpec(model), args, tuple(v.storage for v in outs), node.op_type)
    for value, view in zip(node.outputs, outs, strict=True):
        p.views[id(value)] = view


def one_node_model(node: Node):  # type: ignore[no-untyped-def]  # (bytes, list of Value): see below
    """(serialized model, the values to hand in): names are those of the model's own numbering, so that equal
    operators give equal bytes whatever their values are called."""
    import onnx

    from irc.export import to_proto
    from irc.ir.graph import Graph, Model

    graph = Graph("kernel")
    known: dict[int, object] = {}
    inputs, handed = [], []
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
        inputs.append(known[id(value)])  # type: ignore[arg-type]  # Value
    names = [f"o{i}" for i in range(len(node.outputs))]
    made = graph.add(
        node.op_type,
        inputs,  # type: ignore[arg-type]  # Values
        names,
        node.attributes,
        types=[v.type for v in node.outputs],
        domain=node.domain,
        name="node",
    )
    graph.set_outputs(made.outputs)
    proto = to_proto(Model(graph))
    proto.producer_name = ""
    assert isinstance(proto, onnx.ModelProto)
    return proto.SerializeToString(deterministic=True), handed


__all__ = ["lower_library", "np", "one_node_model"]
