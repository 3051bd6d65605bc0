"""Runs C source on this machine: the system's compiler makes a shared library of it, which is opened here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from irc.backends.artifact.header import header_text
from irc.backends.artifact.load import Network
from irc.backends.artifact.manifest import check_unchanged, read_manifest
from irc.backends.c.package import source_path
from irc.backends.c.source import source_chunks
from irc.backends.program import Program
from irc.errors import OptionError, VerificationError

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")
_MOST_BYTES = 64 << 20
"""Weights that a compiler reads as text in seconds."""
_SECONDS = 900


def compiler() -> str:
    """The system's C compiler; empty where there is none."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), "")


def reason_against(program: Program) -> str:
    """Why the source of `program` is not compiled here; empty when it can be."""
    if not compiler():
        return f"no C compiler found ({', '.join(COMPILERS)}; Debian: gcc)"
    if program.weights_bytes > _MOST_BYTES:
        return f"{program.weights_bytes >> 20} MB of weights take a compiler too long to read"
    return ""


def open_program(program: Program) -> Network:
    """The source of `program`, compiled and opened. Raises VerificationError where it does not compile."""
    network = _open(program.name, header_text(program), source_chunks(program))
    network.poison = True
    try:
        network.trial()
    except BaseException:
        network.close()
        raise
    return network


def open_source_artifact(directory: str | os.PathLike[str]) -> Network:
    """The network of an artifact that holds C source. Raises OptionError where a part or a compiler is missing."""
    folder = Path(directory)
    manifest = read_manifest(folder)
    name = manifest["name"]
    parts = [f"include/{name}.h", source_path(name)]
    for part in parts:
        if not (folder / part).is_file():
            raise OptionError("the artifact lacks a part", where=str(folder / part))
        check_unchanged(folder, manifest, part)
    if not compiler():
        raise OptionError("no C compiler found", where=str(folder), expected=" or ".join(COMPILERS))
    return _open(name, (folder / parts[0]).read_text(), [(folder / parts[1]).read_text()])


def _open(name: str, header: str, source: Iterable[str]) -> Network:
    with tempfile.TemporaryDirectory(prefix="irc-c-") as made:
        folder = Path(made)
        (folder / f"{name}.h").write_text(header)
        with (folder / f"{name}.c").open("w") as file:
            file.writelines(source)
        library = folder / f"lib{name}.so"
        command = [compiler(), *FLAGS, "-o", str(library), str(folder / f"{name}.c"), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode != 0:
            words = done.stderr.strip().splitlines()
            raise VerificationError("the C source does not compile", where=name, got="; ".join(words[:3]))
        return Network(library, name, where=name)
