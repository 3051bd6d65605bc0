"""Text -> model. The grammar stands in `irc.ir.printer`."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np

from irc.errors import ModelError
from irc.ir.graph import AttributeValue, Function, Graph, Model, Value
from irc.ir.printer import FORMAT
from irc.ir.types import (
    Constant,
    Dim,
    DType,
    MapType,
    OptionalType,
    Origin,
    SequenceType,
    Shape,
    SparseType,
    TensorType,
    ValueType,
)

T = TypeVar("T")

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    | (?P<hex>x"[0-9a-f]*")
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<digest>\#sha256:[0-9a-f]+)
    | (?P<float>-?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|(?:inf|nan)(?![A-Za-z0-9_./-])))
    | (?P<int>-?\d+)
    | (?P<name>[A-Za-z_][A-Za-z0-9_./-]*)
    | (?P<mark>::|[%@=(){}\[\]<>,:!?*])
    """,
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def parse_model(text: str, constants: Callable[[str], Constant] | None = None) -> Model:
    """Read a model from its text form. Raises ModelError with line and column.

    `constants` gives the data of a constant that the text holds by digest only; KeyError: it has none.
    """
    return _Parser(text, constants).model()


class _Parser:
    def __init__(self, text: str, constants: Callable[[str], Constant] | None) -> None:
        self.text, self.constants = text, constants
        self.values: dict[str, Value] = {}
        self.tokens = self._tokenize()
        self.at = 0

    # Tokens

    def _tokenize(self) -> list[_Token]:
        tokens, position = [], 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                self._fail("unreadable character", position)
            if match.lastgroup != "space":
                tokens.append(_Token(match.lastgroup or "", match.group(), position))
            position = match.end()
        tokens.append(_Token("end", "the end", position))
        return tokens

    def _fail(self, what: str, position: int | None = None, *, expected: str = "", got: str = "") -> NoReturn:
        position = self.tokens[self.at].position if position is None else position
        line = self.text.count("\n", 0, position) + 1
        column = position - self.text.rfind("\n", 0, position)
        raise ModelError(what, where=f"line {line}, column {column}", expected=expected, got=got)

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def next(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def sees(self, text: str) -> bool:
        return self.token.text == text and self.token.kind in ("name", "mark")

    def accept(self, text: str) -> bool:
        if not self.sees(text):
            return False
        self.at += 1
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self._fail("cannot read this", expected=repr(text), got=repr(self.token.text))

    def kind(self, *kinds: str) -> str:
        if self.token.kind not in kinds:
            self._fail("cannot read this", expected=" or ".join(kinds), got=repr(self.token.text))
        return self.next().text

    def integer(self) -> int:
        return int(self.kind("int"))

    def string(self) -> str:
        try:
            return str(json.loads(self.kind("string")))
        except json.JSONDecodeError as error:
            self._fail(f"not a JSON string: {error.msg}", self.tokens[self.at - 1].position)

    def bytes(self) -> bytes:
        try:
            return bytes.fromhex(self.kind("hex")[2:-1])
        except ValueError:
            self._fail("an odd number of hexadecimal digits", self.tokens[self.at - 1].position)

    def name(self) -> str:
        return self.string() if self.token.kind == "string" else self.kind("name", "string")

    def listed(self, item: Callable[[], T], open: str, close: str) -> list[T]:
        self.expect(open)
        items: list[T] = []
        while not self.accept(close):
            if items:
                self.expect(",")
            items.append(item())
        return items

    # Model and graph

    def model(self) -> Model:
        self.expect("irc")
        version = self.integer()
        if version != FORMAT:
            self._fail("another version of the text form", expected=str(FORMAT), got=str(version))
        model = Model(Graph(), opsets={})
        while not self.sees("graph"):
            self._line(model)
        model.graph = self.graph(None)
        if self.token.kind != "end":
            self._fail("text after the model", got=repr(self.token.text))
        return model

    def _line(self, model: Model) -> None:
        if self.accept("opset"):
            domain = self.string()
            model.opsets[domain] = self.integer()
        elif self.accept("metadata"):
            key = self.string()
            model.metadata[key] = self.string()
        elif self.accept("note"):
            model.notes.append(self.string())
        elif self.accept("function"):
            function = Function(self.string(), self.string(), self.string(), self.bytes())
            model.functions[function.domain, function.name, function.overload] = function
        else:
            self._fail(
                "cannot read this", expected="opset, metadata, note, function or graph", got=repr(self.token.text)
            )

    def graph(self, parent: Graph | None) -> Graph:
        self.expect("graph")
        name = self.name()
        graph = Graph(name) if parent is None else parent.subgraph(name)
        for input_name, type in self.listed(self.typed, "(", ")"):
            self._define(functools.partial(graph.add_input, input_name, type))
        self.expect("{")
        while not self.accept("return"):
            self._statement(graph)
        start = self.at
        outputs = self._sequence(self.value) if not self.sees("}") else []
        try:
            graph.set_outputs(outputs)
        except ValueError as error:
            self._fail(str(error), self.tokens[start].position)
        self.expect("}")
        return graph

    def _sequence(self, item: Callable[[], T]) -> list[T]:
        items = [item()]
        while self.accept(","):
            items.append(item())
        return items

    def _define(self, make: Callable[[], Value]) -> None:
        try:
            value = make()
        except ValueError as error:
            self._fail(str(error), self.tokens[self.at - 1].position)
        self.values[value.name] = value

    def _statement(self, graph: Graph) -> None:
        start = self.at
        if self.accept("_"):
            outputs: list[tuple[str, ValueType | None]] = []
        else:
            self.expect("%")
            name = self.name()
            if self.accept("="):
                self.expect("constant")
                data = self.tensor()
                if name in graph.root._names:
                    self._fail(f"a value named '{name}' exists already", self.tokens[start].position)
                self._define(lambda: graph.add_constant(data, name))
                return
            self.at = start
            outputs = self._sequence(self.typed)
        self.expect("=")
        self._node(graph, outputs)

    def _node(self, graph: Graph, outputs: list[tuple[str, ValueType | None]]) -> None:
        start = self.token.position
        domain, op_type, overload = "", self.name(), ""
        if self.accept("::"):
            domain, op_type = op_type, self.name()
        if self.accept("!"):
            overload = self.name()
        inputs = self.listed(self.input, "(", ")")
        attributes = {}
        if self.sees("{"):
            attributes = dict(self.listed(lambda: self.attribute(graph), "{", "}"))
        self.expect("@")
        name = self.name()
        try:
            node = graph.add(
                op_type,
                inputs,
                [n for n, _ in outputs],
                attributes,
                types=[t for _, t in outputs],
                domain=domain,
                name=name,
                overload=overload,
                origin=self._origin(name),
            )
        except ValueError as error:
            self._fail(str(error), start)
        if node.name != name:
            self._fail(f"two nodes are called '{name}'", start)
        self.values.update((v.name, v) for v in node.outputs)

    def _origin(self, name: str) -> Origin:
        if not self.accept("from"):
            return Origin((name,))
        nodes = tuple(self.listed(self.string, "[", "]"))
        return Origin(nodes, tuple(self.listed(self.string, "[", "]")) if self.accept("by") else ())

    def value(self) -> Value:
        start = self.token.position
        self.expect("%")
        name = self.name()
        if name not in self.values:
            self._fail(f"value '{name}' is not defined before its use", start)
        return self.values[name]

    def input(self) -> Value | None:
        return None if self.accept("_") else self.value()

    def typed(self) -> tuple[str, ValueType | None]:
        self.expect("%")
        name = self.name()
        self.expect(":")
        return name, self.type()

    # Types

    def type(self) -> ValueType | None:
        if self.accept("?"):
            return None
        start = self.token.position
        word = self.kind("name")
        if word in ("seq", "optional", "map", "sparse") and self.accept("<"):
            found = self._compound(word, start)
            self.expect(">")
            return found
        return TensorType(self._dtype(word, start), self.shape())

    def _compound(self, word: str, start: int) -> ValueType:
        key = None
        if word == "map":
            key = self._dtype(self.kind("name"), start)
            self.expect(",")
        elem = self.type()
        if elem is None:
            self._fail("the element type must be known", start)
        if word == "sparse":
            if not isinstance(elem, TensorType):
                self._fail("a sparse tensor is a tensor", start)
            return SparseType(elem.dtype, elem.shape)
        if key is not None:
            return MapType(key, elem)
        return SequenceType(elem) if word == "seq" else OptionalType(elem)

    def _dtype(self, word: str, start: int) -> DType:
        try:
            return DType(word)
        except ValueError:
            self._fail("no such element type", start, got=repr(word))

    def shape(self) -> Shape | None:
        if self.tokens[self.at + 1].text == "*":
            for mark in "[*]":
                self.expect(mark)
            return None
        return Shape(tuple(self.listed(self.dim, "[", "]")))

    def dim(self) -> Dim:
        if self.accept("?"):
            return None
        return self.integer() if self.token.kind == "int" else self.name()

    # Attributes and tensors

    def attribute(self, graph: Graph) -> tuple[str, AttributeValue]:
        name = self.name()
        self.expect("=")
        if self.sees("["):
            return name, tuple(self.listed(lambda: self.item(graph), "[", "]"))  # type: ignore[return-value]  # one kind
        return name, self.item(graph)

    def item(self, graph: Graph) -> AttributeValue:
        match self.token.kind:
            case "int":
                return self.integer()
            case "float":
                return float(self.next().text)
            case "string":
                return self.string()
            case "hex":
                return self.bytes()
        if self.accept("tensor"):
            return self.tensor()
        if self.accept("type"):
            type = self.type()
            if type is None:
                self._fail("an attribute cannot hold an unknown type")
            return type
        if self.sees("graph"):
            return self.graph(graph)
        return self._fail("cannot read this", expected="an attribute's value", got=repr(self.token.text))

    def tensor(self) -> Constant:
        start = self.token.position
        type = self.type()
        if not isinstance(type, TensorType) or type.shape is None or not type.shape.is_static:
            self._fail("a constant must be a tensor of a static shape", start)
        shape = type.shape.static()
        if self.token.kind == "digest":
            return self._by_digest(self.next().text, type)
        if self.token.kind == "hex":
            data = np.frombuffer(self.bytes(), np.uint8)
            if data.size != type.shape.numel() * type.dtype.numpy.itemsize:
                self._fail("as many bytes as the type has expected", start, got=str(data.size))
            return Constant.of(data.view(type.dtype.numpy).reshape(shape), type.dtype)
        elements = self.listed(self.element, "[", "]")
        if len(elements) != type.shape.numel():
            self._fail("wrong number of elements", start, expected=str(type.shape.numel()), got=str(len(elements)))
        try:
            array = np.array(elements, dtype=_parsed_as(type.dtype)).astype(type.dtype.numpy).reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            self._fail(f"elements that are not {type.dtype.value}: {error}", start)
        return Constant.of(array, type.dtype)

    def element(self) -> object:
        match self.token.kind:
            case "int":
                return self.integer()
            case "float":
                return float(self.next().text)
            case "string":
                return self.string()
            case "hex":
                return self.bytes()
        if self.sees("true") or self.sees("false"):
            return self.next().text == "true"
        return self._fail("cannot read this", expected="an element", got=repr(self.token.text))

    def _by_digest(self, text: str, type: TensorType) -> Constant:
        digest = text.removeprefix("#sha256:")
        if self.constants is None:
            self._fail("the text holds this constant by digest only, and no store of constants was given")
        try:
            found = self.constants(digest)
        except KeyError:
            self._fail(f"the constant with digest {digest[:16]}... was not found")
        if found.type != type:
            self._fail(f"the constant with digest {digest[:16]}... is another", expected=str(type), got=str(found.type))
        return found


def _parsed_as(dtype: DType) -> np.dtype[np.generic]:
    """What elements are read as before they become `dtype`: wide enough for each of its values."""
    if dtype is DType.STRING:
        return np.dtype(object)
    if dtype.is_float:
        return np.dtype(np.float64)
    if dtype is DType.UINT64:
        return np.dtype(np.uint64)
    return np.dtype(bool) if dtype is DType.BOOL else np.dtype(np.int64)
