"""Which channels can only be removed together: the elements of every axis of every tensor, grouped.

Each element of an axis that a linear layer makes is a variable. Operators tie variables of their inputs and outputs
(flow.py): a Relu ties channel i to channel i, an Add the channels of both operands, a Concat with an offset, a
reshape to heads a run of channels to one head. Variables that are tied, however far apart, form a *unit*: removing a
unit removes its elements from every tensor at once, weights included, and leaves a network that computes what the old
one did with the unit's weights set to zero (in the layers that read it). What no rule describes, and what callers see,
is frozen with a reason. (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, from pairs of layers to
elements.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from irc.ir.graph import Graph, Model, Node, Value
from irc.ir.types import Array


@dataclass(frozen=True)
class Slot:
    """One axis of a value. `units`: int64 [extent], the unit that each element belongs to, -1 where it is frozen."""

    value: Value
    axis: int
    units: Array


@dataclass(frozen=True)
class Reader:
    """A linear layer that sums over channels of a group: its weight `slot`, input `index` of `node`."""

    node: Node
    index: int
    slot: Slot


@dataclass(frozen=True)
class Group:
    """Axes that are connected, as far as they can be pruned. `units`: those of this group, in the order of first use.

    `makers` are the linear layers whose outputs the channels are, `readers` those that sum over them. `refusal` says
    why none of it can be removed; `frozen` counts the elements of the first axis that must stay.
    """

    slots: tuple[Slot, ...]
    units: tuple[int, ...]
    makers: tuple[Node, ...]
    readers: tuple[Reader, ...]
    refusal: str = ""

    @property
    def name(self) -> str:
        """The first layer that makes the channels."""
        return self.makers[0].name if self.makers else self.slots[0].value.name


@dataclass
class Dependencies:
    """All groups of a model, and for each (value, axis) that belongs to one its slot."""

    groups: tuple[Group, ...]
    slots: dict[tuple[int, int], Slot]
    units: int
    splits: dict[int, int] = field(default_factory=dict)

    def slot(self, value: Value, axis: int) -> Slot | None:
        return self.slots.get((id(value), axis))


class Sweep:
    """Variables and ties, filled by the rules in topological order. Axes are counted from the front.

    `splits`: for a Reshape (by id) that cuts a live axis into several, the place of the one that carries the channels.
    """

    def __init__(self, graph: Graph, splits: dict[int, int]) -> None:
        self.graph, self.splits = graph, splits
        self.options: dict[int, tuple[int, Array]] = {}  # id of a Reshape -> (number of places, variables it splits)
        self.starts: dict[tuple[int, int], int] = {}
        self.values: dict[int, Value] = {}
        self.count = 0
        self.roles: list[tuple[str, Node, int, int]] = []  # "make"/"read", node, input index of the weight, its axis
        self._pairs: list[tuple[Array, Array]] = []
        self._frozen: list[tuple[Array, str]] = []
        self._reads: set[tuple[int, int, int]] = set()

    def is_live(self, node: Node, index: int, axis: int) -> bool:
        """Whether this axis of a computed input carries channels (without claiming to handle it)."""
        value = node.input(index)
        return value is not None and (id(value), axis) in self.starts and not value.is_constant

    def any_live(self, node: Node) -> bool:
        return any(
            (id(v), a) in self.starts
            for v in node.inputs
            if v is not None and not v.is_constant
            for a in range(v.shape.rank if v.shape is not None else 0)
        )

    def read(self, node: Node, index: int, axis: int) -> Array | None:
        """Variables of an input's axis, which the calling rule promises to handle. None: it carries no channels.

        Axes of constants always have variables: constants can be cut anywhere.
        """
        value = node.input(index)
        if value is None:
            return None
        start = self.starts.get((id(value), axis))
        if start is None:
            if not value.is_constant:
                return None
            start = self._new(value, axis)
        self._reads.add((id(node), index, axis))
        return np.arange(start, start + self.extent(value, axis))

    def make(self, value: Value, axis: int) -> Array | None:
        """New variables for an axis of an output; None where its extent is not known."""
        shape = value.shape
        if shape is None or axis >= shape.rank or not isinstance(shape[axis], int):
            return None
        start = self._new(value, axis)
        return np.arange(start, start + self.extent(value, axis))

    def _new(self, value: Value, axis: int) -> int:
        start = self.starts[id(value), axis] = self.count
        self.values[id(value)] = value
        self.count += self.extent(value, axis)
        return start

    def extent(self, value: Value, axis: int) -> int:
        shape = value.shape
        found = shape[axis] if shape is not None else None
        if not isinstance(found, int):
            raise ValueError(f"'{value.name}' has no known extent along axis {axis}")
        return found

    def tie(self, a: Array | None, b: Array | None) -> None:
        """Elements that can only go together. None is allowed where the other side then must stay."""
        if a is None and b is None:
            return
        if a is None or b is None:
            self.freeze(a if b is None else b, "it is combined with what no layer makes")
        else:
            self._pairs.append((a, b))

    def freeze(self, variables: Array | None, reason: str) -> None:
        if variables is not None and variables.size:
            self._frozen.append((variables, reason))

    def role(self, what: str, node: Node, index: int, axis: int) -> None:
        """`node` makes ("make") or sums over ("read") the channels along `axis` of its weight, input `index`."""
        self.roles.append((what, node, index, axis))

    def close(self) -> None:
        """Freeze whatever is also read where no rule followed it, or seen from outside."""
        for (key, axis), start in list(self.starts.items()):
            value = self.values[key]
            variables = np.arange(start, start + self.extent(value, axis))
            if value.is_output:
                self.freeze(variables, f"it is output '{value.name}' of the model")
            for use in value.uses:
                if (id(use.node), use.index, axis) not in self._reads:
                    self.freeze(variables, _unfollowed(use.node, self.graph))

    def solve(self) -> tuple[Array, dict[int, str]]:
        """(label of each variable: the least variable that it is tied to, label -> why it is frozen)."""
        labels = np.arange(self.count)
        if self._pairs:
            a = np.concatenate([np.broadcast_arrays(p, q)[0].reshape(-1) for p, q in self._pairs])
            b = np.concatenate([np.broadcast_arrays(p, q)[1].reshape(-1) for p, q in self._pairs])
            labels = connected(self.count, a, b)
        reasons: dict[int, str] = {}
        for variables, reason in self._frozen:
            for label in np.unique(labels[variables]):
                reasons.setdefault(int(label), reason)
        return labels, reasons


def _unfollowed(node: Node, graph: Graph) -> str:
    if node.graph is not graph or node.subgraphs:
        return f"it is read in a subgraph ({node.label})"
    weight = node.input(1) if node.is_op("Conv", "ConvTranspose") else None
    if weight is not None and not weight.is_constant:
        return f"the weights of {node.label} are quantized or computed: prune first"
    return f"{node.label} mixes or orders channels in a way that pruning does not follow"


def connected(count: int, a: Array, b: Array) -> Array:
    """Labels [count] of the connected components of edges a[i] - b[i]: the least member of each."""
    labels = np.arange(count)
    while True:
        least = np.minimum(labels[a], labels[b])
        before = labels.copy()
        np.minimum.at(labels, labels[a], least)
        np.minimum.at(labels, labels[b], least)
        np.minimum.at(labels, a, least)
        np.minimum.at(labels, b, least)
        while True:  # follow labels to their ends
            further = labels[labels]
            if np.array_equal(further, labels):
                break
            labels = further
        if np.array_equal(before, labels):
            return labels


def find_dependencies(model: Model) -> Dependencies:
    """Every group of the main graph. Types must have been inferred."""
    from irc.passes.prune.flow import sweep

    splits: dict[int, int] = {}
    while True:
        found = Sweep(model.graph, splits)
        for node in model.graph.nodes:
            sweep(found, node)
        found.close()
        labels, reasons = found.solve()
        if not _try_other_splits(found, labels, reasons):
            return _grouped(found, labels, reasons)


def _try_other_splits(found: Sweep, labels: Array, reasons: dict[int, str]) -> bool:
    """Where a Reshape cuts channels into axes and the chosen one cannot be pruned, let the next one carry them."""
    changed = False
    for key, (places, variables) in found.options.items():
        now = found.splits.get(key, 0)
        if now < places and all(int(n) in reasons for n in np.unique(labels[variables])):
            found.splits[key] = now + 1  # `places` itself: all have been tried, and nothing is tied
            changed = True
    return changed


def _grouped(found: Sweep, labels: Array, reasons: dict[int, str]) -> Dependencies:
    frozen = np.zeros(max(found.count, 1), bool)
    frozen[list(reasons)] = True
    units = np.where(frozen[labels], -1, labels) if found.count else labels
    names = {n: i for i, n in enumerate(np.unique(units[units >= 0]).tolist())}
    slots: dict[tuple[int, int], Slot] = {}
    home: dict[int, int] = {}  # label -> the first slot that has it
    parent: list[int] = []
    order: list[tuple[int, int]] = []
    for (key, axis), start in found.starts.items():
        value = found.values[key]
        part = slice(start, start + found.extent(value, axis))
        numbers = np.array([names.get(int(n), -1) for n in units[part]], np.int64)
        slots[key, axis] = Slot(value, axis, numbers)
        number = len(order)
        order.append((key, axis))
        parent.append(number)
        for label in np.unique(labels[part]).tolist():
            a, b = _root(parent, home.setdefault(label, number)), _root(parent, number)
            parent[max(a, b)] = min(a, b)
    return Dependencies(tuple(_groups(found, slots, order, parent, labels, reasons)), slots, len(names), found.splits)


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def _groups(
    found: Sweep,
    slots: dict[tuple[int, int], Slot],
    order: list[tuple[int, int]],
    parent: list[int],
    labels: Array,
    reasons: dict[int, str],
) -> Iterator[Group]:
    members: dict[int, list[tuple[int, int]]] = {}
    for number, key in enumerate(order):
        members.setdefault(_root(parent, number), []).append(key)
    makers: dict[int, list[Node]] = {}
    readers: dict[int, list[Reader]] = {}
    places = {key: _root(parent, i) for i, key in enumerate(order)}
    for what, node, index, axis in found.roles:
        weight = node.need(index)
        key = (id(weight), axis)
        if key not in places:
            continue
        if what == "make":
            makers.setdefault(places[key], []).append(node)
        else:
            readers.setdefault(places[key], []).append(Reader(node, index, slots[key]))
    for root, keys in members.items():
        if root not in makers:
            continue
        own = tuple(slots[k] for k in keys)
        units = tuple(dict.fromkeys(u for s in own for u in s.units.tolist() if u >= 0))
        refusal = ""
        if not units:
            start = found.starts[keys[0]]
            refusal = reasons.get(int(labels[start]), "its channels are needed")
        yield Group(own, units, tuple(makers.get(root, ())), tuple(readers.get(root, ())), refusal)
