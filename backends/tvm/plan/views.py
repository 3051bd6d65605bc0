"""Where values lie: storages and strided views of them.

A view gives every logical dimension (in ONNX order) a stride, so a layout is nothing but strides: NHWC is an image
whose channel stride is 1. Transpose, Slice, Split, Expand and most Reshapes are views and cost nothing. Strides and
offsets count elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

StorageKind = Literal["workspace", "input", "output", "weights"]
Halo = tuple[tuple[int, int], ...]
"""Filled elements before and after each dimension's extent."""


@dataclass
class Storage:
    """A piece of memory that the plan places: workspace, a network input or output (`port`), or weights."""

    number: int
    kind: StorageKind
    nbytes: int
    port: int = 0
    offset: int = 0
    first: int = -1  # first and last step that touches it
    last: int = -1


@dataclass(frozen=True)
class View:
    """`shape` elements at `offset + sum(index * stride)` of a storage. `halo` around it holds `fill`, where given."""

    storage: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    halo: Halo | None = None
    fill: float = 0.0

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def extent(self) -> int:
        """Elements from the first to the last one, both included."""
        return 1 + sum((d - 1) * s for d, s in zip(self.shape, self.strides, strict=True) if d > 0)

    def transposed(self, order: Sequence[int]) -> View:
        halo = None if self.halo is None else tuple(self.halo[i] for i in order)
        return replace(
            self,
            shape=tuple(self.shape[i] for i in order),
            strides=tuple(self.strides[i] for i in order),
            halo=halo,
        )

    def sliced(self, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> View:
        """Element i of a dimension becomes element start + i * step of this view. Dimensions that stay whole keep
        their halo."""
        offset = self.offset + sum(a * s for a, s in zip(starts, self.strides, strict=True))
        strides = tuple(s * p for s, p in zip(self.strides, steps, strict=True))
        halo = self.halo
        if halo is not None:
            whole = [a == 0 and n == d and p == 1 for a, n, d, p in zip(starts, sizes, self.shape, steps, strict=True)]
            halo = tuple(h if w else (0, 0) for h, w in zip(halo, whole, strict=True))
        return replace(self, shape=tuple(sizes), strides=strides, offset=offset, halo=halo)

    def broadcast_to(self, shape: Sequence[int]) -> View:
        """Numpy broadcasting: repeated dimensions get stride 0."""
        missing = len(shape) - len(self.shape)
        strides = [0] * missing + [
            0 if have == 1 and want != 1 else s
            for have, want, s in zip(self.shape, shape[missing:], self.strides, strict=True)
        ]
        return replace(self, shape=tuple(shape), strides=tuple(strides), halo=None)

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """The same elements in row-major order under another shape, or None where that needs a copy."""
        strides = reshape_strides(self.shape, self.strides, tuple(shape))
        return None if strides is None else replace(self, shape=tuple(shape), strides=strides, halo=None)

    @property
    def is_contiguous(self) -> bool:
        """Row-major without gaps."""
        return all(s == c or d == 1 for d, s, c in zip(self.shape, self.strides, row_major(self.shape), strict=True))

    @property
    def order(self) -> tuple[int, ...]:
        """Dimensions from the outermost to the innermost in memory (broadcast and unit dimensions stay in place)."""
        return tuple(sorted(range(len(self.shape)), key=lambda i: (-self.strides[i], i)))


def same_place(a: View, b: View) -> bool:
    """Whether two views of one shape are the same elements of memory."""
    if (a.storage, a.dtype, a.shape, a.offset) != (b.storage, b.dtype, b.shape, b.offset):
        return False
    return all(s == t or d == 1 for d, s, t in zip(a.shape, a.strides, b.strides, strict=True))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


def strides_in_order(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a gapless tensor whose dimensions lie in memory in `order`, outermost first."""
    strides, step = [0] * len(shape), 1
    for i in reversed(order):
        strides[i] = step
        step *= shape[i]
    return tuple(strides)


def reshape_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Strides of a reshape without a copy, or None. Groups of old and new dimensions of equal size are matched; inside
    a group the old dimensions must be contiguous among themselves."""
    if 0 in shape:
        return row_major(wanted)
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if d != 1]
    result = [0] * len(wanted)
    i, j = 0, 0
    while j < len(wanted):
        if wanted[j] == 1:
            j += 1
            continue
        if i >= len(old):
            return None
        size, target = old[i][0], wanted[j]
        last = j
        while size != target:
            if size < target:
                i += 1
                if i >= len(old):
                    return None
                if old[i - 1][1] != old[i][0] * old[i][1]:
                    return None
                size *= old[i][0]
            else:
                last += 1
                if last >= len(wanted):
                    return None
                target *= wanted[last]
        step = old[i][1]
        for d in range(last, j - 1, -1):
            result[d] = step
            step *= wanted[d]
        i, j = i + 1, last + 1
    if i != len(old):
        return None
    step = 1
    for d in range(len(wanted) - 1, -1, -1):  # unit dimensions: any stride is right; the row-major one reads best
        if wanted[d] == 1:
            result[d] = step
        else:
            step = result[d] * wanted[d]
    return tuple(result)


def merged_dimensions(shape: Sequence[int], wanted: Sequence[int]) -> list[list[int]] | None:
    """The dimensions of `shape` that each dimension of `wanted` is made of, where it is made of whole ones."""
    groups: list[list[int]] = []
    at = 0
    for extent in wanted:
        group: list[int] = []
        size = 1
        while size < extent and at < len(shape):
            size *= shape[at]
            group.append(at)
            at += 1
        if size != extent:
            return None
        groups.append(group)
    return None if any(d != 1 for d in shape[at:]) else groups


def collapse(shape: Sequence[int], all_strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[list[int]]]:
    """Merge neighbouring dimensions that are contiguous in every stride list; drop those of size 1."""
    kept = [i for i, d in enumerate(shape) if d != 1]
    dims: list[int] = []
    merged: list[list[int]] = [[] for _ in all_strides]
    for i in kept:
        if dims and all(m[-1] == shape[i] * s[i] for m, s in zip(merged, all_strides, strict=True)):
            dims[-1] *= shape[i]
            for m, s in zip(merged, all_strides, strict=True):
                m[-1] = s[i]
            continue
        dims.append(shape[i])
        for m, s in zip(merged, all_strides, strict=True):
            m.append(s[i])
    return tuple(dims), merged
