"""Imports go one way: the body of the IR knows nothing of what stands on it; TVM stays in one folder.

The table is the whole rule. Imports inside functions count as much as those at the top of a file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_files import python_files

IR = {"errors", "ir"}
BASE = IR | {"targets"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "cmake": set(),
    "ir": IR,
    "targets": BASE,
    "frontend": IR,
    "export": IR,
    "pipeline": BASE | {"export", "frontend", "rewrite"},
    "rewrite": BASE | {"pipeline"},
    "calibrate": BASE | {"export", "frontend", "pipeline"},
    "evaluation": BASE | {"export", "frontend", "pipeline", "calibrate"},
    "passes": BASE | {"export", "rewrite", "pipeline", "calibrate"},
    "backends": BASE | {"export"},
    "report": BASE | {"pipeline", "evaluation"},
}
"""Layer (first name under irc) -> layers that it may import, besides itself."""
TOP = {"driver", "api", "cli", "__init__", "__main__"}
"""These may import every layer; between them the order is driver, api, cli."""
TOP_ALLOWED = {"driver": set(), "api": {"driver"}, "cli": {"driver", "api"}}


def modules_imported(path: Path, package: str) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]) if base else ".".join(parent)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "irc" and len(parts) > 1 else None


def violations(root: Path) -> Iterator[str]:
    known = set(ALLOWED) | TOP
    for path, package in python_files(root):
        own = layer(f"{package}.{path.stem}") or ""
        if own not in known:
            yield f"{path}: layer {own!r} is not in the table"
            continue
        if own.startswith("__"):
            continue
        for module in modules_imported(path, package):
            used = layer(module)
            if used is None or used == own or used not in known:
                continue
            allowed = ALLOWED[own] if own in ALLOWED else set(ALLOWED) | TOP_ALLOWED[own]
            if used not in allowed:
                yield f"{path.relative_to(root)}: irc.{own} imports {module}"


def test_imports_follow_the_layers(root: Path) -> None:
    assert not sorted(set(violations(root)))


def test_tvm_is_imported_in_one_folder_only(root: Path) -> None:
    inside = root / "backends" / "tvm"
    outside = [
        str(path)
        for path, package in python_files(root)
        if not path.is_relative_to(inside)
        for module in modules_imported(path, package)
        if module.split(".")[0] in ("tvm", "tvm_ffi")
    ]
    assert not outside


@pytest.mark.parametrize("folder", ["passes", "backends"])
def test_source_folders_are_imported_under_irc(root: Path, folder: str) -> None:
    """`import passes` would make a second copy of every class."""
    wrong = [
        str(path)
        for path, package in python_files(root)
        for module in modules_imported(path, package)
        if module.split(".")[0] == folder
    ]
    assert not wrong


def test_the_check_sees_relative_and_inner_imports(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("def f():\n    from .. import driver\n    import irc.cli.main\n")
    assert set(modules_imported(source, "irc.ir")) == {"irc", "irc.driver", "irc.cli.main"}
