"""The text form of a model. `irc.ir.parser` reads it back; printing what was parsed gives the same text.

    model     = "irc" INT line* graph
    line      = "opset" STRING INT | "metadata" STRING STRING | "note" STRING
              | "function" STRING STRING STRING HEX                 domain, name, overload, FunctionProto
    graph     = "graph" NAME "(" [typed ("," typed)*] ")" "{" constant* node* "return" [value ("," value)*] "}"
    typed     = value ":" type
    value     = "%" NAME
    constant  = value "=" "constant" tensor
    node      = outputs "=" op "(" [input ("," input)*] ")" ["{" attribute ("," attribute)* "}"] "@" NAME [origin]
    outputs   = typed ("," typed)* | "_"
    op        = [NAME "::"] NAME ["!" NAME]                         domain (none: standard), operator, overload
    input     = value | "_"                                         "_": left out
    origin    = "from" "[" [STRING ("," STRING)*] "]" ["by" "[" STRING ("," STRING)* "]"]
                                                                    ONNX nodes, passes; no origin: the node's own name
    attribute = NAME "=" (item | "[" [item ("," item)*] "]")
    item      = INT | FLOAT | STRING | HEX | "tensor" tensor | "type" type | graph
    tensor    = type ("[" [element ("," element)*] "]" | HEX | DIGEST)
    element   = INT | FLOAT | "true" | "false" | STRING | HEX       row-major; HEX for a string that is not UTF-8
    type      = DTYPE "[" ("*" | [dim ("," dim)*]) "]" | "seq" "<" type ">" | "optional" "<" type ">"
              | "map" "<" DTYPE "," type ">" | "sparse" "<" type ">" | "?"      [*]: rank unknown; ?: type unknown
    dim       = INT | NAME | "?"                                    number, symbol, unknown

    NAME   = a letter or "_", then letters, digits and _ . / -   (anything else, inf and nan: as STRING)
    STRING = a JSON string        INT = -?[0-9]+      FLOAT = what Python's repr gives (always with . e inf or nan)
    HEX    = x"0aff" (raw bytes)  DIGEST = #sha256:hex (`Constant.digest()` of data that the text does not hold)

Lines and indentation do not matter. `//` starts a comment. Constants of at most 16 elements are written out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import numpy as np

from irc.ir.graph import AttributeValue, Graph, Model, Node, Value
from irc.ir.types import (
    Constant,
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

FORMAT = 1
INLINE_ELEMENTS = 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")


def print_model(model: Model) -> str:
    """The whole model as text (see the grammar above). Weights beyond 16 elements appear by digest only."""
    lines = [f"irc {FORMAT}"]
    lines += [f"opset {_string(domain)} {version}" for domain, version in model.opsets.items()]
    lines += [f"metadata {_string(k)} {_string(v)}" for k, v in model.metadata.items()]
    lines += [f"note {_string(note)}" for note in model.notes]
    for f in model.functions.values():
        lines.append(f"function {_string(f.domain)} {_string(f.name)} {_string(f.overload)} {_hex(f.proto)}")
    lines.append(print_graph(model.graph))
    return "\n".join(lines) + "\n"


def print_graph(graph: Graph, indent: str = "") -> str:
    inner = indent + "  "
    inputs = ", ".join(_typed(v) for v in graph.inputs)
    lines = [f"graph {_name(graph.name)}({inputs}) {{"]
    for value in graph.constants.values():
        assert value.constant is not None
        lines.append(f"{inner}{_value(value)} = constant {_tensor(value.constant)}")
    lines += [inner + print_node(node, inner) for node in graph.nodes]
    lines.append(f"{inner}return {', '.join(_value(v) for v in graph.outputs)}".rstrip())
    lines.append(indent + "}")
    return "\n".join(lines)


def print_node(node: Node, indent: str = "") -> str:
    """One node, as it stands in the text of a model."""
    outputs = ", ".join(_typed(v) for v in node.outputs) or "_"
    op = _name(node.op_type)
    if node.domain:
        op = f"{_name(node.domain)}::{op}"
    if node.overload:
        op += "!" + _name(node.overload)
    inputs = ", ".join("_" if v is None else _value(v) for v in node.inputs)
    text = f"{outputs} = {op}({inputs})"
    if node.attributes:
        pairs = (f"{_name(k)}={_attribute(v, indent)}" for k, v in node.attributes.items())
        text += " {" + ", ".join(pairs) + "}"
    return text + f" @{_name(node.name)}" + _origin(node)


def _origin(node: Node) -> str:
    origin = node.origin
    if origin == Origin((node.name,)):
        return ""
    text = f" from [{', '.join(map(_string, origin.nodes))}]"
    return text + (f" by [{', '.join(map(_string, origin.passes))}]" if origin.passes else "")


def print_type(type: ValueType | None) -> str:
    match type:
        case None:
            return "?"
        case TensorType():
            return type.dtype.value + _shape(type.shape)
        case SparseType():
            return f"sparse<{type.dtype.value}{_shape(type.shape)}>"
        case SequenceType():
            return f"seq<{print_type(type.elem)}>"
        case OptionalType():
            return f"optional<{print_type(type.elem)}>"
        case MapType():
            return f"map<{type.key.value}, {print_type(type.elem)}>"


def _shape(shape: Shape | None) -> str:
    if shape is None:
        return "[*]"
    return "[" + ", ".join("?" if d is None else str(d) if isinstance(d, int) else _name(d) for d in shape) + "]"


def _attribute(value: AttributeValue, indent: str) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_item(v, indent) for v in value) + "]"
    return _item(value, indent)


def _item(value: AttributeValue, indent: str) -> str:
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bytes):
        return _hex(value)
    if isinstance(value, Constant):
        return "tensor " + _tensor(value)
    if isinstance(value, Graph):
        return print_graph(value, indent)
    assert not isinstance(value, tuple)
    return "type " + print_type(value)


def _tensor(constant: Constant) -> str:
    head = f"{constant.dtype.value}{_shape(Shape(constant.shape))} "
    if constant.size > INLINE_ELEMENTS:
        return f"{head}#sha256:{constant.digest()}"
    return head + _elements(constant)


def _elements(constant: Constant) -> str:
    data = constant.numpy().reshape(-1)
    dtype = constant.dtype
    items: Iterable[str]
    if dtype is DType.STRING:
        items = (_hex(v) if isinstance(v, bytes) and not _is_text(v) else _string(_text(v)) for v in data)
    elif dtype is DType.BOOL:
        items = ("true" if v else "false" for v in data)
    elif dtype.is_integer:
        items = (str(int(v)) for v in data)
    elif dtype.is_float and not np.isnan(data.astype(np.float64)).any():
        items = (_float(v, dtype) for v in data)
    else:
        return _hex(np.ascontiguousarray(data).tobytes())  # complex numbers, and NaNs with their payload
    return "[" + ", ".join(items) + "]"


def _float(value: object, dtype: DType) -> str:
    if dtype is DType.FLOAT:
        shortest = str(value)  # "0.1" for the float32 next to 0.1, when reading it as a float64 on the way is harmless
        if np.float32(float(shortest)) == value:
            return shortest
    return repr(float(value))  # type: ignore[arg-type]  # a numpy scalar


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _typed(value: Value) -> str:
    return f"{_value(value)}: {print_type(value.type)}"


def _value(value: Value) -> str:
    return "%" + _name(value.name)


def _name(name: str) -> str:
    return name if _NAME.fullmatch(name) and name not in ("_", "inf", "nan") else _string(name)


def _string(text: str) -> str:
    return json.dumps(text)


def _hex(data: bytes) -> str:
    return f'x"{data.hex()}"'
