"""What a network costs with some units gone, and which groups should give up how many to meet a target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from irc.ir.analysis import macs
from irc.ir.graph import Model, Node, Value
from irc.passes.prune.dependencies import Dependencies, Group

Quantity = Literal["macs", "bytes", "channels", "numbers"]
_SAME = 1e-9


@dataclass(frozen=True)
class _Term:
    """`amount` is proportional to the kept share of each of these slots. `owner`: the node that pays it, if any."""

    amount: float
    slots: tuple[tuple[int, int], ...]
    owner: Node | None


class Costs:
    """What of a model is left as units and nodes go; "numbers" are those that linear layers read and write."""

    def __init__(self, model: Model, found: Dependencies, quantity: Quantity) -> None:
        self.found = found
        self._terms = list(_terms(model, found, quantity))
        self._by_slot: dict[tuple[int, int], list[_Term]] = {}
        for term in self._terms:
            for key in set(term.slots):
                self._by_slot.setdefault(key, []).append(term)
        self._shares: dict[tuple[int, int], float] = {}
        self._dead: set[Node] = set()
        self.total = sum(t.amount for t in self._terms)
        self.whole = self.total

    def shares(self, group: Group, removed: Iterable[int]) -> dict[tuple[int, int], float]:
        """The share that stays of each slot of `group`, which loses `removed` in all."""
        gone = np.zeros(self.found.units + 1, bool)
        gone[list(removed)] = True
        return {(id(s.value), s.axis): 1.0 - float(gone[s.units].mean()) for s in group.slots}

    def after(self, changes: Mapping[tuple[int, int], float]) -> float:
        """The total with these shares instead of the present ones."""
        touched = {id(t): t for key in changes for t in self._by_slot.get(key, ())}
        return self.total + sum(self._amount(t, changes) - self._amount(t, {}) for t in touched.values())

    def without(self, nodes: Iterable[Node]) -> float:
        """The total without these nodes."""
        gone = set(nodes) - self._dead
        return self.total - sum(self._amount(t, {}) for t in self._terms if t.owner in gone)

    def apply(self, changes: Mapping[tuple[int, int], float]) -> None:
        self.total = self.after(changes)
        self._shares.update(changes)

    def drop(self, nodes: Iterable[Node]) -> None:
        self.total = self.without(nodes)
        self._dead.update(nodes)

    def _amount(self, term: _Term, changes: Mapping[tuple[int, int], float]) -> float:
        if term.owner in self._dead:
            return 0.0
        amount = term.amount
        for key in term.slots:
            amount *= changes.get(key, self._shares.get(key, 1.0))
        return amount


def _terms(model: Model, found: Dependencies, quantity: Quantity) -> Iterable[_Term]:
    if quantity == "channels":
        for group in found.groups:
            if group.units:
                slot = group.slots[0]
                yield _Term(float(len(slot.units)), ((id(slot.value), slot.axis),), None)
        return
    if quantity == "bytes":
        for value in model.graph.constants.values():
            if value.constant is not None:
                rank = len(value.constant.shape)
                slots = tuple((id(value), a) for a in range(rank) if (id(value), a) in found.slots)
                owner = value.uses[0].node if len(value.uses) == 1 else None
                yield _Term(float(value.constant.nbytes), slots, owner)
        return
    for node in model.graph.nodes:
        amount = products(node)
        if not amount:
            continue
        if quantity == "macs":
            yield _Term(float(amount), tuple(k for k in _factors(node) if k in found.slots), node)
            continue
        for value in (node.need(0), node.output):
            axes = [(id(value), a) for a in range(value.shape.rank if value.shape is not None else 0)]
            yield _Term(float(_size(value)), tuple(k for k in axes if k in found.slots), node)


def products(node: Node) -> int:
    """Multiply-adds of a node for each sample, where only the batch has no number; 0 where they are not known."""
    known = macs(node)
    if known is not None:
        return known
    if not node.is_op("Conv", "Gemm", "MatMul"):
        return 0
    weight = node.need(1).shape
    if weight is None or not weight.is_static:
        return 0
    if node.op_type == "Conv":
        return _size(node.output) * math.prod(weight.static()[1:])
    return _size(node.output) * weight.static()[1 if node.get_int("transB") else -2]


def _size(value: Value) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in value.shape or ())


def _factors(node: Node) -> list[tuple[int, int]]:
    """The axes whose extents multiply to the multiply-adds of `node`."""
    axes = [(id(node.output), a) for a in range(node.output.shape.rank if node.output.shape is not None else 0)]
    if node.is_op("Conv"):
        axes.append((id(node.need(1)), 1))
    elif node.is_op("ConvTranspose"):
        axes = [(id(node.need(0)), 1), (id(node.need(1)), 1)]
    elif node.is_op("Gemm"):
        axes.append((id(node.need(0)), 1))
    elif node.is_op("MatMul"):
        x = node.need(0)
        axes.append((id(x), (x.shape.rank if x.shape is not None else 1) - 1))
    return axes


@dataclass(frozen=True)
class Curve:
    """What a group may lose. `order`: units in the order in which they go; `levels`: how many may be gone, rising, the
    first 0; `errors`: what each level costs."""

    group: Group
    order: tuple[int, ...]
    levels: tuple[int, ...]
    errors: tuple[float, ...]

    def removed(self, level: int) -> tuple[int, ...]:
        return self.order[: self.levels[level]]


@dataclass(frozen=True)
class Cut:
    """A branch that may be left out: `nodes` go, at the price of `error`, and the curves `groups` with them."""

    name: str
    nodes: tuple[Node, ...]
    groups: tuple[int, ...]
    error: float


@dataclass
class Allocation:
    """The level of each curve, and the names of branches that go. `total`: the cost that is left."""

    levels: list[int]
    cuts: list[str] = field(default_factory=list)
    total: float = 0.0
    error: float = 0.0


class _Greedy:
    """The state of `allocate`."""

    def __init__(self, costs: Costs, curves: Sequence[Curve], cuts: Sequence[Cut], target: float) -> None:
        self.costs, self.curves, self.cuts, self.target = costs, curves, cuts, target
        self.levels = [0] * len(curves)
        self.gone: set[int] = set()  # curves of branches that are cut
        self.taken: list[Cut] = []
        self.shares = [[costs.shares(c.group, c.removed(n)) for n in range(len(c.levels))] for c in curves]

    @property
    def met(self) -> bool:
        return self.costs.total <= self.target * (1 + _SAME)

    def steps(self) -> Iterator[tuple[float, int, int]]:
        """(price, curve, level), or (price, -1 - cut, 0). The price is error for what is saved, of what is needed."""
        missing = self.costs.total - self.target
        for i, curve in enumerate(self.curves):
            for level in range(self.levels[i] + 1, len(curve.levels) if i not in self.gone else 0):
                saved = self.costs.total - self.costs.after(self.shares[i][level])
                if saved > 0:
                    yield (curve.errors[level] - curve.errors[self.levels[i]]) / min(saved, missing), i, level
        for j, cut in enumerate(self.cuts):
            saved = self.costs.total - self.costs.without(cut.nodes) if cut not in self.taken else 0.0
            if saved > 0:
                refund = sum(self.curves[i].errors[self.levels[i]] for i in cut.groups)
                yield (cut.error - refund) / min(saved, missing), -1 - j, 0

    def take(self, i: int, level: int) -> None:
        if i >= 0:
            self.levels[i] = level
            self.costs.apply(self.shares[i][level])
            return
        cut = self.cuts[-1 - i]
        self.taken.append(cut)
        self.gone.update(cut.groups)
        for k in cut.groups:
            self.levels[k] = 0
        self.costs.drop(cut.nodes)

    def take_back(self) -> bool:
        """Undo the most expensive step that is not needed; False where there is none."""
        best: tuple[float, int] | None = None
        for i, curve in enumerate(self.curves):
            level = self.levels[i] - 1
            if level < 0 or self.costs.after(self.shares[i][level]) > self.target * (1 + _SAME):
                continue
            gain = curve.errors[level + 1] - curve.errors[level]
            if best is None or gain > best[0]:
                best = gain, i
        if best is not None:
            self.take(best[1], self.levels[best[1]] - 1)
        return best is not None

    def result(self) -> Allocation:
        error = sum(c.error for c in self.taken)
        error += sum(c.errors[n] for c, n in zip(self.curves, self.levels, strict=True))
        return Allocation(self.levels, [c.name for c in self.taken], self.costs.total, error)


def allocate(costs: Costs, curves: Sequence[Curve], cuts: Sequence[Cut], target: float, forced: int = 0) -> Allocation:
    """Greedy: always the step of least error for what it saves, until the cost is `target` or nothing is left; then
    steps that turn out not to be needed are taken back, the most expensive first. The first `forced` cuts are taken
    in any case. `costs` is changed."""
    greedy = _Greedy(costs, curves, cuts, target)
    for i in range(forced):
        greedy.take(-1 - i, 0)
    while not greedy.met:
        step = min(greedy.steps(), default=None)
        if step is None:
            return greedy.result()
        greedy.take(step[1], step[2])
    while greedy.take_back():
        pass
    return greedy.result()


def uniform(costs: Costs, curves: Sequence[Curve], target: float) -> Allocation:
    """About the same share of every group: the least that meets the target, or all that may go. `costs` is changed."""
    best = Allocation([0] * len(curves), [], costs.total)
    for share in np.linspace(0.0, 1.0, 201).tolist():
        levels = [int(np.argmin([abs(n / len(c.group.units) - share) for n in c.levels])) for c in curves]
        for curve, level in zip(curves, levels, strict=True):
            costs.apply(costs.shares(curve.group, curve.removed(level)))
        best = Allocation(levels, [], costs.total, sum(c.errors[n] for c, n in zip(curves, levels, strict=True)))
        if costs.total <= target * (1 + _SAME):
            break
    return best


def rounded_levels(group: Group, allowed: int, multiple: int, most: int = 16) -> tuple[int, ...]:
    """How many units may be gone so that the channels that stay come in multiples: about `most` numbers, rising from 0.

    `allowed`: how many can go at all. Channels are counted where the group's first layer makes them.
    """
    units = group.slots[0].units
    sizes = np.unique(units[units >= 0], return_counts=True)[1]
    even = len(sizes) == len(group.units) and sizes.min() == sizes.max()  # otherwise units count differently
    found = [0]
    for gone in range(1, min(allowed, len(group.units)) + 1):
        stays = len(units) - gone * int(sizes[0]) if even else multiple
        if stays > 0 and stays % multiple == 0:
            found.append(gone)
    if len(found) > most + 1:
        found = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, most + 1).round().astype(int)).tolist()]
    return tuple(found)
