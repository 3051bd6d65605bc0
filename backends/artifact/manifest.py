"""Reading manifest.json: how irc recognises its own artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from irc.errors import OptionError

KIND = "irc-artifact"
"""`manifest["kind"]` of every artifact."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact directory. Raises OptionError when it is none."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise OptionError("no such folder" if not folder.exists() else "not a folder", where=str(folder))
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise OptionError("not an artifact of irc: it has no manifest.json", where=str(folder)) from None
    except (OSError, ValueError) as error:
        raise OptionError("cannot read the manifest", where=str(path), got=str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise OptionError("not an artifact of irc", where=str(path), expected=f'"kind": "{KIND}"')
    return manifest


def is_artifact(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except OptionError:
        return False
    return True
