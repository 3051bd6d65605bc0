"""The CMake package: `find_package(irc)` gives `irc_add_model`. `irc cmake-dir` prints where it is."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
"""What CMake wants as irc_DIR."""
