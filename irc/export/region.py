"""Some nodes of a model as a model of their own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from irc.export.opsets import oldest_opset
from irc.export.writer import region_proto
from irc.ir.graph import Node, Value


def subgraph_model(nodes: Sequence[Node]) -> onnx.ModelProto:
    """The nodes (of one graph) as an ONNX model.

    Values from outside become inputs, in the order in which they are first read; constants are kept; outputs are the
    values that somebody outside reads, in the order in which they are made. The opset is the oldest that fits.
    """
    graph = nodes[0].graph
    assert graph is not None
    inside = {id(node) for node in nodes}
    ordered = [node for node in graph.nodes if id(node) in inside]
    deep = set(inside)
    for node in ordered:
        deep.update(id(inner) for sub in node.subgraphs for inner in sub.walk())
    read: dict[Value, None] = {}
    for node in ordered:
        read.update(dict.fromkeys(v for v in node.inputs if v is not None))
        for sub in node.subgraphs:
            read.update(dict.fromkeys(sub.captured()))
    made = [value for node in ordered for value in node.outputs]
    own = set(made)
    outer = [v for v in read if v not in own]
    returned = set(graph.outputs)
    outputs = [v for v in made if v in returned or any(id(use.node) not in deep for use in v.uses)]
    inputs, weights = [v for v in outer if v.constant is None], [v for v in outer if v.constant is not None]
    everything = [*ordered, *(inner for node in ordered for sub in node.subgraphs for inner in sub.walk())]
    opsets = dict.fromkeys((n.domain for n in everything), 1) | {"": oldest_opset(everything)}
    return region_proto(ordered, inputs, weights, outputs, opsets)
