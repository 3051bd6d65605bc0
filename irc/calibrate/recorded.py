"""An observer that keeps what it sees: for the outputs of a network, which are few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from irc.calibrate.observers import Observer, State, chosen
from irc.ir.types import Array

_MOST = 1 << 16  # numbers of a sample


class Recorded(Observer):
    """All values, as float32 rows: [samples, n] where each sample is a vector or an image, [samples * steps, n] where
    it is a sequence of vectors. Of very large images some numbers, always the same ones."""

    kind: ClassVar[str] = "recorded"

    def __init__(self) -> None:
        self.parts: list[Array] = []

    @property
    def nbytes(self) -> int:
        return 4 * _MOST

    def update(self, batch: Array) -> None:
        flat = np.asarray(batch, np.float32)
        if flat.ndim < 2:
            flat = flat.reshape(-1, 1)
        if flat.ndim > 3:
            flat = flat.reshape(len(flat), -1)
            flat = flat[:, chosen(flat.shape[1], _MOST, 0)]
        self.parts.append(flat.reshape(-1, flat.shape[-1]).copy())

    @property
    def rows(self) -> Array:
        return np.concatenate(self.parts) if self.parts else np.zeros((0, 1), np.float32)

    def state(self) -> State:
        return {"rows": self.rows}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Recorded:
        made = cls()
        rows = np.asarray(state["rows"], np.float32)
        made.parts = [rows] if len(rows) else []
        return made
