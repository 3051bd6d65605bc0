"""Numbers as bits: what the decoder's `bits`, `number` and `difference` read."""

from __future__ import annotations


class Bits:
    """Bits in the order in which they are read; the lowest of a byte is its first."""

    def __init__(self) -> None:
        self._bits: list[int] = []

    def __len__(self) -> int:
        return len(self._bits)

    def bits(self, value: int, count: int) -> None:
        """`count` bits, the highest first."""
        self._bits += [value >> i & 1 for i in range(count - 1, -1, -1)]

    def number(self, value: int, order: int) -> None:
        """0, 1, 2, ... as an exponential Golomb code."""
        value += 1 << order
        length = value.bit_length()
        self.bits(1, length - order)
        self.bits(value - (1 << (length - 1)), length - 1)

    def difference(self, value: int, order: int) -> None:
        """A number with a sign."""
        self.number(value << 1 if value >= 0 else (-value << 1) - 1, order)

    def extend(self, other: Bits) -> None:
        self._bits += other._bits

    def data(self) -> bytes:
        """Whole bytes, filled up with zeros."""
        out = bytearray((len(self._bits) + 7) // 8)
        for i, bit in enumerate(self._bits):
            out[i >> 3] |= bit << (i & 7)
        return bytes(out)


def number_bits(value: int, order: int) -> int:
    """Length of `Bits.number`."""
    return 2 * (value + (1 << order)).bit_length() - order - 1
