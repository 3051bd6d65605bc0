"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from irc.errors import OptionError

_UNITS = {"": 1, "b": 1, "k": 1024, "kb": 1024, "kib": 1024, "m": 1024**2, "mb": 1024**2, "mib": 1024**2}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*\Z")


def parse_size(text: str, where: str = "") -> int:
    """Bytes of texts like "65536", "64k", "64 kB", "1.5M"; k is 1024. Raises OptionError, also for nothing at all."""
    match = _SIZE.match(text)
    size = int(float(match[1]) * _UNITS.get(match[2].lower(), 0)) if match else 0
    if size <= 0:
        raise OptionError(
            "the size cannot be read", where=where, expected="bytes, such as 65536, 64k, 64kB or 1M", got=repr(text)
        )
    return size
