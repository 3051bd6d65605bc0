"""The cases of the standard are shared with the tests of the long tail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "library"))

from lowering_harness import Lowering


@pytest.fixture(scope="session")
def native(kernel_cache: Path) -> Iterator[Lowering]:
    """Compiling processes for this machine's processor."""
    with Lowering("native", kernel_cache) as lowering:
        yield lowering
