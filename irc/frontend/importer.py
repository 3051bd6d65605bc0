"""ModelProto -> Model: names become values, weights become constants, nodes are put in order.

Names are unique over the whole IR model, so names inside subgraphs may get a suffix; those of the main graph, which
users see, never change. `Constant` nodes become constants. The opset is taken as it stands (`upgrade.py` raises it).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from irc.errors import ModelError
from irc.frontend.external import WeightStore
from irc.frontend.tensors import constant, dense
from irc.frontend.valuetypes import value_type
from irc.ir.graph import AttributeValue, Function, Graph, Model, Value
from irc.ir.types import Constant, DType, Origin, ValueType

STANDARD_DOMAINS = ("", "ai.onnx")
ORIGIN_KEY = "irc.origin"
"""Node metadata key under which irc.export keeps `Node.origin`."""


def import_proto(proto: onnx.ModelProto, store: WeightStore, where: str) -> Model:
    """The IR of a model whose functions have been inlined. Raises ModelError naming the node concerned."""
    opsets: dict[str, int] = {}
    for entry in proto.opset_import:
        opsets["" if entry.domain in STANDARD_DOMAINS else entry.domain] = entry.version
    if "" not in opsets and proto.ir_version < 3:
        opsets[""] = 1
    importer = _Importer(store, where, _names(proto.graph))
    graph = Graph(proto.graph.name or "graph")
    importer.fill(graph, proto.graph, {})
    functions = {
        (f.domain, f.name, f.overload): Function(f.domain, f.name, f.overload, f.SerializeToString())
        for f in proto.functions
    }
    model = Model(graph, opsets, functions, {p.key: p.value for p in proto.metadata_props})
    if proto.training_info:
        model.notes.append("training information of the file is left out")
    return model


def _names(graph: onnx.GraphProto) -> set[str]:
    """Node names in use anywhere."""
    found = {node.name for node in graph.node}
    for node in graph.node:
        for sub in _subgraphs(node):
            found |= _names(sub)
    return found


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _label(node: onnx.NodeProto) -> str:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain + "."
    named = f"'{node.name}'" if node.name else "without a name, making '" + ", ".join(node.output) + "'"
    return f"node {named} ({domain}{node.op_type})"


Scope = dict[str, Value]


@dataclass
class _Importer:
    store: WeightStore
    where: str
    node_names: set[str]
    taken: set[str] = field(default_factory=set)  # value names of the IR model

    def error(self, node: onnx.NodeProto, what: str, **more: str) -> ModelError:
        return ModelError(what, where=f"{self.where}: {_label(node)}", **more)

    # graphs

    def fill(self, graph: Graph, proto: onnx.GraphProto, outer: Scope) -> None:
        """Build `proto` into `graph`; `outer` are the values that the graphs around it define."""
        final = self._final_names(graph, proto)
        scope = dict(outer)
        types = self._declared_types(proto)
        weights = {t.name for t in proto.initializer} | {s.values.name for s in proto.sparse_initializer}
        for entry in proto.input:
            if entry.name not in weights:  # IR version 3 lists weights as inputs too
                scope[entry.name] = graph.add_input(final[entry.name], types.get(entry.name))
        for tensor in proto.initializer:
            data = constant(tensor, self.store, self.where)
            scope[tensor.name] = graph.add_constant(data, final[tensor.name])
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            scope[name] = graph.add_constant(dense(sparse, self.store, f"{self.where}: weight '{name}'"), final[name])
        for node in self._ordered(proto, scope):
            self._node(graph, node, scope, final, types)
        graph.set_outputs(self._outputs(graph, proto, scope))

    def _final_names(self, graph: Graph, proto: onnx.GraphProto) -> dict[str, str]:
        """Every name this graph defines -> its name in the IR. Raises ModelError where one is defined twice."""
        weights = [t.name for t in proto.initializer] + [s.values.name for s in proto.sparse_initializer]
        known = set(weights)
        defined = weights + [i.name for i in proto.input if i.name not in known]
        final: dict[str, str] = {}
        for name in defined:
            self._define(final, name, f"{self.where}: graph '{graph.name}'")
        for node in proto.node:
            for name in node.output:
                if name:
                    self._define(final, name, f"{self.where}: {_label(node)}")
        return final

    def _define(self, final: dict[str, str], name: str, where: str) -> None:
        if name in final:
            raise ModelError(f"value '{name}' is defined twice", where=where, expected="each name to be defined once")
        if not name:
            raise ModelError("an input or weight has no name", where=where)
        unique, n = name, 0
        while unique in self.taken:
            n += 1
            unique = f"{name}_{n}"
        self.taken.add(unique)
        final[name] = unique

    def _declared_types(self, proto: onnx.GraphProto) -> dict[str, ValueType | None]:
        entries = (*proto.value_info, *proto.output, *proto.input)
        return {e.name: value_type(e.type, f"{self.where}: value '{e.name}'") for e in entries}

    def _outputs(self, graph: Graph, proto: onnx.GraphProto, scope: Scope) -> list[Value]:
        outputs = []
        for entry in proto.output:
            value = scope.get(entry.name)
            if value is None:
                raise ModelError(f"graph '{graph.name}': output '{entry.name}' is made by no node", where=self.where)
            if graph.parent is not None and (value.graph is not graph or value in outputs):
                value = self._identity(graph, value)
            outputs.append(value)
        if graph.parent is None and len(set(outputs)) != len(outputs):
            twice = next(v.name for i, v in enumerate(outputs) if v in outputs[:i])
            raise ModelError(f"output '{twice}' is listed twice", where=self.where)
        return outputs

    def _identity(self, graph: Graph, value: Value) -> Value:
        """A subgraph returns values of its own, each once."""
        final: dict[str, str] = {}
        self._define(final, f"{value.name}_returned", self.where)
        (name,) = final.values()
        return graph.add("Identity", [value], [name], types=[value.type], name=name).output

    # order

    def _ordered(self, proto: onnx.GraphProto, scope: Scope) -> list[onnx.NodeProto]:
        """The nodes in topological order (as they stand where that already is one), captures of subgraphs included."""
        nodes = list(proto.node)
        producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
        reads = [list(dict.fromkeys(_reads(node))) for node in nodes]
        for node, names in zip(nodes, reads, strict=True):
            for name in names:
                if name not in producer and name not in scope:
                    raise self.error(node, f"its input '{name}' is made by no node and is no input or weight")
        state = [0] * len(nodes)  # 0 new, 1 open, 2 done
        order: list[onnx.NodeProto] = []
        for start in range(len(nodes)):
            stack = [start]
            while stack:
                i = stack[-1]
                if state[i] == 0:
                    state[i] = 1
                    for name in reversed(reads[i]):
                        j = producer.get(name)
                        if j is None or state[j] == 2:
                            continue
                        if state[j] == 1:  # open: on the path from `start`
                            raise self.error(nodes[j], f"the graph has a cycle through value '{name}'")
                        stack.append(j)
                else:
                    stack.pop()
                    if state[i] == 1:
                        state[i] = 2
                        order.append(nodes[i])
        return order

    # nodes

    def _node(
        self,
        graph: Graph,
        node: onnx.NodeProto,
        scope: Scope,
        final: dict[str, str],
        types: dict[str, ValueType | None],
    ) -> None:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        if not node.op_type:
            raise self.error(node, "it has no operator type")
        if domain == "" and node.op_type == "Constant":
            scope[node.output[0]] = graph.add_constant(self._constant_node(node), final[node.output[0]])
            return
        inputs: list[Value | None] = [scope[name] if name else None for name in node.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        names = [final[n] if n else self._spare(node, i) for i, n in enumerate(outputs)]
        made = graph.add(
            node.op_type,
            inputs,
            names,
            self._attributes(graph, node, scope),
            types=[types.get(name) for name in outputs],
            domain=domain,
            name=self._node_name(node),
            origin=_origin(node),
            overload=node.overload,
        )
        scope.update((name, value) for name, value in zip(outputs, made.outputs, strict=True) if name)

    def _node_name(self, node: onnx.NodeProto) -> str:
        if node.name:
            return str(node.name)
        name, n = str(node.op_type), 0
        while name in self.node_names:
            n += 1
            name = f"{node.op_type}_{n}"
        self.node_names.add(name)
        return name

    def _spare(self, node: onnx.NodeProto, index: int) -> str:
        """A name for an optional output that is left out."""
        final: dict[str, str] = {}
        base = f"{node.name or node.op_type}_unused{index}"
        self._define(final, base, self.where)
        return final[base]

    # attributes

    def _attributes(self, graph: Graph, node: onnx.NodeProto, scope: Scope) -> dict[str, AttributeValue]:
        out: dict[str, AttributeValue] = {}
        for attribute in node.attribute:
            if attribute.name in out:
                raise self.error(node, f"attribute '{attribute.name}' is given twice")
            out[attribute.name] = self._attribute(graph, node, attribute, scope)
        return out

    def _attribute(
        self, graph: Graph, node: onnx.NodeProto, attribute: onnx.AttributeProto, scope: Scope
    ) -> AttributeValue:
        kind = attribute.type or _guess_kind(attribute)
        names = onnx.AttributeProto.AttributeType
        where = f"{self.where}: {_label(node)}: attribute '{attribute.name}'"
        if attribute.ref_attr_name:
            raise ModelError("it refers to an attribute of a function, outside of any function", where=where)
        if kind == names.FLOAT:
            return float(attribute.f)
        if kind == names.INT:
            return int(attribute.i)
        if kind == names.STRING:
            return _strings([attribute.s])[0]
        if kind == names.FLOATS:
            return tuple(attribute.floats)
        if kind == names.INTS:
            return tuple(attribute.ints)
        if kind == names.STRINGS:
            return _strings(attribute.strings)
        if kind == names.TENSOR:
            return constant(attribute.t, self.store, where)
        if kind == names.TENSORS:
            return tuple(constant(t, self.store, where) for t in attribute.tensors)
        if kind == names.SPARSE_TENSOR:
            return dense(attribute.sparse_tensor, self.store, where)
        if kind == names.GRAPH:
            return self._subgraph(graph, attribute.g, scope)
        if kind == names.GRAPHS:
            return tuple(self._subgraph(graph, g, scope) for g in attribute.graphs)
        protos = [attribute.tp] if kind == names.TYPE_PROTO else list(attribute.type_protos)
        found = tuple(t for t in (value_type(p, where) for p in protos) if t is not None)
        if kind not in (names.TYPE_PROTO, names.TYPE_PROTOS) or len(found) != len(protos):
            raise ModelError("irc cannot read an attribute of this kind", where=where)
        return found[0] if kind == names.TYPE_PROTO else found

    def _subgraph(self, graph: Graph, proto: onnx.GraphProto, scope: Scope) -> Graph:
        sub = graph.subgraph(proto.name or "body")
        self.fill(sub, proto, scope)
        return sub

    def _constant_node(self, node: onnx.NodeProto) -> Constant:
        if len(node.attribute) != 1 or len(node.output) != 1:
            raise self.error(node, "a Constant needs exactly one attribute and one output")
        attribute = node.attribute[0]
        where = f"{self.where}: {_label(node)}"
        if attribute.name == "value":
            return constant(attribute.t, self.store, where)
        if attribute.name == "sparse_value":
            return dense(attribute.sparse_tensor, self.store, where)
        if attribute.name in ("value_float", "value_floats"):
            floats = attribute.f if attribute.name == "value_float" else attribute.floats
            return Constant.of(np.array(floats, np.float32))
        if attribute.name in ("value_int", "value_ints"):
            ints = attribute.i if attribute.name == "value_int" else attribute.ints
            return Constant.of(np.array(ints, np.int64))
        if attribute.name == "value_string":
            return Constant.of(np.array(_strings([attribute.s])[0], object), DType.STRING)
        if attribute.name == "value_strings":
            return Constant.of(np.array(_strings(attribute.strings), object), DType.STRING)
        raise self.error(node, f"a Constant has no attribute '{attribute.name}'")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads: its inputs, and what its subgraphs take from around them."""
    yield from (name for name in node.input if name)
    for sub in _subgraphs(node):
        yield from _captures(sub)


def _captures(graph: onnx.GraphProto) -> Iterator[str]:
    inside = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    inside |= {s.values.name for s in graph.sparse_initializer}
    inside |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        yield from (name for name in _reads(node) if name not in inside)
    yield from (o.name for o in graph.output if o.name not in inside)


def _strings(items: Sequence[bytes]) -> tuple[str, ...] | tuple[bytes, ...]:
    """Text where all of it is UTF-8, bytes otherwise."""
    try:
        return tuple(item.decode("utf-8") for item in items)
    except UnicodeDecodeError:
        return tuple(items)


def _guess_kind(attribute: onnx.AttributeProto) -> int:
    """Files of IR version 1 do not say what an attribute is: take the field that is set."""
    kinds: Iterable[tuple[str, str]] = (
        ("f", "FLOAT"),
        ("i", "INT"),
        ("s", "STRING"),
        ("t", "TENSOR"),
        ("g", "GRAPH"),
        ("floats", "FLOATS"),
        ("ints", "INTS"),
        ("strings", "STRINGS"),
        ("tensors", "TENSORS"),
        ("graphs", "GRAPHS"),
    )
    present = {f.name for f, _ in attribute.ListFields()}
    number: Any = onnx.AttributeProto.AttributeType.Value
    return next((int(number(kind)) for name, kind in kinds if name in present), 0)


def _origin(node: onnx.NodeProto) -> Origin:
    for entry in node.metadata_props:
        if entry.key == ORIGIN_KEY:
            try:
                kept = json.loads(entry.value)
                return Origin(tuple(map(str, kept["nodes"])), tuple(map(str, kept["passes"])))
            except (ValueError, KeyError, TypeError):
                break
    return Origin((node.name,) if node.name else (node.output[0] if node.output else node.op_type,))
