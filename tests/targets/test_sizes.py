"""Sizes of memory in options and in files."""

from __future__ import annotations

import pytest

from irc.errors import OptionError
from irc.targets.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("64k", 65536),
        ("64K", 65536),
        ("64 kB", 65536),
        ("64KiB", 65536),
        ("1M", 1 << 20),
        ("1.5k", 1536),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "64x", "-1", "0", "1e3", "64 k B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="--ram: the size cannot be read"):
        parse_size(text, "--ram")
