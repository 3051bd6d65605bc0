"""Type and shape inference.

One sweep over the nodes in order asks onnx for each node's output types, and hands it the values of small integer
tensors that `irc.ir.known` works out. Bodies of If, Loop and Scan are swept with the types that their inputs have.
If something is left unknown, onnx's inference over the whole model (which carries symbols through arithmetic and
looks into model-local functions) is asked too, and a second sweep uses what it found.

A known type is never lost, only refined; a contradiction is a ShapeError that names the node.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from irc.errors import ShapeError
from irc.ir import ops
from irc.ir.graph import CANONICAL_OPSET, Graph, Model, Node, Value
from irc.ir.known import Known
from irc.ir.types import Dim, DType, OptionalType, SequenceType, Shape, TensorType, ValueType

if TYPE_CHECKING:
    import onnx

_FLOATS_GIVE_SHAPES = ("OneHot", "Range", "Resize", "Upsample")
_SAME_TYPE = ("GroupNormalization", "MeanVarianceNormalization")  # functions without an inference of their own
_MADE_UP = re.compile(r"unk__\d+")  # onnx's names for extents that it does not know


def infer(model: Model, *, strict: bool = False) -> None:
    """Fill in every `Value.type` that can be known. Raises ShapeError on a contradiction, naming the node.

    The standard operators mean what they mean at `model.opsets[""]`, so that a model can be inferred before it is
    brought to the canonical opset.
    `strict`: also when an extent is left that is neither a number nor a symbol.
    """
    for value in model.graph.constants.values():
        if value.type is None and value.constant is not None:
            value.type = value.constant.type
    opset = model.opsets.get("", CANONICAL_OPSET)
    _sweep(model.graph, Known(opset))
    if first_unknown(model) is not None and _whole_model(model):
        _sweep(model.graph, Known(opset))
    node = first_unknown(model) if strict else None
    if node is not None:
        shown = ", ".join(f"{v.name}: {v.type}" for v in node.outputs)
        raise ShapeError(
            "the shape of its output cannot be inferred",
            where=node.label,
            got=shown,
            hint="giving the model's inputs fixed shapes (--shape, --dim)",
        )


def infer_node(node: Node, *, opset: int = CANONICAL_OPSET) -> None:
    """Fill in the output types of one node (and the bodies it holds) from its input types. Raises ShapeError."""
    _infer_node(node, Known(opset))


def first_unknown(model: Model, *, static: bool = False) -> Node | None:
    """The first node with an output whose shape is not known; symbols count as unknown only with `static`."""
    for node in model.graph.walk():
        if any(not _is_complete(v.type, static) for v in node.outputs):
            return node
    return None


def _is_complete(type: ValueType | None, static: bool) -> bool:
    if isinstance(type, TensorType):
        if type.shape is None:
            return False
        return type.shape.is_static if static else None not in type.shape.dims
    return type is not None and not static


def forget_shapes(model: Model) -> None:
    """Drop the shapes of everything that nodes compute, keeping element types (before inputs get new shapes)."""
    for value in _computed(model.graph):
        if isinstance(value.type, TensorType):
            value.type = TensorType(value.type.dtype)
        elif value.type is not None:
            value.type = None


def _computed(graph: Graph) -> Iterator[Value]:
    for node in graph.nodes:
        yield from node.outputs
        for sub in node.subgraphs:
            yield from sub.inputs
            yield from _computed(sub)


# Types as a lattice: `meet` knows what both know, `join` only what they agree on.


def meet(a: ValueType | None, b: ValueType | None) -> ValueType | None:
    """What both say together. Raises ValueError when they contradict each other."""
    if a is None or b is None or a == b:
        return a if b is None else b
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.dtype is not b.dtype:
            raise ValueError(f"{a.dtype.value} against {b.dtype.value}")
        return TensorType(a.dtype, _meet_shapes(a.shape, b.shape))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(meet(a.elem, b.elem) or a.elem)
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        return OptionalType(meet(a.elem, b.elem) or a.elem)
    if type(a) is not type(b):
        raise ValueError(f"{a} against {b}")
    return a


def _meet_shapes(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None:
        return a if b is None else b
    if a.rank != b.rank:
        raise ValueError(f"{a} against {b}")
    dims: list[Dim] = []
    for x, y in zip(a, b, strict=True):
        if isinstance(x, int) and isinstance(y, int) and x != y:
            raise ValueError(f"{a} against {b}")
        dims.append(y if isinstance(y, int) or x is None else x)
    return Shape(tuple(dims))


def join(a: ValueType | None, b: ValueType | None) -> ValueType | None:
    """What is true of a value that has either type (the result of an If)."""
    if a is None or b is None:
        return None
    if isinstance(a, TensorType) and isinstance(b, TensorType) and a.dtype is b.dtype:
        if a.shape is None or b.shape is None or a.shape.rank != b.shape.rank:
            return TensorType(a.dtype)
        return TensorType(a.dtype, Shape(tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True))))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        elem = join(a.elem, b.elem)
        return None if elem is None else SequenceType(elem)
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        elem = join(a.elem, b.elem)
        return None if elem is None else OptionalType(elem)
    return a if a == b else None


def _refine(node: Node, value: Value, found: ValueType | None) -> None:
    try:
        value.type = meet(value.type, found)
    except ValueError:
        raise ShapeError(
            f"the type of '{value.name}' contradicts its inputs",
            where=node.label,
            expected=str(found),
            got=str(value.type),
        ) from None


# One node


def _sweep(graph: Graph, known: Known) -> None:
    for node in graph.nodes:
        _infer_node(node, known)


def _infer_node(node: Node, known: Known) -> None:
    if ops.is_control_flow(node) and node.op_type in _BODIES:
        found: Iterable[ValueType | None] = _BODIES[node.op_type](node, known)
    else:
        found = _ask_onnx(node, known)
    for value, type in zip(node.outputs, found, strict=False):
        _refine(node, value, type)
    rule = _SYMBOLIC.get(node.op_type) if node.domain == "" else None
    if rule is not None and not _is_complete(node.output.type, static=True):
        dims, dtype = rule(node, known), node.output.dtype
        if dims is not None and dtype is not None:
            _refine(node, node.output, TensorType(dtype, Shape(tuple(dims))))


def _ask_onnx(node: Node, known: Known) -> list[ValueType | None]:
    import onnx

    from irc.ir import _light

    if node.is_op(*_SAME_TYPE):
        return [node.need(0).type]
    schema = ops.schema(node.op_type, node.domain, known.opset if node.domain == "" else None)
    if schema is None or not schema.has_type_and_shape_inference_function:
        return []
    inputs = [v for v in node.inputs if v is not None]
    types = {v.name: _light.type_to_proto(v.type) for v in inputs}
    data = {}
    for value in inputs:
        if _may_give_shape(node, value):
            array = known.array(value)
            if array is not None:
                data[value.name] = onnx.numpy_helper.from_array(array, value.name)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, _proto(node), types, data, opset_imports=[onnx.helper.make_opsetid("", known.opset)]
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        if node.subgraphs:
            return []  # asked for one node, onnx does not look into its bodies
        shown = ", ".join("_" if v is None else f"{v.name}: {v.type}" for v in node.inputs)
        raise ShapeError(_plain(str(error)), where=node.label, got=f"inputs {shown}") from None
    return [_light.type_from_proto(found[v.name]) if v.name in found else None for v in node.outputs]


def _proto(node: Node) -> onnx.NodeProto:
    from irc.ir import _light

    proto = _light.node(node)
    if node.is_op("STFT") and "onesided" not in node.attributes:
        proto.attribute.add(name="onesided", type="INT", i=1)  # onnx takes the default for 0 here
    return proto


def _plain(text: str) -> str:
    """onnx's message without its tags and the lines that repeat the node."""
    return re.sub(r"\[\w+Error\]\s*|\(op_type:[^)]*\):?\s*", "", text).strip().split("\n")[0]


def _may_give_shape(node: Node, value: Value) -> bool:
    shape, dtype = value.shape, value.dtype
    if shape is None or shape.rank > 1 or dtype is None:
        return False
    return dtype in (DType.INT64, DType.INT32) or node.op_type in _FLOATS_GIVE_SHAPES


# Operators whose output shape is the value of an input, which may hold symbols (onnx takes numbers only)


def _reshape_dims(node: Node, known: Known) -> list[Dim] | None:
    target, source = known.elements(node.input(1)), node.need(0).shape
    if target is None:
        return None
    wanted = list(target)
    if not node.get_int("allowzero"):
        for i, extent in enumerate(wanted):
            if extent == 0 and not isinstance(extent, str):
                wanted[i] = source[i] if source is not None and i < source.rank else None
    open_places = [i for i, extent in enumerate(wanted) if extent == -1 or extent is None]
    if len(open_places) == 1 and source is not None:
        rest = [extent for i, extent in enumerate(wanted) if i != open_places[0]]
        wanted[open_places[0]] = _quotient(source.dims, rest)
    return [None if extent == -1 else extent for extent in wanted]


def _quotient(dims: Iterable[Dim], parts: Iterable[Dim]) -> Dim:
    """The product of `dims` over the product of `parts`: a number, or the one symbol that does not cancel out."""
    above, below = list(dims), list(parts)
    for symbol in [d for d in below if isinstance(d, str) and d in above]:
        below.remove(symbol)
        above.remove(symbol)
    total = math.prod(d for d in above if isinstance(d, int))
    part = math.prod(d for d in below if isinstance(d, int))
    left = [d for d in above if not isinstance(d, int)]
    if part <= 0 or total % part or not all(isinstance(d, int) for d in below):
        return None
    if not left:
        return total // part
    return left[0] if len(left) == 1 and total == part else None


def _expand_dims(node: Node, known: Known) -> list[Dim] | None:
    target, source = known.elements(node.input(1)), node.need(0).shape
    if target is None or source is None:
        return None
    rank = max(len(target), source.rank)
    ones: tuple[Dim, ...] = (1,) * rank
    a = ones[source.rank :] + source.dims
    b = ones[len(target) :] + tuple(target)
    return [_broadcast(x, y) for x, y in zip(a, b, strict=True)]


def _broadcast(x: Dim, y: Dim) -> Dim:
    if x == 1 or x == y:
        return y
    if y == 1:
        return x
    numbers = [d for d in (x, y) if isinstance(d, int)]
    return numbers[0] if numbers else None  # a number other than 1 decides


def _filled_dims(node: Node, known: Known) -> list[Dim] | None:
    target = known.elements(node.need(0))
    return None if target is None else list(target)


_SYMBOLIC = {"Reshape": _reshape_dims, "Expand": _expand_dims, "ConstantOfShape": _filled_dims}


# Control flow


def _infer_if(node: Node, known: Known) -> list[ValueType | None]:
    """What both branches give. A branch that contradicts itself (a Squeeze of an extent that is not 1, say) can never
    run, so the other one decides; so does the condition where it is known.
    """
    branches = [_body(node, "then_branch"), _body(node, "else_branch")]
    for branch in branches:
        if len(branch.outputs) != len(node.outputs):
            raise ShapeError(
                f"branch '{branch.name}' and the node differ in the number of outputs",
                where=node.label,
                expected=str(len(node.outputs)),
                got=str(len(branch.outputs)),
            )
    condition = known.array(node.input(0))
    live, refused = [], []
    for branch, taken in zip(branches, (True, False), strict=True):
        try:
            _sweep(branch, known)
        except ShapeError as error:
            refused.append(error)
            continue
        if condition is None or condition.size != 1 or bool(condition.reshape(-1)[0]) is taken:
            live.append(branch)
    if not live:
        raise refused[0]
    types: list[ValueType | None] = [v.type for v in live[0].outputs]
    for branch in live[1:]:
        types = [join(a, v.type) for a, v in zip(types, branch.outputs, strict=True)]
    return types


def _infer_loop(node: Node, known: Known) -> list[ValueType | None]:
    """Node: trip count, condition, carried... Body: iteration, condition, carried... -> same, scans..."""
    body = _body(node, "body")
    carried = len(node.inputs) - 2
    if len(body.inputs) != carried + 2 or len(body.outputs) != len(node.outputs) + 1:
        raise ShapeError("its body does not have the inputs and outputs of a Loop of this arity", where=node.label)
    fixed = [TensorType(DType.INT64, Shape(())), TensorType(DType.BOOL, Shape(()))]
    first = [None if v is None else v.type for v in node.inputs[2:]]
    states = _fixed_point(node, body, fixed, first, [], 1, known)
    trips = known.array(node.input(0))
    length = int(trips.reshape(-1)[0]) if trips is not None and trips.size == 1 and node.input(1) is None else None
    scans = [_stacked(v.type, 0, length) for v in body.outputs[1 + carried :]]
    return [*states, *scans]


def _infer_scan(node: Node, known: Known) -> list[ValueType | None]:
    body, scanned = _body(node, "body"), node.get_int("num_scan_inputs")
    carried = len(node.inputs) - scanned
    if len(body.inputs) != len(node.inputs) or len(body.outputs) != len(node.outputs) or carried < 0:
        raise ShapeError("its body does not have the inputs and outputs of a Scan of this arity", where=node.label)
    axes = node.get_ints("scan_input_axes") or (0,) * scanned
    length: Dim = None
    slices: list[ValueType | None] = []
    for value, axis in zip(node.inputs[carried:], axes, strict=True):
        shape, dtype = (None, None) if value is None else (value.shape, value.dtype)
        if shape is None or dtype is None:
            slices.append(None if dtype is None else TensorType(dtype))
            continue
        axis %= max(shape.rank, 1)
        length = shape[axis] if length is None else length
        slices.append(TensorType(dtype, Shape(shape.dims[:axis] + shape.dims[axis + 1 :])))
    first = [None if v is None else v.type for v in node.inputs[:carried]]
    states = _fixed_point(node, body, [], first, slices, 0, known)
    results = body.outputs[carried:]
    out_axes = node.get_ints("scan_output_axes") or (0,) * len(results)
    return [*states, *(_stacked(v.type, axis, length) for v, axis in zip(results, out_axes, strict=True))]


_BODIES = {"If": _infer_if, "Loop": _infer_loop, "Scan": _infer_scan}


def _body(node: Node, name: str) -> Graph:
    body = node.attributes.get(name)
    if not isinstance(body, Graph):
        raise ShapeError(f"attribute {name} is missing", where=node.label)
    return body


def _stacked(type: ValueType | None, axis: int, length: Dim) -> ValueType | None:
    if not isinstance(type, TensorType) or type.shape is None:
        return type if isinstance(type, TensorType) else None
    dims = list(type.shape.dims)
    axis = axis % (len(dims) + 1)
    return TensorType(type.dtype, Shape((*dims[:axis], length, *dims[axis:])))


def _fixed_point(
    node: Node,
    body: Graph,
    before: list[TensorType],
    states: list[ValueType | None],
    after: list[ValueType | None],
    first_output: int,
    known: Known,
) -> list[ValueType | None]:
    """Types of carried values that hold for every iteration: weaken them until the body gives back what it takes.

    Ends because each round makes at least one extent unknown.
    """
    values = [*body.inputs, *_computed(body)]
    old = [v.type for v in values]
    while True:
        for value, type in zip(values, old, strict=True):
            value.type = type
        for value, type in zip(body.inputs, [*before, *states, *after], strict=True):
            _refine(node, value, type)
        _sweep(body, Known(known.opset))  # what holds in one round may not hold in the next
        given = [v.type for v in body.outputs[first_output : first_output + len(states)]]
        joined = [join(a, b) for a, b in zip(states, given, strict=True)]
        if joined == states:
            return states
        states = joined


# The whole model at once


def _whole_model(model: Model) -> bool:
    """Ask onnx to infer the model as a whole. Whether that taught us anything; what onnx refuses is not an error."""
    import onnx

    from irc.ir import _light

    symbols = {d for v in _all_values(model.graph) if v.shape is not None for d in v.shape if isinstance(d, str)}
    try:
        proto = onnx.shape_inference.infer_shapes(_light.model(model), data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return False  # the sweep has already reported what is wrong; the rest are onnx's own limits
    types: dict[str, ValueType | None] = {}
    _collect(proto.graph, types)
    learned = False
    for node in model.graph.walk():
        for value in node.outputs:
            found = _without_made_up(types.get(value.name), symbols)
            before = value.type
            _refine(node, value, found)
            learned = learned or value.type != before
    return learned


def _collect(graph: object, types: dict[str, ValueType | None]) -> None:
    from irc.ir import _light

    for info in (*graph.value_info, *graph.output):  # type: ignore[attr-defined]  # GraphProto has no usable stubs
        types[info.name] = _light.type_from_proto(info.type)
    for node in graph.node:  # type: ignore[attr-defined]  # as above
        for attribute in node.attribute:
            for sub in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _collect(sub, types)


def _without_made_up(type: ValueType | None, symbols: set[str]) -> ValueType | None:
    if not isinstance(type, TensorType) or type.shape is None:
        return type
    dims = [None if isinstance(d, str) and d not in symbols and _MADE_UP.fullmatch(d) else d for d in type.shape]
    return TensorType(type.dtype, Shape(tuple(dims)))


def _all_values(graph: Graph) -> Iterator[Value]:
    yield from graph.values()
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from _all_values(sub)
