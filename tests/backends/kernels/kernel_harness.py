"""Compile kernels in this process, open them with the project's own linker, run them between forbidden pages."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import hashlib
import mmap
import os
import resource
import signal
import tempfile
from dataclasses import dataclass

import numpy as np
import spec_reference
import tvm

from irc.backends.artifact import elf
from irc.backends.artifact.shared import shared_chunks
from irc.backends.tvm.codegen import compile_ll
from irc.backends.tvm.kernels.table import build, instructions
from irc.backends.tvm.slim import object_from_ll, slim_ll
from irc.backends.tvm.specs import Spec, to_json
from irc.targets.catalogue import TARGETS, runs_here
from irc.targets.target import Target

PARTS = (1, 2, 3, 7)
SENTINEL = 0xA5
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Case:
    """A kernel with data. `arrays` are flat, in the kernel's order, weights packed; `expected` is the flat output."""

    name: str
    spec: Spec
    arrays: tuple[np.ndarray, ...]
    expected: np.ndarray

    @property
    def written(self) -> np.ndarray:
        return spec_reference.written(self.spec, self.expected.size)


def native_targets() -> list[Target]:
    """Targets whose code this machine runs."""
    return [t for t in TARGETS.values() if runs_here(t)]


def symbol_of(spec: Spec) -> str:
    return "k_" + hashlib.sha256(to_json(spec).encode()).hexdigest()[:16]


@functools.cache
def optimized(spec: Spec, target: Target) -> str:
    """LLVM IR text of the kernel as its object is made from it. The costly part: done once per kernel and target."""
    written = instructions(symbol_of(spec), spec, target)
    return written or slim_ll(compile_ll(build(symbol_of(spec), spec, target), target))


@functools.cache
def compiled(spec: Spec, target: Target) -> bytes:
    return object_from_ll(optimized(spec, target))


def linkable(spec: Spec, target: Target) -> bytes:
    """What a program for the target keeps of the kernel."""
    return optimized(spec, target).encode() if target.linking == "module" else compiled(spec, target)


def assembly(spec: Spec, target: Target) -> str:
    """The instructions of the object."""
    with tempfile.NamedTemporaryFile("w", suffix=".ll") as file:
        file.write(optimized(spec, target))
        file.flush()
        return str(tvm.get_global_func("ffi.Module.load_from_file.ll")(file.name, "ll").inspect_source("asm"))


def open_kernel(spec: Spec, target: Target):
    """The kernel as a function of this process."""
    data = compiled(spec, target)
    fd = os.memfd_create("kernel")
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.writelines(shared_chunks(elf.read_object(data), target))
    try:
        function = getattr(ctypes.CDLL(f"/proc/self/fd/{fd}"), symbol_of(spec))
    finally:
        _kept.append(fd)  # the loader knows libraries by path: an open number is not given twice
    function.restype = None
    return function


_kept: list[int] = []


class Fenced:
    """An array whose last (`end`) or first byte touches a page that must not be touched."""

    def __init__(self, data: np.ndarray, *, end: bool) -> None:
        size = max(data.nbytes, 1)
        pages = -(-size // _PAGE) * _PAGE
        self._map = mmap.mmap(-1, pages + 2 * _PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for at in (base, base + _PAGE + pages):
            if _LIBC.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(_PAGE), 0):
                raise OSError("mprotect")
        self.address = base + _PAGE + (pages - data.nbytes if end else 0)
        kind = ctypes.c_uint8 * data.nbytes
        self.data = np.frombuffer(kind.from_address(self.address), np.uint8).view(data.dtype)
        self.data[:] = data


_LIBC = ctypes.CDLL(None)


def run_fenced(case: Case, target: Target) -> list[tuple[str, np.ndarray]]:
    """(what, output) for all work splits and for arrays at the end and at the start of their pages.

    Runs in a child process: an access outside the arrays is an AssertionError here.
    """
    function = open_kernel(case.spec, target)
    runs = [(end, parts) for end in (True, False) for parts in PARTS]
    nbytes = case.expected.nbytes
    results = mmap.mmap(-1, max(nbytes * len(runs), 1))
    pid = os.fork()
    if pid == 0:
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            shared = np.frombuffer(results, np.uint8)
            for end in (True, False):
                inputs = [Fenced(a, end=end) for a in case.arrays]
                out = Fenced(np.zeros(nbytes, np.uint8), end=end)
                pointers = [ctypes.c_void_p(a.address) for a in (*inputs, out)]
                for i, run in enumerate(runs):
                    if run[0] != end:
                        continue
                    out.data[:] = SENTINEL
                    for part in reversed(range(run[1])):
                        function(*pointers, ctypes.c_int32(part), ctypes.c_int32(run[1]))
                    shared[i * nbytes : (i + 1) * nbytes] = out.data
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFSIGNALED(status), (
        f"{case.name}: access outside the arrays ({signal.strsignal(os.WTERMSIG(status))})"
    )
    assert status == 0, f"{case.name}: the child failed"
    whole = np.frombuffer(results, np.uint8)
    return [
        (f"parts={parts} end={end}", whole[i * nbytes : (i + 1) * nbytes].view(case.expected.dtype).copy())
        for i, (end, parts) in enumerate(runs)
    ]


def run(case: Case, target: Target) -> np.ndarray:
    """The output after one call, elements that are not written 0."""
    function = open_kernel(case.spec, target)
    out = np.zeros_like(case.expected)
    arrays = [np.ascontiguousarray(a) for a in case.arrays]
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (*arrays, out)), ctypes.c_int32(0), ctypes.c_int32(1))
    return out


def check(case: Case, target: Target, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Results as expected (exact for integers), the same bits for every split, nothing else written, no overreads."""
    mask = case.written
    results = run_fenced(case, target)
    first = results[0][1]
    for what, got in results:
        untouched = got[~mask].view(np.uint8)
        assert (untouched == SENTINEL).all(), f"{case.name}, {what}: wrote {np.flatnonzero(untouched != SENTINEL)[:4]}"
        assert got.tobytes() == first.tobytes(), f"{case.name}: {what} gives other bits than {results[0][0]}"
    if case.expected.dtype.kind in "iu":
        np.testing.assert_array_equal(first[mask], case.expected[mask], case.name)
    else:
        np.testing.assert_allclose(first[mask], case.expected[mask], rtol=rtol, atol=atol, err_msg=case.name)
