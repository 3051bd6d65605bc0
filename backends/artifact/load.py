"""Runs a compiled network in this process: opens its shared library through ctypes. No compiler, linker or TVM.

    net = load_artifact("model_artifact")
    y = net(x)                      # positional arrays in, one array or a tuple out
    outputs = net.run({"x": x})     # by name

A Network may be used from several threads at once: calls share only constants.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from irc.backends.artifact import elf
from irc.backends.artifact import interface as abi
from irc.backends.artifact.features import check_host, level_names, levels_here, target_facts
from irc.backends.artifact.link import link
from irc.backends.artifact.manifest import check_library, read_manifest
from irc.backends.artifact.pool import ram_bytes
from irc.backends.artifact.shared import shared_chunks
from irc.backends.program import Port, Program
from irc.errors import DataError, InternalError, IrcError, OptionError, OutputError
from irc.ir.types import Array, DType

__all__ = ["Network", "aligned_empty", "load_artifact", "load_program", "read_manifest"]


_FD_FOLDER = "/proc/self/fd"
_paths = itertools.count(1)


class _TensorInfo(ctypes.Structure):
    """irc_tensor_info of the header."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("dims", ctypes.POINTER(ctypes.c_size_t)),
        ("bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int),
        ("reserved", ctypes.c_int),
    ]


class _NetworkInfo(ctypes.Structure):
    """irc_network_info of the header."""

    _fields_ = [
        ("abi_version", ctypes.c_int),
        ("interface_hash", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("ctx_bytes", ctypes.c_size_t),
        ("workspace_bytes", ctypes.c_size_t),
        ("workspace_align", ctypes.c_size_t),
        ("init_ram_bytes", ctypes.c_size_t),
        ("n_inputs", ctypes.c_int),
        ("n_outputs", ctypes.c_int),
        ("inputs", ctypes.POINTER(_TensorInfo)),
        ("outputs", ctypes.POINTER(_TensorInfo)),
    ]


_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
_PARALLEL_FOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


def load_artifact(
    directory: str | os.PathLike[str], *, threads: int | None = None, level: str | None = None
) -> Network:
    """Opens the shared library of an artifact directory. `threads`: default is what it was compiled with. `level`: one
    of the targets that the library holds kernels for; default is the best that this machine runs.

    Raises OptionError when the directory is no artifact, holds no shared library or a damaged one, or was made
    for a machine that this one is not (architecture or CPU features), or where there is no such level.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    name = manifest["name"]
    check_host(manifest["target"], where=str(folder))
    file = folder / "lib" / "shared" / f"lib{name}.so"
    library: Path | str = file
    if not file.is_file():
        raise OptionError(
            "the artifact holds no shared library", where=str(folder), expected=f"lib/shared/lib{name}.so"
        )
    check_library(folder, manifest, f"lib/shared/lib{name}.so")
    fd = None
    if os.path.isdir(_FD_FOLDER):
        try:
            fd = os.open(library, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OptionError("cannot read the library", where=str(library), got=str(error)) from None
        library = _path_of(fd)
    network = Network(library, name, fd=fd, where=str(folder), levels=level_names(manifest["target"]))
    try:
        if level is not None:
            network.use_level(level)
        if threads is not None:
            network.use_threads(threads)
    except BaseException:
        network.close()
        raise
    return network


def _path_of(fd: int) -> str:
    """A path of the open file that no library has had before.

    The loader knows libraries by path and would hand out another one that is still open: of an artifact that was
    replaced, or of a number that was given twice. So each path has a number of its own, written in ways to say nothing.
    """
    number = format(next(_paths), "b")
    return f"{_FD_FOLDER}/{''.join('./' if digit == '1' else '/' for digit in number)}{fd}"


def load_program(
    program: Program, glue_object: bytes, *, threads: int | None = None, level: str | None = None
) -> Network:
    """Links `program` in memory and opens it: for checking results before anything is written.

    Raises OptionError when the program is for another kind of machine, and InternalError when its code crashes: it
    runs once on zeros in a child process first (the kernels of each level do), as a crash in this one would end the
    compiler. Workspace and outputs are filled with ones (float NaNs) before each call: what reads or leaves them as
    they were is found.
    """
    check_host(target_facts(program.target), where=program.name)
    linked = link(program, glue_object, threads=True)
    if not isinstance(linked, elf.ObjectFile):  # targets whose kernels are one module are for other machines
        raise OptionError(f"target '{program.target.name}' cannot run in this process", where=program.name)
    chunks = shared_chunks(linked, program.target, f"lib{program.name}.so")
    network = _open_chunks(chunks, program.name, tuple(t.name for t in program.levels))
    network.poison = True
    try:
        network.trial()
        best = network.level
        for other in levels_here(target_facts(program.target)) if network.levels else ():
            if other != best:
                network.use_level(other)
                network.trial()
        if best is not None:
            network.use_level(level or best)
        if threads is not None:
            network.use_threads(threads)
    except BaseException:
        network.close()
        raise
    return network


def _open_chunks(chunks: Sequence[elf.Bytes], name: str, levels: tuple[str, ...]) -> Network:
    fd = _anonymous_file(chunks)
    if fd is not None:
        return Network(_path_of(fd), name, fd=fd, levels=levels)
    with tempfile.NamedTemporaryFile(prefix="irc-", suffix=".so") as file:
        try:
            file.writelines(chunks)
            file.flush()
        except OSError as error:
            raise OutputError("cannot write a temporary library", where=file.name, got=str(error)) from error
        return Network(Path(file.name), name, levels=levels)  # mapped: the name may go


def _anonymous_file(chunks: Sequence[elf.Bytes]) -> int | None:
    """A file in memory that holds `chunks`. None where the system has no such thing."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        fd = os.memfd_create("irc-network")
    except OSError:
        return None
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.writelines(chunks)
    return fd


# Names of this module are found faster than attributes of others; an address through a buffer takes a sixth of the
# time of array.__array_interface__.
_from_buffer: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_addressof = ctypes.addressof
_ndarray, _empty = np.ndarray, np.empty

_Frame = tuple[Any, Any, ctypes.c_void_p, Array]
"""What one call needs for itself: tables of the inputs' and outputs' addresses, address of the workspace, workspace.
Calls take a frame from a list and put it back, so there are as many as there ever were calls at one time."""


class Network:
    """A network that is ready to run. `inputs` and `outputs` describe the arrays; `levels` are the targets that it has
    kernels for, where it has several."""

    def __init__(
        self, library: Path | str, name: str, *, fd: int | None = None, where: str = "", levels: tuple[str, ...] = ()
    ) -> None:
        """`fd` is a file that stays open as long as the network; `where` names the library in errors."""
        self.name = name
        self.levels = levels
        self.inputs: tuple[Port, ...] = ()
        self.outputs: tuple[Port, ...] = ()
        self.workspace_bytes = 0
        self.poison = False
        self._fd = fd
        self._library: ctypes.CDLL | None = None
        self._deinit: Callable[[Any], int] | None = None
        self._frames: list[_Frame] = []
        try:
            self._library = _open(library, where or str(library))
            self._bind(where or str(library), name)
        except BaseException:
            self.close()
            raise

    def _bind(self, where: str, name: str) -> None:
        assert self._library is not None
        try:
            info = _NetworkInfo.in_dll(self._library, f"{name}_info")
            init = self._library[f"{name}_init_checked"]
            self._set_parallel = self._library[f"{name}_set_parallel"]
            self._run = self._library[f"{name}_run"]
            self._set_threads = getattr(self._library, f"{name}_set_threads", None)
            self._count_threads = getattr(self._library, f"{name}_threads", None)
            deinit = getattr(self._library, f"{name}_deinit", None)
        except (ValueError, AttributeError) as error:
            raise OptionError(f"the library does not hold network {name}", where=where, got=str(error)) from None
        if info.abi_version != abi.ABI_VERSION:
            raise OptionError(
                "the library has another C interface",
                where=where,
                expected=f"version {abi.ABI_VERSION}",
                got=str(info.abi_version),
                hint="compiling the model again with this irc",
            )
        self.inputs = tuple(_port(info.inputs[i]) for i in range(info.n_inputs))
        self.outputs = tuple(_port(info.outputs[i]) for i in range(info.n_outputs))
        self._input_names = tuple(p.name for p in self.inputs)
        self._output_names = tuple(p.name for p in self.outputs)
        self.workspace_bytes = int(info.workspace_bytes)
        self._input_rows = [(i, p, *_row(p)) for i, p in enumerate(self.inputs)]
        self._output_rows = [(i, *_row(p)[:2]) for i, p in enumerate(self.outputs)]
        self._align = int(info.workspace_align)
        self._ctx = ctypes.create_string_buffer(info.ctx_bytes)
        self._ram = aligned_empty(info.init_ram_bytes, self._align)  # of decoded weights, too: kept until the end
        self._pool_ram = self._ram
        init.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        self._init, self._interface = init, info.interface_hash
        self._set_parallel.argtypes = [ctypes.c_void_p, _PARALLEL_FOR, ctypes.c_void_p, ctypes.c_int]
        if self._set_threads is not None:
            self._set_threads.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        _check(init(self._ctx, self._ram.ctypes.data, self._ram.nbytes, info.interface_hash), "init")
        self._deinit = deinit

    def init_seconds(self) -> float:
        """Processor time of preparing another context: with coded weights, of decoding them."""
        ctx = ctypes.create_string_buffer(len(self._ctx))
        ram = aligned_empty(self._ram.nbytes, self._align)
        ram.fill(0)  # its pages are there before the clock starts
        begin = time.thread_time()
        _check(self._init(ctx, ram.ctypes.data, ram.nbytes, self._interface), "init")
        seconds = time.thread_time() - begin
        if self._deinit is not None:
            self._deinit(ctx)
        return seconds

    @property
    def threads(self) -> int:
        """How many threads share the work: at most as many as asked for and as there are processors."""
        if self._library is None or self._count_threads is None:
            return 1
        return int(self._count_threads(self._ctx))

    def use_threads(self, threads: int) -> None:
        """Shares the work among this many threads from now on, or as many as there are processors for this process.
        No call may be under way. Raises OptionError below 1, or where the library has no thread pool."""
        if threads < 1:
            raise OptionError("threads must be at least 1", got=str(threads))
        if self._set_threads is None:
            if threads > 1:
                raise OptionError("the library has no thread pool", where=self.name, hint="compiling the model again")
            return
        ram = aligned_empty(ram_bytes(threads), self._align)
        _check(self._set_threads(self._ctx, ram.ctypes.data, ram.nbytes, threads), "set_threads")
        self._pool_ram = ram  # it lives as long as its threads

    def use_parallel_for(self, function: int | None, user: int | None, parts: int = 1) -> None:
        """Lets machine code at the address `function` (an irc_parallel_for of the header) run the parallel steps; None
        takes it away. No call may be under way."""
        given = ctypes.cast(ctypes.c_void_p(function), _PARALLEL_FOR)
        _check(self._set_parallel(self._ctx, given, user, parts), "set_parallel")

    @property
    def level(self) -> str | None:
        """The target whose kernels run; None where the network has kernels for one only."""
        if self._library is None or not self.levels:
            return None
        number: int = self._library[f"{self.name}_level"](self._ctx)
        return self.levels[number]

    def use_level(self, level: str) -> None:
        """Takes the kernels for `level`, one of `levels`, from now on. No call may be under way. Raises OptionError
        where there is no such level or this machine does not run it."""
        if self._library is None or level not in self.levels:
            raise OptionError(
                f"the network holds no kernels for '{level}'",
                where=self.name,
                expected=", ".join(self.levels) or "no level: it was compiled for one target",
                hint="--target x86-64, which holds several",
            )
        if self._library[f"{self.name}_set_level"](self._ctx, self.levels.index(level)):
            raise OptionError(f"this machine does not run code for '{level}'", where=self.name)

    def trial(self) -> None:
        """Runs once on zeros in a child process. Raises InternalError when that ends in a crash."""
        zeros = [np.zeros(shape, dtype) for _, _, shape, dtype, _ in self._input_rows]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # threads: the child calls nothing that takes locks
                pid = os.fork()
        except (AttributeError, OSError):
            return  # no fork here: the call in this process will tell
        if pid == 0:
            try:
                import resource  # not on Windows, as fork

                faulthandler.disable()
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                self._call(zeros)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            raise InternalError(
                f"the compiled network crashes: {signal.strsignal(number) or 'signal'}",
                where=self.name,
                got=str(number),
            )

    def __call__(self, *arrays: Any) -> Array | tuple[Array, ...]:
        """Inputs in the order of `self.inputs`; the output, or a tuple of them when there are several (or none)."""
        if len(arrays) != len(self.inputs):
            names = ", ".join(p.name for p in self.inputs)
            raise DataError(
                "wrong number of inputs",
                where=self.name,
                expected=f"{len(self.inputs)} ({names})",
                got=str(len(arrays)),
            )
        outputs = self._call(arrays)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Arrays by input name -> arrays by output name. Raises DataError for missing, unknown or misfit arrays."""
        names = self._input_names
        try:
            arrays = [feeds[names[0]]] if len(names) == 1 else [feeds[name] for name in names]
        except KeyError:
            raise self._misnamed(feeds) from None
        if len(feeds) != len(names):
            raise self._misnamed(feeds)
        outputs = self._call(arrays)
        if len(outputs) == 1:
            return {self._output_names[0]: outputs[0]}
        return dict(zip(self._output_names, outputs, strict=True))

    def _misnamed(self, feeds: Mapping[str, Any]) -> DataError:
        names = set(self._input_names)
        what, wrong = ("missing", names - set(feeds)) if names - set(feeds) else ("unknown", set(feeds) - names)
        return DataError(
            f"{what} input {', '.join(map(repr, sorted(wrong)))}",
            where=self.name,
            expected=", ".join(sorted(names)) or "no inputs",
        )

    def _call(self, arrays: Sequence[Any]) -> list[Array]:
        """Checks, allocates the outputs and runs. Written for speed: small networks take a few microseconds."""
        if self._library is None:
            raise OptionError("the network is closed", where=self.name)
        try:
            frame = self._frames.pop()  # nobody else has it until it is put back
        except IndexError:
            frame = self._new_frame()
        sources, results, place, workspace = frame
        inputs = []  # copies must live until the network has run
        for i, port, shape, dtype, misaligned in self._input_rows:
            array = arrays[i]
            if type(array) is not _ndarray or array.dtype is not dtype or array.shape != shape:
                array = _checked(array, port, dtype)
            try:
                address = _addressof(_from_buffer(array))  # raises for what is not contiguous
            except (TypeError, ValueError, BufferError):
                array = _checked(array, port, dtype)
                address = _address(array)
            if address & misaligned:
                array = _checked(array, port, dtype)
                address = _address(array)
            inputs.append(array)
            sources[i] = address
        outputs = []
        for i, shape, dtype in self._output_rows:
            out = _empty(shape, dtype)
            try:
                results[i] = _addressof(_from_buffer(out))
            except (TypeError, ValueError, BufferError):  # empty, or a type that numpy does not export
                results[i] = _address(out)
            outputs.append(out)
        if self.poison:
            workspace.fill(0xFF)
            for out in outputs:
                out.reshape(-1).view(np.uint8).fill(0xFF)
        code = self._run(self._ctx, sources, results, place)
        self._frames.append(frame)
        if code:
            _check(code, "run")
        return outputs

    def _new_frame(self) -> _Frame:
        workspace = aligned_empty(self.workspace_bytes, self._align)
        inputs, outputs = (ctypes.c_void_p * max(1, len(ports)) for ports in (self.inputs, self.outputs))
        return inputs(), outputs(), ctypes.c_void_p(_address(workspace)), workspace

    def close(self) -> None:
        """Gives the library back. The network cannot be called any more. No call may be under way."""
        if self._deinit is not None:
            self._deinit(self._ctx)  # ends the threads, whose code goes now
            self._deinit = None
        if self._library is not None:
            handle, self._library = self._library._handle, None
            self._run = self._set_parallel = self._set_threads = None  # type: ignore[assignment]  # their code is gone
            _dlclose(handle)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_library", None) is not None or getattr(self, "_fd", None) is not None:
            self.close()

    def __repr__(self) -> str:
        ins = ", ".join(f"{p.name}: {p.dtype}{list(p.shape)}" for p in self.inputs)
        outs = ", ".join(f"{p.name}: {p.dtype}{list(p.shape)}" for p in self.outputs)
        return f"<irc network {self.name} ({ins}) -> ({outs})>"


def aligned_empty(size: int, align: int) -> Array:
    """`size` bytes of memory at a multiple of `align`."""
    raw = np.empty(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size]


def _open(library: Path | str, where: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise OptionError("the system cannot load the library", where=where, got=str(error)) from None


def _dlclose(handle: int) -> None:
    dlclose = ctypes.CDLL(None).dlclose
    dlclose.argtypes = [ctypes.c_void_p]
    dlclose(handle)


def _port(info: _TensorInfo) -> Port:
    shape = tuple(info.dims[i] for i in range(info.rank))
    dtype = DType.from_onnx(info.dtype).value
    if not info.quantized:
        return Port(info.name.decode(), dtype, shape)
    return Port(info.name.decode(), dtype, shape, info.scale, info.zero_point)


def _row(port: Port) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, element type, and the bits that are 0 in the address of an aligned element."""
    dtype = DType(port.dtype).numpy
    return port.shape, dtype, dtype.itemsize - 1


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]  # three times as fast as array.ctypes.data
    return address


def _checked(value: Any, port: Port, wanted: np.dtype[Any]) -> Array:
    """`value` as the contiguous array that the network reads. Python numbers and lists take the port's type."""
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value, wanted)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("not an array", where=f"input {port.name!r}", expected=port.dtype, got=str(error)) from None
    if array.dtype != wanted:
        raise DataError(
            "wrong element type",
            where=f"input {port.name!r}",
            expected=port.dtype,
            got=str(array.dtype),
            hint="port.quantization.quantize(array), of the port in `inputs`" if port.scale is not None else "",
        )
    if array.shape != port.shape:
        raise DataError(
            "wrong shape", where=f"input {port.name!r}", expected=str(list(port.shape)), got=str(list(array.shape))
        )
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    # A reshape, as numpy makes a scalar one-dimensional here. Kernels need element alignment only.
    return np.require(array, requirements=["C", "A"]).reshape(port.shape)


def _check(code: int, what: str) -> None:
    if code != abi.OK:
        name, meaning = abi.ERRORS.get(code, ("?", "unknown error"))
        raise IrcError(f"the network's {what} function failed: {meaning}", got=f"{code} ({name})")
