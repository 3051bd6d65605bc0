"""The entropy coder: symbols with frequencies -> words. Written for numpy: chunks are independent, and coded together.

A round is one symbol of each of the LANES coders; a chunk has CHUNK rounds (the last one fewer). Each chunk begins with
the coders' final states, as the decoder goes through everything in the opposite order. J. Duda, arXiv:1311.2540.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from irc.backends.artifact.coder.tables import ONE
from irc.ir.types import Array

LANES = 8
CHUNK = 1 << 15
_LOW = 1 << 16
_BITS = 14
_AT_ONCE = 48  # chunks


def encode_rounds(pieces: Iterable[tuple[Array, Array]]) -> bytes:
    """Pieces of the frequencies and first slots of all symbols, both [rounds, LANES], uint16. Frequency ONE is a symbol
    that takes no bits."""
    out: list[bytes] = []
    waiting: list[tuple[Array, Array]] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(len(f) for f, _ in waiting) >= _AT_ONCE * CHUNK:
            rest = _whole_chunks(waiting, out)
            waiting = [rest]
    frequency, start = _whole_chunks(waiting, out) if waiting else (np.zeros(0), np.zeros(0))
    if len(frequency):
        out.append(_chunks(frequency[:, None], start[:, None]))
    return b"".join(out)


def _whole_chunks(pieces: Sequence[tuple[Array, Array]], out: list[bytes]) -> tuple[Array, Array]:
    """Appends the whole chunks of `pieces` to `out`, and gives what is left."""
    frequency = np.concatenate([f for f, _ in pieces])
    start = np.concatenate([s for _, s in pieces])
    count = len(frequency) // CHUNK
    whole = count * CHUNK
    if count:
        shape = (count, CHUNK, LANES)
        out.append(_chunks(*(a[:whole].reshape(shape).transpose(1, 0, 2) for a in (frequency, start))))
    return frequency[whole:], start[whole:]


def _chunks(frequency: Array, start: Array) -> bytes:
    """Both [rounds, chunks, LANES]."""
    rounds = len(frequency)
    x = np.full(frequency.shape[1:], _LOW, np.int64)
    words = np.zeros(frequency.shape, np.uint16)
    sent = np.zeros(frequency.shape, bool)
    for i in range(rounds - 1, -1, -1):
        f = frequency[i].astype(np.int64)
        full = x >= f << 18
        sent[i] = full
        words[i] = x & 0xFFFF
        x = np.where(full, x >> 16, x)
        quotient, rest = np.divmod(x, f)
        x = (quotient << _BITS) + rest + start[i]
    out = []
    for chunk in range(len(x)):
        out += [x[chunk].astype("<u4").tobytes(), words[:, chunk][sent[:, chunk]].astype("<u2").tobytes()]
    return b"".join(out)


assert ONE == 1 << _BITS
