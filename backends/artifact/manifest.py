"""Reading manifest.json: how irc recognises its own artifacts."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irc.backends.program import Port
from irc.errors import OptionError
from irc.ir.types import DType

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")

KIND = "irc-artifact"
"""`manifest["kind"]` of every artifact."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact directory. Raises OptionError when it is none."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise OptionError(what, where=str(folder), expected="an artifact, as irc compile writes it")
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise OptionError("not an artifact of irc: it has no manifest.json", where=str(folder)) from None
    except (OSError, ValueError) as error:
        raise OptionError("cannot read the manifest", where=str(path), got=str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise OptionError("not an artifact of irc", where=str(path), expected=f'"kind": "{KIND}"')
    if not (isinstance(manifest.get("name"), str) and _NAME.match(manifest["name"])):
        raise OptionError("the manifest names no network", where=str(path))
    for key in ("target", "interface", "files"):
        if not isinstance(manifest.get(key), dict):
            raise OptionError(f"the manifest lacks '{key}'", where=str(path))
    return manifest


def check_unchanged(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Raises OptionError where a file of the artifact is not what was written: damaged code ends the process."""
    path = folder / name
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OptionError("cannot be read", where=str(path), got=error.strerror or str(error)) from error
    facts = manifest["files"].get(name)
    if not isinstance(facts, Mapping) or facts.get("sha256") != digest:
        raise _damaged(path)


def check_library(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Raises OptionError where a library's code is not what was written, or a part of the file is missing.

    Either would end the process. Weights are data: they are not read here, so that opening a library takes the same
    time for any size of network (`check_unchanged` reads everything).
    """
    path = folder / name
    facts = manifest["files"].get(name)
    code = facts.get("code") if isinstance(facts, Mapping) else None
    if not isinstance(code, Mapping) or not isinstance(code.get("bytes"), int):
        check_unchanged(folder, manifest, name)
        return
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(file.read(code["bytes"])).hexdigest()
    except OSError as error:
        raise OptionError("cannot be read", where=str(path), got=error.strerror or str(error)) from error
    if size != facts.get("bytes") or digest != code.get("sha256"):
        raise _damaged(path)


def _damaged(path: Path) -> OptionError:
    return OptionError(
        "the file is damaged, or was changed since it was written", where=str(path), hint="compiling again"
    )


def ports(manifest: Mapping[str, Any], which: str) -> tuple[Port, ...]:
    """The "inputs" or "outputs" of an artifact. Raises OptionError when the manifest is damaged."""
    try:
        rows = manifest["interface"][which]
        return tuple(
            Port(r["name"], DType(r["dtype"]).value, tuple(map(int, r["shape"])), r.get("scale"), r.get("zero_point"))
            for r in rows
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(f"the manifest describes its {which} wrongly", got=str(error)) from error


def is_artifact(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except OptionError:
        return False
    return True
