"""How one linear layer can be replaced by thinner ones, what each way costs, and what it loses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from irc.ir.graph import Node
from irc.ir.types import Array
from irc.passes.factorize.lowrank import Decomposition, Method, decompose
from irc.passes.factorize.tucker import Tucker, TuckerSplit

WORTH = 0.9  # share of the multiply-adds above which several layers are no gain over one
_RANKS = 24  # ranks of a form that a target is sought among
_ENTRIES = 8  # projections of Tucker-2 that are tried: each costs a decomposition
_INNER = 10  # ranks behind each of these that a target is sought among
_WIDEST_TUCKER = 4608  # columns of H that a projection is taken of


@dataclass(frozen=True)
class Choice:
    """One way. `cost`: multiply-adds over those of the layer, `size`: weights over its weights, `kept`: share of the
    squared output (or weights). `factors` computes the float32 matrices: the ones that read the input come first."""

    form: str  # "pair", "spatial" or "tucker"
    ranks: tuple[int, ...]
    full_rank: int
    cost: float
    size: float
    kept: float
    factors: Callable[[], tuple[Array, ...]]


def matrix_of(node: Node) -> Array:
    """The weights as [outputs, inputs]."""
    weight = node.need(1).numpy()
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1)
    return weight if node.get_int("transB") else weight.T


def forms(node: Node, metric: Array | None, method: Method, *, tucker: bool = True, step: int = 1) -> list[Form]:
    """The forms that suit a layer. `metric`: [groups, k, k] of its inputs, None without calibration data.

    `step`: ranks that are sought, not given, are multiples of it, as vectors of the target are full then.
    """
    found: list[Form] = [_Pair(node, metric, method, step)]
    if metric is None and _can_split(node):
        found.append(_Spatial(node, method, step))
    whole = metric is None or (len(metric) == 1 and metric.shape[1] <= _WIDEST_TUCKER)
    if tucker and whole and _can_split(node) and min(node.need(1).static_shape()[:2]) > 3:
        found.append(_Tucker(node, None if metric is None else metric[0], step))
    return found


class Form(ABC):
    """One form of one layer with its ranks."""

    full_rank: int
    step: int

    def rounded(self, rank: int, most: int) -> int:
        """The next multiple of the step, or `most`."""
        return min(-(-rank // self.step) * self.step, most)

    @abstractmethod
    def keeping(self, energy: float) -> Choice:
        """The cheapest that keeps this share."""

    @abstractmethod
    def of_rank(self, rank: int) -> Choice:
        """That of a given rank."""

    def all(self) -> Iterator[Choice]:
        """Some of all ranks, evenly in their logarithm."""
        ranks = np.rint(np.geomspace(1, self.full_rank, min(_RANKS, self.full_rank))).astype(int)
        yield from (self.of_rank(r) for r in sorted({self.rounded(int(r), self.full_rank) for r in ranks}))


class _Pair(Form):
    """W2 W1; a k x k convolution to few channels, then 1 x 1."""

    def __init__(self, node: Node, metric: Array | None, method: Method, step: int) -> None:
        self.step = step
        self.found = decompose(matrix_of(node), metric, method=method)
        self.outputs, self.inputs = len(self.found.left), self.found.right.shape[1]
        self.full_rank = len(self.found.singular)

    def of_rank(self, rank: int) -> Choice:
        rank = min(rank, self.full_rank)
        cost = rank * (self.outputs + self.inputs) / (self.outputs * self.inputs)
        return Choice(
            "pair", (rank,), self.full_rank, cost, cost, self.found.kept(rank), partial(_two, self.found, rank)
        )

    def keeping(self, energy: float) -> Choice:
        return self.of_rank(self.rounded(self.found.rank(energy), self.full_rank))


class _Spatial(Form):
    """kh x 1 to few channels, then 1 x kw."""

    def __init__(self, node: Node, method: Method, step: int) -> None:
        self.node, self.step = node, step
        self.found = decompose(_spatial_matrix(node), method=method)
        self.full_rank = len(self.found.singular)

    def of_rank(self, rank: int) -> Choice:
        rank = min(rank, self.full_rank)
        outputs, inputs, kh, kw = self.node.need(1).static_shape()
        size = rank * (inputs * kh + outputs * kw) / (outputs * inputs * kh * kw)
        # the first factor works on every column of the image
        cost = rank * (inputs * kh * _columns(self.node) + outputs * kw) / (outputs * inputs * kh * kw)
        kept = self.found.kept(rank)
        return Choice("spatial", (rank,), self.full_rank, cost, size, kept, partial(_two, self.found, rank))

    def keeping(self, energy: float) -> Choice:
        return self.of_rank(self.rounded(self.found.rank(energy), self.full_rank))


class _Tucker(Form):
    """1 x 1, k x k, 1 x 1."""

    def __init__(self, node: Node, metric: Array | None, step: int) -> None:
        self.node, self.step = node, step
        weight = node.need(1).numpy()
        self.full_rank = min(weight.shape[0], weight.shape[1])
        split = TuckerSplit(weight, metric)
        inputs = weight.shape[1]
        entries = np.rint(np.linspace(1, inputs, _ENTRIES + 2)[1:-1]).astype(int)
        self.splits = [split.at(e) for e in sorted({min(-(-int(e) // step) * step, inputs) for e in entries})]

    def _choice(self, split: Tucker, rank: int) -> Choice:
        outputs, inputs, kh, kw = self.node.need(1).static_shape()
        entry, rank = len(split.projection), min(rank, len(split.rest.singular))
        whole = outputs * inputs * kh * kw
        inner = entry * rank * kh * kw + rank * outputs
        cost = (entry * inputs * _columns(self.node) * _rows(self.node) + inner) / whole
        size = (entry * inputs + inner) / whole
        make = partial(_three, split, rank)
        return Choice("tucker", (entry, rank), self.full_rank, cost, size, split.kept(rank), make)

    def of_rank(self, rank: int) -> Choice:
        """The projection nearest to `rank`, and that rank behind it."""
        return self._choice(min(self.splits, key=lambda s: abs(len(s.projection) - rank)), rank)

    def keeping(self, energy: float) -> Choice:
        found = []
        for split in self.splits:
            if split.lost < 1.0 - energy:
                rank = split.rest.rank(energy / (1.0 - split.lost))
                found.append(self._choice(split, self.rounded(rank, len(split.rest.singular))))
        whole = self._choice(self.splits[-1], len(self.splits[-1].rest.singular))
        return min(found, key=lambda c: c.cost, default=whole)

    def all(self) -> Iterator[Choice]:
        for split in self.splits:
            most = len(split.rest.singular)
            ranks = np.rint(np.linspace(0.1, 0.95, _INNER) * most).astype(int)
            yield from (self._choice(split, r) for r in sorted({self.rounded(max(int(r), 1), most) for r in ranks}))


def _two(found: Decomposition, rank: int) -> tuple[Array, ...]:
    left, right = found.factors(rank)
    return right, left


def _three(split: Tucker, rank: int) -> tuple[Array, ...]:
    left, right = split.rest.factors(rank)
    return split.projection.astype(np.float32), right, left


def product(choice: Choice, node: Node) -> Array:
    """The matrix that the factors stand for, as `matrix_of`, float64."""
    factors = [f.astype(np.float64) for f in choice.factors()]
    if choice.form == "tucker":
        projection, core, left = factors
        _, _, kh, kw = node.need(1).static_shape()
        inner = np.einsum("ret,ei->rit", core.reshape(len(core), len(projection), kh * kw), projection)
        return np.asarray(left @ inner.reshape(len(core), -1))
    right, left = factors
    if choice.form == "pair":
        return np.asarray(left @ right)
    outputs, inputs, kh, kw = node.need(1).static_shape()
    whole = (left @ right).reshape(outputs, kw, inputs, kh)
    return np.asarray(whole.transpose(0, 2, 3, 1).reshape(outputs, -1))


def _can_split(node: Node) -> bool:
    if node.op_type != "Conv" or node.get_str("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    return min(node.need(1).static_shape()[2:]) > 1


def _spatial_matrix(node: Node) -> Array:
    """[outputs * kw, inputs * kh]."""
    weight = node.need(1).numpy()
    outputs, inputs, kh, kw = weight.shape
    return weight.transpose(0, 3, 1, 2).reshape(outputs * kw, inputs * kh)


def _columns(node: Node) -> float:
    """Columns of the input image for each one of the output."""
    return _ratio(node, 3, node.get_ints("strides", (1, 1))[1])


def _rows(node: Node) -> float:
    return _ratio(node, 2, node.get_ints("strides", (1, 1))[0])


def _ratio(node: Node, axis: int, stride: int) -> float:
    entry, result = node.need(0).shape, node.output.shape
    if entry is not None and result is not None:
        before, after = entry[axis], result[axis]
        if isinstance(before, int) and isinstance(after, int) and after:
            return before / after
    return float(stride)


def places(node: Node) -> int:
    """How many times a layer multiplies by its matrix for one sample; symbolic extents count once."""
    shape = node.output.shape
    if shape is None:
        return 1
    axis = 1 if node.op_type == "Conv" else shape.rank - 1
    return math.prod(d for i, d in enumerate(shape.dims) if i != axis and isinstance(d, int))
