"""Rules for every file of the project: sizes, and nothing of the machine it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

LIMIT = 800
"""Lines. A longer file tells more than one story."""
MACHINE_PATH = re.compile(r"/(?:work|root|home)/\w|/opt/(?:venv|zoo)\w*/|/tmp/(?:brief|irc-)")
TEXT = {".py", ".md", ".toml", ".c", ".h", ".txt", ".cfg", ".yml", ".cmake", ".ir", ".sh", ""}


@pytest.fixture(scope="module")
def files(root: Path) -> list[Path]:
    """Tracked files, or all files where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        names = [root / name for name in listed.stdout.split("\0") if name]
    else:
        names = [
            p for top in ("irc", "passes", "backends", "tests", "docs", "examples") for p in (root / top).rglob("*")
        ]
    found = [p for p in names if p.is_file() and not p.is_symlink()]
    assert len(found) > 20
    return found


def test_no_file_is_too_long(files: list[Path]) -> None:
    code = [p for p in files if p.suffix in (".py", ".c", ".h")]
    long = {str(p): n for p in code if (n := len(p.read_text().splitlines())) > LIMIT}
    assert not long


def test_no_machine_paths(files: list[Path]) -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in files
        if path.suffix in TEXT
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


def test_no_large_files(files: list[Path]) -> None:
    """Models and data belong elsewhere; the example is small."""
    large = {str(p): p.stat().st_size for p in files if p.stat().st_size > 200_000}
    assert not large
