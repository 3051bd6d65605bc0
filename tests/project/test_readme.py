"""What README says can be done: its commands are CI's, its links lead somewhere, its irc commands parse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


def documents(root: Path) -> list[Path]:
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def test_the_two_commands_are_what_ci_runs(root: Path, readme: str) -> None:
    first, second = (text.strip() for _, text in BLOCK.findall(readme)[:2])
    ci = (root / ".ci" / "run").read_text().splitlines()
    assert first in ci
    assert second in ci


def test_the_first_command_needs_only_what_is_here(root: Path, readme: str) -> None:
    paths = re.findall(r"examples/\S+", BLOCK.findall(readme)[0][1])
    assert len(paths) == 3
    assert all((root / path).is_file() for path in paths)


def test_links_lead_to_files(root: Path) -> None:
    broken = [
        f"{document.name}: {link}"
        for document in documents(root)
        for link in LINK.findall(document.read_text())
        if not (document.parent / link).exists()
    ]
    assert not broken
