"""The package list of pyproject.toml and the wheel that comes of it: a forgotten package drops out silently."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from source_files import python_files

import irc


def test_package_list_equals_folders(root: Path) -> None:
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {package for path, package in python_files(root) if path.name == "__init__.py"}
    assert sorted(setuptools["packages"]) == sorted(folders)
    assert setuptools["package-dir"] == {"irc.passes": "passes", "irc.backends": "backends"}


def test_every_source_file_is_in_a_package(root: Path) -> None:
    lost = [path for path, _ in python_files(root) if not (path.parent / "__init__.py").is_file()]
    assert not lost


def test_symlinks_point_to_the_folders(root: Path) -> None:
    for name in ("passes", "backends"):
        assert (root / "irc" / name).resolve() == root / name


def test_cmake_package_has_the_version_of_irc(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    config = (root / "irc" / "cmake" / "irc-config-version.cmake").read_text()
    assert f'set(PACKAGE_VERSION "{project["version"]}")' in config
    assert irc.__version__ == project["version"]


def test_wheel_contains_every_module(root: Path, tmp_path: Path) -> None:
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building the wheel needs setuptools 77 (it is in the extra dev)")
    source = tmp_path / "source"
    cmake = ("irc-config.cmake", "irc-config-version.cmake")
    others = {"irc/py.typed", *(f"irc/cmake/{name}" for name in cmake)}
    for name in ("pyproject.toml", "README.md", "LICENSE", *others):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / name).read_bytes())
    for path, _ in python_files(root):  # no symlinks here: the mapping alone must do
        target = source / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("irc_compiler-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"{package.replace('.', '/')}/{path.name}" for path, package in python_files(root)} | others
    for config in cmake:
        expected.add(next(name for name in inside if name.endswith(f".data/data/share/cmake/irc/{config}")))
    assert expected == {name for name in inside if ".dist-info/" not in name}
    assert any(name.endswith("/licenses/LICENSE") for name in inside)
