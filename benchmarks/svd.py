"""Low-rank factors of every layer of a network: in the metric of its inputs against plain ones, on other samples."""

from __future__ import annotations

import numpy as np
from common import Array, Task

from irc.calibrate.dataset import Dataset
from irc.calibrate.gather import gather
from irc.calibrate.layers import moment_observer, to_rows
from irc.calibrate.observers import Observer, SecondMoment
from irc.frontend import default_batch, load_model
from irc.ir.graph import Model, Node
from irc.passes.factorize.lowrank import decompose
from irc.passes.quantize.regions import find_regions
from irc.pipeline import PassContext, Pipeline

_OTHERS = 200  # samples that measure


def whitened_over_plain(task: Task) -> dict[str, float]:
    """For each layer but depthwise ones: error of the whitened factors' output over that of the plain ones'."""
    model = load_model(task.model)
    default_batch(model)
    Pipeline.parse("none").run(model, PassContext())
    nodes = [k.linear.core for k in find_regions(model.graph).kernels if k.linear is not None]
    nodes = [n for n in nodes if n.get_int("group", 1) == 1]
    seen = _moments(model, nodes, {task.input: task.calibration})
    unseen = _moments(model, nodes, {task.input: task.x[:_OTHERS]})
    found = {}
    for number, (node, known, other) in enumerate(zip(nodes, seen, unseen, strict=True)):
        weight = to_rows(node, node.need(1).numpy(), 1)[0].astype(np.float64)
        rank = max(1, min(weight.shape) // 4)
        white, plain = (
            _error(weight, *decompose(weight, moment).factors(rank), other) for moment in (known.moment, None)
        )
        if plain > 0:
            found[node.name or str(number)] = float(np.sqrt(white / plain))
    return found


def _error(weight: Array, left: Array, right: Array, moment: SecondMoment) -> float:
    change = weight - left.astype(np.float64) @ right
    k = moment.moment.shape[1]
    parts = change.reshape(len(change), -1, k)
    return float(np.einsum("ogi,gij,ogj->", parts, moment.moment, parts, optimize=True))


def _moments(model: Model, nodes: list[Node], samples: dict[str, Array]) -> list[SecondMoment]:
    count = len(next(iter(samples.values())))
    ctx = PassContext(calibration=Dataset.of(samples, model))
    wanted: dict[str, list[Observer]] = {}
    keys = []
    for node in nodes:
        observer = moment_observer(node, count)
        assert observer is not None
        keys.append((node.need(0).name, observer.key))
        observers = wanted.setdefault(node.need(0).name, [])
        if all(o.key != observer.key for o in observers):
            observers.append(observer)
    entries = gather(ctx, model, wanted).entries
    found = [entries[key] for key in keys]
    return [f for f in found if isinstance(f, SecondMoment)]
