"""Runs a network for another processor under an emulator: the very machine code of the artifact.

How programs for it are built and started, and what that needs, is in `machines.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
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
from irc.backends.artifact.machines import RUN_ERROR, Machine, instructions, machine_of, missing_tools, sample_file
from irc.backends.artifact.machines import Network as Linked
from irc.backends.artifact.manifest import check_unchanged, ports, read_manifest
from irc.backends.artifact.write import archive_chunks
from irc.backends.program import Program
from irc.errors import DataError, IrcError, OptionError, VerificationError
from irc.ir.types import Array, DType
from irc.targets.catalogue import target_of_manifest
from irc.targets.target import Target


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
    if facts["arch"] == "c":
        from irc.backends.c.compiled import open_source_artifact

        return open_source_artifact(directory)
    reason = obstacle(facts)
    if not reason:
        return load_artifact(directory, threads=threads)
    missing = missing_tools(target_of_manifest(facts))
    if missing:
        raise OptionError(
            f"compiled for target '{facts.get('name')}': {reason}, and it cannot be emulated: {missing}",
            where=str(directory),
            hint="installing that, or linking the library, which is there, into a program for the machine",
        )
    return Emulated.artifact(directory)


class Emulated:
    """A network linked for its target, ready to be run under the emulator. `inputs` and `outputs` describe it.
    Of boards, what the last run took: `stack_bytes` of the stack, `instructions` (each counted as one).

    `linked` is the glue object, or the merged object of `link`. Raises OptionError when a tool is missing (with its
    name), VerificationError when the network cannot be linked or the emulated program fails.
    """

    def __init__(self, program: Program, linked: bytes | ObjectFile, *, timeout: float = 600.0) -> None:
        obj = linked if isinstance(linked, ObjectFile) else link(program, linked)
        network = Linked(
            program.name,
            program.inputs,
            program.outputs,
            program.workspace_bytes,
            abi.init_ram_bytes(program),
            program.alignment,
            abi.interface_hash(program),
        )
        self._prepare(network, program.target, timeout)
        with self._cleaned():
            with self._library.open("wb") as file:
                file.writelines(archive_chunks(program, obj))
            self._machine.build(Path(self._folder.name), header_text(program), self._library, network)
            self._library.unlink()  # its weights are in the executable now

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
        facts = manifest["interface"]
        network = Linked(
            name,
            ports(manifest, "inputs"),
            ports(manifest, "outputs"),
            int(facts["workspace_bytes"]),
            int(facts["init_ram_bytes"]),
            int(facts["workspace_align"]),
            int(facts["hash"], 16),
        )
        self = cls.__new__(cls)
        self._prepare(network, target_of_manifest(manifest["target"]), timeout)
        with self._cleaned():
            shutil.copyfile(library, self._library)
            self._machine.build(Path(self._folder.name), header.read_text(), self._library, network)
            self._library.unlink()
        return self

    def _prepare(self, network: Linked, target: Target, timeout: float) -> None:
        reason = missing_tools(target)
        if reason:
            raise OptionError(f"cannot run code for {target.name} here: {reason}", where=network.name)
        self.name, self.target, self.inputs, self.outputs = network.name, target, network.inputs, network.outputs
        self.stack_bytes: int | None = None
        self.instructions: int | None = None
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="irc-qemu-")
        self._library = Path(self._folder.name, "library.a")
        self._errors = Path(self._folder.name, "errors.txt")
        self._machine: Machine = machine_of(target)

    @contextmanager
    def _cleaned(self) -> Iterator[None]:
        """Removes the temporary folder when something fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __call__(self, *arrays: Array) -> Array | tuple[Array, ...]:
        """Inputs in the order of `self.inputs`; the output, or a tuple of them when there are several."""
        if len(arrays) != len(self.inputs):
            raise DataError("wrong number of inputs", expected=str(len(self.inputs)), got=str(len(arrays)))
        outputs = list(self.run({p.name: a for p, a in zip(self.inputs, arrays, strict=True)}).values())
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, feeds: Mapping[str, Array], *, inside: bool = False) -> dict[str, Array]:
        """Arrays by input name -> arrays by output name. The emulated program stays for the next call. `inside`: on
        boards, inputs and outputs take their places in the workspace."""
        data = self._pack(feeds)
        with self._lock:
            one_shot = self._machine.one_shot
            out = self._once(data, inside=inside)[0] if one_shot else self._exchange(b"\0" + data)
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
            raise self._failed(code, self._errors.read_bytes())
        return out

    def _start(self) -> subprocess.Popen[bytes]:
        command = self._machine.command(Path(self._folder.name))
        pipe = subprocess.PIPE
        try:
            with self._errors.open("wb") as errors:
                return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors)
        except OSError as error:
            raise _no_start(command[0], error) from error

    def count(self, feeds: Mapping[str, Array], plugin: str, *, runs: int) -> str:
        """What a plugin of QEMU prints at the end of a program that runs one sample `runs` times.

        `plugin`: its path, with its options. Raises OptionError where the machine is not emulated by QEMU.
        """
        if not self.target.qemu:
            raise OptionError("programs for this machine cannot be counted", where=self.target.name)
        data, loaded = self._pack(feeds), ("-plugin", plugin)
        if self._machine.one_shot:
            with self._lock:
                return self._once(data, runs=runs, arguments=loaded)[1]
        emulator, *rest = self._machine.command(Path(self._folder.name))
        done = subprocess.run([emulator, *loaded, *rest], input=(b"\0" + data) * runs, capture_output=True)
        if done.returncode:
            raise self._failed(done.returncode, done.stderr)
        return done.stderr.decode(errors="replace")

    def _once(
        self, data: bytes, *, runs: int = 1, inside: bool = False, arguments: tuple[str, ...] = ()
    ) -> tuple[bytes, str]:
        """Runs a one-shot program; the bytes of its outputs, and what the emulator printed."""
        folder = Path(self._folder.name)
        (folder / "in.bin").write_bytes(sample_file(runs, data, inside=inside))
        (folder / "out.bin").unlink(missing_ok=True)
        command = [*self._machine.command(folder), *arguments]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=self._timeout)
        except subprocess.TimeoutExpired:
            raise self._failed(-signal.SIGKILL, b"") from None
        except OSError as error:
            raise _no_start(command[0], error) from error
        expected = sum(p.nbytes for p in self.outputs)
        out = (folder / "out.bin").read_bytes() if (folder / "out.bin").is_file() else b""
        if done.returncode or len(out) != expected + 12:
            raise self._failed(done.returncode, done.stderr)
        self.stack_bytes, ticks = struct.unpack("<IQ", out[expected:])
        self.instructions = instructions(self.target, ticks)
        return out[:expected], done.stderr.decode(errors="replace")

    def _failed(self, code: int, said: bytes) -> VerificationError:
        """`said`: on standard error, whose last line tells why an emulator did not start the program at all."""
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        reason = ": ".join([_reason(code, self._timeout), *last])
        return VerificationError("the emulated network failed", where=self.name, got=reason)

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


def _no_start(command: str, error: OSError) -> IrcError:
    return IrcError("cannot start the emulator", where=command, got=str(error))


def _reason(code: int, timeout: float) -> str:
    """An exit code in words."""
    if code == -signal.SIGKILL:
        return f"no end within {timeout:g} s"
    if code < 0:
        return signal.strsignal(-code) or f"signal {-code}"
    name = abi.ERRORS.get(code - RUN_ERROR, ("", ""))[0]
    return f"exit code {code}" + (f" ({name})" if name else "")
