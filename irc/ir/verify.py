"""Is this a well-formed model? Run before and after every pass.

Checked: every value is defined once, before its readers, in a graph that they can see; producers and uses agree both
ways; names are unique; arity and attributes fit the schema; constants have the type of their data; outputs exist.
Whether types fit each other is `irc.ir.infer`'s to say.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from irc.errors import ModelError
from irc.ir import ops
from irc.ir.graph import CANONICAL_OPSET, Graph, Model, Node, Use, Value

if TYPE_CHECKING:
    import onnx


def verify(model: Model, *, strict: bool = False) -> None:
    """Raises ModelError naming the node. `strict`: also for operators that neither onnx nor the model defines."""
    opset = model.opsets.get("", CANONICAL_OPSET)
    if opset != CANONICAL_OPSET:
        raise ModelError("not at the canonical opset", where=model.name, expected=str(CANONICAL_OPSET), got=str(opset))
    try:
        check = _Check(model, strict)
        check.graph(model.graph, {})
        check.recorded_uses()
    except ModelError as error:
        where = f"{model.name}: {error.where}" if error.where else model.name
        raise ModelError(error.what, where=where, expected=error.expected, got=error.got) from None


class _Check:
    def __init__(self, model: Model, strict: bool) -> None:
        self.model, self.strict = model, strict
        self.names: dict[str, Value] = {}
        self.node_names: set[str] = set()
        self.uses: dict[Value, dict[tuple[int, int], Use]] = {}

    def graph(self, graph: Graph, outer: dict[Value, None]) -> None:
        """`outer`: the values of surrounding graphs that this one may read."""
        visible = dict(outer)
        for value in graph.values():
            self._value(graph, value)
        for value in (*graph.inputs, *graph.constants.values()):
            if value.producer is not None:
                raise ModelError(f"value '{value.name}' is an input or a constant, yet {value.producer.label} makes it")
            visible[value] = None
        self._constants(graph)
        for node in graph.nodes:
            self._node(graph, node, visible)
            visible.update(dict.fromkeys(node.outputs))
        for value in graph.outputs:
            if value.graph is not graph or value not in visible:
                raise ModelError(f"output '{value.name}' of graph '{graph.name}' is not defined in it")

    def recorded_uses(self) -> None:
        """To be asked when all graphs have been seen."""
        for value in self.names.values():
            if value._uses.keys() != self.uses.get(value, {}).keys():
                readers = ", ".join(n.label for n in value.users) or "none"
                raise ModelError(f"the recorded readers of value '{value.name}' are wrong", got=readers)

    def _value(self, graph: Graph, value: Value) -> None:
        if not value.name:
            raise ModelError(f"a value of graph '{graph.name}' has no name")
        if self.names.setdefault(value.name, value) is not value:
            raise ModelError(f"two values are called '{value.name}'")
        if value.name not in graph.root._names:
            raise ModelError(f"the name of value '{value.name}' is not registered")
        if value.graph is not graph:
            raise ModelError(f"value '{value.name}' stands in graph '{graph.name}' but does not belong to it")

    def _constants(self, graph: Graph) -> None:
        for name, value in graph.constants.items():
            if value.constant is None or value.name != name:
                raise ModelError(f"constant '{name}' has no data or another name")
            if value.type != value.constant.type:
                raise ModelError(
                    f"constant '{name}' has a type that its data does not have",
                    expected=str(value.constant.type),
                    got=str(value.type),
                )

    def _node(self, graph: Graph, node: Node, visible: dict[Value, None]) -> None:
        where = node.label
        if node.graph is not graph:
            raise ModelError(f"stands in graph '{graph.name}' but does not belong to it", where=where)
        if node.name in self.node_names:
            raise ModelError("two nodes have this name", where=where)
        self.node_names.add(node.name)
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if value not in visible:
                raise ModelError(_unseen(graph, node, value), where=where)
            self.uses.setdefault(value, {})[(id(node), index)] = Use(node, index)
        for index, value in enumerate(node.outputs):
            if value.producer is not node or value.output_index != index:
                raise ModelError(f"its output '{value.name}' does not know that it makes it", where=where)
        self._schema(node)
        for sub in node.subgraphs:
            if sub.parent is not graph:
                raise ModelError(f"its subgraph '{sub.name}' has another parent", where=where)
            self.graph(sub, visible)

    def _schema(self, node: Node) -> None:
        facts = _facts(node.op_type, node.domain)
        if facts is None:
            defined = (node.domain, node.op_type, node.overload) in self.model.functions
            if not defined and (self.strict or node.domain == ""):
                raise ModelError("no such operator", where=node.label)
            return
        if not facts.min_inputs <= len(node.inputs) <= facts.max_inputs:
            raise ModelError(
                "wrong number of inputs", where=node.label, expected=facts.inputs_text, got=str(len(node.inputs))
            )
        if not facts.min_outputs <= len(node.outputs) <= facts.max_outputs:
            raise ModelError(
                "wrong number of outputs", where=node.label, expected=facts.outputs_text, got=str(len(node.outputs))
            )
        for index in facts.required_inputs:
            if index < len(node.inputs) and node.inputs[index] is None:
                raise ModelError(f"input {index} is left out, but it is required", where=node.label)
        for name in facts.required:
            if name not in node.attributes:
                raise ModelError(f"attribute {name} is missing", where=node.label)
        for name, value in node.attributes.items():
            wanted = facts.kinds.get(name)
            if wanted is None:
                raise ModelError(
                    f"has no attribute {name}", where=node.label, expected=", ".join(facts.kinds) or "none"
                )
            kind = ops.value_kind(value)
            if kind != wanted and not (value == () and wanted.endswith("S")):
                raise ModelError(f"attribute {name} has the wrong kind", where=node.label, expected=wanted, got=kind)


class _Facts:
    """A schema in Python values: asking the C++ object costs more than the check itself."""

    def __init__(self, schema: onnx.defs.OpSchema) -> None:
        self.min_inputs, self.max_inputs = schema.min_input, schema.max_input
        self.min_outputs, self.max_outputs = schema.min_output, schema.max_output
        self.inputs_text = _range(schema.min_input, schema.max_input)
        self.outputs_text = _range(schema.min_output, schema.max_output)
        self.required_inputs = [i for i, p in enumerate(schema.inputs) if p.option.name == "Single"]
        self.required = [name for name, spec in schema.attributes.items() if spec.required]
        self.kinds: dict[str, str] = {name: str(spec.type.name) for name, spec in schema.attributes.items()}


@functools.cache
def _facts(op_type: str, domain: str) -> _Facts | None:
    schema = ops.schema(op_type, domain)
    return None if schema is None else _Facts(schema)


def _range(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"at least {low}" if high > 1000 else f"{low} to {high}"


def _unseen(graph: Graph, node: Node, value: Value) -> str:
    """Why a node must not read a value."""
    producer = value.producer
    if producer is node:
        return f"reads its own output '{value.name}'"
    if value.graph is None or value.graph.root is not graph.root or (producer is not None and producer.graph is None):
        return f"reads '{value.name}', which is not in the model"
    if producer is None or value.graph is not graph:
        return f"reads '{value.name}' of graph '{value.graph.name}', which it cannot see here"
    try:
        _order(graph, node)
    except ValueError:
        return f"is on a cycle through '{value.name}'"
    return f"reads '{value.name}', which {producer.label} makes only later"


def _order(graph: Graph, start: Node) -> None:
    """Raises ValueError when `start` depends on itself."""
    seen: set[Node] = set()
    stack = [start]
    while stack:
        for value in _reads(stack.pop()):
            producer = value.producer
            if producer is start:
                raise ValueError("cycle")
            if producer is not None and producer.graph is graph and producer not in seen:
                seen.add(producer)
                stack.append(producer)


def _reads(node: Node) -> list[Value]:
    captured = [v for sub in node.subgraphs for v in sub.captured()]
    return [v for v in node.inputs if v is not None] + captured
