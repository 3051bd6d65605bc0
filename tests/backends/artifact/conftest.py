"""Makes the toy programs importable (`import toy`) and finds the tools that some tests need."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tool():
    """tool("readelf", "-S", path) -> output; skips the test where the program is missing."""

    def run(program: str, *args: object, **options: object) -> str:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
        done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, **options)  # type: ignore[call-overload]  # options are passed on
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
