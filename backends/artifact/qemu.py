"""Runs a network for another processor under QEMU's user-mode emulator: the very machine code of the artifact.

Needs the emulator and a C compiler that links for the target (`target.qemu`, `target.linker`). The compiler sees only
a small driver program; the network is the archive that the artifact will hold, linked statically.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from irc.backends.artifact import interface as abi
from irc.backends.artifact.elf import ObjectFile
from irc.backends.artifact.features import obstacle
from irc.backends.artifact.header import header_text
from irc.backends.artifact.link import link
from irc.backends.artifact.load import Network, load_artifact
from irc.backends.artifact.manifest import check_unchanged, ports, read_manifest
from irc.backends.artifact.write import archive_chunks
from irc.backends.program import Port, Program
from irc.errors import DataError, IrcError, OptionError, VerificationError
from irc.ir.types import Array, DType
from irc.targets.catalogue import get_target
from irc.targets.target import Target

# For each sample until the end of the file: reads all inputs, writes all outputs.
_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "@NAME@.h"

static void *aligned(size_t bytes)
{
    size_t align = @UPPER@_WORKSPACE_ALIGN > 64 ? @UPPER@_WORKSPACE_ALIGN : 64;
    char *p = (char *)malloc(bytes + align);
    if (p == NULL) exit(90);
    return p + (align - (size_t)p % align);
}

int main(void)
{
    static @NAME@_ctx ctx;
    const void *inputs[@UPPER@_INPUTS + 1];
    void *outputs[@UPPER@_OUTPUTS + 1];
    void *workspace = aligned(@NAME@_info.workspace_bytes);
    int i, code;
    for (i = 0; i < @UPPER@_INPUTS; i++) inputs[i] = aligned(@NAME@_inputs[i].bytes);
    for (i = 0; i < @UPPER@_OUTPUTS; i++) outputs[i] = aligned(@NAME@_outputs[i].bytes);
    code = @NAME@_init(&ctx, aligned(@NAME@_info.init_ram_bytes), @NAME@_info.init_ram_bytes);
    if (code != IRC_OK) return 100 + code;
    while (getchar() != EOF) { /* a byte before each sample */
        for (i = 0; i < @UPPER@_INPUTS; i++) {
            size_t n = @NAME@_inputs[i].bytes;
            if (fread((void *)inputs[i], 1, n, stdin) != n) return 92;
        }
        /* Float NaNs: what reads the workspace before writing it, or leaves outputs out, is found. */
        memset(workspace, 0xFF, @NAME@_info.workspace_bytes);
        for (i = 0; i < @UPPER@_OUTPUTS; i++) memset(outputs[i], 0xFF, @NAME@_outputs[i].bytes);
        if ((code = @NAME@_run(&ctx, inputs, outputs, workspace)) != IRC_OK) return @RUN_ERROR@ + code;
        for (i = 0; i < @UPPER@_OUTPUTS; i++) {
            size_t n = @NAME@_outputs[i].bytes;
            if (fwrite(outputs[i], 1, n, stdout) != n) return 93;
        }
        if (fflush(stdout) != 0) return 94;
    }
    return 0;
}
"""


_RUN_ERROR = 110
"""Exit code of the driver program for error 0 of NAME_run."""


def missing_tools(target: Target) -> str:
    """Why code for `target` cannot be emulated here; empty when it can."""
    if not target.qemu:
        return f"target {target.name} names no emulator"
    absent = [t for t in (target.qemu, target.linker) if not t or not shutil.which(t)]
    return "not found: " + ", ".join(t or "a linker" for t in absent) if absent else ""


def run_under_qemu(
    program: Program, glue_object: bytes | ObjectFile, feeds: Mapping[str, Array], *, timeout: float = 600.0
) -> dict[str, Array]:
    """Runs one sample. See `Emulated`."""
    with Emulated(program, glue_object, timeout=timeout) as network:
        return network.run(feeds)


def open_artifact(directory: str | os.PathLike[str], *, threads: int | None = None) -> Network | Emulated:
    """The network of an artifact: in this process where the machine fits, else under emulation (with the
    threads that it was compiled with). Raises OptionError, with both reasons, when neither can be done here."""
    facts = read_manifest(Path(directory))["target"]
    reason = obstacle(facts)
    if not reason:
        return load_artifact(directory, threads=threads)
    missing = missing_tools(get_target(facts.get("name", "")))
    if missing:
        raise OptionError(
            f"compiled for target '{facts.get('name')}': {reason}, and it cannot be emulated: {missing}",
            where=str(directory),
            hint="--target native",
        )
    return Emulated.artifact(directory)


class Emulated:
    """A network linked for its target, ready to be run under the emulator. `inputs` and `outputs` describe it.

    `linked` is the glue object, or the merged object of `link`. Raises OptionError when a tool is missing (with its
    name), VerificationError when the network cannot be linked or the emulated program fails.
    """

    def __init__(self, program: Program, linked: bytes | ObjectFile, *, timeout: float = 600.0) -> None:
        obj = linked if isinstance(linked, ObjectFile) else link(program, linked)
        self._prepare(program.name, program.target, program.inputs, program.outputs, timeout)
        with self._cleaned():
            library = Path(self._folder.name, f"lib{self.name}.a")
            with library.open("wb") as file:
                file.writelines(archive_chunks(program, obj))
            self._link(header_text(program), library)
            library.unlink()  # its weights are in the executable now

    @classmethod
    def artifact(cls, directory: str | os.PathLike[str], *, timeout: float = 600.0) -> Emulated:
        """The network of an artifact directory, from its header and static library. Also raises OptionError when the
        directory is no artifact or lacks one of the two."""
        folder = Path(directory)
        manifest = read_manifest(folder)
        name = manifest["name"]
        header, library = folder / "include" / f"{name}.h", folder / "lib" / f"lib{name}.a"
        for path in (header, library):
            if not path.is_file():
                raise OptionError("the artifact lacks a part", where=str(path))
            check_unchanged(folder, manifest, path.relative_to(folder).as_posix())
        self = cls.__new__(cls)
        target = get_target(manifest["target"].get("name", ""))
        self._prepare(name, target, ports(manifest, "inputs"), ports(manifest, "outputs"), timeout)
        with self._cleaned():
            self._link(header.read_text(), library)
        return self

    def _prepare(
        self, name: str, target: Target, inputs: tuple[Port, ...], outputs: tuple[Port, ...], timeout: float
    ) -> None:
        reason = missing_tools(target)
        if reason:
            raise OptionError(f"cannot run code for {target.name} here: {reason}", where=name)
        self.name, self.target, self.inputs, self.outputs = name, target, inputs, outputs
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="irc-qemu-")
        self._executable = Path(self._folder.name, "network")

    @contextmanager
    def _cleaned(self) -> Iterator[None]:
        """Removes the temporary folder when something fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _link(self, header: str, library: Path) -> None:
        folder = Path(self._folder.name)
        (folder / f"{self.name}.h").write_text(header)
        (folder / "main.c").write_text(
            _DRIVER.replace("@RUN_ERROR@", str(_RUN_ERROR))
            .replace("@NAME@", self.name)
            .replace("@UPPER@", self.name.upper())
        )
        command = [self.target.linker, "-static", "-O1", "-o", str(self._executable)]
        self._execute(
            [*command, str(folder / "main.c"), str(library), "-lm", "-lpthread"], "linking for the target failed"
        )

    def __call__(self, *arrays: Array) -> Array | tuple[Array, ...]:
        """Inputs in the order of `self.inputs`; the output, or a tuple of them when there are several."""
        if len(arrays) != len(self.inputs):
            raise DataError("wrong number of inputs", expected=str(len(self.inputs)), got=str(len(arrays)))
        outputs = list(self.run({p.name: a for p, a in zip(self.inputs, arrays, strict=True)}).values())
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name -> arrays by output name. The emulated program stays for the next call."""
        data = b"\0" + self._pack(feeds)
        with self._lock:
            out = self._exchange(data)
        outputs, at = {}, 0
        for port in self.outputs:
            raw = np.frombuffer(out, np.uint8, port.nbytes, at)
            outputs[port.name] = raw.view(DType(port.dtype).numpy).reshape(port.shape).copy()
            at += port.nbytes
        return outputs

    def _exchange(self, data: bytes) -> bytes:
        """Sends one sample, gives the bytes of its outputs. The program reads everything before it writes."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        expected = sum(p.nbytes for p in self.outputs)
        timer = threading.Timer(self._timeout, process.kill)
        timer.start()
        try:
            process.stdin.write(data)
            process.stdin.flush()
            out = process.stdout.read(expected)
        except BrokenPipeError:
            out = b""
        finally:
            timer.cancel()
        if len(out) != expected or (expected == 0 and process.poll() is not None):
            code = process.wait()
            self._process = None
            raise VerificationError("the emulated network failed", where=self.name, got=_reason(code, self._timeout))
        return out

    def _start(self) -> subprocess.Popen[bytes]:
        command = [self.target.qemu]
        if self.target.qemu_cpu:
            command += ["-cpu", self.target.qemu_cpu]
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(
                [*command, str(self._executable)], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise IrcError("cannot start the emulator", where=self.target.qemu, got=str(error)) from error

    def _pack(self, feeds: Mapping[str, Array]) -> bytes:
        parts = []
        for port in self.inputs:
            array = feeds.get(port.name)
            wanted = DType(port.dtype).numpy
            if array is None or array.shape != port.shape or array.dtype != wanted:
                got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise DataError(
                    "wrong array", where=f"input {port.name!r}", expected=f"{port.dtype}{list(port.shape)}", got=got
                )
            parts.append(array.tobytes())
        return b"".join(parts)

    def _execute(self, command: list[str], what: str) -> None:
        try:
            done = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C"})
        except OSError as error:
            raise IrcError(what, where=command[0], got=str(error)) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            telling = [line for line in lines if "error" in line] or lines[-1:] or [f"exit code {done.returncode}"]
            raise VerificationError(what, where=command[0], got=telling[0])

    def close(self) -> None:
        """Ends the emulated program and removes it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._folder.cleanup()

    def __enter__(self) -> Emulated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reason(code: int, timeout: float) -> str:
    """An exit code in words."""
    if code == -signal.SIGKILL:
        return f"no end within {timeout:g} s"
    if code < 0:
        return signal.strsignal(-code) or f"signal {-code}"
    name = abi.ERRORS.get(code - _RUN_ERROR, ("", ""))[0]
    return f"exit code {code}" + (f" ({name})" if name else "")
