"""Model, Graph, Node, Value: the graph IR. Every operator is an ONNX operator at `CANONICAL_OPSET`.

Values know their producer and their uses; nodes stand in a list that is a topological order.
Subgraphs (attributes of If, Loop, Scan) use values of the graphs around them directly, and those uses count.
All changes go through methods of Graph, which keep uses, producers and names right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from irc.ir.types import Array, Constant, DType, Origin, Shape, TensorType, ValueType

CANONICAL_OPSET = 26
"""The newest opset that both onnx and onnxruntime, our oracle, know."""

AttributeValue = Union[
    int,
    float,
    str,
    bytes,
    Constant,
    "Graph",
    ValueType,
    tuple[int, ...],
    tuple[float, ...],
    tuple[str, ...],
    tuple[bytes, ...],
    tuple[Constant, ...],
    tuple["Graph", ...],
    tuple[ValueType, ...],
]


@dataclass(frozen=True)
class Use:
    """One input slot that reads a value."""

    node: Node
    index: int


class Value:
    """A named tensor (or sequence, optional, map): graph input, constant, or output of a node.

    `type` may be None before shape inference. `constant` holds the data of an initializer.
    """

    __slots__ = ("_uses", "constant", "graph", "name", "output_index", "producer", "type")

    def __init__(self, name: str, type: ValueType | None = None) -> None:
        self.name = name
        self.type = type
        self.constant: Constant | None = None
        self.producer: Node | None = None
        self.output_index = 0
        self.graph: Graph | None = None  # the graph that defines it
        self._uses: dict[tuple[int, int], Use] = {}

    @property
    def uses(self) -> tuple[Use, ...]:
        """Every node input that reads this value, in subgraphs too; graph outputs are not in it."""
        return tuple(self._uses.values())

    @property
    def users(self) -> tuple[Node, ...]:
        return tuple(dict.fromkeys(u.node for u in self._uses.values()))

    @property
    def is_constant(self) -> bool:
        return self.constant is not None

    @property
    def is_output(self) -> bool:
        return self.graph is not None and id(self) in self.graph._output_ids

    @property
    def tensor(self) -> TensorType:
        """The tensor type. Raises ValueError where it is unknown or the value is no dense tensor."""
        if not isinstance(self.type, TensorType):
            raise ValueError(f"value '{self.name}' has type {self.type}, not a tensor type")
        return self.type

    @property
    def shape(self) -> Shape | None:
        return self.type.shape if isinstance(self.type, TensorType) else None

    @property
    def dtype(self) -> DType | None:
        return self.type.dtype if isinstance(self.type, TensorType) else None

    def static_shape(self) -> tuple[int, ...]:
        """Extents as numbers. Raises ValueError where they are not all known."""
        shape = self.tensor.shape
        if shape is None:
            raise ValueError(f"value '{self.name}' has unknown rank")
        return shape.static()

    def numpy(self) -> Array:
        """Data of a constant. Raises ValueError for others."""
        if self.constant is None:
            raise ValueError(f"value '{self.name}' is not a constant")
        return self.constant.numpy()

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Node:
    """One operator. Inputs may be None (an optional input left out). Made by `Graph.add`."""

    __slots__ = ("attributes", "domain", "graph", "inputs", "name", "op_type", "origin", "outputs", "overload")

    def __init__(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
        attributes: Mapping[str, AttributeValue],
        domain: str,
        name: str,
        origin: Origin,
        overload: str,
    ) -> None:
        self.op_type, self.domain, self.name, self.origin, self.overload = op_type, domain, name, origin, overload
        self.inputs: tuple[Value | None, ...] = tuple(inputs)
        self.outputs: tuple[Value, ...] = tuple(outputs)
        self.attributes: dict[str, AttributeValue] = dict(attributes)
        self.graph: Graph | None = None

    @property
    def output(self) -> Value:
        """The only (or first) output."""
        return self.outputs[0]

    def input(self, index: int) -> Value | None:
        """Input number `index`, None where it is left out (also beyond the end)."""
        return self.inputs[index] if index < len(self.inputs) else None

    def need(self, index: int) -> Value:
        """Input number `index`, which must be present."""
        value = self.input(index)
        if value is None:
            raise ValueError(f"{self.label}: input {index} is missing")
        return value

    def get_int(self, name: str, default: int = 0) -> int:
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise ValueError(f"{self.label}: attribute {name} is no integer")
        return value

    def get_float(self, name: str, default: float = 0.0) -> float:
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise ValueError(f"{self.label}: attribute {name} is no number")
        return float(value)

    def get_str(self, name: str, default: str = "") -> str:
        value = self.attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode()
        if not isinstance(value, str):
            raise ValueError(f"{self.label}: attribute {name} is no string")
        return value

    def get_ints(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        value = self.attributes.get(name, tuple(default))
        if not isinstance(value, tuple):
            raise ValueError(f"{self.label}: attribute {name} is no list of integers")
        return tuple(v for v in value if isinstance(v, int))

    @property
    def subgraphs(self) -> tuple[Graph, ...]:
        found: list[Graph] = []
        for value in self.attributes.values():
            if isinstance(value, Graph):
                found.append(value)
            elif isinstance(value, tuple):
                found.extend(v for v in value if isinstance(v, Graph))
        return tuple(found)

    @property
    def label(self) -> str:
        """For messages: "node 'conv1' (Conv)"."""
        return f"node '{self.name}' ({self.domain + '.' if self.domain else ''}{self.op_type})"

    def is_op(self, *op_types: str) -> bool:
        """Whether this is one of these operators of the standard domain."""
        return self.domain == "" and self.op_type in op_types

    def __repr__(self) -> str:
        ins = ", ".join("_" if v is None else v.name for v in self.inputs)
        return f"{', '.join(v.name for v in self.outputs)} = {self.op_type}({ins})"


class _Names:
    """Names in use. `unique` remembers where it stopped, so that thousands of equal bases cost no quadratic search."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}  # base -> every base_N with 1 <= N < this is taken

    def __contains__(self, name: str) -> bool:
        return name in self._taken

    def unique(self, base: str) -> str:
        if base not in self._taken:
            return base
        n = self._next.get(base, 1)
        while f"{base}_{n}" in self._taken:
            n += 1
        self._next[base] = n
        return f"{base}_{n}"

    def check(self, names: Sequence[str]) -> None:
        for i, name in enumerate(names):
            if name in self._taken or name in names[:i]:
                raise ValueError(f"a value named '{name}' exists already")

    def add(self, name: str) -> None:
        self.check([name])
        self._taken.add(name)

    def discard(self, name: str) -> None:
        self._taken.discard(name)
        base, _, number = name.rpartition("_")
        if base in self._next and number.isdecimal():
            self._next[base] = min(self._next[base], max(1, int(number)))


class Graph:
    """Nodes in topological order, inputs, outputs and constants. `parent` is the graph around a subgraph."""

    def __init__(self, name: str = "graph", parent: Graph | None = None) -> None:
        self.name = name
        self.parent = parent
        self.inputs: list[Value] = []
        self.constants: dict[str, Value] = {}
        self._outputs: list[Value] = []
        self._output_ids: set[int] = set()
        self._nodes: list[Node] = []
        self._names = _Names()
        self._node_names = _Names()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """A snapshot: safe to iterate while the graph is changed."""
        return tuple(self._nodes)

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self._outputs)

    @property
    def root(self) -> Graph:
        return self if self.parent is None else self.parent.root

    def __len__(self) -> int:
        return len(self._nodes)

    # Names are unique over a graph and all its subgraphs, so that ONNX scoping can never capture the wrong value.
    def unique_name(self, base: str) -> str:
        """`base`, or `base_N` with the smallest N that makes it new in this graph and all around and inside it."""
        return self.root._names.unique(base or "v")

    def _own(self, value: Value) -> Value:
        self.root._names.add(value.name)
        value.graph = self
        return value

    def add_input(self, name: str, type: ValueType | None) -> Value:
        value = self._own(Value(name, type))
        self.inputs.append(value)
        return value

    def add_constant(self, data: Constant | Array, name: str = "const") -> Value:
        """A new initializer; `name` is made unique."""
        constant = data if isinstance(data, Constant) else Constant.of(data)
        value = self._own(Value(self.unique_name(name), constant.type))
        value.constant = constant
        self.constants[value.name] = value
        return value

    def add(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        outputs: int | Sequence[str] = 1,
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        types: Sequence[ValueType | None] = (),
        domain: str = "",
        name: str = "",
        origin: Origin | None = None,
        overload: str = "",
        before: Node | None = None,
    ) -> Node:
        """Append a node (or insert it before `before`). `outputs`: their number, or their names (must be new).

        `types` are the output types where known; `irc.ir.infer` fills in the others.
        """
        label = self.root._node_names.unique(name or op_type)
        if isinstance(outputs, int):
            names = [self.unique_name(f"{label}_out" if outputs == 1 else f"{label}_out{i}") for i in range(outputs)]
        else:
            names = list(outputs)
            self.root._names.check(names)
        values = [Value(n, types[i] if i < len(types) else None) for i, n in enumerate(names)]
        node = Node(op_type, inputs, values, attributes or {}, domain, label, origin or Origin(), overload)
        for sub in node.subgraphs:
            if sub.parent is not self:
                raise ValueError(f"{node.label}: its subgraph must be made with parent=this graph")
        position = len(self._nodes) if before is None else self._index(before)
        node.graph = self
        self.root._node_names.add(label)
        for i, value in enumerate(values):
            self._own(value)
            value.producer, value.output_index = node, i
        for i, used in enumerate(node.inputs):
            if used is not None:
                used._uses[(id(node), i)] = Use(node, i)
        self._nodes.insert(position, node)
        return node

    def subgraph(self, name: str) -> Graph:
        """A graph to be handed to `add` as an attribute."""
        return Graph(name, parent=self)

    def _index(self, node: Node) -> int:
        if node.graph is not self:
            raise ValueError(f"{node.label} is not in graph '{self.name}'")
        return self._nodes.index(node)  # nodes compare by identity, so this is a fast scan

    def set_outputs(self, values: Iterable[Value]) -> None:
        """Name the results. Each must be defined by this graph itself: a value of a surrounding graph that a
        subgraph returns needs an Identity, as onnxruntime wants it too. Raises ValueError.
        """
        outputs = list(values)
        for value in outputs:
            if value.graph is not self:
                raise ValueError(f"output '{value.name}' of graph '{self.name}' is not defined in it; add an Identity")
        self._outputs = outputs
        self._output_ids = {id(v) for v in outputs}

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Let input slot `index` of `node` (extended with None if needed) read `value`."""
        inputs = list(node.inputs)
        inputs.extend([None] * (index + 1 - len(inputs)))
        old = inputs[index]
        if old is not None:
            old._uses.pop((id(node), index), None)
        inputs[index] = value
        if value is not None:
            value._uses[(id(node), index)] = Use(node, index)
        while inputs and inputs[-1] is None:
            inputs.pop()
        node.inputs = tuple(inputs)

    def replace_uses(self, old: Value, new: Value, *, keep: Iterable[Node] = ()) -> None:
        """All readers of `old`, and graph outputs, read `new`. An output keeps the name users see.

        Nodes in `keep` go on reading `old` (the node just put behind it, say).
        When `old` is an output of its graph, `new` takes over its name if `new` is made by a node; otherwise an
        Identity carries the name (a graph input or constant cannot be renamed).
        """
        if old is new:
            return
        kept = {id(node) for node in keep}
        for use in old.uses:
            if use.node.graph is not None and id(use.node) not in kept:
                use.node.graph.set_input(use.node, use.index, new)
        owner = old.graph
        if owner is None or not old.is_output:
            return
        if new.producer is not None and not new.is_output and new.graph is owner:
            name, spare = old.name, owner.unique_name(old.name + "_old")
            owner.rename(old, spare)
            owner.rename(new, name)
            carrier = new
        else:
            spare = owner.unique_name(old.name + "_old")
            name = old.name
            owner.rename(old, spare)
            carrier = owner.add("Identity", [new], [name], types=[old.type or new.type]).output
        owner.set_outputs([carrier if v is old else v for v in owner._outputs])

    def rename(self, value: Value, name: str) -> None:
        """Raises ValueError when the name is taken."""
        if name == value.name:
            return
        self.root._names.add(name)
        self.root._names.discard(value.name)
        if value.constant is not None and value.graph is not None:
            del value.graph.constants[value.name]
            value.graph.constants[name] = value
        value.name = name

    def remove(self, node: Node) -> None:
        """Take out a node whose outputs nobody reads."""
        for value in node.outputs:
            if value._uses or value.is_output:
                raise ValueError(f"{node.label}: output '{value.name}' is still in use")
        self._nodes.pop(self._index(node))
        self._release(node)

    def _release(self, node: Node) -> None:
        for i, used in enumerate(node.inputs):
            if used is not None:
                used._uses.pop((id(node), i), None)
        for value in node.outputs:
            self.root._names.discard(value.name)
        self.root._node_names.discard(node.name)
        for sub in node.subgraphs:
            sub.clear()
        node.graph = None

    def clear(self) -> None:
        """Release every node, constant and name (used when the node that owns this subgraph goes)."""
        for node in reversed(self._nodes):
            self._release(node)
        for value in (*self.inputs, *self.constants.values()):
            self.root._names.discard(value.name)
        self._nodes, self._outputs, self.inputs, self.constants = [], [], [], {}
        self._output_ids = set()

    def drop_last_output(self, node: Node) -> None:
        """Leave out the last output, which nobody may read (the schema must allow it)."""
        value = node.outputs[-1]
        if value._uses or value.is_output:
            raise ValueError(f"{node.label}: output '{value.name}' is still in use")
        node.outputs = node.outputs[:-1]
        self.root._names.discard(value.name)

    def remove_constant(self, value: Value) -> None:
        if value._uses or value.is_output:
            raise ValueError(f"constant '{value.name}' is still in use")
        del self.constants[value.name]
        self.root._names.discard(value.name)

    def remove_nodes(self, nodes: Iterable[Node]) -> None:
        """Remove many dead nodes in one pass over the list (users must be among them)."""
        gone = {id(n) for n in nodes}
        for node in reversed(self._nodes):
            if id(node) in gone:
                for value in node.outputs:
                    if value._uses or value.is_output:
                        raise ValueError(f"{node.label}: output '{value.name}' is still in use")
                self._release(node)
        self._nodes = [n for n in self._nodes if id(n) not in gone]

    def sort(self) -> None:
        """Restore topological order, stable. Raises ValueError naming a node on a cycle."""
        done: set[int] = set()
        order: list[Node] = []
        here = {id(n) for n in self._nodes}

        def producers(node: Node) -> Iterator[Node]:
            for value in node.inputs:
                if value is not None and value.producer is not None and id(value.producer) in here:
                    yield value.producer
            for sub in node.subgraphs:
                for value in sub.captured():
                    if value.producer is not None and id(value.producer) in here:
                        yield value.producer

        for start in self._nodes:
            if id(start) in done:
                continue
            stack = [(start, producers(start))]
            open_ids = {id(start)}
            while stack:
                node, rest = stack[-1]
                nxt = next((p for p in rest if id(p) not in done), None)
                if nxt is None:
                    stack.pop()
                    open_ids.discard(id(node))
                    done.add(id(node))
                    order.append(node)
                elif id(nxt) in open_ids:
                    raise ValueError(f"{nxt.label} is on a cycle")
                else:
                    stack.append((nxt, producers(nxt)))
                    open_ids.add(id(nxt))
        self._nodes = order

    def captured(self) -> tuple[Value, ...]:
        """Values of surrounding graphs that this subgraph (and those inside it) reads."""
        inside: set[int] = set()
        found: dict[int, Value] = {}

        def visit(graph: Graph) -> None:
            inside.update(id(v) for v in (*graph.inputs, *graph.constants.values()))
            for node in graph._nodes:
                for value in node.inputs:
                    if value is not None and id(value) not in inside:
                        found[id(value)] = value
                for sub in node.subgraphs:
                    visit(sub)
                inside.update(id(v) for v in node.outputs)
            for value in graph._outputs:
                if id(value) not in inside:
                    found[id(value)] = value

        visit(self)
        return tuple(v for k, v in found.items() if k not in inside)

    def walk(self) -> Iterator[Node]:
        """Every node of this graph and its subgraphs, outer before inner."""
        for node in self.nodes:
            yield node
            for sub in node.subgraphs:
                yield from sub.walk()

    def values(self) -> Iterator[Value]:
        """Inputs, constants and node outputs of this graph (not of subgraphs)."""
        yield from self.inputs
        yield from self.constants.values()
        for node in self._nodes:
            yield from node.outputs

    def find(self, name: str) -> Value:
        """The value of this name in this graph. Raises KeyError."""
        for value in self.values():
            if value.name == name:
                return value
        raise KeyError(name)


@dataclass
class Function:
    """A model-local ONNX function: a body whose attributes may refer to the caller's (kept as ONNX keeps them).

    The importer inlines functions; this record stays for those that a custom operator still calls.
    """

    domain: str
    name: str
    overload: str
    proto: bytes


@dataclass
class Model:
    """A graph and what stands beside it in an ONNX file."""

    graph: Graph
    opsets: dict[str, int] = field(default_factory=lambda: {"": CANONICAL_OPSET})
    functions: dict[tuple[str, str, str], Function] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    source: Path | None = None
    files: tuple[Path, ...] = ()  # all that it was read from: `source`, and those of external data
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.source.name if self.source is not None else self.graph.name
