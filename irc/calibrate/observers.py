"""What can be learnt about a tensor while samples stream by, in memory that does not grow with their number.

An observer sees every batch once (`update`), can be written to and read from plain arrays (`state`, `from_state`), and
says by `key` which statistic it is, so that a tensor may have several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from irc.ir.types import Array

State = dict[str, Array]
_FINE = 1152  # columns up to which second moments are summed in float64
_RUN = 16  # elements: a cache line of float32
_PER_SAMPLE = 1 << 16  # elements of one sample that histograms need
_ROWS = 256  # that are multiplied together, at least
_NOTHING = -(1 << 30)  # the exponent of a histogram that saw nothing, in its saved form


def chosen(size: int, most: int, seed: int) -> Array:
    """Sorted indices of at most `most` of `size` elements, at random but always the same for one seed.

    No stride is safe: tensors have periods, and one that divides it would see the left border only, say.
    """
    if size <= most:
        return np.arange(size)
    rng = np.random.default_rng(seed)
    if size > 8 * most:  # few are drawn twice, and no list of all indices is needed
        return np.sort(rng.integers(0, size, most))
    return np.sort(rng.choice(size, most, replace=False, shuffle=False))


def sampled(flat: Array, most: int, seed: int) -> Array:
    """About `most` elements of a long array: short runs of neighbours at random places, always the same for one seed.

    A thousandth of the work of `chosen`; for statistics of single elements.
    """
    if flat.size <= most:
        return flat
    starts = np.random.default_rng(seed).integers(0, flat.size // _RUN, max(1, most // _RUN))
    return flat[: flat.size // _RUN * _RUN].reshape(-1, _RUN)[np.sort(starts)].reshape(-1)


class Observer(ABC):
    """Base of all observers. Batches are arrays as onnxruntime gives them, first axis samples."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """The statistic, with all that it depends on: of one tensor, equal keys mean equal results."""
        return self.kind

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Upper bound of the memory it takes."""

    @abstractmethod
    def update(self, batch: Array) -> None:
        """See one batch."""

    @abstractmethod
    def state(self) -> State:
        """All it knows, as arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Array]) -> Observer:
        """The observer that gave this state."""


class Histogram(Observer):
    """Range, count of NaN and infinity, and a histogram of `bins` equal bins that grows with the range.

    Bin edges are multiples of a power of two, so a wider range merges bins in pairs exactly, and the result does not
    depend on the order of the samples where all elements are binned. Of large batches only about `most` are, drawn at
    random; `low` and `high` are exact.
    """

    kind: ClassVar[str] = "histogram"
    usual: ClassVar[tuple[int, int]] = (4096, 1 << 19)

    def __init__(self, bins: int = 4096, most: int = 1 << 19) -> None:
        self.bins, self.most = bins, most
        self.low, self.high = np.inf, -np.inf
        self.bad = 0  # NaN and infinities
        self.seen = 0
        self.exponent: int | None = None  # width of a bin is 2**exponent
        self.first = 0  # bin 0 covers [first, first + 1) * width
        self.counts = np.zeros(bins, np.int64)
        self.zeros = 0  # exact zeros among the binned elements: they quantize without error

    @property
    def key(self) -> str:
        size = (self.bins, self.most)
        return self.kind if size == self.usual else f"{self.kind}{size[0]}/{size[1]}"

    @property
    def nbytes(self) -> int:
        return self.counts.nbytes + 16 * self.most

    @property
    def width(self) -> float:
        """Width of a bin (1.0 while nothing was seen)."""
        return float(np.ldexp(1.0, self.exponent)) if self.exponent is not None else 1.0

    @property
    def centers(self) -> Array:
        """The middle of each bin, float64 [bins]."""
        return (np.arange(self.bins) + self.first + 0.5) * self.width

    def update(self, batch: Array) -> None:
        flat = np.asarray(batch, np.float32).reshape(-1)
        self.seen += flat.size
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (np.inf, -np.inf)
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            self.bad += flat.size - finite.size
            flat = finite
            if flat.size == 0:
                return
            low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(self.low, self.high)
        flat = sampled(flat, min(self.most, _PER_SAMPLE * max(len(batch) if batch.ndim else 1, 1)), self.seen)
        self.zeros += int(flat.size - np.count_nonzero(flat))
        index = np.floor(flat * (1.0 / self.width)).astype(np.int64) - self.first
        self.counts += np.bincount(np.clip(index, 0, self.bins - 1), minlength=self.bins)

    def _cover(self, low: float, high: float) -> None:
        """Widen the bins until [low, high] fits, with pairs of old bins in one new bin."""
        wanted = self.exponent
        if wanted is None:
            span = max(high - low, abs(high) * 1e-6, 1e-30)
            wanted = int(np.ceil(np.log2(span / self.bins)))
        while np.floor(np.ldexp(high, -wanted)) - np.floor(np.ldexp(low, -wanted)) >= self.bins:
            wanted += 1
        first = int(np.floor(np.ldexp(low, -wanted)))
        if self.exponent is not None and (wanted, first) != (self.exponent, self.first):
            moved = np.zeros(self.bins, np.int64)
            used = np.flatnonzero(self.counts)
            np.add.at(moved, ((used + self.first) >> (wanted - self.exponent)) - first, self.counts[used])
            self.counts = moved
        self.exponent, self.first = wanted, first

    def state(self) -> State:
        exponent = _NOTHING if self.exponent is None else self.exponent
        integers = [self.bad, self.seen, self.first, self.most, self.zeros, exponent]
        return {
            "range": np.array([self.low, self.high]),
            "numbers": np.array(integers, np.int64),
            "counts": self.counts,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Histogram:
        bad, seen, first, most, zeros, exponent = (int(n) for n in state["numbers"])
        made = cls(bins=len(state["counts"]), most=most)
        made.low, made.high = (float(n) for n in state["range"])
        made.bad, made.seen, made.first = bad, seen, first
        made.exponent, made.zeros = None if exponent == _NOTHING else exponent, zeros
        made.counts = np.asarray(state["counts"], np.int64)
        return made


class ChannelMean(Observer):
    """E[x] and E[x^2] of each channel (axis `axis`), float64 [channels]."""

    kind: ClassVar[str] = "mean"

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.count = 0
        self.sum: Array | None = None
        self.squares: Array | None = None

    @property
    def key(self) -> str:
        return f"{self.kind}{self.axis}"

    @property
    def nbytes(self) -> int:
        return 1 << 16

    def update(self, batch: Array) -> None:
        axes = tuple(i for i in range(batch.ndim) if i != self.axis % batch.ndim)
        total = batch.sum(axis=axes, dtype=np.float64)
        squares = np.square(batch, dtype=np.float64).sum(axis=axes)
        self.sum = total if self.sum is None else self.sum + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += batch.size // max(len(np.atleast_1d(total)), 1)

    @property
    def mean(self) -> Array:
        if self.sum is None:
            raise ValueError("nothing was observed")
        return self.sum / max(self.count, 1)

    def state(self) -> State:
        numbers = np.array([self.axis, self.count], np.int64)
        if self.sum is None or self.squares is None:
            return {"numbers": numbers}
        return {"numbers": numbers, "sum": self.sum, "squares": self.squares}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> ChannelMean:
        made = cls(int(state["numbers"][0]))
        made.count = int(state["numbers"][1])
        made.sum, made.squares = state.get("sum"), state.get("squares")
        return made


class ChannelOctaves(Observer):
    """Count, sum and sum of squares of |x| / unit of each channel, apart for each octave [2^k, 2^(k+1)).

    Enough to know exactly what clipping a channel at any power of two times `unit` would cost. Octaves from -16 to 15;
    what lies beyond counts for the first or last. Of large batches positions are drawn at random.
    """

    kind: ClassVar[str] = "octaves"
    first: ClassVar[int] = -16
    octaves: ClassVar[int] = 32

    def __init__(self, axis: int, unit: float = 1.0, most: int = 1 << 19) -> None:
        self.axis, self.unit, self.most = axis, unit, most
        self.count = 0  # elements of a channel, zeros too
        self.sums: Array | None = None  # [3, channels, octaves]: counts, sums, squares

    @property
    def key(self) -> str:
        return f"{self.kind}{self.axis}/{self.unit!r}/{self.most}"

    @property
    def nbytes(self) -> int:
        return 1 << 20

    def update(self, batch: Array) -> None:
        rows = np.moveaxis(batch, self.axis, 0)
        channels, most = len(rows), min(self.most, _PER_SAMPLE * len(batch))
        if batch.size > most:
            inner = rows.shape[1:]
            places = chosen(int(np.prod(inner)), max(1, most // channels), self.count)
            index: tuple[Any, ...] = (slice(None), *np.unravel_index(places, inner))
            rows = rows[index]
        rows = np.abs(rows.reshape(channels, -1)).astype(np.float32, copy=False) / np.float32(self.unit)
        rows = np.where(np.isfinite(rows), rows, np.float32(0))
        count = rows.shape[1]
        octave = np.clip((rows.view(np.int32) >> 23) - 127 - self.first, 0, self.octaves - 1)
        octave += np.arange(channels, dtype=np.int32)[:, None] * self.octaves
        bins, flat, size = octave.reshape(-1), rows.reshape(-1).astype(np.float64), channels * self.octaves
        found = [np.bincount(bins, weights=w, minlength=size) for w in (flat > 0, flat, flat * flat)]
        sums = np.stack(found).reshape(3, channels, self.octaves)
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += count

    def clipped(self) -> tuple[Array, Array]:
        """(squared error of clipping at 2^k, share of non-zero elements): [channels, octaves] over k, [channels]."""
        if self.sums is None:
            raise ValueError("nothing was observed")
        above = np.flip(np.cumsum(np.flip(self.sums, axis=2), axis=2), axis=2) / max(self.count, 1)
        limit = np.exp2(np.arange(self.octaves) + self.first)
        number, total, squares = above
        return np.maximum(squares - 2 * limit * total + limit**2 * number, 0), number[:, 0]

    def state(self) -> State:
        numbers = np.array([self.axis, self.count, self.most], np.int64)
        state = {"numbers": numbers, "unit": np.array([self.unit])}
        return state if self.sums is None else {**state, "sums": self.sums}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> ChannelOctaves:
        axis, count, most = (int(n) for n in state["numbers"])
        made = cls(axis, float(state["unit"][0]), most)
        made.count, made.sums = count, state.get("sums")
        return made


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution: how an input [n, c, h, w] becomes rows of c * kh * kw numbers.

    Any number of spatial dimensions; all fields have one entry for each (pads two: all begins, then all ends, as ONNX).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)

    def rows(self, batch: Array, most: int, seed: int = 0) -> Array:
        """[positions, c * kh * kw], of at most `most` positions per sample, drawn at random."""
        rank = len(self.kernel)
        axes = tuple(range(2, 2 + rank))
        padded = np.pad(batch, ((0, 0), (0, 0), *zip(self.pads[:rank], self.pads[rank:], strict=True)))
        spans = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = sliding_window_view(padded, spans, axis=axes)
        every: tuple[Any, ...] = (slice(None), slice(None))
        windows = windows[(*every, *(slice(None, None, s) for s in (*self.strides, *self.dilations)))]
        extents = windows.shape[2 : 2 + rank]
        places = chosen(int(np.prod(extents)), most, seed)
        picked = windows[(*every, *np.unravel_index(places, extents))]  # [n, c, positions, *kernel]
        return np.ascontiguousarray(np.moveaxis(picked, 2, 1)).reshape(batch.shape[0] * len(places), -1)


class SecondMoment(Observer):
    """H = E[x xT] and E[x] of the rows that a linear layer multiplies; with a Window those of a convolution.

    H is the metric of all layer-wise least squares: ||(W - W') X||^2 = n tr((W - W') H (W - W')T). The `size` columns
    of a row fall into `groups` equal runs, and only the blocks [groups, k, k] of H on the diagonal are kept: what
    grouped convolutions need, and a bound on memory for wide layers. At most `most` rows per sample are used.

    Rows are multiplied some hundreds at a time, in float32. These products are summed in float64 where k is at most
    `_FINE`, in float32 beyond: the sum of a hundred is then off by about 1e-6 of the largest entries, far below any
    damping.
    """

    kind: ClassVar[str] = "moment"

    def __init__(self, size: int, window: Window | None = None, groups: int = 1, most: int = 256) -> None:
        if size % groups:
            raise ValueError(f"{size} columns do not fall into {groups} equal groups")
        self.size, self.window, self.groups, self.most = size, window, groups, most
        self.count = 0
        self.row_sum: Array = np.zeros((groups, size // groups))
        self._total: Array = np.zeros((0, 0, 0))
        self._waiting: list[Array] = []  # rows, not yet multiplied

    @property
    def columns(self) -> int:
        """k."""
        return self.size // self.groups

    @property
    def key(self) -> str:
        w = self.window
        geometry = "" if w is None else f"{w.kernel}{w.strides}{w.pads}{w.dilations}".replace(" ", "")
        return f"{self.kind}{self.groups}{geometry}/{self.most}"

    @property
    def nbytes(self) -> int:
        return (self._wide.itemsize + 6) * self.size * self.columns

    @property
    def _wide(self) -> np.dtype[np.floating]:
        """The type that products are summed in."""
        return np.dtype(np.float64 if self.columns <= _FINE else np.float32)

    def update(self, batch: Array) -> None:
        self._add(self._grouped(batch))

    def _grouped(self, batch: Array) -> Array:
        """The rows of a batch, float32 [groups, rows, k]. The same positions for every batch of this shape."""
        if self.window is None:
            rows = batch.reshape(-1, batch.shape[-1])
            per_sample = max(1, len(rows) // max(batch.shape[0], 1))
            if per_sample > self.most:
                rows = rows[chosen(len(rows), self.most * batch.shape[0], self.count)]
        else:
            rows = self.window.rows(batch, self.most, self.count)
        grouped = rows.astype(np.float32, copy=False).reshape(len(rows), self.groups, -1).transpose(1, 0, 2)
        return np.ascontiguousarray(grouped)

    def _add(self, rows: Array) -> None:
        self.row_sum += rows.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[1]
        self._waiting.append(rows)
        if sum(r.shape[1] for r in self._waiting) >= max(_ROWS, self.columns // 2):
            self._multiply()

    def _multiply(self) -> None:
        """Few rows at a time would cost more for adding products up than for making them."""
        if not self._waiting:
            return
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting, axis=1)
        self._waiting = []
        self._total = _added(self._total, rows.transpose(0, 2, 1) @ rows, self._wide)

    @property
    def sum(self) -> Array:
        """The sum of x xT over all rows, [groups, k, k]."""
        self._multiply()
        return self._total

    def _share(self, total: Array) -> Array:
        """`total` over the number of rows, float64."""
        if self.count == 0:
            raise ValueError("nothing was observed")
        return np.asarray(total / np.float64(self.count), np.float64)

    @property
    def moment(self) -> Array:
        """H, float64 [groups, k, k]. Made anew at each call."""
        return self._share(self.sum)

    @property
    def mean(self) -> Array:
        """E[x], [groups, k]."""
        return self.row_sum / max(self.count, 1)

    @property
    def covariance(self) -> Array:
        """H without the part that a bias can take back: E[x xT] - E[x] E[x]T, [groups, k, k]."""
        return centred(self.moment, self.mean, self.mean)

    def state(self) -> State:
        w = self.window
        geometry = [] if w is None else [*w.kernel, *w.strides, *w.pads, *w.dilations]
        numbers = [self.size, self.groups, self.most, self.count, *geometry]
        return {"numbers": np.array(numbers, np.int64), "sum": self.sum, "row_sum": self.row_sum}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        size, groups, most, count, *g = (int(n) for n in state["numbers"])
        made = cls(size, _window(g), groups, most)
        made.count, made._total = count, np.asarray(state["sum"])
        made.row_sum = np.asarray(state["row_sum"], np.float64)
        return made


def _added(total: Array, product: Array, dtype: np.dtype[np.floating]) -> Array:
    """`total` += `product`, where there is a total yet."""
    if not total.size:
        return product.astype(dtype, copy=False)
    total += product
    return total


def _window(numbers: Sequence[int]) -> Window | None:
    """From the saved form: kernel, strides, pads, dilations, of any number of dimensions."""
    rank = len(numbers) // 5
    parts = (tuple(numbers[i * rank : j * rank]) for i, j in ((0, 1), (1, 2), (2, 4), (4, 5)))
    return Window(*parts) if numbers else None


def centred(moment: Array, left: Array, right: Array) -> Array:
    """E[x yT] - E[x] E[y]T of each group, in place."""
    for block, a, b in zip(moment, left, right, strict=True):
        block -= np.outer(a, b)
    return moment


class PairedMoment(SecondMoment):
    """H = E[x xT] of a layer's input in one model beside what it differs by from x0, the same input in another model.

    Both models are run on the same samples; `update_pair` sees a batch of both, and takes the same positions of each.
    The difference is E[W (x0 - x) xT], [groups, outputs, k], for the weights W that were given, or for the identity
    where none were: then C = E[x0 xT] is known.
    """

    kind: ClassVar[str] = "paired"

    def __init__(
        self,
        size: int,
        window: Window | None = None,
        groups: int = 1,
        most: int = 256,
        weights: Array | None = None,
    ) -> None:
        super().__init__(size, window, groups, most)
        self.weights = None if weights is None else weights.astype(np.float32, copy=False)
        self.reference_sum: Array = np.zeros_like(self.row_sum)
        self._difference: Array = np.zeros((0, 0, 0))
        self._apart: list[Array | None] = []  # W (x0 - x) of the rows that wait; None: all zero

    @property
    def outputs(self) -> int:
        """Rows of the difference."""
        return self.columns if self.weights is None else self.weights.shape[1]

    @property
    def key(self) -> str:
        return super().key if self.weights is None else f"{super().key}/{self.outputs}"

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self._wide.itemsize + 6) * self.groups * self.outputs * self.columns

    def update(self, batch: Array) -> None:
        self.update_pair(batch, batch)

    def update_pair(self, reference: Array, batch: Array) -> None:
        """See x0 and x, of one shape."""
        rows = self._grouped(batch)
        if reference is batch or np.array_equal(reference, batch):
            self._apart.append(None)
            self.reference_sum += rows.sum(axis=1, dtype=np.float64)
        else:
            apart = self._grouped(reference)
            self.reference_sum += apart.sum(axis=1, dtype=np.float64)
            apart = apart - rows  # a new array: the rows may be a view of the batch
            self._apart.append(apart if self.weights is None else apart @ self.weights.transpose(0, 2, 1))
        self._add(rows)

    def _multiply(self) -> None:
        if any(a is not None for a in self._apart):
            for apart, rows in zip(self._apart, self._waiting, strict=True):
                if apart is not None:
                    product = apart.transpose(0, 2, 1) @ rows
                    self._difference = _added(self._difference, product, self._wide)
        self._apart = []
        super()._multiply()

    def difference(self, *, free: bool) -> Array:
        """E[W (x0 - x) xT], float64 [groups, outputs, k]. `free`: without the part that a bias can take back."""
        self._multiply()
        if not self._difference.size:
            return np.zeros((self.groups, self.outputs, self.columns))
        found = self._share(self._difference)
        if not free:
            return found
        apart = self.reference_mean - self.mean
        if self.weights is not None:
            apart = np.einsum("gok,gk->go", self.weights.astype(np.float64), apart)
        return centred(found, apart, self.mean)

    @property
    def cross(self) -> Array:
        """C = E[x0 xT], float64 [groups, k, k]. Raises ValueError where weights were given."""
        if self.weights is not None:
            raise ValueError("only the difference that the layer sees was observed")
        found = self.moment
        found += self.difference(free=False)
        return found

    @property
    def reference_mean(self) -> Array:
        """E[x0], [groups, k]."""
        return self.reference_sum / max(self.count, 1)

    def state(self) -> State:
        made = {**super().state(), "difference": self._difference, "reference_sum": self.reference_sum}
        return made if self.weights is None else {**made, "weights": self.weights}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        made = super().from_state(state)
        made._difference = np.asarray(state["difference"])
        made.reference_sum = np.asarray(state["reference_sum"], np.float64)
        made.weights = state.get("weights")
        return made
