"""An ONNX region with static shapes -> `LibraryKernel`: every node through the first of three roads that takes it.

1. constants and shapes are computed now (ONNX's own reference evaluator), If, Loop and Scan are written out,
2. a definition of ours (`table.py`),
3. the operator's function body in the standard, node by node.

The nodes become one TIR function: their tensor expressions are simply chained. (TVM's own ONNX importer is not used:
it is silently wrong on some cases, and what it knows beyond these roads has results whose shape depends on data.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tvm import te, tirx

from irc.backends.tvm.library.emit import Call, LibraryKernel, Ref
from irc.backends.tvm.library.functions import function_of, instantiate, opset_of
from irc.backends.tvm.library.lower import lower_tensors
from irc.backends.tvm.library.op import Op, Refused, Value, compute, const, element, elementwise, restart_names
from irc.backends.tvm.library.supported import reason
from irc.errors import UnsupportedError
from irc.ir.types import Array

DTYPES = frozenset(
    "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()  # noqa: SIM905 - one line, not one for each
)
"""Element types that the generated code handles; bfloat16 besides, at the region's border."""
FOLD_LIMIT = 1 << 22
"""Constants with more elements than this are computed at run time instead."""
UNROLL_LIMIT = 64
"""Turns of a Loop or Scan that are written out; more would make the code long."""
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def lower_region(model_bytes: bytes) -> LibraryKernel:
    """The region as calls of TIR functions. Raises UnsupportedError naming the nodes no road takes, with reasons."""
    model = onnx.ModelProto.FromString(model_bytes)
    restart_names()
    return _Region(model).lower()


@dataclass
class _Region:
    model: onnx.ModelProto
    env: dict[str, Value | None] = field(default_factory=dict)
    place: dict[Any, Ref] = field(default_factory=dict)  # te placeholder -> where its data lies
    constants: list[Array] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    roads: dict[str, str] = field(default_factory=dict)  # operator -> the road it took
    _materialized: dict[int, tuple[Array, Any]] = field(default_factory=dict)

    def lower(self) -> LibraryKernel:
        graph = self.model.graph
        known = {t.name: widened(numpy_helper.to_array(t)) for t in graph.initializer}
        self.env.update({name: Value(array=a) for name, a in known.items()})
        inputs = []
        for i, info in enumerate(v for v in graph.input if v.name not in known):
            dtype, shape = tensor_type(info)
            if dtype not in (*DTYPES, "bfloat16"):
                raise UnsupportedError(f"element type {dtype} of {info.name!r} is not compiled")
            tensor = te.placeholder(shape, "uint16" if dtype == "bfloat16" else dtype, name=f"input{i}")
            self.place[tensor.op] = Ref("input", i)
            self.env[info.name] = Value(from_bfloat16(tensor) if dtype == "bfloat16" else tensor)
            inputs.append((dtype, shape))
        opset = opset_of(self.model)
        for node in graph.node:
            self.node(node, opset)
        outputs = self.results([(o.name, o.type.tensor_type.elem_type) for o in graph.output])
        return LibraryKernel(tuple(self.calls), tuple(inputs), tuple(outputs), tuple(self.constants))

    # -- nodes

    def node(self, node: onnx.NodeProto, opset: int) -> None:
        """Compute the outputs of `node`, which follows the standard of `opset`, into the environment."""
        values = [self.env[n] if n else None for n in node.input]
        reasons = []
        for road in (self.fold, self.own, self.branch, self.loop, self.scan, self.function):
            try:
                made = road(node, values, opset)
            except Refused as refused:
                reasons.append(str(refused))
                continue
            if made:
                self.roads.setdefault(f"{node.domain}:{node.op_type}", road.__name__)
                return
        why = reason(node.op_type, node.domain) or "; ".join(dict.fromkeys(reasons)) or "no definition"
        raise UnsupportedError(f"operator {node.op_type} cannot be lowered: {why}", where=_where(node))

    def bind(self, node: onnx.NodeProto, values: list[Value | None]) -> None:
        for name, value in zip(node.output, values, strict=False):
            if name:
                self.env[name] = value

    def fold(self, node: onnx.NodeProto, values: list[Value | None], opset: int) -> bool:
        """Nodes whose result is known now: constant operands, and shapes."""
        if node.op_type in ("Shape", "Size") and not node.domain and values[0] is not None:
            self.bind(node, [Value(array=_shape_value(node, values[0].shape))])
            return True
        if node.op_type in RANDOM or any(a.HasField("g") for a in node.attribute):
            return False
        if any(v is not None and v.array is None for v in values):
            return False
        results = evaluate(node, [None if v is None else v.array for v in values], opset)
        if results is None or sum(r.size for r in results) > FOLD_LIMIT:
            return False
        self.bind(node, [Value(array=r) for r in results])
        return True

    def own(self, node: onnx.NodeProto, values: list[Value | None], opset: int) -> bool:
        from irc.backends.tvm.library.table import OPERATORS

        definition = OPERATORS.get((node.domain, node.op_type))
        if definition is None:
            return False
        op = Op(node, attributes_of(node, opset), values, self.materialize, since(node, opset))
        self.bind(node, [None if t is None else Value(t) for t in definition(op)])
        return True

    def branch(self, node: onnx.NodeProto, values: list[Value | None], opset: int) -> bool:
        """`If` whose condition is known now: its branch, in place."""
        if node.op_type != "If" or values[0] is None or values[0].array is None:
            return False
        wanted = "then_branch" if bool(values[0].array.reshape(-1)[0]) else "else_branch"
        (graph,) = (a.g for a in node.attribute if a.name == wanted)
        self.bind(node, list(self.inside(graph, [], opset)))
        return True

    def loop(self, node: onnx.NodeProto, values: list[Value | None], opset: int) -> bool:
        """`Loop` whose number of turns is known now, turn after turn."""
        if node.op_type != "Loop":
            return False
        (body,) = (a.g for a in node.attribute if a.name == "body")
        count, go_on = values[0], values[1]
        if count is None or count.array is None:
            raise Refused("the number of turns is not a constant")
        turns = int(count.array.reshape(-1)[0])
        if turns > UNROLL_LIMIT:
            raise Refused(f"{turns} turns are more than {UNROLL_LIMIT}")
        condition = go_on if go_on is not None else Value(array=np.asarray(True))
        carried = list(values[2:])
        rows: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
        for i in range(turns):
            if condition.array is None:
                raise Refused("its condition is not known when compiling")
            if not condition.array.reshape(-1)[0]:
                break
            results = self.inside(body, [Value(array=np.asarray(i, np.int64)), condition, *carried], opset)
            condition, carried = results[0], list(results[1 : 1 + len(carried)])
            for row, value in zip(rows, results[1 + len(carried) :], strict=True):
                row.append(value)
        self.bind(node, [*carried, *(self.stacked(row, 0) if self.used(n) else None
                                     for n, row in zip(node.output[len(carried) :], rows, strict=False))])  # fmt: skip
        return True

    def scan(self, node: onnx.NodeProto, values: list[Value | None], opset: int) -> bool:
        """`Scan` (opset 9 and later), turn after turn."""
        if node.op_type != "Scan":
            return False
        attributes = attributes_of(node, opset)
        if since(node, opset) < 9:
            raise Refused("Scan before opset 9")
        body, count = attributes["body"], attributes["num_scan_inputs"]
        carried, scanned = list(values[: len(values) - count]), values[len(values) - count :]
        outputs = len(node.output) - len(carried)
        axes = attributes.get("scan_input_axes") or [0] * count
        backwards = attributes.get("scan_input_directions") or [0] * count
        out_axes = attributes.get("scan_output_axes") or [0] * outputs
        out_backwards = attributes.get("scan_output_directions") or [0] * outputs
        turns = scanned[0].shape[axes[0]] if scanned[0] is not None else 0
        if turns > UNROLL_LIMIT:
            raise Refused(f"{turns} turns are more than {UNROLL_LIMIT}")
        rows: list[list[Value]] = [[] for _ in range(outputs)]
        for i in range(turns):
            slices = [
                self.picked(v, axis, turns - 1 - i if back else i)
                for v, axis, back in zip(scanned, axes, backwards, strict=True)
            ]
            results = self.inside(body, [*carried, *slices], opset)
            carried = list(results[: len(carried)])
            for row, value, back in zip(rows, results[len(carried) :], out_backwards, strict=True):
                row.insert(0 if back else len(row), value)
        made = [
            self.stacked(row, axis) if self.used(n) else None
            for n, row, axis in zip(node.output[len(carried) :], rows, out_axes, strict=True)
        ]
        self.bind(node, [*carried, *made])
        return True

    def inside(self, graph: onnx.GraphProto, values: list[Value | None], opset: int) -> list[Value]:
        """The outputs of a subgraph on `values`."""
        self.env.update(zip((v.name for v in graph.input), values, strict=True))
        self.env.update({t.name: Value(array=numpy_helper.to_array(t)) for t in graph.initializer})
        for inner in graph.node:
            self.node(inner, opset)
        results = [self.env[o.name] for o in graph.output]
        if any(r is None for r in results):
            raise Refused("an output of its body is not computed")
        return [r for r in results if r is not None]

    @staticmethod
    def used(name: str) -> bool:
        return bool(name)

    def tensor(self, value: Value) -> Any:
        return value.tensor if value.array is None else self.materialize(value.array)

    def picked(self, value: Value | None, axis: int, position: int) -> Value:
        """One slice along an axis, without that axis."""
        if value is None:
            raise Refused("a scan input is missing")
        if value.array is not None:
            return Value(array=np.take(value.array, position, axis))
        axis %= len(value.shape)
        shape = [d for a, d in enumerate(value.shape) if a != axis]
        return Value(compute(shape, lambda *i: element(value.tensor, [*i[:axis], position, *i[axis:]]), "pick"))

    def stacked(self, row: list[Value], axis: int) -> Value:
        """Values of equal shape along a new axis."""
        if not row:
            raise Refused("no turn, so the shape of its result is not known")
        if all(v.array is not None for v in row):
            return Value(array=np.stack([v.array for v in row if v.array is not None], axis))
        from irc.backends.tvm.library.move import concatenate

        axis %= len(row[0].shape) + 1
        parts = []
        for value in row:
            tensor, shape = self.tensor(value), value.shape
            new = (*shape[:axis], 1, *shape[axis:])
            parts.append(compute(new, lambda *i, t=tensor: element(t, [*i[:axis], *i[axis + 1 :]]), "keep_row"))
        return Value(concatenate(parts, axis))

    def function(self, node: onnx.NodeProto, values: list[Value | None], opset: int) -> bool:
        function = function_of(node, [type_proto(v) for v in values], opset)
        if function is None:
            return False
        self.env[""] = None
        inner_opset = next((o.version for o in function.opset_import if not o.domain), opset)
        for inner in instantiate(function, node, opset):
            self.node(inner, inner_opset)
        return True

    # -- tensors and memory

    def materialize(self, array: Array) -> Any:
        """A tensor that holds a constant: written into the code if it is one number, else a placeholder."""
        known = self._materialized.get(id(array))
        if known is not None:
            return known[1]
        dtype = str(array.dtype)
        if dtype not in DTYPES:
            raise Refused(f"element type {dtype} is not compiled")
        if array.size == 1:
            number = array.reshape(-1)[0]
            tensor = compute(array.shape, lambda *_: const(number, dtype), "scalar")
        else:
            tensor = te.placeholder(array.shape, dtype, name=f"constant{len(self.constants)}")
            self.place[tensor.op] = self.constant(array)
        self._materialized[id(array)] = (array, tensor)
        return tensor

    def constant(self, array: Array) -> Ref:
        self.constants.append(np.asarray(array, order="C"))
        return Ref("constant", len(self.constants) - 1)

    def emit(self, tensors: list[Any], refs: list[Ref]) -> None:
        """A call of one function that computes `tensors` (no placeholders, all different) into `refs`."""
        needed = placeholders(tensors)
        used = [p.output(0) for p in self.place if p in needed]
        lowered = lower_tensors(f"stage{len(self.calls)}", used, tensors)
        self.calls.append(Call(lowered, (*(self.place[p.op] for p in used), *refs)))

    def results(self, wanted: list[tuple[str, int]]) -> list[tuple[str, tuple[int, ...]]]:
        """Compute the region's outputs, given as name and declared element type; their types."""
        tensors: list[Any] = []
        refs, types = [], []
        for i, (name, declared) in enumerate(wanted):
            value = self.env[name]
            if value is None:
                raise UnsupportedError(f"output {name!r} is not computed")
            narrow = declared == onnx.TensorProto.BFLOAT16 and value.dtype == "float32"
            types.append(("bfloat16" if narrow else value.dtype, value.shape))
            if value.dtype not in DTYPES:
                raise UnsupportedError(f"element type {value.dtype} of {name!r} is not compiled")
            if 0 in value.shape:
                continue
            tensor = to_bfloat16(self.tensor(value)) if narrow else self.tensor(value)
            if tensor.op in self.place or any(tensor is t for t in tensors):
                tensor = compute(value.shape, lambda *i, t=tensor: element(t, i), "copy")
            tensors.append(tensor)
            refs.append(Ref("output", i))
        if tensors:
            self.emit(tensors, refs)
        return types


def from_bfloat16(bits: Any) -> Any:
    """float32 values of bfloat16 given as their bits. Regions compute in float32 and round their results."""
    return elementwise(
        lambda v: tirx.reinterpret("float32", tirx.shift_left(tirx.Cast("uint32", v), tirx.const(16, "uint32"))), bits
    )


def to_bfloat16(tensor: Any) -> Any:
    """The bits of float32 values rounded to bfloat16, half to even; NaN stays NaN."""

    def formula(v: Any) -> Any:
        bits = tirx.reinterpret("uint32", v)
        odd = tirx.bitwise_and(tirx.shift_right(bits, tirx.const(16, "uint32")), tirx.const(1, "uint32"))
        top = tirx.shift_right(bits + tirx.const(0x7FFF, "uint32") + odd, tirx.const(16, "uint32"))
        return tirx.Cast("uint16", tirx.Select(tirx.isnan(v), tirx.const(0x7FC0, "uint32"), top))

    return elementwise(formula, compute(tensor.shape, lambda *i: element(tensor, i), "keep_wide"))


def widened(array: Array) -> Array:
    """bfloat16 constants as float32."""
    return array.astype(np.float32) if str(array.dtype) == "bfloat16" else array


def placeholders(tensors: list[Any]) -> set[Any]:
    """The placeholder operations that `tensors` are computed from."""
    found: set[Any] = set()
    seen: set[Any] = set()
    todo = list(tensors)
    while todo:
        tensor = todo.pop()
        if isinstance(tensor.op, te.PlaceholderOp):
            found.add(tensor.op)
        elif tensor.op not in seen:
            seen.add(tensor.op)
            todo.extend(tensor.op.input_tensors)
    return found


def tensor_type(info: onnx.ValueInfoProto) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of a graph input. Raises UnsupportedError unless it is a tensor of static shape."""
    if not info.type.HasField("tensor_type"):
        raise UnsupportedError(f"{info.name!r} is not a tensor")
    tensor = info.type.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        raise UnsupportedError(f"the shape of {info.name!r} is not static")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return str(dtype), tuple(d.dim_value for d in tensor.shape.dim)


def type_proto(value: Value | None) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return onnx.helper.make_tensor_type_proto(number, list(value.shape))


def since(node: onnx.NodeProto, opset: int) -> int:
    """The version of the standard that defined the operator as the node uses it."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, node.domain).since_version)
    except onnx.defs.SchemaError:
        return 0


def attributes_of(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """Attributes by name, with the defaults of the standard filled in."""
    found = {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        schema = None
    if schema is not None:
        for name, attribute in schema.attributes.items():
            if attribute.default_value.type:
                found[name] = _python(onnx.helper.get_attribute_value(attribute.default_value))
    found.update({a.name: _python(onnx.helper.get_attribute_value(a)) for a in node.attribute})
    return found


def _python(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return [_python(v) for v in value]
    return value


def evaluate(node: onnx.NodeProto, arrays: list[Array | None], opset: int) -> list[Array] | None:
    """The outputs of a node on known inputs by ONNX's reference evaluator; None where it cannot."""
    from onnx.reference import ReferenceEvaluator

    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [_untyped(n, a) for n, a in zip(node.input, arrays, strict=True) if a is not None],
        [onnx.ValueInfoProto(name=n) for n in node.output if n],
    )
    domains = {node.domain: opset if not node.domain else 1, "": opset}
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in domains.items()])
    feeds = {n: a for n, a in zip(node.input, arrays, strict=True) if a is not None}
    try:
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # the evaluator raises whatever its operator happens to raise; the next road decides
        return None
    if not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
        return None
    by_name = iter([np.asarray(r) for r in results])
    return [next(by_name) if n else np.zeros(0) for n in node.output]


def _untyped(name: str, array: Array) -> onnx.ValueInfoProto:
    number = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, number, list(array.shape))


def _shape_value(node: onnx.NodeProto, shape: tuple[int, ...]) -> Array:
    if node.op_type == "Size":
        return np.asarray(int(np.prod(shape, dtype=np.int64)), np.int64)
    bounds = {a.name: a.i for a in node.attribute}
    return np.asarray(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], np.int64)


def _where(node: onnx.NodeProto) -> str:
    return f"node {node.name!r} ({node.op_type})"
