"""Where the source files are and what package each belongs to."""

from __future__ import annotations

from pathlib import Path

SOURCES = {"irc": "irc", "passes": "irc.passes", "backends": "irc.backends"}
"""Top folder -> package name."""


def python_files(root: Path) -> list[tuple[Path, str]]:
    """Every source file with the package it belongs to. The symlinks irc/passes and irc/backends are not followed."""
    found = []
    for folder, package in SOURCES.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            if folder == "irc" and inside.parts[0] in ("passes", "backends"):
                continue
            found.append((path, ".".join((package, *inside.parent.parts))))
    return found
