"""Where passes come from: the table, and the entry points of other distributions."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from irc.errors import OptionError
from irc.pipeline import Pipeline
from irc.pipeline.table import GROUP, TABLE, known_passes, pass_class

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from irc.pipeline import Pass, PassResult


@dataclass(frozen=True)
class Custom(Pass):
    """A pass of somebody else."""

    name: ClassVar[str] = "custom"
    strength: int = 1

    def run(self, model, ctx):
        return PassResult(False)


class NoPass:
    pass
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution on sys.path with good and bad entry points."""
    (tmp_path / "irc_test_plugin.py").write_text(PLUGIN)
    info = tmp_path / "irc_test_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: irc-test-plugin\nVersion: 1.0\n")
    entries = {
        "custom": "irc_test_plugin:Custom",
        "other-name": "irc_test_plugin:Custom",
        "no-pass": "irc_test_plugin:NoPass",
        "broken": "irc_test_plugin_that_is_not_there:X",
        "simplify": "irc_test_plugin:Custom",
    }
    lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("irc_test_plugin", None)


@pytest.mark.usefixtures("plugin")
def test_a_pass_of_another_distribution() -> None:
    assert "custom" in known_passes()
    assert str(Pipeline.parse("custom{strength=3}")) == "custom{strength=3}"


@pytest.mark.usefixtures("plugin")
def test_own_passes_cannot_be_replaced() -> None:
    assert pass_class("simplify").__module__ == "irc.passes.clean.simplify"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-pass", "is not a pass"),
        ("broken", "cannot be loaded: ModuleNotFoundError"),
        ("other-name", "has another name than its class"),
    ],
)
def test_bad_entry_points(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Pipeline.parse(name)


@pytest.mark.parametrize(
    "name", [n for n in TABLE if n in {"canonicalize", "simplify"} or n.startswith(("fo", "fu", "el"))]
)
def test_table_names_are_class_names(name: str) -> None:
    found = pass_class(name)
    assert found.name == name
    assert found.summary


def test_parsing_nothing_imports_no_pass() -> None:
    """The command line lists passes at start-up; their modules must not be loaded for that."""
    code = (
        "import sys; from irc.pipeline.table import known_passes; known_passes();"
        "print([m for m in sys.modules if m.startswith('irc.passes.') or m in ('onnx', 'onnxruntime')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
