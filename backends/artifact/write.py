"""The artifact directory, written as a whole or not at all.

    include/NAME.h                        the C interface
    include/NAME.hpp                      a C++ class around it
    lib/libNAME.a                         the network as a static library
    lib/NAME.o                            the same as one object (when asked for)
    lib/shared/libNAME.so                 the same for dlopen and `irc.load` (Linux; apart, so that -lNAME takes the .a)
    lib/cmake/NAME/NAME-config.cmake      find_package(NAME), target NAME::NAME
    lib/pkgconfig/NAME.pc                 pkg-config NAME
    NAME.onnx, report.html                the compressed model, the report
    manifest.json                         everything that a program may want to know

`layouts` has what frameworks want instead (Arduino, Zephyr, ESP-IDF).

Everything goes into a directory beside the final one, which then takes its name. The same program and manifest give
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from irc.backends.artifact import elf
from irc.backends.artifact import interface as abi
from irc.backends.artifact.ar import Member, archive, bsd_archive
from irc.backends.artifact.contents import public_symbols
from irc.backends.artifact.cpp import cpp_text
from irc.backends.artifact.features import target_facts
from irc.backends.artifact.footprint import memory_facts
from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.header import header_text
from irc.backends.artifact.layouts import LAYOUTS, arranged, layout_of
from irc.backends.artifact.link import Linked, link, object_chunks
from irc.backends.artifact.manifest import KIND, is_artifact
from irc.backends.artifact.package import cmake_config, pkg_config
from irc.backends.artifact.shared import code_bytes, shared_chunks
from irc.backends.artifact.storage import storage
from irc.backends.program import Port, Program
from irc.errors import OutputError

PARTS = frozenset({"archive", "object", "header", "cpp", "onnx", "report", "shared"})
DEFAULT_EMIT = PARTS - {"object"}
LAYOUT_PARTS = frozenset({"archive", "header", "cpp"})
"""What the folders of `layouts` hold; "onnx" and "report" may be asked for besides."""
EMIT = PARTS | frozenset(LAYOUTS)

Files = dict[str, Sequence[elf.Bytes]]


def write_artifact(
    program: Program,
    directory: str | os.PathLike[str],
    *,
    manifest: Mapping[str, Any],
    model_proto_bytes: bytes | None = None,
    report_html: str | None = None,
    glue_object: bytes | None = None,
    emit: Collection[str] = DEFAULT_EMIT,
) -> dict[str, Any]:
    """Writes `directory`, replacing an artifact that is there. Gives the finished manifest.

    `manifest` is what the caller knows; name, target, interface and files are added. `glue_object` is assembled here
    when it is not given. Raises OutputError when the directory cannot be written or holds something that is no
    artifact of irc; then nothing is left behind and an older artifact is as it was.
    """
    layout = layout_of(emit)
    files, counted = _made_of(program, glue_object, LAYOUT_PARTS if layout else emit)
    if layout:
        files = arranged(layout, program, files)
    if model_proto_bytes is not None and "onnx" in emit:
        files[f"{program.name}.onnx"] = [model_proto_bytes]
    if report_html is not None and "report" in emit:
        files["report.html"] = [report_html.encode()]
    full = dict(manifest) | {
        "kind": KIND,
        "name": program.name,
        "target": target_facts(program.target),
        "interface": interface_facts(program),
        **counted,
        "files": {name: _file_facts(name, chunks) for name, chunks in sorted(files.items())},
    }
    files["manifest.json"] = [(json.dumps(full, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()]
    write_directory(Path(directory), files)
    return full


def _made_of(program: Program, glue_object: bytes | None, emit: Collection[str]) -> tuple[Files, dict[str, Any]]:
    """The files that are made from the program alone, and "storage" and "memory" of the manifest."""
    if program.target.linking == "source":
        from irc.backends.c.package import source_files, source_storage

        sources = source_files(program, emit)
        return {**sources}, {"storage": source_storage(program, sources)}
    if glue_object is None:
        from irc.backends.tvm.assemble import assemble

        glue_object = assemble(glue_ll(program), program.target)
    obj = link(program, glue_object)
    counted = {
        "storage": storage(program, obj, elf.total_size(archive_chunks(program, obj))),
        "memory": memory_facts(program, obj),
    }
    return artifact_files(program, obj, glue_object, emit), counted


def artifact_files(program: Program, obj: Linked, glue_object: bytes, emit: Collection[str]) -> Files:
    """Path in the artifact -> contents, for everything that is made from the program alone. `obj`: linked."""
    name = program.name
    files: Files = {}
    if "header" in emit:
        files[f"include/{name}.h"] = [header_text(program).encode()]
    if "cpp" in emit:
        files[f"include/{name}.hpp"] = [cpp_text(program).encode()]
    if "object" in emit:
        files[f"lib/{name}.o"] = object_chunks(obj)
    if "archive" in emit:
        files[f"lib/lib{name}.a"] = archive_chunks(program, obj)
        files[f"lib/cmake/{name}/{name}-config.cmake"] = [cmake_config(program).encode()]
        files[f"lib/pkgconfig/{name}.pc"] = [pkg_config(program).encode()]
    if "shared" in emit and isinstance(obj, elf.ObjectFile) and "linux" in program.target.triple:
        # How many threads is decided when it is loaded: it has the pool in any case.
        full = obj if program.threads > 1 else link(program, glue_object, threads=True)
        assert isinstance(full, elf.ObjectFile)
        files[f"lib/shared/lib{name}.so"] = shared_chunks(full, program.target, f"lib{name}.so")
    return files


def archive_chunks(program: Program, obj: Linked) -> list[elf.Bytes]:
    """libNAME.a in pieces."""
    names = public_symbols(program)
    if program.target.object_format == "macho":
        return bsd_archive([Member(f"{program.name}.o", object_chunks(obj), tuple(f"_{n}" for n in names))])
    return archive([Member(f"{program.name}.o", object_chunks(obj), names)])


def interface_facts(program: Program) -> dict[str, Any]:
    """What the header says, for programs (key "interface" of the manifest). Sizes in bytes."""
    return {
        "abi_version": abi.ABI_VERSION,
        "hash": f"{abi.interface_hash(program):08x}",
        "workspace_bytes": program.workspace_bytes,
        "workspace_align": program.alignment,
        "init_ram_bytes": abi.init_ram_bytes(program),
        "threads": program.threads,
        "weights_bytes": program.weights_bytes,
        "inputs": _ports(program.inputs, program.input_places),
        "outputs": _ports(program.outputs, program.output_places),
    }


def _ports(ports: Sequence[Port], places: Sequence[int | None]) -> list[dict[str, Any]]:
    """With "offset" where a port may lie in the workspace."""
    facts = [_port_facts(p) for p in ports]
    return [f if p is None else f | {"offset": p} for f, p in zip(facts, places or [None] * len(facts), strict=True)]


def _port_facts(port: Port) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": port.name,
        "dtype": port.dtype,
        "shape": list(port.shape),
        "bytes": port.nbytes,
    }
    if port.scale is not None:
        facts |= {"scale": port.scale, "zero_point": port.zero_point or 0}
    return facts


def _file_facts(name: str, chunks: Sequence[elf.Bytes]) -> dict[str, Any]:
    """Size and hash; of libraries also the hash of what comes before the weights (`check_library`)."""
    facts: dict[str, Any] = {"bytes": elf.total_size(chunks), "sha256": _digest(chunks, None)}
    if name.endswith(".so"):
        size = code_bytes(chunks)
        facts["code"] = {"bytes": size, "sha256": _digest(chunks, size)}
    return facts


def _digest(chunks: Sequence[elf.Bytes], size: int | None) -> str:
    """SHA-256 of the chunks, or of their first `size` bytes."""
    digest, left = hashlib.sha256(), size
    for chunk in chunks:
        digest.update(chunk if left is None else memoryview(chunk)[:left])
        left = None if left is None else max(0, left - len(chunk))
        if left == 0:
            break
    return digest.hexdigest()


# Files


def write_file(path: Path, chunks: Sequence[elf.Bytes]) -> None:
    """Writes one file (an object, an archive, a header) as a whole or not at all. Raises OutputError."""
    with _errors(path, "another path"):
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            os.close(fd)
            _write(temporary, chunks)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_directory(directory: Path, files: Mapping[str, Sequence[elf.Bytes]]) -> None:
    """Writes all files under `directory`, or none. An artifact that is there is replaced, anything else is not."""
    directory = Path(os.path.realpath(directory))  # a link stays; what it points to is replaced
    with _errors(directory, "another folder with -o"):
        refuse_foreign(directory)
        made = _make_parents(directory.parent)
        temporary: Path | None = None
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
            for name, chunks in files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, chunks)
            _same_time(temporary / name for name in files)
            temporary.chmod(0o777 & ~_umask())
            _replace_directory(temporary, directory)
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            for parent in reversed(made):
                with _ignored():
                    parent.rmdir()
            raise


def _write(path: Path, chunks: Sequence[elf.Bytes]) -> None:
    """Not synced to the disk: as with any compiler, a power failure may lose the result, and waiting takes seconds."""
    with path.open("wb") as file:
        file.writelines(chunks)


def _same_time(paths: Iterable[Path]) -> None:
    """Gives files the time of the last of them: for make, none is then older than another."""
    paths = list(paths)
    last = max((path.stat().st_mtime_ns for path in paths), default=0)
    for path in paths:
        os.utime(path, ns=(last, last))


def refuse_foreign(directory: Path) -> None:
    """Raises OutputError when `directory` exists, holds files (not only empty folders) and is no artifact of irc."""
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise OutputError("exists and is not a folder", where=str(directory), hint="another folder with -o")
    if any(path.is_symlink() or not path.is_dir() for path in directory.rglob("*")) and not is_artifact(directory):
        raise OutputError(
            "the folder holds files that irc did not write; it is left as it is",
            where=str(directory),
            expected="no folder, an empty one, or an older artifact",
            hint="another folder with -o",
        )


def _replace_directory(new: Path, final: Path) -> None:
    """Gives `new` the name `final`. POSIX cannot exchange full directories in one step: the old one moves aside first
    and comes back when the second step fails."""
    if not final.exists():
        new.rename(final)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent))
    try:
        final.rename(aside / "old")
        try:
            new.rename(final)
        except BaseException:
            (aside / "old").rename(final)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _make_parents(folder: Path) -> list[Path]:
    """Makes `folder` and what is missing above it. Gives what was made, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
    except BaseException:
        for path in reversed(made):
            path.rmdir()
        raise
    return made


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _errors(path: Path, hint: str) -> Iterator[None]:
    """Operating system errors as OutputError."""
    try:
        yield
    except OSError as error:
        what = f"cannot write: {error.strerror or error}"
        raise OutputError(what, where=str(path), hint=f"{hint}, or more space") from error


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except OSError:
        return
