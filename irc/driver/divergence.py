"""Find what is at fault: the first node whose compiled result is wrong, or the first pass that changed results.

Nodes are found by cutting the model at intermediate values: a binary search over the topological order, which compiles
the model up to a value, runs it and compares with onnxruntime. That is about log2(nodes) small compilations, most of
whose kernels are in the cache already. It assumes that what is wrong stays wrong further on, as errors do; a cut may
also change what is fused, so a defect that only shows when fused is blamed on the node that ends the shortest failing
cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from irc.driver.samples import output_steps
from irc.driver.verification import Reference, Run, failure, measure
from irc.errors import IrcError
from irc.evaluation.compare import Difference
from irc.evaluation.oracle import Oracle
from irc.export import subgraph_model
from irc.ir.clone import clone
from irc.ir.graph import Model, Node, Value
from irc.ir.types import Array
from irc.pipeline import PassContext, Pipeline, bisect

CompileCut = Callable[[Model], Run]
"""Compiles a model whose only output is the value of the cut. Raises IrcError where it cannot."""


def first_divergence(
    model: Model, feed: dict[str, Array], compile_cut: CompileCut, *, quantized: bool, steps: Mapping[str, float]
) -> str:
    """Words naming the node ("first node that diverges: node 'conv3' (Conv), from conv3, bn3")."""
    nodes = [n for n in model.graph.nodes if n.outputs and _comparable(n.output)]
    if not nodes:
        return "no node can be checked alone"
    references = Oracle(model, extra=[n.output.name for n in nodes]).run(feed)

    def wrong(node: Node) -> bool:
        name = node.output.name
        reference = Reference("onnxruntime", lambda _: {name: references[name]}, quantized, steps)
        try:
            run = compile_cut(cut(model, name))
            return any(failure(d, reference) for d in measure(run, reference, [feed]))
        except IrcError:
            return False  # what cannot be compiled alone tells nothing

    good, bad = -1, len(nodes) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if wrong(nodes[middle]) else (middle, bad)
    if bad == len(nodes) - 1 and not wrong(nodes[bad]):
        return "no part of the model that was compiled alone is wrong: it is how the whole is fused or placed in memory"
    return f"first node that diverges: {describe(nodes[bad])}"


def first_wrong_pass(
    original: Model, pipeline: Pipeline, context: PassContext, reference: Reference, feeds: Sequence[dict[str, Array]]
) -> str:
    """Words naming the first execution of a pass after which onnxruntime gives something else."""

    def is_good(model: Model) -> bool:
        return not any(failure(d, reference) for d in measure(Oracle(model).run, reference, feeds))

    try:
        record = bisect(original, pipeline, is_good, context)
    except ValueError:  # it is wrong before the first pass
        return "the importer has read the model wrongly"
    return "no pass alone is at fault" if record is None else f"first pass that changes results: {record.text}"


def describe(node: Node) -> str:
    """A node and where it comes from."""
    text = node.label
    if node.origin.nodes and node.origin.nodes != (node.name,):
        text += f", from {node.origin}"
    if node.origin.passes:
        text += f", touched by {', '.join(node.origin.passes)}"
    return text


def cut(model: Model, value: str) -> Model:
    """A copy that ends at `value`."""
    copy = clone(model)
    copy.graph.set_outputs([copy.graph.find(value)])
    Pipeline.parse("eliminate-dead").run(copy)
    return copy


def _comparable(value: Value) -> bool:
    if value.dtype is None or not (value.dtype.is_float or value.dtype.is_integer):
        return False
    return value.shape is not None and value.shape.is_static


def amplified(model: Model, feeds: Sequence[dict[str, Array]], compile_cut: CompileCut) -> list[str] | None:
    """Whether a quantized model is right layer by layer although its outputs are too far off.

    Roundings that fall the other way (one step in one of thousands of values) grow in later layers, a softmax most of
    all. So every layer is given what the compiled layers before it really gave: onnxruntime on these values must be
    met within a step. Returns the names of the layers where differences grow, or None where a layer is wrong itself.
    """
    names = [n.output.name for n in model.graph.nodes if n.is_op("QuantizeLinear") and not _is_weight(n)]
    outputs = [v.name for v in model.graph.outputs]
    ends = list(dict.fromkeys([*names, *outputs]))
    exposed = clone(model)
    exposed.graph.set_outputs([exposed.graph.find(n) for n in ends])
    run = compile_cut(exposed)
    ours = [dict(feed) | dict(run(feed)) for feed in feeds]
    whole = Oracle(model, extra=ends)
    truth = [whole.run(feed) for feed in feeds]
    steps = output_steps(exposed)
    grown = []
    for name in ends:
        if not _differs(name, truth, ours, steps):
            continue
        nodes = _segment(model, name, set(ends))
        local = Oracle(subgraph_model(nodes).SerializeToString())
        if _differs(name, [local.run(values) for values in ours], ours, steps):
            return None
        grown.append(nodes[-1].label)
    return grown


def _differs(
    name: str, wanted: Sequence[Mapping[str, Array]], got: Sequence[Mapping[str, Array]], steps: Mapping[str, float]
) -> bool:
    found = Difference(name, step=steps.get(name))
    for a, b in zip(wanted, got, strict=True):
        found.add(a[name], b[name])
    return failure(found, Reference("", lambda _: {}, True, steps)) is not None


def _segment(model: Model, end: str, boundaries: set[str]) -> list[Node]:
    """The nodes between `end` and the boundary values before it, in order."""
    found: set[int] = set()
    stack = [model.graph.find(end)]
    while stack:
        producer = stack.pop().producer
        if producer is None or id(producer) in found:
            continue
        found.add(id(producer))
        stack.extend(v for v in producer.inputs if v is not None and v.name not in boundaries)
    return [n for n in model.graph.nodes if id(n) in found]


def _is_weight(node: Node) -> bool:
    return node.inputs[0] is None or node.inputs[0].constant is not None
