"""Are two models the same program? Names of inner values and nodes, node order and origins do not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from irc.ir.graph import AttributeValue, Graph, Model, Node, Value
from irc.ir.printer import print_type
from irc.ir.types import Constant, ValueType


def difference(a: Model, b: Model) -> str | None:
    """Where `a` and `b` differ, in words, or None where they are structurally equal.

    Compared: opsets; inputs by place, name and type; outputs by place and name; behind every output the operators,
    their attributes as written (an explicit default differs from none) and their inputs; constants by contents;
    types where both are known; and how many nodes nobody reads. Equal subexpressions count: one node read twice is
    not the same as two nodes.
    """
    if a.opsets != b.opsets:
        return f"opsets: {a.opsets} against {b.opsets}"
    if a.functions.keys() != b.functions.keys():
        return f"functions: {sorted(a.functions)} against {sorted(b.functions)}"
    for key, function in a.functions.items():
        if function.proto != b.functions[key].proto:
            return f"function {function.domain}::{function.name}: the bodies differ"
    return _Comparison().graphs(a.graph, b.graph)


class _Comparison:
    def __init__(self) -> None:
        self.partner: dict[Value, Value] = {}
        self.taken: dict[Value, Value] = {}
        self.nodes: dict[Node, Node] = {}
        self.work: list[tuple[Value | None, Value | None, str]] = []

    def graphs(self, a: Graph, b: Graph) -> str | None:
        found = self._interface("input", a.inputs, b.inputs) or self._interface("output", a.outputs, b.outputs)
        found = found or self._enter(a, b, "graph") or self._run()
        return found or self._dead(a, b)

    def _interface(self, what: str, a: Sequence[Value], b: Sequence[Value]) -> str | None:
        names = [v.name for v in a], [v.name for v in b]
        return None if names[0] == names[1] else f"{what}s: {', '.join(names[0])} against {', '.join(names[1])}"

    def _enter(self, a: Graph, b: Graph, where: str) -> str | None:
        """Pair the inputs, and note the outputs for comparison."""
        if len(a.inputs) != len(b.inputs) or len(a.outputs) != len(b.outputs):
            return (
                f"{where}: {len(a.inputs)} inputs and {len(a.outputs)} outputs "
                f"against {len(b.inputs)} and {len(b.outputs)}"
            )
        for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            found = _types(x.type, y.type, f"{where} input {i} '{x.name}'")
            if found:
                return found
            self.partner[x], self.taken[y] = y, x
        for i, (x, y) in enumerate(zip(a.outputs, b.outputs, strict=True)):
            self.work.append((x, y, f"{where} output {i} '{x.name}'"))
        return None

    def _run(self) -> str | None:
        while self.work:
            found = self._values(*self.work.pop())
            if found:
                return found
        return None

    def _values(self, a: Value | None, b: Value | None, where: str) -> str | None:
        if a is None or b is None:
            return None if a is b else f"{where}: {_name(a)} against {_name(b)}"
        if a.constant is not None and b.constant is not None:
            return _constants(a.constant, b.constant, f"{where} ('{a.name}' against '{b.name}')")
        if self.partner.get(a) is b:
            return None
        if a in self.partner or b in self.taken or a.producer is None or b.producer is None:
            return f"{where}: {_name(a)} against {_name(b)}"
        if a.output_index != b.output_index:
            return f"{where}: output {a.output_index} of {a.producer.label} against {b.output_index}"
        return self._nodes(a.producer, b.producer, where)

    def _nodes(self, a: Node, b: Node, where: str) -> str | None:
        kinds = (a.domain, a.op_type, a.overload), (b.domain, b.op_type, b.overload)
        if kinds[0] != kinds[1]:
            return f"{where}: {a.label} against {b.label}"
        where = a.label if a.name == b.name else f"{a.label} against '{b.name}'"
        if len(a.outputs) != len(b.outputs) or len(a.inputs) != len(b.inputs):
            return f"{where}: {a!r} against {b!r}"
        for x, y in zip(a.outputs, b.outputs, strict=True):
            found = _types(x.type, y.type, f"{where} output {x.output_index}")
            if found:
                return found
            self.partner[x], self.taken[y] = y, x
        self.nodes[a] = b
        for i, (v, w) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            self.work.append((v, w, f"{where} input {i}"))
        if a.attributes.keys() != b.attributes.keys():
            return f"{where}: attributes {_keys(a)} against {_keys(b)}"
        for name, value in a.attributes.items():
            found = self._attributes(value, b.attributes[name], f"{where} attribute {name}")
            if found:
                return found
        return None

    def _attributes(self, a: AttributeValue, b: AttributeValue, where: str) -> str | None:
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                found = self._attributes(x, y, f"{where}[{i}]")
                if found:
                    return found
            return None
        if isinstance(a, Graph) and isinstance(b, Graph):
            return self._enter(a, b, where)
        if isinstance(a, Constant) and isinstance(b, Constant):
            return _constants(a, b, where)
        same = type(a) is type(b) and (a == b or (a != a and b != b))  # NaN is equal to NaN here
        return None if same else f"{where}: {a!r} against {b!r}"

    def _dead(self, a: Graph, b: Graph) -> str | None:
        """Nodes that no output depends on are compared by number and kind only."""
        seen_b = set(self.nodes.values())
        left = [Counter(n.op_type for n in g.walk() if n not in seen) for g, seen in ((a, self.nodes), (b, seen_b))]
        if left[0] == left[1]:
            return None
        only_a, only_b = dict(left[0] - left[1]), dict(left[1] - left[0])
        return f"nodes that no output depends on: {only_a or 'none'} against {only_b or 'none'}"


def _types(a: ValueType | None, b: ValueType | None, where: str) -> str | None:
    if a is None or b is None or a == b:
        return None
    return f"{where}: type {print_type(a)} against {print_type(b)}"


def _constants(a: Constant, b: Constant, where: str) -> str | None:
    if a is b:
        return None
    if a.type != b.type:
        return f"{where}: constant of type {a.type} against {b.type}"
    return None if a.digest() == b.digest() else f"{where}: constants of different contents"


def _name(value: Value | None) -> str:
    if value is None:
        return "nothing"
    if value.constant is not None:
        return f"constant '{value.name}'"
    return f"'{value.name}'" + (f" of {value.producer.label}" if value.producer is not None else " (input)")


def _keys(node: Node) -> str:
    return "{" + ", ".join(sorted(node.attributes)) + "}"
