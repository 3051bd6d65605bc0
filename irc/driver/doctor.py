"""What this installation can do, and what it lacks."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

import irc
from irc.backends.artifact.machines import PACKAGES
from irc.backends.tvm.cache import default_cache_dir
from irc.targets import all_targets, get_target

State = Literal["good", "missing", "bad"]

# Version pairs that work: a newer tvm-ffi crashes where this one raises a readable error.
_PINNED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
_LIBRARIES = ("onnx", "onnxruntime", "numpy", "ml_dtypes", "networkx", "rich")


@dataclass(frozen=True)
class Finding:
    """`state` "missing": irc works without it, and `advice` says what for it is good."""

    what: str
    state: State
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "state": self.state, "found": self.found, "advice": self.advice}


def examine() -> list[Finding]:
    """All findings, the essential ones first."""
    return [
        Finding("irc", "good", irc.__version__),
        _python(),
        *_libraries(),
        _tvm(),
        _native(),
        _cache(),
        *_tools(),
        _openvino(),
    ]


def _python() -> Finding:
    fine = sys.version_info >= (3, 11)
    return Finding("Python", "good" if fine else "bad", platform.python_version(), "" if fine else "3.11 or later")


def _libraries() -> Iterator[Finding]:
    for name in (*_PINNED, *_LIBRARIES):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "bad", "not installed", f"pip install {name}")
            continue
        wanted = _PINNED.get(name)
        fine = wanted in (None, version)
        yield Finding(name, "good" if fine else "bad", version, "" if fine else f"irc needs {wanted} exactly")


def _tvm() -> Finding:
    """Loads it in a process of its own: a broken shared library may end the process that loads it."""
    import subprocess

    code = "import tvm; print(tvm.target.codegen.llvm_version_major())"
    try:
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("code generator", "bad", str(error))
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        return Finding("code generator", "bad", last[:200], "installing irc again in a fresh virtual environment")
    return Finding("code generator", "good", f"LLVM {result.stdout.strip()}")


def _native() -> Finding:
    return Finding("this machine", "good", get_target("native").name)


def _cache() -> Finding:
    folder = default_cache_dir()
    if not folder.is_dir():
        return Finding("kernel cache", "good", f"{folder} (empty)")
    count, size = 0, 0
    for file in folder.rglob("*"):
        if file.is_file():
            count, size = count + 1, size + file.stat().st_size
    return Finding("kernel cache", "good", f"{folder} ({count} files, {size / 1e6:.1f} MB)")


def _tools() -> Iterator[Finding]:
    """What links and runs code for other machines, to check it here."""
    for tool, packages in PACKAGES.items():
        path = shutil.which(tool)
        names = [name for name, target in all_targets().items() if tool in (target.qemu, target.linker)]
        use = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        advice = f"checks {use} here (Debian: {packages})" if use else f"Debian: {packages}"
        yield Finding(tool, "good" if path else "missing", path or "not found", "" if path else advice)


def _openvino() -> Finding:
    if find_spec("openvino") is None:
        return Finding("openvino", "missing", "not installed", "irc bench --against openvino")
    return Finding("openvino", "good", metadata.version("openvino"))
