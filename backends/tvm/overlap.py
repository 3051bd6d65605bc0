"""How far the output of a kernel may reach into the memory of an input that nobody reads afterwards.

A kernel that goes through places in order writes what it computes of a place when it needs few of the places before.
Let the input start `distance` bytes behind the output: then every byte is read for the last time before the output
grows over it. With distance 0 it works in place. A 3 x 3 convolution needs about two rows more than the larger of
image and result, not both (Li et al., "Diagonal Memory Optimisation for Machine Learning on Micro-controllers", 2020).

A kernel's specification says how its kernel goes through memory: a method `overlap()` gives {argument: distance} for
those arguments that may share memory with the output, the first that the call writes. The functions here compute
distances from orders. The kernel has to declare these arguments and the output as shared (`KernelBuilder.pointer`).

A `step` of a kernel reads what it needs and writes what it has computed. `atomic` kernels read all that a step needs
before its first write (into registers, or copied to the stack).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from irc.backends.tvm.specs import ElementwiseSpec, SmallConvSpec, SmallDepthwiseSpec
from irc.ir.types import Array

_MOST_STEPS = 1 << 20  # elements of an elementwise kernel that are followed one by one


@runtime_checkable
class Overlapping(Protocol):
    """A specification that knows its kernel's order."""

    def overlap(self) -> dict[int, int]:
        """Argument number -> bytes by which it has to start behind the output, at least. Not there: no overlap."""
        ...


def distances(spec: object) -> dict[int, int]:
    """`overlap()` of a specification of any kind, for small targets; {} of those that do not say."""
    if isinstance(spec, ElementwiseSpec):
        return elementwise_distances(spec)
    return spec.overlap() if isinstance(spec, Overlapping) else {}


def safe_distance(written: Array, read: Array, *, atomic: bool) -> int:
    """The distance for a kernel whose step t has written up to byte `written[t]` of the output (one past the last) and
    reads the input from byte `read[t]` on. Both counted from the argument's pointer; negative bytes are none."""
    ends = np.maximum.accumulate(np.asarray(written, np.int64))
    starts = np.minimum.accumulate(np.asarray(read, np.int64)[::-1])[::-1]
    if atomic:
        ends, starts = ends[:-1], starts[1:]
    return int((ends - starts).max(initial=-(1 << 40)))


def window_distance(
    image: tuple[int, int],
    out: tuple[int, int],
    kernel: tuple[int, int],
    x_strides: tuple[int, int],
    y_strides: tuple[int, int],
    place_bytes: int,
    *,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    pads: tuple[int, int] = (0, 0),
    columns: int = 1,
    atomic: bool = False,
) -> int:
    """The distance for one image: rows from the top, in a row `columns` places at a time from the left (a step).

    Strides (row, column) in bytes; `place_bytes` are written for a place; `pads` (top, left) are places outside of the
    image, which the kernel does not read. The pointers are those of the first element of image and result.
    """
    rows = _firsts(out[0], 1, image[0], kernel[0], stride[0], dilation[0], pads[0])
    starts = list(range(0, out[1], columns))
    places = _firsts(out[1], columns, image[1], kernel[1], stride[1], dilation[1], pads[1])
    read = np.asarray(rows)[:, None] * x_strides[0] + np.asarray(places)[None, :] * x_strides[1]
    last = [min(s + columns, out[1]) - 1 for s in starts]
    written = np.arange(out[0])[:, None] * y_strides[0] + np.asarray(last)[None, :] * y_strides[1] + place_bytes
    return safe_distance(written.reshape(-1), read.reshape(-1), atomic=atomic)


def spec_window(spec: SmallConvSpec | SmallDepthwiseSpec, channels: int, columns: int = 1, *, held: bool) -> int:
    """`window_distance` of a kernel that computes `channels` of `columns` neighbouring places before it goes on, and
    that has read all of their windows before (`held`)."""
    item = np.dtype(spec.y_dtype).itemsize
    _, xh, xw = spec.x_strides
    _, yh, yw = (item * s for s in spec.y_strides)
    return window_distance(
        spec.image,
        spec.out,
        spec.kernel,
        (xh, xw),
        (yh, yw),
        channels * item,
        stride=spec.stride,
        dilation=spec.dilation,
        pads=spec.pads,
        columns=columns,
        atomic=held,
    )


def _firsts(out: int, group: int, image: int, kernel: int, stride: int, dilation: int, pad: int) -> list[int]:
    """The first row (or column) of the image that each group of outputs reads; past the image where it reads none."""
    found = []
    for start in range(0, out, group):
        taps = [o * stride - pad + k * dilation for o in range(start, min(start + group, out)) for k in range(kernel)]
        found.append(min((t for t in taps if 0 <= t < image), default=image))
    return found


def elementwise_distances(spec: ElementwiseSpec) -> dict[int, int]:
    """Distances of an elementwise kernel's operands, which goes through its shape element by element. (Vectors, read as
    a whole before a whole is written, need no more.) Operands that are read by value, tables, have none."""
    size = math.prod(spec.shape)
    if size == 0 or size > _MOST_STEPS or any(s < 0 for s in spec.y_strides):
        return {}
    written = (_addresses(spec.shape, spec.y_strides) + 1 + spec.gap) * np.dtype(spec.y_dtype).itemsize
    found = {}
    for number, operand in enumerate(spec.operands):
        if all(s == 0 for s in operand.strides) or any(s < 0 for s in operand.strides):
            continue
        read = _addresses(spec.shape, operand.strides) * np.dtype(operand.dtype).itemsize
        found[number] = safe_distance(written, read, atomic=True)
    return found


def _addresses(shape: Sequence[int], strides: Sequence[int]) -> Array:
    at = np.zeros((), np.int64)
    for extent, stride in zip(shape, strides, strict=True):
        at = at[..., None] + np.arange(extent, dtype=np.int64) * stride
    return np.asarray(at.reshape(-1))
