"""What README says can be done: its commands are CI's, its links lead somewhere, its irc commands parse."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest

from irc.cli.arguments import Parser
from irc.pipeline import Pipeline
from irc.pipeline.table import TABLE, pass_class

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


def irc_commands(root: Path) -> list[str]:
    """Every line of a code block that starts with `irc `, without its comment."""
    lines = [
        line for path in documents(root) for _, block in BLOCK.findall(path.read_text()) for line in block.split("\n")
    ]
    return sorted({line.partition(" #")[0].strip() for line in lines if line.startswith("irc ")})


def test_irc_commands_parse(root: Path) -> None:
    """Commands and options exist. Nothing is run."""
    commands = irc_commands(root)
    assert len(commands) >= 10
    for text in commands:
        _, name, *rest = shlex.split(text)
        module = importlib.import_module(f"irc.cli.{name.replace('-', '_')}_command")
        parser = Parser(prog=f"irc {name}")
        module.add_arguments(parser)
        assert parser.parse_all(rest) is not None, text


def test_pipelines_in_documents_parse(root: Path) -> None:
    words = [shlex.split(text) for text in irc_commands(root)]
    texts = [after for line in words for option, after in itertools.pairwise(line) if option == "--passes"]
    assert texts
    for text in texts:
        assert Pipeline.parse(text).passes


def test_every_pass_and_option_is_described(root: Path) -> None:
    text = (root / "docs" / "passes.md").read_text()
    for name in TABLE:
        assert f"**{name}**" in text or f"## {name}\n" in text, name
        for option in dataclasses.fields(pass_class(name)):
            assert option.name in text, f"{name}{{{option.name}}}"
