"""Layers of a smaller model are fitted, one after the other, to what the original gives.

Each layer sees the inputs that the layers before it, already changed, really make, and aims at its own output in the
original. Where that output goes straight into an Add with a value that is known by then (a shortcut), it aims at the
sum: so errors made upstream on the shortcut are mended by the branch. Layers that read channels which are to go choose
them here, on those inputs (`Choice`), and get exact zeros in their place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from irc.calibrate.layers import from_rows, to_rows, window
from irc.calibrate.segments import Segments
from irc.calibrate.sessions import Feed, batches, feed_samples, make_session, same_for_batches, symbolic_batch
from irc.errors import ModelError
from irc.ir.analysis import reads
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array, Constant
from irc.passes.prune.fit import Elimination, Problem, Sums, eliminate
from irc.pipeline.contract import Samples
from irc.rewrite.facts import rank as rank_of
from irc.rewrite.facts import same_type, static

WIDEST = 5120  # columns: wider layers keep their weights
_MEMORY = 256 << 20
_BATCH_MEMORY = 32 << 20
_MOST_BATCH = 32
_COLUMNS_AT_ONCE = 64 << 20  # elements of the metrics of one wave


@dataclass
class Choice:
    """Units of one group of channels that go: `removed`, or, until they are chosen, `count` of `units`.

    `readers`: for each layer (node) that sums over the group, the unit of each element of the summed axis, -1: stays.
    `allowed` is called with each unit that is about to go, and may refuse it. `free`: where all readers are fitted at
    the same time, others than `removed` may be chosen.
    """

    units: Sequence[int]
    count: int
    readers: dict[Node, Array]
    allowed: Callable[[int], bool]
    removed: list[int] | None = None
    free: bool = False
    errors: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Layer:
    """A linear layer with constant weights: `node`, the Add that is its bias (after a MatMul), its output `result`, and
    a shortcut that is added to it to give `total`."""

    node: Node
    add: Node | None
    result: Value
    total: Value | None = None
    shortcut: Value | None = None

    @property
    def groups(self) -> int:
        return self.node.get_int("group", 1) if self.node.op_type == "Conv" else 1

    def rows(self) -> Array:
        """The weights, float64 [groups, outputs of a group, k]."""
        return to_rows(self.node, self.node.need(1).numpy(), self.groups).astype(np.float64)

    @property
    def has_bias(self) -> bool:
        return self.node.op_type != "MatMul" or self.add is not None


def layer_of(node: Node) -> Layer | None:
    """`node` as a layer that can be fitted; None where it is none (see `refusal`)."""
    return None if refusal(node) else _layer(node)


def refusal(node: Node) -> str:
    """Why the weights of a Conv, Gemm or MatMul cannot be fitted; empty where they can."""
    weight = node.input(1)
    if not node.is_op("Conv", "Gemm", "MatMul") or weight is None or not weight.is_constant:
        return "it has no constant weights"
    if len(weight.uses) > 1 or weight.is_output:
        return "other nodes read its weights too"
    shape = weight.static_shape()
    if node.op_type == "Conv":
        if window(node) is None:
            return "its padding is only known at run time"
    elif len(shape) != 2:
        return f"its weights have rank {len(shape)}, not 2"
    if node.op_type == "Gemm":
        plain = node.get_float("alpha", 1.0) == 1.0 and node.get_float("beta", 1.0) == 1.0
        if node.get_int("transA") or not plain:
            return "it scales or transposes its input"
    bias = node.input(2)
    if bias is not None and not (bias.is_constant and len(bias.uses) == 1 and bias.static_shape() == (_outputs(node),)):
        return "its bias is not one constant for each output"
    if _columns(node) > WIDEST:
        return f"it sums over {_columns(node)} numbers, more than {WIDEST}"
    if not np.isfinite(weight.numpy()).all():
        return "its weights hold NaN or infinity"
    return ""


def _outputs(node: Node) -> int:
    shape = node.need(1).static_shape()
    return shape[0] if node.op_type == "Conv" or node.get_int("transB") else shape[1]


def _columns(node: Node) -> int:
    shape = node.need(1).static_shape()
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    return shape[1] if node.get_int("transB") else shape[0]


def _layer(node: Node) -> Layer:
    add = _bias_add(node) if node.op_type == "MatMul" else None
    result = node.output if add is None else add.output
    reader = result.uses[0].node if len(result.uses) == 1 and not result.is_output else None
    if reader is None or not reader.is_op("Add") or reader.graph is not node.graph:
        return Layer(node, add, result)
    other = next((v for v in reader.inputs if v is not None and v is not result), None)
    if other is None or other.is_constant or not same_type(result, reader.output) or not same_type(other, result):
        return Layer(node, add, result)
    return Layer(node, add, result, reader.output, other)


def _bias_add(node: Node) -> Node | None:
    """The Add of one constant for each output behind a MatMul."""
    if len(node.output.uses) != 1 or node.output.is_output:
        return None
    add = node.output.uses[0].node
    if not add.is_op("Add") or add.graph is not node.graph:
        return None
    bias = next((v for v in add.inputs if v is not None and v.is_constant), None)
    if bias is None or len(bias.uses) != 1 or static(bias) is None or rank_of(add.output) != rank_of(node.output):
        return None
    shape = bias.static_shape()
    return add if shape and shape[-1] == _outputs(node) and math.prod(shape) == shape[-1] else None


@dataclass(frozen=True)
class Feeds:
    """Samples as batches, over and over again. `joined`: several samples of a model whose batch is 1 in one."""

    samples: Samples
    size: int
    joined: bool
    count: int

    def __iter__(self) -> Iterator[Feed]:
        feeds: Iterator[Feed] = self.samples.feeds()
        if self.joined:
            return batches(itertools.islice(feeds, self.count), self.size)
        return _until(feeds, self.count)

    def first(self, count: int) -> Feeds:
        """Only the first `count` samples."""
        return Feeds(self.samples, self.size, self.joined, min(count, self.count))


def _until(feeds: Iterator[Feed], count: int) -> Iterator[Feed]:
    done = 0
    for feed in feeds:
        if done >= count:
            return
        done += feed_samples(feed)
        yield feed


def make_feeds(model: Model, samples: Samples) -> Feeds:
    """Batches of a size that keeps the values of one within bounds."""
    count = len(samples)
    sizes = [math.prod(d if isinstance(d, int) else 1 for d in v.shape or ()) for v in model.graph.values()]
    size = max(1, min(_MOST_BATCH, _BATCH_MEMORY // (4 * max(sizes, default=1))))
    if size < 2 or not all(v.shape and v.shape[0] == 1 for v in model.graph.inputs):
        return Feeds(samples, 1, False, count)
    first = list(itertools.islice(samples.feeds(), 2))
    return Feeds(samples, size, len(first) == 2 and _may_join(model, first), count)


def _may_join(model: Model, feeds: Sequence[Feed]) -> bool:
    from irc.export import to_proto

    proto = to_proto(model)
    names = [v.name for v in model.graph.outputs]
    try:
        batched = make_session(symbolic_batch(proto), model.name)
        return same_for_batches(make_session(proto, model.name), batched, names, feeds)
    except ModelError:
        return False


def rebuild(
    model: Model,
    reference: Model,
    feeds: Feeds,
    choices: Sequence[Choice],
    *,
    rows: int,
    damping: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fit every layer of `model` that something before it, or a choice, has changed. Makes the choices.

    `reference`: the original, with the same value names. `rows`: about how many rows each layer is fitted to, at least
    (8 for each column are taken in any case, where there are so many).
    """
    layers = _changed(model, reference, choices)
    if not layers:
        return
    waves = _waves(model.graph, layers)
    for choice in choices:
        if choice.free and any(all(n in {y.node for y in wave} for n in choice.readers) for wave in waves):
            choice.removed = None
    with (
        closing(Segments(model, iter(feeds), _MEMORY, joined=feeds.joined)) as ours,
        closing(Segments(reference, iter(feeds), _MEMORY, joined=feeds.joined)) as theirs,
    ):
        for number, wave in enumerate(waves):
            sums = _measure(wave, waves[number + 1 :], ours, theirs, feeds.count, rows)
            problems = {
                layer.node: s.problem(layer.rows(), damping, bias=layer.has_bias)
                for layer, s in zip(wave, sums, strict=True)
            }
            for choice in choices:
                if choice.removed is None and all(n in problems for n in choice.readers):
                    choose(choice, problems)
            for layer in wave:
                _fit(layer, problems[layer.node], choices)
            progress(number + 1, len(waves))


def rank(
    model: Model,
    feeds: Feeds,
    choices: Sequence[Choice],
    *,
    rows: int,
    damping: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the choices on the model as it is, and change nothing. All readers must be layers that can be fitted."""
    wanted = {node for choice in choices for node in choice.readers}
    layers = [found for node in model.graph.nodes if node in wanted and (found := layer_of(node)) is not None]
    waves = _waves(model.graph, [Layer(y.node, y.add, y.result) for y in layers])
    problems: dict[Node, Problem] = {}
    with (
        closing(Segments(model, iter(feeds), _MEMORY, joined=feeds.joined)) as ours,
        closing(Segments(model, iter(feeds), _MEMORY, joined=feeds.joined)) as theirs,
    ):
        for number, wave in enumerate(waves):
            sums = _measure(wave, waves[number + 1 :], ours, theirs, feeds.count, rows)
            for layer, seen in zip(wave, sums, strict=True):
                problems[layer.node] = seen.problem(layer.rows(), damping, bias=layer.has_bias)
            for choice in choices:
                if choice.removed is None and all(n in problems for n in choice.readers):
                    choose(choice, problems)
            waiting = {n for c in choices if c.removed is None for n in c.readers}
            problems = {node: p for node, p in problems.items() if node in waiting}
            progress(number + 1, len(waves))


def choose(choice: Choice, problems: dict[Node, Problem]) -> None:
    """Pick the units whose loss costs least, summed over all readers (each as a share of its output's power)."""
    parts = [Elimination(problems[node], _columns_of(node, units)) for node, units in choice.readers.items()]
    choice.removed, choice.errors = eliminate(parts, choice.units, choice.count, choice.allowed)


def _columns_of(node: Node, units: Array) -> Array:
    """The unit of each column of `to_rows`: [groups, k]."""
    if node.op_type != "Conv":
        return units[None]
    kernel = math.prod(node.need(1).static_shape()[2:])
    return np.broadcast_to(np.repeat(units, kernel), (node.get_int("group", 1), len(units) * kernel))


def _fit(layer: Layer, problem: Problem, choices: Sequence[Choice]) -> None:
    node = layer.node
    stays = np.ones(problem.x.shape, bool)
    for choice in choices:
        if node in choice.readers and choice.removed is not None:
            stays &= ~np.isin(_columns_of(node, choice.readers[node]), choice.removed)
    found, bias = problem.solve(stays)
    weight = node.need(1)
    set_constant(weight, from_rows(node, found, weight.static_shape()))
    if layer.has_bias:
        _set_bias(layer, bias.reshape(-1))


def set_constant(value: Value, data: Array) -> None:
    """New data for a constant that only one layer reads."""
    dtype = value.tensor.dtype
    value.constant = Constant.of(np.ascontiguousarray(data).astype(dtype.numpy), dtype)
    value.type = value.constant.type


def _set_bias(layer: Layer, data: Array) -> None:
    node, graph = layer.node, layer.node.graph
    assert graph is not None
    if layer.add is not None:
        old = next(v for v in layer.add.inputs if v is not None and v.is_constant)
        set_constant(old, data.reshape(old.static_shape()))
    elif node.input(2) is not None:
        set_constant(node.need(2), data)
    else:
        stored = data.astype(node.need(1).tensor.dtype.numpy)
        graph.set_input(node, 2, graph.add_constant(stored, f"{node.name}_bias"))


def add_biases(model: Model) -> list[Node]:
    """Give every layer that can be fitted and take a bias one of zeros; those that had none."""
    given = []
    for node in model.graph.nodes:
        if node.is_op("Conv", "Gemm") and node.input(2) is None and layer_of(node) is not None:
            zeros = np.zeros(_outputs(node), node.need(1).tensor.dtype.numpy)
            model.graph.set_input(node, 2, model.graph.add_constant(zeros, f"{node.name}_bias"))
            given.append(node)
    return given


def drop_zero_biases(nodes: Sequence[Node]) -> None:
    """Take biases that are still zero away again."""
    for node in nodes:
        bias, graph = node.input(2), node.graph
        if bias is None or graph is None or bias.numpy().any():
            continue
        graph.set_input(node, 2, None)
        graph.remove_constant(bias)


# Which layers, in which order


def _changed(model: Model, reference: Model, choices: Sequence[Choice]) -> list[Layer]:
    """The layers that see other inputs than in the reference, or lose some."""
    before = {n.name: [v.name if v is not None else "" for v in n.inputs] for n in reference.graph.nodes}
    known = {v.name for v in reference.graph.values()}
    losing = {node for choice in choices for node in choice.readers}
    dirty: set[Value] = set()
    found = []
    for node in model.graph.nodes:
        names = [v.name if v is not None else "" for v in node.inputs]
        other = before.get(node.name) != names and not (
            node.is_op("Conv", "Gemm", "MatMul") and _same_data(node, before)
        )
        if node not in losing and not other and not any(v in dirty for v in reads(node)):
            continue
        dirty.update(node.outputs)
        layer = layer_of(node)
        if layer is not None and (layer.total or layer.result).name in known and layer.result.name in known:
            found.append(layer)
    return found


def _same_data(node: Node, before: dict[str, list[str]]) -> bool:
    """Whether a linear layer reads the same data as before (its weights and bias may have got other names)."""
    return node.name in before and before[node.name][0] == node.need(0).name


def _waves(graph: Graph, layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers that do not depend on each other together, in the order of their depth. A shortcut whose own layers are
    not done by then is not aimed at."""
    own = {layer.node for layer in layers}
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        producers = [v.producer for v in reads(node) if v.producer is not None]
        depth[node] = max((depth.get(p, 0) + (p in own) for p in producers), default=0)
    waves: dict[int, list[Layer]] = {}
    for layer in layers:
        source = layer.shortcut.producer if layer.shortcut is not None else None
        if source is not None and depth[source] + (source in own) > depth[layer.node]:
            layer = Layer(layer.node, layer.add, layer.result)
        waves.setdefault(depth[layer.node], []).append(layer)
    return [part for d in sorted(waves) for part in _parts(waves[d])]


def _parts(wave: Sequence[Layer]) -> Iterator[list[Layer]]:
    part: list[Layer] = []
    used = 0
    for layer in wave:
        need = layer.groups * _columns(layer.node) ** 2
        if part and used + need > _COLUMNS_AT_ONCE:
            yield part
            part, used = [], 0
        part.append(layer)
        used += need
    yield part


def _measure(
    wave: Sequence[Layer],
    rest: Sequence[Sequence[Layer]],
    ours: Segments,
    theirs: Segments,
    samples: int,
    rows: int,
) -> list[Sums]:
    sums = []
    for layer in wave:
        most = max(1, math.ceil(max(rows, 8 * _columns(layer.node)) / max(samples, 1)))
        sums.append(Sums(layer.groups, window(layer.node) if layer.node.op_type == "Conv" else None, most))
    later = list(itertools.chain(*rest))
    mine = ours.advance(_needed(wave), _needed([*wave, *later]) if later else [])
    other = theirs.advance(_targets(wave), _targets([*wave, *later]) if later else [])
    for here, there in zip(mine, other, strict=True):
        for layer, total in zip(wave, sums, strict=True):
            wanted = there[(layer.total or layer.result).name]
            if layer.shortcut is not None:
                wanted = wanted - here[layer.shortcut.name]
            total.update(here[layer.node.need(0).name], wanted)
    return sums


def _needed(layers: Sequence[Layer]) -> list[str]:
    names = [layer.node.need(0).name for layer in layers]
    return list(dict.fromkeys([*names, *(layer.shortcut.name for layer in layers if layer.shortcut is not None)]))


def _targets(layers: Sequence[Layer]) -> list[str]:
    return list(dict.fromkeys((layer.total or layer.result).name for layer in layers))
