"""Replace linear layers by thinner ones where that saves multiply-adds.

A matrix W [outputs, inputs] becomes W2 [outputs, r] @ W1 [r, inputs]. A k x k convolution becomes k x k to r channels
and 1 x 1 to all; or kh x 1 to r channels and 1 x kw to all (Jaderberg et al., "Speeding up Convolutional Neural
Networks with Low Rank Expansions", 2014); or 1 x 1, k x k and 1 x 1 (Tucker-2, tucker.py): whichever needs fewer
multiply-adds. With calibration data the error is that of the output instead of the weights (lowrank.py), the bias takes
back its mean, and kh x 1 with 1 x kw is not tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from irc.calibrate.gather import calibrated, gather, sample_count
from irc.calibrate.layers import moment_observer
from irc.calibrate.observers import Observer, SecondMoment
from irc.errors import OptionError
from irc.ir.clone import clone
from irc.ir.graph import Model, Node
from irc.ir.types import DType
from irc.passes.factorize.allocate import Way, allocate
from irc.passes.factorize.forms import WORTH, Choice, Form, forms, matrix_of, places
from irc.passes.factorize.lowrank import Method
from irc.passes.factorize.rewrite import NAME, correct_bias, has_bias, rewrite
from irc.passes.quantize.damage import Reference
from irc.pipeline.contract import Pass, PassContext, PassResult, Refusal
from irc.targets.target import Target

_WIDEST_STEP = 4
_PROBE = 0.99  # share of a layer's output that is kept where its sensitivity is measured


@dataclass(frozen=True)
class Factorize(Pass):
    """Options. `rank`: of every layer. `macs`, `bytes`: the share of the multiply-adds, or of the bytes of weights, of
    all linear layers that remains; ranks are then those of least damage, each layer's loss weighed by how much the
    network's output feels it (measured, with `sensitivity`). Otherwise each layer has the least rank that keeps the
    share `energy` of its squared output (with calibration data) or weights.

    1 - energy is the noise that each layer adds: 0.999 is 30 dB, which most networks bear; 0.95, 13 dB, needs recovery.
    `method`: svd is best, qr cheaper to compute. `tucker`: convolutions may become three layers.
    """

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "split linear layers into thinner ones of low rank where that saves work"

    rank: int | None = None
    energy: float = 0.999
    macs: float | None = None
    bytes: float | None = None
    sensitivity: bool = True
    method: Method = "svd"
    tucker: bool = True

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise OptionError("rank is out of range", where=NAME, expected="at least 1", got=str(self.rank))
        if not 0 < self.energy <= 1:
            raise OptionError("energy is out of range", where=NAME, expected="(0, 1]", got=str(self.energy))
        for option, share in (("macs", self.macs), ("bytes", self.bytes)):
            if share is not None and not 0 < share <= 1:
                raise OptionError(f"{option} is out of range", where=NAME, expected="(0, 1]", got=str(share))
        if sum(given is not None for given in (self.rank, self.macs, self.bytes)) > 1:
            raise OptionError("rank, macs and bytes exclude each other", where=NAME, hint="one of them")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError for a target that cannot be reached; it says what can."""
        refusals, candidates = [], []
        for node in model.graph.nodes:
            if not node.is_op("Conv", "Gemm", "MatMul"):
                continue
            reason = refuse(node)
            if reason:
                refusals.append(Refusal(node.label, self.name, reason))
            else:
                candidates.append(node)
        moments = _moments(model, candidates, ctx)
        if self.macs is not None or self.bytes is not None:
            chosen, reasons, weights = self._within_target(model, candidates, moments, ctx)
        else:
            weights = [1.0] * len(candidates)
            chosen, reasons = [], []
            for number, node in enumerate(candidates):
                choice, reason = self._choose(node, moments.get(id(node)), step_of(ctx.target))
                chosen.append(choice)
                reasons.append(reason)
                ctx.progress(NAME, number + 1, len(candidates))
        lines = []
        for node, choice, reason, weight in zip(candidates, chosen, reasons, weights, strict=True):
            if choice is None:
                refusals.append(Refusal(node.label, self.name, reason))
                continue
            lines.append(_line(node, choice, weight))
            replace(model, node, choice, moments.get(id(node)))
        return PassResult(bool(lines), {"layers": lines}, tuple(refusals))

    def _forms(self, node: Node, moment: SecondMoment | None, step: int) -> list[Form]:
        metric = None
        if moment is not None:
            metric = moment.covariance if has_bias(node) else moment.moment
        return forms(node, metric, self.method, tucker=self.tucker, step=step)

    def _choose(self, node: Node, moment: SecondMoment | None, step: int) -> tuple[Choice | None, str]:
        """The cheapest replacement, or why there is none."""
        found = self._forms(node, moment, step)
        if self.rank is not None:
            best = min((form.of_rank(self.rank) for form in found), key=lambda c: c.cost)
        else:
            best = min((form.keeping(self.energy) for form in found), key=lambda c: c.cost)
        if best.cost > WORTH:
            ranks = " x ".join(map(str, best.ranks))
            return None, f"rank {ranks} would need {best.cost:.2f} of its multiply-adds, more than {WORTH}"
        return best, ""

    def _within_target(
        self, model: Model, nodes: Sequence[Node], moments: Mapping[int, SecondMoment], ctx: PassContext
    ) -> tuple[list[Choice | None], list[str], list[float]]:
        """For each layer its replacement or None, why there is none, and the weight of its loss."""
        share, amount = (self.macs, _macs) if self.macs is not None else (self.bytes, _weights)
        assert share is not None
        option = "macs" if self.macs is not None else "bytes"
        total = math.fsum(amount(n) for n in model.graph.nodes if n.is_op("Conv", "Gemm", "MatMul"))
        fixed = total - math.fsum(amount(n) for n in nodes)
        ways: list[list[Choice]] = []
        step = step_of(ctx.target)
        for number, node in enumerate(nodes):
            found = [c for form in self._forms(node, moments.get(id(node)), step) for c in form.all()]
            ways.append([c for c in found if (c.cost if option == "macs" else c.size) <= WORTH])
            ctx.progress(NAME, number + 1, len(nodes))
        weights = self._sensitivities(model, nodes, ways, moments, ctx)
        table = []
        for node, choices, weight in zip(nodes, ways, weights, strict=True):
            cost = amount(node)
            shares = [c.cost if option == "macs" else c.size for c in choices]
            table.append([Way(cost, 0.0)])
            table[-1] += [Way(cost * s, weight * (1 - c.kept)) for s, c in zip(shares, choices, strict=True)]
        found_ways = allocate(table, share * total - fixed)
        if found_ways is None:
            least = (fixed + math.fsum(min(w.cost for w in way) for way in table)) / total if total else 1.0
            raise OptionError(
                f"{option}={share:g} cannot be reached by factors of low rank",
                where=NAME,
                expected=f"at least {least:.3g}, at rank 1 of {len(nodes)} layers",
                got=f"{share:g}",
                hint="pruning channels as well",
            )
        chosen = [choices[i - 1] if i else None for choices, i in zip(ways, found_ways, strict=True)]
        reasons = [f"the target {option}={share:g} is met without it at less damage"] * len(chosen)
        return chosen, reasons, weights

    def _sensitivities(
        self,
        model: Model,
        nodes: Sequence[Node],
        ways: Sequence[Sequence[Choice]],
        moments: Mapping[int, SecondMoment],
        ctx: PassContext,
    ) -> list[float]:
        """How much of the network's output a lost share of each layer's output is; 1 where that is not measured."""
        if not self.sensitivity or ctx.calibration is None:
            return [1.0] * len(nodes)
        reference = Reference(model, ctx)
        place = {id(n): i for i, n in enumerate(model.graph.nodes)}
        found = []
        for number, (node, choices) in enumerate(zip(nodes, ways, strict=True)):
            lossy = [c for c in choices if c.kept < 1 - 1e-6]
            if not lossy:
                found.append(1.0)
                continue
            probe = min(lossy, key=lambda c: abs(math.log((1 - c.kept) / (1 - _PROBE))))
            trial = clone(model)
            replace(trial, trial.graph.nodes[place[id(node)]], probe, moments.get(id(node)))
            change = reference.compare(trial, f"probe {number}")
            found.append(max(change.noise, 1e-12) / (1 - probe.kept))
            ctx.progress(f"{NAME}, sensitivity", number + 1, len(nodes))
        return found


def replace(model: Model, node: Node, choice: Choice, moment: SecondMoment | None) -> None:
    """Put the factors in place of `node`, and what they change on average into its bias."""
    if moment is not None and has_bias(node):
        correct_bias(model.graph, node, choice, moment.mean)
    rewrite(model.graph, node, choice)


def step_of(target: Target | None) -> int:
    """What ranks are rounded to: whole vectors of sums, or half of one where vectors are long."""
    return 1 if target is None else min(target.vector_bytes // 4, _WIDEST_STEP)


def _macs(node: Node) -> float:
    return places(node) * _weights(node)


def _weights(node: Node) -> float:
    shape = node.need(1).shape
    return float(math.prod(shape.static())) if shape is not None and shape.is_static else 0.0


def refuse(node: Node) -> str:
    """Why a Conv, Gemm or MatMul cannot be factorized at all; empty where it can."""
    weight = node.need(1)
    if NAME in node.origin.passes:
        return "it is one of two factors already"
    if not weight.is_constant:
        quantized = weight.producer is not None and weight.producer.is_op("DequantizeLinear")
        return "its weights are quantized already: factorize first" if quantized else "its weights are not constant"
    if weight.dtype is not DType.FLOAT:
        return f"its weights are {weight.dtype.value if weight.dtype else 'unknown'}, not float32"
    if len(weight.uses) > 1 or weight.is_output:
        return "other nodes read its weights too, so they would stay beside the factors"
    if node.op_type == "Gemm" and node.get_int("transA"):
        return "its data input is transposed (transA)"
    shape = weight.static_shape()
    if node.op_type == "Conv":
        if node.get_int("group", 1) != 1:
            return "its channels are in groups, which have little to share"
        if len(shape) != 4:
            return f"only 2-D convolutions are factorized, this one has {len(shape) - 2} spatial dimensions"
    elif len(shape) != 2:
        return f"its weights have rank {len(shape)}, not 2"
    if not np.isfinite(weight.numpy()).all():
        return "its weights hold NaN or infinity"
    if not np.count_nonzero(weight.numpy()) > 0.9 * math.prod(shape):
        return "it is sparse: its factors would be dense"
    rows, columns = matrix_of(node).shape
    if (rows + columns) > WORTH * rows * columns:
        return f"a matrix of {rows} x {columns} is too thin for two factors to save anything"
    return ""


def _moments(model: Model, nodes: Sequence[Node], ctx: PassContext) -> Mapping[int, SecondMoment]:
    """By the identity of the node. Statistics that are not finite count as none."""
    if not calibrated(ctx) or not nodes:
        return {}
    wanted: dict[str, list[Observer]] = {}
    keys: dict[int, tuple[str, str]] = {}
    for node in nodes:
        observer = moment_observer(node, sample_count(ctx))
        if observer is None:
            continue
        observers = wanted.setdefault(node.need(0).name, [])
        if all(o.key != observer.key for o in observers):
            observers.append(observer)
        keys[id(node)] = (node.need(0).name, observer.key)
    found = {}
    statistics = gather(ctx, model, wanted)
    for number, key in keys.items():
        seen = statistics.entries[key]
        if isinstance(seen, SecondMoment) and seen.count and np.isfinite(seen.moment).all():
            found[number] = seen
    return found


def _line(node: Node, choice: Choice, weight: float) -> dict[str, Any]:
    line: dict[str, Any] = {
        "node": node.name,
        "op": node.op_type,
        "form": choice.form,
        "rank": choice.ranks[-1],
        "full_rank": choice.full_rank,
        "energy": round(choice.kept, 6),
        "multiply_adds": round(choice.cost, 4),
        "weights": round(choice.size, 4),
    }
    if len(choice.ranks) > 1:
        line["entry_rank"] = choice.ranks[0]
    if weight != 1.0:
        line["sensitivity"] = round(weight, 6)
    return line
