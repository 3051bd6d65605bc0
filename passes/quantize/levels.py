"""The integers that weights may be: 8 bits down to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irc.ir.types import Array, DType


@dataclass(frozen=True)
class Levels:
    """`low`, `low` + `step`, ..., `high`, stored as `dtype`.

    8 bits leave out -128, so that negating a weight never overflows; fewer use every pattern of bits. Ternary weights
    are -1, 0, 1 (Li et al., "Ternary Weight Networks", 2016); binary ones -1 and 1 (Rastegari et al., "XNOR-Net",
    2016), stored in 2 bits.
    """

    dtype: DType
    low: int
    high: int
    step: int = 1

    @staticmethod
    def of(bits: int) -> Levels:
        """All integers of 2 to 8 bits, in the smallest type of ONNX that holds them."""
        if not 2 <= bits <= 8:
            raise ValueError(f"weights have 2 to 8 bits, not {bits}")
        if bits == 8:
            return NAMED["int8"]
        half = 1 << (bits - 1)
        return Levels(DType.INT2 if bits == 2 else DType.INT4 if bits <= 4 else DType.INT8, -half, half - 1)

    @property
    def bits(self) -> int:
        """That one weight takes in memory."""
        return {DType.INT2: 2, DType.INT4: 4}.get(self.dtype, 8)

    @property
    def count(self) -> int:
        return (self.high - self.low) // self.step + 1

    def nearest(self, x: Array, offset: Array | int = 0) -> Array:
        """The nearest level, float64. With `offset` (zero points) all levels are that much lower."""
        low, high = self.low - offset, self.high - offset
        if self.step == 1:
            return np.asarray(np.clip(np.rint(x), low, high))
        return np.asarray(np.clip(np.floor((x - low) / self.step + 0.5) * self.step + low, low, high))


NAMED: dict[str, Levels] = {
    "int8": Levels(DType.INT8, -127, 127),
    "int4": Levels(DType.INT4, -8, 7),
    "ternary": Levels(DType.INT2, -1, 1),
    "binary": Levels(DType.INT2, -1, 1, step=2),
}
