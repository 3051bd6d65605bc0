"""Which layer does the damage: the original and the compressed model side by side, value by value.

A layer is a node of the original model. Its counterpart is the value of the compressed model that was made from it:
`Node.origin` names the original nodes a compressed node stands for, and the last of them gave the value that the
compressed node now gives. Both models run in onnxruntime on the same samples.

The noise at a layer holds what arrived from the layers before it. Its own part is estimated as the growth of the
noise-to-signal ratio over the worst of its inputs (ratios of independent noises add up); `share` is that part of the
sum over all layers. An estimate: a layer that damps the noise of others counts as doing none.

A pass may rescale channels between two layers (cross-layer equalization, Nagel et al. 2019): their values then differ
by a factor for each channel, which is no noise. Where the best factors explain nearly everything, they are taken out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from irc.evaluation.compare import snr_db
from irc.evaluation.oracle import Oracle
from irc.ir.graph import Model, Node, Value
from irc.ir.quantization import Ports
from irc.ir.types import Array, Shape

RESCALED = 0.1
"""Share of the error that may be left after rescaling channels for it to count as equalization, not as noise."""
MIN_ROWS = 8
"""Values of a channel that a factor must explain: with fewer it could explain anything."""


@dataclass(frozen=True)
class LayerDamage:
    """`name`, `op_type`: of the original node. `snr_db`: at its output. `share` of all damage, 0..1."""

    name: str
    op_type: str
    value: str
    snr_db: float
    share: float
    passes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op_type": self.op_type,
            "snr_db": round(self.snr_db, 2),
            "share": round(self.share, 4),
            "passes": list(self.passes),
        }


@dataclass
class _Pair:
    node: Node  # of the original
    ours: str  # value name in the compressed model
    theirs: str
    passes: tuple[str, ...]
    rows: int = 0  # values of each channel
    sums: list[Array] = field(default_factory=list)  # over each channel: reference^2, reference * got, got^2

    @property
    def signal(self) -> float:
        return float(self.sums[0].sum()) if self.sums else 0.0

    @property
    def noise(self) -> float:
        """Squared error, without factors of channels where these explain all but a tenth of it."""
        if not self.sums:
            return 0.0
        reference, cross, got = self.sums
        plain = max(0.0, float((reference - 2 * cross + got).sum()))
        fitted = reference - np.divide(cross**2, got, out=np.zeros_like(got), where=got > 0)
        rescaled = max(0.0, float(fitted.sum()))
        return rescaled if self.rows >= MIN_ROWS and rescaled < RESCALED * plain else plain

    @property
    def ratio(self) -> float:
        if self.noise == 0.0:
            return 0.0
        return self.noise / self.signal if self.signal else 1.0


def damage(original: Model, compressed: Model, feeds: Iterable[dict[str, Array]]) -> list[LayerDamage]:
    """One row for each layer found in both models, in the order of the original. Streams over `feeds`."""
    pairs = _match(original, compressed)
    if not pairs:
        return []
    reference = Oracle(original, extra=[p.theirs for p in pairs])
    ours = Oracle(compressed, extra=[p.ours for p in pairs])
    theirs, mine = Ports.of(original.graph), Ports.of(compressed.graph)
    for feed in feeds:
        a, b = reference.run(theirs.feed(feed)), ours.run(mine.feed(feed))
        for pair in pairs:
            _accumulate(pair, a[pair.theirs], b[pair.ours])
    return _rows(pairs)


def _accumulate(pair: _Pair, reference: Array, got: Array) -> None:
    if reference.shape != got.shape:
        return
    ref, res = reference.astype(np.float64), got.astype(np.float64)
    plain = np.isfinite(ref) & np.isfinite(res)  # masks hold infinities: they carry no signal to lose
    ref, res = np.where(plain, ref, 0.0), np.where(plain, res, 0.0)
    axis = _channel_axis(pair.node, ref.ndim)
    pair.rows += ref.size // max(ref.shape[axis], 1) if ref.ndim else 0
    axes = tuple(a for a in range(ref.ndim) if a != axis)
    new = [np.atleast_1d(np.sum(product, axis=axes)) for product in (ref * ref, ref * res, res * res)]
    pair.sums = [a + b for a, b in zip(pair.sums, new, strict=True)] if pair.sums else new


def _channel_axis(node: Node, rank: int) -> int:
    """1 for images, and for what convolutions make of sequences; the last one otherwise."""
    return 1 if rank >= 4 or (rank == 3 and node.is_op("Conv", "BatchNormalization")) else max(rank - 1, 0)


def _match(original: Model, compressed: Model) -> list[_Pair]:
    order = {name: i for i, node in enumerate(original.graph.nodes) for name in (node.origin.nodes or (node.name,))}
    nodes = {name: node for node in original.graph.nodes for name in (node.origin.nodes or (node.name,))}
    found: dict[str, _Pair] = {}
    for node in compressed.graph.nodes:
        known = [n for n in node.origin.nodes if n in order]
        if not known or not _is_float(node.output):
            continue
        last = max(known, key=order.__getitem__)
        theirs = nodes[last].output
        if not _is_float(theirs) or not _same_shape(theirs.shape, node.output.shape):
            continue
        # A later node with the same origin (the DequantizeLinear behind a Conv) stands for more of the damage.
        found[last] = _Pair(nodes[last], node.output.name, theirs.name, node.origin.passes)
    return [found[n] for n in sorted(found, key=order.__getitem__)]


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_float


def _same_shape(a: Shape | None, b: Shape | None) -> bool:
    if a is None or b is None or a.rank != b.rank:
        return False
    return all(x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a, b, strict=True))


def _rows(pairs: list[_Pair]) -> list[LayerDamage]:
    by_node = {id(p.node): p for p in pairs}
    own = [max(0.0, p.ratio - _incoming(p.node, by_node)) for p in pairs]
    total = sum(own) or 1.0
    return [
        LayerDamage(p.node.name, p.node.op_type, p.theirs, snr_db(p.signal, p.noise), part / total, p.passes)
        for p, part in zip(pairs, own, strict=True)
    ]


def _incoming(node: Node, pairs: dict[int, _Pair]) -> float:
    """Largest noise-to-signal ratio among the nearest matched layers before `node`."""
    worst, seen = 0.0, {id(node)}
    stack = [v.producer for v in node.inputs if v is not None and v.producer is not None]
    while stack:
        before = stack.pop()
        if id(before) in seen:
            continue
        seen.add(id(before))
        pair = pairs.get(id(before))
        if pair is not None:
            worst = max(worst, pair.ratio)
            continue
        stack.extend(v.producer for v in before.inputs if v is not None and v.producer is not None)
    return worst
