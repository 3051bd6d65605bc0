"""irc targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from irc.cli.main import main
from irc.targets import TARGETS


def _shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["targets", *arguments]) == 0
    return capsys.readouterr().out


def test_the_table_has_every_target(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    lines = {line.split()[0]: line for line in _shown(capsys).splitlines() if line.strip()}
    assert set(TARGETS) <= set(lines)
    assert "smlad" in lines["cortex-m4"]
    assert "coff" in lines["windows-x86-64"]


def test_one_target_is_shown_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert json.loads(_shown(capsys, "cortex-m55", "--json"))["vector_bytes"] == 16
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "cortex-m4"\nflash_bytes = "512k"')
    record = json.loads(_shown(capsys, str(mine), "--json"))
    assert (record["name"], record["flash_bytes"], record["base"]) == ("mine", 524288, "cortex-m4")
    assert "524288" in _shown(capsys, str(mine))


def test_json_has_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(_shown(capsys, "--json"))
    assert shown["native"] in shown["targets"]
    assert shown["targets"]["wasm32"]["object_format"] == "wasm"
