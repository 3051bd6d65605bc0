"""`--no-tool-skips`: a missing tool fails the run, missing data does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPING = """
import pytest
def test_skips(): pytest.skip("{reason}")
"""


def outcome(root: Path, folder: Path, reason: str, *options: str) -> str:
    (folder / "test_inner.py").write_text(SKIPPING.format(reason=reason))
    env = {**os.environ, "PYTHONPATH": str(root / "tests"), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", os.devnull, "--rootdir", str(folder)]
    done = subprocess.run([*command, *options, "test_inner.py"], cwd=folder, env=env, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("reason", "options", "expected"),
    [
        ("needs qemu-aarch64", (), "1 skipped"),
        ("needs qemu-aarch64", ("--no-tool-skips",), "1 failed"),
        ("no evaluation data; set IRC_DATA", ("--no-tool-skips",), "1 skipped"),
    ],
)
def test_skip_rule(root: Path, tmp_path: Path, reason: str, options: tuple[str, ...], expected: str) -> None:
    assert expected in outcome(root, tmp_path, reason, *options)
