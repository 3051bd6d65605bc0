"""Types of If, Loop and Scan, from those of their bodies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from irc.errors import ShapeError
from irc.ir.graph import Graph, Node, Value
from irc.ir.known import Known
from irc.ir.lattice import join, refine
from irc.ir.types import Dim, DType, Shape, TensorType, ValueType

Sweep = Callable[[Graph, Known], None]
"""Infers all nodes of a graph in order."""


def _infer_if(node: Node, known: Known, sweep: Sweep) -> list[ValueType | None]:
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
            sweep(branch, known)
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


def _infer_loop(node: Node, known: Known, sweep: Sweep) -> list[ValueType | None]:
    """Node: trip count, condition, carried... Body: iteration, condition, carried... -> same, scans..."""
    body = _body(node, "body")
    carried = len(node.inputs) - 2
    if len(body.inputs) != carried + 2 or len(body.outputs) != len(node.outputs) + 1:
        raise ShapeError("its body does not have the inputs and outputs of a Loop of this arity", where=node.label)
    fixed = [TensorType(DType.INT64, Shape(())), TensorType(DType.BOOL, Shape(()))]
    first = [None if v is None else v.type for v in node.inputs[2:]]
    states = _fixed_point(node, body, fixed, first, [], 1, known, sweep)
    trips = known.array(node.input(0))
    length = int(trips.reshape(-1)[0]) if trips is not None and trips.size == 1 and node.input(1) is None else None
    scans = [_stacked(v.type, 0, length) for v in body.outputs[1 + carried :]]
    return [*states, *scans]


def _infer_scan(node: Node, known: Known, sweep: Sweep) -> list[ValueType | None]:
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
    states = _fixed_point(node, body, [], first, slices, 0, known, sweep)
    results = body.outputs[carried:]
    out_axes = node.get_ints("scan_output_axes") or (0,) * len(results)
    return [*states, *(_stacked(v.type, axis, length) for v, axis in zip(results, out_axes, strict=True))]


BODIES = {"If": _infer_if, "Loop": _infer_loop, "Scan": _infer_scan}


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
    sweep: Sweep,
) -> list[ValueType | None]:
    """Types of carried values that hold for every iteration: weaken them until the body gives back what it takes.

    Ends because each round makes at least one extent unknown.
    """
    values = [*body.inputs, *computed(body)]
    old = [v.type for v in values]
    while True:
        for value, type in zip(values, old, strict=True):
            value.type = type
        for value, type in zip(body.inputs, [*before, *states, *after], strict=True):
            refine(node, value, type)
        sweep(body, Known(known.opset))  # what holds in one round may not hold in the next
        given = [v.type for v in body.outputs[first_output : first_output + len(states)]]
        joined = [join(a, b) for a, b in zip(states, given, strict=True)]
        if joined == states:
            return states
        states = joined


def computed(graph: Graph) -> Iterator[Value]:
    """Outputs of nodes, and inputs of bodies, of a graph and all inside it."""
    for node in graph.nodes:
        yield from node.outputs
        for sub in node.subgraphs:
            yield from sub.inputs
            yield from computed(sub)
