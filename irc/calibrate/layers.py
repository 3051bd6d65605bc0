"""The second moments of a linear layer's input, in the shape that its weights have.

A Conv, Gemm or MatMul by a constant multiplies rows of k numbers by matrices [groups, outputs, k]. These functions go
between a node, that matrix form, and the observer of its rows.
"""

from __future__ import annotations

import math

import numpy as np

from irc.calibrate.observers import SecondMoment, Window
from irc.ir.graph import Node
from irc.ir.types import Array

_WIDEST = 5120  # columns of one block of H; wider layers keep blocks on the diagonal only
_LEAST_ROWS = 16384  # over all samples: few columns cost little, and more rows tell more
_ROWS_PER_COLUMN = 16  # rows over all samples that are enough for the moments of one column
_MOST_ROWS = 1 << 14  # beyond this, half as many a column are enough: the work grows with the cube of the columns


def window(node: Node) -> Window | None:
    """The geometry of a Conv; None where it is no Conv, or its padding is only known at run time."""
    weight = node.need(1)
    if node.op_type != "Conv" or node.get_str("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    kernel = weight.static_shape()[2:]
    ones = (1,) * len(kernel)
    return Window(
        kernel,
        node.get_ints("strides", ones),
        node.get_ints("pads", (0,) * (2 * len(kernel))),
        node.get_ints("dilations", ones),
    )


def moment_observer(node: Node, samples: int) -> SecondMoment | None:
    """An observer for the data input of `node`, None where its rows cannot be formed (padding known at run time)."""
    shape = node.need(1).static_shape()
    if node.op_type != "Conv":
        size = shape[1] if node.get_int("transB") else shape[0]
        groups = _split(size, size)
        return SecondMoment(size, None, groups, _positions(size // groups, samples))
    geometry = window(node)
    if geometry is None:
        return None
    columns = math.prod(shape[1:])
    size = node.get_int("group", 1) * columns
    groups = node.get_int("group", 1) * _split(shape[1], columns)
    return SecondMoment(size, geometry, groups, _positions(size // groups, samples))


def _positions(columns: int, samples: int) -> int:
    """How many positions of each sample to take."""
    rows = _ROWS_PER_COLUMN * columns
    rows = max(rows // 2, _MOST_ROWS) if rows > _MOST_ROWS else rows
    return int(np.clip(max(rows, _LEAST_ROWS) // max(samples, 1), 32, 1024))


def _split(channels: int, columns: int) -> int:
    """Into how many equal runs of channels `columns` must fall so that each is at most _WIDEST."""
    return next((n for n in range(1, channels + 1) if channels % n == 0 and columns // n <= _WIDEST), channels)


def to_rows(node: Node, weight: Array, groups: int) -> Array:
    """A weight as matrices [groups, outputs of a group, k], `groups` as the observer of `moment_observer` has."""
    if node.op_type != "Conv":
        matrix = weight if node.get_int("transB") else weight.T
        return matrix.reshape(len(matrix), groups, -1).transpose(1, 0, 2)
    own = node.get_int("group", 1)
    split = groups // own
    parts = weight.reshape(own, weight.shape[0] // own, split, -1).transpose(0, 2, 1, 3)
    return parts.reshape(groups, weight.shape[0] // own, -1)


def from_rows(node: Node, rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `to_rows`: a weight of `shape`."""
    groups, outputs, k = rows.shape
    if node.op_type != "Conv":
        matrix = rows.transpose(1, 0, 2).reshape(outputs, groups * k)
        return np.ascontiguousarray(matrix if node.get_int("transB") else matrix.T)
    own = node.get_int("group", 1)
    parts = rows.reshape(own, groups // own, outputs, k).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(parts).reshape(shape)


def spread_outputs(node: Node, values: Array, groups: int) -> Array:
    """One number per output channel, laid out as the rows of `to_rows`: [groups, outputs of a group]."""
    own = node.get_int("group", 1) if node.op_type == "Conv" else 1
    return np.repeat(values.reshape(own, -1), groups // own, axis=0)


def sum_outputs(node: Node, values: Array) -> Array:
    """Numbers [groups, outputs of a group] summed over the groups that add up to the same output channel."""
    own = node.get_int("group", 1) if node.op_type == "Conv" else 1
    found: Array = values.reshape(own, len(values) // own, -1).sum(axis=1).reshape(-1)
    return found
