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

from irc.errors import ShapeError
from irc.ir import ops
from irc.ir._bodies import BODIES, computed
from irc.ir.graph import CANONICAL_OPSET, Graph, Model, Node, Value
from irc.ir.known import Known
from irc.ir.lattice import meet, refine
from irc.ir.types import Dim, DType, Shape, TensorType, ValueType

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
    for value in computed(model.graph):
        if isinstance(value.type, TensorType):
            value.type = TensorType(value.type.dtype)
        elif value.type is not None:
            value.type = None


# One node


def _sweep(graph: Graph, known: Known) -> None:
    for node in graph.nodes:
        _infer_node(node, known)


def _infer_node(node: Node, known: Known) -> None:
    try:
        _infer_checked(node, known)
    except ValueError as error:  # a missing input or an attribute of the wrong kind, which verify would have found
        raise ShapeError(str(error), where=node.label) from None


def _infer_checked(node: Node, known: Known) -> None:
    if ops.is_control_flow(node) and node.op_type in BODIES:
        found: Iterable[ValueType | None] = BODIES[node.op_type](node, known, _sweep)
    else:
        found = _ask_onnx(node, known)
    for value, type in zip(node.outputs, found, strict=False):
        refine(node, value, type)
    rule = _SYMBOLIC.get(node.op_type) if node.domain == "" else None
    if rule is not None and not _is_complete(node.output.type, static=True):
        dims, dtype = rule(node, known), node.output.dtype
        if dims is not None and dtype is not None:
            refine(node, node.output, TensorType(dtype, Shape(tuple(dims))))


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
            schema, _light.node(node), types, data, opset_imports=[onnx.helper.make_opsetid("", known.opset)]
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        if node.subgraphs:
            return []  # asked for one node, onnx does not look into its bodies
        shown = ", ".join("_" if v is None else f"{v.name}: {v.type}" for v in node.inputs)
        raise ShapeError(_plain(str(error)), where=node.label, got=f"inputs {shown}") from None
    return [_light.type_from_proto(found[v.name]) if v.name in found else None for v in node.outputs]


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
            found, before = _without_made_up(types.get(value.name), symbols), value.type
            try:
                value.type = meet(before, found)
            except ValueError:
                continue  # the sweep has checked what stands there: onnx is wrong, or has no data for this node
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
