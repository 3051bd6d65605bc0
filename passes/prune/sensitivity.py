"""What one layer's damage does to the network's outputs, measured: each layer is pruned alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from irc.calibrate.gather import need_samples
from irc.calibrate.sessions import Feed, call, feed_samples, make_session
from irc.ir.analysis import macs
from irc.ir.clone import clone
from irc.ir.graph import Model, Value
from irc.ir.types import Array, DType
from irc.passes.prune.layers import Layer, find_layers
from irc.passes.prune.sweep import Fit, store
from irc.pipeline.contract import PassContext

_MACS = 2e12  # of all runs together: about two minutes
_FEWEST, _MOST = 8, 128  # samples


def sensitivities(
    model: Model, layers: Sequence[Layer], probes: Mapping[Layer, tuple[Fit, Array, Array]], ctx: PassContext
) -> list[float]:
    """For each layer, the relative squared error of the outputs over the layer's own squared error.

    `probes`: what each layer would be, pruned: fit, units, kept blocks. A layer without probe gets 0.
    """
    feeds = _feeds(model, len(layers), ctx)
    names = [_telling(v).name for v in model.graph.outputs if _telling(v).dtype is DType.FLOAT]
    if not names:
        return [1.0] * len(layers)
    expected = _run(model, names, feeds)
    spread = [max(float(np.square(e - e.mean(axis=0)).sum()), 1e-30) for e in expected]
    found = []
    for number, layer in enumerate(layers):
        ctx.progress("measure sensitivity", number, len(layers))
        if layer not in probes:
            found.append(0.0)
            continue
        fit, units, kept = probes[layer]
        changed = clone(model)
        store(find_layers(changed)[0][number], fit, units, kept)
        outputs = _run(changed, names, feeds)
        damage = sum(
            min(float(np.square(o - e).sum()) / s, 1.0) for o, e, s in zip(outputs, expected, spread, strict=True)
        )
        found.append(damage / max(fit.error(units), 1e-30))
    ctx.progress("measure sensitivity", len(layers), len(layers))
    return found


def _feeds(model: Model, layers: int, ctx: PassContext) -> list[Feed]:
    counts = [macs(n) for n in model.graph.walk()]
    each = max(sum(c or 0 for c in counts), 1)
    wanted = int(np.clip(_MACS / (each * (layers + 1)), _FEWEST, _MOST))
    feeds: list[Feed] = []
    seen = 0
    for feed in need_samples(ctx, model).feeds():
        feeds.append(feed)
        seen += feed_samples(feed)
        if seen >= wanted:
            break
    return feeds


def _telling(value: Value) -> Value:
    """An output, or what its Softmax reads: probabilities near 0 and 1 say little of what moved them."""
    node = value.producer
    return node.need(0) if node is not None and node.is_op("Softmax", "LogSoftmax", "Sigmoid") else value


def _run(model: Model, names: Sequence[str], feeds: Sequence[Feed]) -> list[Array]:
    from irc.export import to_proto

    proto = to_proto(model)
    del proto.graph.output[:]
    for name in names:
        proto.graph.output.add().name = name
        proto.graph.output[-1].type.tensor_type.elem_type = DType.FLOAT.onnx
    session = make_session(proto, model.name)
    found = [call(session, names, feed, model.name) for feed in feeds]
    return [np.concatenate([f[i].reshape(1, -1) if f[i].ndim < 2 else f[i] for f in found]) for i in range(len(names))]
