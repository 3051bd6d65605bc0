"""Weights held as a palette: a codebook of few numbers, and for each weight the index of its number.

In the graph: `Gather(codebook, Cast(indices))`, codebook a constant vector, indices a constant of 4 or 8 bits in the
shape of the weight. Where groups of channels have codebooks of their own, these follow each other in the vector, and
`Add(Cast(indices), offsets)` says where each begins. All of it is standard ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irc.ir.graph import Node, Value
from irc.ir.types import Array, DType

INDEX_TYPES = (DType.UINT8, DType.UINT4)


@dataclass(frozen=True)
class Palette:
    """`codebook` [entries]; `indices` in the weight's shape; `offsets` (broadcast to it) or None."""

    codebook: Value
    indices: Value
    offsets: Value | None = None

    def numpy(self) -> Array:
        """The weight itself, in the codebook's type."""
        at = self.indices.numpy().astype(np.int64)
        if self.offsets is not None:
            at = at + self.offsets.numpy()
        found: Array = self.codebook.numpy()[at]
        return found

    @property
    def entries(self) -> int:
        return int(self.codebook.numpy().size)


def palette_of(value: Value | None) -> Palette | None:
    """The palette that makes `value`, None where it is anything else."""
    node = None if value is None else value.producer
    if node is None or not node.is_op("Gather") or node.get_int("axis", 0) != 0:
        return None
    codebook, at = node.need(0), node.need(1).producer
    if not codebook.is_constant or codebook.shape is None or codebook.shape.rank != 1 or at is None:
        return None
    offsets = None
    if at.is_op("Add"):
        offsets, at = at.need(1), at.need(0).producer
        if not offsets.is_constant or at is None:
            return None
    if not at.is_op("Cast") or not at.need(0).is_constant or at.need(0).dtype not in INDEX_TYPES:
        return None
    return Palette(codebook, at.need(0), offsets)


def part_of_palette(node: Node) -> bool:
    """Whether `node` belongs to the form above, so that computing it would only make the weight large again."""
    if node.is_op("Gather"):
        return palette_of(node.output) is not None
    if node.is_op("Cast", "Add") and node.output.dtype is DType.INT32 and not node.output.is_output:
        return bool(node.output.users) and all(part_of_palette(user) for user in node.output.users)
    return False
