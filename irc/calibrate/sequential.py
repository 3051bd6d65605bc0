"""Compressing layer by layer on what the compressed layers before really give.

`walk` goes through a model in waves of layers and hands out, for each, the moments of its input in the model as it is
by then and in the reference; the caller changes the layers of a wave before the next one is measured. `refit` gives the
weights that make the best of the changed input: min ||W x0 - W' x||^2 over the samples. Frantar and Alistarh,
"Optimal Brain Compression" (2022), section 6; Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
Calibration" (2025).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from threading import Lock

import numpy as np

from irc.calibrate.gather import need_calibration, sample_count, samples_for, store_of
from irc.calibrate.layers import moment_observer, to_rows
from irc.calibrate.masked import fit_rows
from irc.calibrate.observers import PairedMoment
from irc.calibrate.segments import Segments, piece_proto
from irc.calibrate.sessions import (
    Feed,
    ahead,
    batches,
    feed_samples,
    feeds_for,
    make_session,
    same_for_batches,
    symbolic_batch,
)
from irc.calibrate.signature import signatures
from irc.calibrate.sound import check_finite, check_weights, note_few
from irc.calibrate.store import Entry
from irc.errors import ModelError
from irc.ir.analysis import in_order, reads
from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array
from irc.pipeline.contract import PassContext, Samples

MOST_WAVES = 256
"""So many waves at most where the caller does not say: each costs a few sessions of onnxruntime."""
_MOMENT_MEMORY = 1 << 30  # of the moments of one wave
_CACHE_MEMORY = 128 << 20  # of the activations kept for each of the two models; more goes to a file
_BATCH_MEMORY = 32 << 20  # of the largest layer input of a batch
_MOST_BATCH = 32
_NOISE = 1e-6  # of moments that are sums of float32 products, as a share of their mean diagonal


@dataclass(frozen=True)
class LayerMoments:
    """What one layer multiplies. `x`: its rows in the model as it is now; `x0`: the same rows in the reference.

    Matrices are float64 [groups, k, k] and means [groups, k], with the groups of `layers.to_rows`. They are made anew
    each time they are asked for, so ask once.
    """

    node: Node
    paired: PairedMoment
    first: int = 0  # the first of its outputs among those of `paired`, which layers with the same input share

    @property
    def groups(self) -> int:
        return self.paired.groups

    @property
    def count(self) -> int:
        """Rows seen."""
        return self.paired.count

    @property
    def moment(self) -> Array:
        """H = E[x xT]."""
        return self.paired.moment

    @property
    def covariance(self) -> Array:
        """E[x xT] - E[x] E[x]T: the metric where the bias is free."""
        return self.paired.covariance

    @property
    def cross(self) -> Array:
        """C = E[x0 xT]. Raises ValueError without `cross` of `walk`."""
        return self.paired.cross

    @property
    def mean(self) -> Array:
        """E[x]."""
        return self.paired.mean

    @property
    def reference_mean(self) -> Array:
        """E[x0]."""
        return self.paired.reference_mean

    def difference(self, rows: Array, *, free: bool) -> Array:
        """E[W (x0 - x) xT], [groups, outputs, k], of the weights `rows`; `free`: centred, as for a free bias."""
        found = self.paired.difference(free=free)
        if self.paired.weights is None:
            return np.asarray(rows.astype(np.float64) @ found)
        return found[:, self.first : self.first + rows.shape[1]]


def refit(rows: Array, moments: LayerMoments, damping: float = 0.01, *, bias: bool = True) -> tuple[Array, Array]:
    """The weights that come closest on x to what `rows` give on x0, and what to add to the bias.

    `rows`: [groups, outputs, k]; the results are float64 of that shape and [groups, outputs]. With `bias` the means are
    matched by the bias and the weights fit the rest; without, the shift is 0. Minimises
    ||W x0 - W' x||^2 + d ||W' - W||^2 over W', with d = `damping` times the mean square of x, more where there are
    fewer rows than columns: inputs that never vary keep their weights. For groups that add up to the same outputs
    (`sum_outputs`) each is fitted alone. Weights that are exactly 0 stay so. `rows` are the weights that
    the layer had when its moments were taken, or close to them: W (x0 - x) may be that of those.
    """
    mean, reference_mean = moments.mean, moments.reference_mean
    metric = moments.covariance if bias else moments.moment
    difference = moments.difference(rows, free=bias)
    wanted = rows.astype(np.float64)
    fitted = wanted.copy()
    columns = rows.shape[2]
    damping *= max(1.0, columns / max(moments.count, 1))
    for g in range(len(rows)):
        power = max(float(np.trace(metric[g])) / columns, 0.0)
        means = float(np.square(mean[g]).mean() + np.square(reference_mean[g]).mean())
        least = damping * power + _NOISE * (power + means)
        if not least > np.finfo(np.float64).tiny / np.finfo(np.float64).eps:
            continue
        damped = metric[g]
        damped.flat[:: columns + 1] += least
        fitted[g] += np.linalg.solve(damped, difference[g].T).T
        pruned = (rows[g] == 0).any(axis=1)
        if pruned.any():  # weights that are exactly 0 stay so
            fitted[g, pruned] = fit_rows(fitted[g, pruned], damped, rows[g, pruned] != 0)
    if not bias:
        return fitted, np.zeros(rows.shape[:2])
    shift = np.einsum("gok,gk->go", wanted, reference_mean) - np.einsum("gok,gk->go", fitted, mean)
    return fitted, shift


def walk(
    model: Model,
    reference: Model,
    nodes: Sequence[Node],
    ctx: PassContext,
    *,
    waves: int | None = None,
    cross: bool = False,
) -> Iterator[list[LayerMoments]]:
    """Waves of layers in topological order, each with its moments in `model` as it is when the wave is asked for.

    `nodes`: Conv, Gemm and MatMul of the main graph of `model` with constant weights as input 1; those whose rows
    cannot be formed are left out. `reference`: a model with the same value names (a clone from before); a layer whose
    input it lacks, or has in another shape, gets C = H. Both see the same samples at the same positions. Layers that do
    not depend on each other are in one wave; `waves` bounds their number (by default 256), by putting successive layers
    together, and a bound on memory may split them again. Between waves the caller may change the layers it was given
    (weights, bias, nodes that it puts before or after them), and nothing before them. A layer that is gone by its turn
    is left out. `cross`: measure C itself, not only what `refit` needs of it for the weights that the layers have: much
    more work for layers with fewer outputs than inputs.

    Each model runs once through the samples in all. Raises DataError without calibration data.
    """
    need_calibration(ctx, model)
    note_few(ctx, sample_count(ctx))
    check_weights(model)
    layers = _layers(model.graph, nodes, sample_count(ctx), cross, {v.name for v in reference.graph.values()})
    if not layers:
        return
    plan = _plan(model.graph, layers, waves or MOST_WAVES)
    with closing(_Walk(model, reference, ctx, [layer.value for layer in layers], len(plan), cross)) as run:
        for number, wave in enumerate(plan):
            wave = [layer for layer in wave if layer.node.graph is model.graph]
            rest = [layer for later in plan[number + 1 :] for layer in later if layer.node.graph is model.graph]
            yield run.measure(number, wave, rest)


@dataclass(frozen=True)
class _Layer:
    node: Node
    value: Value  # its input when the walk began; where the reference lacks that, before it was quantized
    nbytes: int  # of its moments

    @property
    def name(self) -> str:
        """Name of the value that it reads now."""
        return self.node.need(0).name


def _layers(graph: Graph, nodes: Sequence[Node], samples: int, cross: bool, there: Set[str]) -> list[_Layer]:
    """Those of `nodes` whose moments can be measured, in the order of the graph."""
    wanted = set(nodes)
    found = []
    for node in graph.nodes:
        if node not in wanted:
            continue
        paired = _observer([node], samples, cross)
        if paired is not None and node.need(0).constant is None:
            entry = node.need(0)
            found.append(_Layer(node, entry if entry.name in there else _unquantized(entry, there), paired.nbytes))
    return found


def _unquantized(value: Value, there: Collection[str]) -> Value:
    """What a pair of QuantizeLinear and DequantizeLinear, and perhaps a Clip, was put behind: the reference may lack
    them."""
    restored = value.producer
    rounded = restored.need(0).producer if restored is not None and restored.is_op("DequantizeLinear") else None
    if rounded is None or not rounded.is_op("QuantizeLinear"):
        return value
    source = rounded.need(0)
    clip = source.producer if source.name not in there else None
    return clip.need(0) if clip is not None and clip.is_op("Clip") else source


def _observer(nodes: Sequence[Node], samples: int, cross: bool) -> PairedMoment | None:
    """One observer for layers whose inputs are the same rows."""
    plain = moment_observer(nodes[0], samples)
    if plain is None:
        return None
    rows = None
    if not cross and all(n.need(1).constant is not None for n in nodes):
        rows = np.concatenate([to_rows(n, n.need(1).numpy(), plain.groups) for n in nodes], axis=1)
        if 2 * rows.shape[1] > plain.columns:  # C is less work
            rows = None
    return PairedMoment(plain.size, plain.window, plain.groups, plain.most, rows)


def _plan(graph: Graph, layers: Sequence[_Layer], waves: int) -> list[list[_Layer]]:
    """Layers by their depth, at most `waves` lists, and more where one would take too much memory."""
    depth = _depths(graph, {layer.node for layer in layers})
    levels: dict[int, list[_Layer]] = {}
    for layer in layers:
        levels.setdefault(depth[layer.node], []).append(layer)
    waves = min(waves, len(levels))
    plan: list[list[_Layer]] = [[] for _ in range(waves)]
    for number, level in enumerate(sorted(levels)):
        plan[number * waves // len(levels)].extend(levels[level])
    return [part for wave in plan for part in _parts(wave)]


def _depths(graph: Graph, layers: set[Node]) -> Mapping[Node, int]:
    """How many of `layers` stand before each node, on the longest way."""
    depth: dict[Node, int] = {}
    for node in in_order(graph):
        before = (v.producer for v in reads(node))
        depth[node] = max((depth.get(p, 0) + (p in layers) for p in before if p is not None), default=0)
    return depth


def _parts(wave: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    part: list[_Layer] = []
    used = 0
    for layer in wave:
        if part and used + layer.nbytes > _MOMENT_MEMORY:
            yield part
            part, used = [], 0
        part.append(layer)
        used += layer.nbytes
    yield part


@dataclass(frozen=True)
class _Pair:
    """One statistic to measure: of the value `name` here and, unless empty, of `other` in the reference."""

    name: str
    other: str
    paired: PairedMoment
    nodes: Sequence[Node]  # whose input it is


def _outputs(node: Node) -> int:
    """How many outputs of each group a layer has."""
    shape = node.need(1).static_shape()
    if node.op_type == "Conv":
        return shape[0] // node.get_int("group", 1)
    return shape[0] if node.get_int("transB") else shape[1]


class _Walk:
    """Both models on their way through the samples. They are run only where the statistics file does not know."""

    def __init__(
        self, model: Model, reference: Model, ctx: PassContext, values: Sequence[Value], waves: int, cross: bool
    ) -> None:
        self.model, self.reference, self.ctx, self.values = model, reference, ctx, values
        self.waves, self.cross = waves, cross
        store = store_of(ctx)
        self.store = store if store is not None and store.keeps_all else None
        self.place = self.store.place("walk") if self.store is not None else ""
        self.there = {v.name for v in reference.graph.values()}
        self.ours: Segments | None = None
        self.theirs: Segments | None = None

    def close(self) -> None:
        for side in (self.ours, self.theirs):
            if side is not None:
                side.close()

    def measure(self, number: int, wave: Sequence[_Layer], rest: Sequence[_Layer]) -> list[LayerMoments]:
        pairs = self._pairs(wave)
        entries = self._entries(number, pairs)
        found = [self.store.find(entry) for entry in entries] if self.store is not None else [None] * len(pairs)
        missing = [pair for pair, known in zip(pairs, found, strict=True) if known is None]
        if missing:
            self._run(number, missing, wave, rest)
            check_finite(self.model, ((pair.name, pair.paired) for pair in missing))
        moments: dict[Node, LayerMoments] = {}
        for i, (pair, known) in enumerate(zip(pairs, found, strict=True)):
            paired = known if isinstance(known, PairedMoment) else pair.paired
            if self.store is not None and known is None:
                self.store.add(entries[i], paired, remember=False)
            first = 0
            for node in pair.nodes:
                moments[node] = LayerMoments(node, paired, first)
                first += _outputs(node)
        return [moments[layer.node] for layer in wave if layer.node in moments]

    def _pairs(self, wave: Sequence[_Layer]) -> list[_Pair]:
        alike: dict[tuple[str, str, str], list[Node]] = {}
        for layer in wave:
            plain = moment_observer(layer.node, sample_count(self.ctx))
            if plain is not None:
                other = layer.value.name if layer.value.name in self.there else ""
                alike.setdefault((layer.name, other, plain.key), []).append(layer.node)
        pairs = []
        for (name, other, _), nodes in alike.items():
            paired = _observer(nodes, sample_count(self.ctx), self.cross)
            if paired is not None:
                pairs.append(_Pair(name, other, paired, nodes))
        return pairs

    def _entries(self, number: int, pairs: Sequence[_Pair]) -> list[Entry]:
        if self.store is None:
            return []
        ours, theirs = ({v.name: s for v, s in signatures(m).items()} for m in (self.model, self.reference))
        made = []
        for pair in pairs:
            parts = [ours[pair.name], theirs.get(pair.other, "")]
            if pair.paired.weights is not None:
                parts += [ours[node.need(1).name] for node in pair.nodes]
            made.append(Entry(" ".join(parts), f"{self.place}|{number}|{pair.name}", pair.paired.key))
        return made

    def _run(self, number: int, pairs: Sequence[_Pair], wave: Sequence[_Layer], rest: Sequence[_Layer]) -> None:
        samples = samples_for(self.ctx, self.model, {p.name: [p.paired] for p in pairs})
        ours, theirs = self._sides(samples)
        after = [*wave, *rest] if rest else []
        mine = ours.advance(list(dict.fromkeys(p.name for p in pairs)), [layer.name for layer in after])
        reference = theirs.advance(
            list(dict.fromkeys(p.other for p in pairs if p.other)),
            [layer.value.name for layer in after if layer.value.name in self.there],
        )
        done = number * len(samples)
        for here, there in zip(ahead(mine), ahead(reference), strict=True):
            for pair in pairs:
                x = here[pair.name]
                same = pair.other and there[pair.other].shape == x.shape
                pair.paired.update_pair(there[pair.other] if same else x, x)
            done = min(done + feed_samples(here), (number + 1) * len(samples))
            self.ctx.progress("calibrate layer by layer", done, self.waves * len(samples))

    def _sides(self, samples: Samples) -> tuple[Segments, Segments]:
        if self.ours is None or self.theirs is None:
            feeds, joined = _feeds(self.model, samples, self.values)
            first, second = _shared(feeds)
            self.ours = Segments(self.model, first, _CACHE_MEMORY, joined=joined)
            self.theirs = Segments(self.reference, second, _CACHE_MEMORY, joined=joined)
        return self.ours, self.theirs


def _feeds(model: Model, samples: Samples, values: Sequence[Value]) -> tuple[Iterator[Feed], bool]:
    """The batches, and whether they hold several samples of a model whose batch is 1."""
    feeds = feeds_for(model, samples)
    sizes = [int(np.prod([d if isinstance(d, int) else 1 for d in v.shape or ()], dtype=np.int64)) for v in values]
    size = min(_MOST_BATCH, _BATCH_MEMORY // (4 * max(sizes)))
    if size < 2 or not all(v.shape and v.shape[0] == 1 for v in model.graph.inputs):
        return feeds, False
    first = list(itertools.islice(feeds, 2))
    feeds = itertools.chain(first, feeds)
    if len(first) < 2 or not _may_join(model, values, first):
        return feeds, False
    return batches(feeds, size), True


def _shared(feeds: Iterator[Feed]) -> tuple[Iterator[Feed], Iterator[Feed]]:
    """The same feeds twice, for two threads. Read in step, they hold one feed at most."""
    lock = Lock()

    def locked(one: Iterator[Feed]) -> Iterator[Feed]:
        while True:
            with lock:
                feed = next(one, None)
            if feed is None:
                return
            yield feed

    first, second = itertools.tee(feeds)
    return locked(first), locked(second)


def _may_join(model: Model, values: Sequence[Value], feeds: Sequence[Feed]) -> bool:
    inputs = {v.name for v in model.graph.inputs}
    names = list(dict.fromkeys(v.name for v in values if v.name not in inputs))
    if not names:
        return True
    proto, read = piece_proto(model, names, set())
    own = [{name: feed[name] for name in read} for feed in feeds]
    single = make_session(proto, model.name)
    try:
        return same_for_batches(single, make_session(symbolic_batch(proto), model.name), names, own)
    except ModelError:
        return False
