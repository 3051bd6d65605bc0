"""Bytes of an image as 16-bit numbers on the stack, for linear kernels whose products need them so (pmaddwd).

Before a register tile is computed, what its places read is split: bytes 0 and 2 of every word into one array, bytes 1
and 3 into another, by a mask and a shift for 32 bytes at a time. A step of the reduction then broadcasts words from
there, and the vector units are left with multiplications and additions.
"""

from __future__ import annotations

from irc.backends.tvm.geometry import chunks
from irc.backends.tvm.kernels.builder import Buffer, Expr, KernelBuilder, broadcast, const, reinterpret
from irc.backends.tvm.specs import LinearSpec

_MOST_BYTES = 40 * 1024  # of the stack, and of the first-level cache
_WORD = 4  # bytes


class Staging:
    """The inputs of one register tile of `spec`. `lanes`: of the vectors that its kernel multiplies."""

    def __init__(self, k: KernelBuilder, spec: LinearSpec, lanes: int) -> None:
        self.k, self.spec, self.lanes = k, spec, lanes
        rows, columns, _ = spec.tile
        self.words = spec.ic // _WORD
        size = len(_offsets(rows, spec, 0)) * len(_offsets(columns, spec, 1)) * self.words
        self.even, self.odd = k.local(size, "int32", "even"), k.local(size, "int32", "odd")

    def fill(self, x: Buffer, base: Expr, rows: int, columns: int) -> None:
        """Split what a tile of rows x columns places reads; `base` is the first element of its first place."""
        k, spec = self.k, self.spec
        self.rows, self.columns = _offsets(rows, spec, 0), _offsets(columns, spec, 1)
        _, _, sh, sw = spec.x_strides
        width = 2 * self.lanes  # words of a step: two vectors
        for r, row in enumerate(self.rows):
            for c, column in enumerate(self.columns):
                at = k.let(base + (row * sh + column * sw), "xs")
                to = (r * len(self.columns) + c) * self.words
                whole, rest = divmod(self.words, width)
                with k.loop(whole, "s") as s:
                    for first in (0, self.lanes):
                        word = s * width + first
                        self._split(x, at + word * _WORD, to + word, self.lanes)
                for offset, size in chunks(width, rest) if rest else ():
                    self._split(x, at + (whole * width + offset) * _WORD, to + whole * width + offset, size)

    def _split(self, x: Buffer, at: Expr, to: Expr, words: int) -> None:
        k = self.k
        raw = k.let(reinterpret(k.load(x, at, words * _WORD), _vector("int32", words)), "b")
        k.store(self.even, to, raw & const(0x00FF00FF, "int32", words), words)
        pairs = reinterpret(raw, f"uint16x{2 * words}") >> const(8, "uint16", 2 * words)
        k.store(self.odd, to, reinterpret(pairs, _vector("int32", words)), words)

    def load(self, place: tuple[int, int], tap: tuple[Expr, Expr], step: Expr) -> tuple[Expr, ...]:
        """The operands of `steps.py` for a place of the tile, a tap of the kernel and a step of four channels."""
        k, spec = self.k, self.spec
        row, column = (_index(place[i], tap[i], spec, i) for i in (0, 1))
        at = (row * len(self.columns) + column) * self.words + step
        wide = f"int16x{2 * self.lanes}"
        found = (reinterpret(broadcast(k.load(b, at), self.lanes), wide) for b in (self.even, self.odd))
        return tuple(k.let(value, "d") for value in found)


def fits(spec: LinearSpec) -> bool:
    """Whether the inputs of a register tile are few enough."""
    rows, columns, _ = spec.tile
    return 2 * len(_offsets(rows, spec, 0)) * len(_offsets(columns, spec, 1)) * spec.ic <= _MOST_BYTES


def _offsets(places: int, spec: LinearSpec, axis: int) -> list[int]:
    """Rows or columns of the image that `places` of the output read, from the first one on."""
    stride, dilation, taps = spec.stride[axis], spec.dilation[axis], spec.kernel[axis]
    if taps == 1:
        return [p * stride for p in range(places)]
    return list(range((places - 1) * stride + (taps - 1) * dilation + 1))


def _index(place: int, tap: Expr, spec: LinearSpec, axis: int) -> Expr:
    if spec.kernel[axis] == 1:
        return place
    return place * spec.stride[axis] + tap * spec.dilation[axis]


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
