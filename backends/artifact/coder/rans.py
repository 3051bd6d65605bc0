"""The entropy coder: symbols with frequencies -> words. Written for numpy: chunks are independent, and coded together.

A round is one symbol of each of the LANES coders; a chunk has CHUNK rounds (the last one fewer). Each chunk begins with
the coders' final states, as the decoder goes through everything in the opposite order. J. Duda, arXiv:1311.2540.
"""

from __future__ import annotations

import numpy as np

from irc.backends.artifact.coder.tables import ONE
from irc.ir.types import Array

LANES = 8
CHUNK = 1 << 15
_LOW = 1 << 16
_BITS = 14
_AT_ONCE = 64  # chunks


def encode_rounds(frequency: Array, start: Array) -> bytes:
    """Both [rounds, LANES], uint16: of each symbol. Frequency ONE is a symbol that takes no bits."""
    out = []
    rounds = len(frequency)
    whole = rounds // CHUNK
    for begin in range(0, whole, _AT_ONCE):
        count = min(_AT_ONCE, whole - begin)
        part = slice(begin * CHUNK, (begin + count) * CHUNK)
        out.append(_chunks(*(a[part].reshape(count, CHUNK, LANES).transpose(1, 0, 2) for a in (frequency, start))))
    if rounds > whole * CHUNK:
        out.append(_chunks(*(a[whole * CHUNK :].reshape(-1, 1, LANES) for a in (frequency, start))))
    return b"".join(out)


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


def starts(frequencies: Array) -> Array:
    """First slot of each symbol of a table."""
    return np.cumsum(frequencies) - frequencies


assert ONE == 1 << _BITS
