"""The compiled-in thread pool: the same bits, errors, fewer processors than threads, several callers, the end of it."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import toy

from irc.backends.artifact import interface as abi
from irc.backends.artifact import pool
from irc.backends.artifact.link import link_object
from irc.backends.artifact.load import Network, aligned_empty, load_artifact, load_program
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.artifact.shared import shared_library
from irc.backends.artifact.write import write_artifact
from irc.errors import OptionError

pytestmark = pytest.mark.skipif(not toy.runs_natively(), reason="the toy kernels are x86-64 code")

HERE = Path(__file__).parent
MAIN = HERE.parents[2] / "examples" / "c" / "main.c"
OPS = ("exp", "copy", "table", "copy", "exp")
N = 1001  # of no number of threads a multiple


def _network(threads: int, *, arch: str = "x86-64", serial: tuple[int, ...] = (2,)):
    """Steps of all kinds: shared out, on one thread, and such as need not wait."""
    program = toy.chain(*OPS, arch=arch, n=N, parallel=True)
    steps = [dataclasses.replace(s, parallel=i not in serial) for i, s in enumerate(program.steps)]
    return dataclasses.replace(program, steps=tuple(steps), threads=threads)


def _x(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


@pytest.fixture(scope="module")
def two():
    """More than one thread where the machine has more than one processor."""
    program = _network(2)
    with load_program(program, toy.assembled(program)) as network:
        network.poison = False
        yield network


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """pool_program.c around a network with seven threads: called with (processors, threads made, threads wanted)."""
    folder = tmp_path_factory.mktemp("pool")
    network = _network(7)
    write_artifact(network, folder / "net", manifest={}, glue_object=toy.assembled(network))
    executable = folder / "run"
    flags = ["-O1", f"-I{folder / 'net' / 'include'}", f"-L{folder / 'net' / 'lib'}"]
    libraries = ["-lnet", "-lm", "-lpthread", "-ldl"]
    subprocess.run(["gcc", HERE / "pool_program.c", *flags, *libraries, "-o", executable], check=True)

    def run(processors: int, makes: int, threads: int) -> tuple[int, np.ndarray]:
        command = [executable, str(processors), str(makes), str(threads)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        used, data = text.split()
        return int(used), np.frombuffer(bytes.fromhex(data), np.float32)

    return run


@pytest.fixture(scope="module")
def alone(program):
    used, y = program(1, 0, 7)
    assert used == 1
    return y


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 16])
def test_any_number_of_threads_gives_the_same_bits(threads, program, alone):
    used, y = program(40, 99, threads)
    assert used == threads
    np.testing.assert_array_equal(y, alone)


@pytest.mark.parametrize(("processors", "makes", "used"), [(3, 99, 3), (1, 99, 1), (40, 4, 5), (40, 0, 1), (-1, 99, 7)])
def test_fewer_processors_or_threads_than_wanted(processors, makes, used, program, alone):
    """Negative: the system does not say on how many processors the process may run."""
    assert program(processors, makes, 7)[0] == used
    np.testing.assert_array_equal(program(processors, makes, 7)[1], alone)


def test_python_sees_how_many_threads_there_are(two):
    assert two.threads == min(2, len(os.sched_getaffinity(0)))
    two.use_threads(1)
    assert two.threads == 1
    two.use_threads(64)
    assert two.threads == min(64, len(os.sched_getaffinity(0)))
    two.use_threads(2)
    with pytest.raises(OptionError, match="at least 1"):
        two.use_threads(0)


def test_libraries_without_a_pool_take_threads_when_they_are_loaded(tmp_path):
    """The static library has no thread in it, the shared one takes any number."""
    program = _network(1)
    write_artifact(program, tmp_path / "a", manifest={}, glue_object=toy.assembled(program))
    with load_artifact(tmp_path / "a") as one, load_artifact(tmp_path / "a", threads=2) as many:
        assert one.threads == 1
        assert many.threads == min(2, len(os.sched_getaffinity(0)))
        np.testing.assert_array_equal(one(_x()), many(_x()))
    write_artifact(_network(2), tmp_path / "b", manifest={}, glue_object=toy.assembled(_network(2)))
    with load_artifact(tmp_path / "b") as many, load_artifact(tmp_path / "b", threads=1) as one:
        assert many.threads == min(2, len(os.sched_getaffinity(0)))
        assert one.threads == 1


class _Raw:
    """A library with its C functions, as a C program sees them."""

    def __init__(self, program, folder):
        path = folder / "raw.so"
        path.write_bytes(shared_library(link_object(program, toy.assembled(program)), program.target))
        self.library = ctypes.CDLL(str(path))
        self.ctx = (ctypes.c_size_t * abi.CTX_WORDS)()
        self.memory = aligned_empty(1 << 16, 64)
        arguments = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.library.net_init.argtypes = arguments[:3]
        self.library.net_set_threads.argtypes = arguments

    def call(self, name, *args):
        return getattr(self.library, f"net_{name}")(self.ctx, *args)


def test_error_codes(tmp_path):
    raw = _Raw(_network(3), tmp_path)
    ram, enough = raw.memory.ctypes.data, pool.ram_bytes(3)
    assert raw.call("set_threads", ram, enough, 2) == abi.ERROR_UNINITIALISED
    assert raw.call("deinit") == abi.ERROR_UNINITIALISED
    assert raw.call("init", None, 0) == abi.ERROR_RAM
    assert raw.call("init", None, enough) == abi.ERROR_RAM
    assert raw.call("init", ram, enough - 1) == abi.ERROR_RAM
    assert raw.call("init", ram + 8, enough) == abi.ERROR_ALIGN
    assert raw.call("deinit") == abi.ERROR_UNINITIALISED  # an init that failed leaves nothing behind
    assert raw.call("init", ram, enough) == abi.OK
    used = raw.call("threads")
    assert used == min(3, len(os.sched_getaffinity(0)))
    for threads in (0, -1, pool.MOST_THREADS + 1):
        assert raw.call("set_threads", ram, enough, threads) == abi.ERROR_ARGUMENT
    assert raw.call("set_threads", ram, enough, 4) == abi.ERROR_RAM
    assert raw.call("set_threads", None, 0, 2) == abi.ERROR_RAM
    assert raw.call("set_threads", ram + 32, enough, 2) == abi.ERROR_ALIGN
    assert raw.call("threads") == used  # on an error the pool is as it was
    assert raw.call("set_threads", None, 0, 1) == abi.OK
    assert raw.call("threads") == 1
    assert raw.call("deinit") == abi.OK
    assert raw.call("deinit") == abi.ERROR_UNINITIALISED
    assert raw.library.net_threads(None) == 1
    assert raw.library.net_deinit(None) == abi.ERROR_NULL


def test_the_callers_parallel_for_wins(two):
    seen = []
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    def parallel_for(_user, task, data, n):
        seen.append(n)
        for part in range(n):
            task_type(task)(data, part, n)

    before = two(_x())
    address = ctypes.cast(parallel_for, ctypes.c_void_p)
    function = two._library[f"{two.name}_set_parallel"]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    assert function(two._ctx, address, None, 3) == abi.OK
    np.testing.assert_array_equal(two(_x()), before)
    assert seen == [3] * (len(OPS) - 1)
    assert function(two._ctx, None, None, 1) == abi.OK
    np.testing.assert_array_equal(two(_x()), before)
    assert len(seen) == len(OPS) - 1


def test_two_contexts_at_once_and_one_context_for_many(two):
    """Who finds the pool taken runs alone."""
    program = _network(2)
    failures: list[object] = []

    def work(network: Network, seed: int) -> None:
        want = expected[seed]
        for _ in range(200):
            if not np.array_equal(network(_x(seed)), want):
                failures.append(seed)

    expected = [two(_x(seed)) for seed in range(4)]
    with load_program(program, toy.assembled(program)) as other:
        other.poison = False
        work_of = [(two, 0), (other, 1), (two, 2), (other, 3)]
        threads = [threading.Thread(target=work, args=pair) for pair in work_of]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not failures


def _tasks() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def test_no_thread_stays_behind(two):
    glue = toy.assembled(_network(2))
    before = _tasks()
    for i in range(40):
        with load_program(_network(2), glue, threads=1 + i % 3) as network:
            network(_x())
    assert _tasks() <= before
    for i in range(200):
        two.use_threads(1 + i % 2)
        if i % 3 == 0:
            two(_x())
    two.use_threads(2)
    assert len(_tasks()) <= len(before)


def test_between_runs_the_threads_sleep(two):
    if two.threads == 1:
        pytest.skip("needs two processors")
    two.use_threads(1)
    before = _tasks()
    two.use_threads(2)
    two(_x())
    (worker,) = _tasks() - before
    for _ in range(500):  # it spins for some microseconds; a busy machine may not let it
        state = Path(f"/proc/self/task/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "S":
            return
        time.sleep(0.01)
    raise AssertionError(f"the worker does not sleep: {state}")


def test_after_fork_the_child_runs_alone(two):
    want = two(_x())
    pid = os.fork()
    if pid == 0:
        try:
            same = np.array_equal(two(_x()), want)
            two.use_threads(1)  # forgets the parent's threads
            same = same and np.array_equal(two(_x()), want)
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(two(_x()), want)


CROWDED = """
import os, sys, pathlib
sys.path[:0] = {path!r}
import numpy as np, toy
from test_artifact_pool import _network, _x
from irc.backends.artifact.load import load_program
program = _network(2)
with load_program(program, toy.assembled(program), threads=2) as network:
    want = network(_x())
    one = {{min(os.sched_getaffinity(0))}}
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), one)
    for _ in range(300):
        assert np.array_equal(network(_x()), want)
    network.use_threads(2)
    print(network.threads)
"""


def test_all_threads_on_one_processor():
    """The mask shrinks after the pool was made: threads wait for each other by sleeping, and a new pool has one."""
    script = CROWDED.format(path=[str(HERE)])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


@pytest.mark.parametrize("arch", toy.TARGETS)
def test_what_the_files_say(arch, tmp_path, tool):
    program = _network(3, arch=arch)
    full = write_artifact(program, tmp_path / "a", manifest={}, glue_object=toy.assembled(program))
    assert full["interface"]["threads"] == 3
    assert full["interface"]["init_ram_bytes"] == pool.ram_bytes(3)
    rows = [line.split() for line in tool("nm", "-g", tmp_path / "a" / "lib" / "libnet.a").splitlines()]
    undefined = {r[1] for r in rows if len(r) == 2 and r[0] == "U"}
    assert undefined >= pool.FUNCTIONS
    assert undefined - pool.FUNCTIONS <= {"expf", "sinf", "cosf", "memset"}
    assert {r[2] for r in rows if len(r) == 3} >= {"net_set_threads", "net_threads"}
    assert "-lm -lpthread" in (tmp_path / "a" / "lib" / "pkgconfig" / "net.pc").read_text()
    assert '"m;pthread"' in (tmp_path / "a" / "lib" / "cmake" / "net" / "net-config.cmake").read_text()
    header = (tmp_path / "a" / "include" / "net.h").read_text()
    assert "#define NET_THREADS 3" in header
    assert "net_set_threads" in header


@pytest.mark.parametrize("arch", toy.TARGETS)
def test_the_example_with_a_pool(arch, tmp_path, tool):
    """A static C program, on this machine and under emulation."""
    if arch == "aarch64" and missing_tools(toy.ARM):
        pytest.skip(missing_tools(toy.ARM))
    program = _network(2, arch=arch)
    folder = tmp_path / "a"
    write_artifact(program, folder, manifest={}, glue_object=toy.assembled(program))
    _x().tofile(tmp_path / "x")
    compiler, run = ("gcc", []) if arch == "x86-64" else (toy.ARM.linker, [toy.ARM.qemu, "-cpu", toy.ARM.qemu_cpu])
    flags = ["-std=c89", "-pedantic", "-Wall", "-Werror", "-static", f"-I{folder / 'include'}", f"-L{folder / 'lib'}"]
    tool(compiler, *flags, "-DNETWORK=net", MAIN, "-lnet", "-lm", "-lpthread", "-o", tmp_path / "run")
    text = tool(*run, tmp_path / "run", tmp_path / "x")
    alone = _network(1)
    with load_program(alone, toy.assembled(alone)) as network:
        want = network(_x())
    # 2e-6: the math functions of two C libraries; nine digits are exact
    np.testing.assert_allclose(np.array(text.split(": ")[1].split(), np.float32), want, rtol=2e-6)


def test_many_threads_under_emulation():
    if missing_tools(toy.ARM):
        pytest.skip(missing_tools(toy.ARM))
    program, alone = _network(3, arch="aarch64"), _network(1, arch="aarch64")
    with Emulated(program, toy.assembled(program)) as many, Emulated(alone, toy.assembled(alone)) as one:
        for seed in range(20):
            np.testing.assert_array_equal(many.run({"x": _x(seed)})["y"], one.run({"x": _x(seed)})["y"])


def test_no_pool_without_linux():
    target = dataclasses.replace(toy.X86, triple="x86_64-unknown-none-elf")
    with pytest.raises(OptionError, match="no thread pool for this target"):
        pool.check_threads(2, target)
    pool.check_threads(1, target)
    with pytest.raises(OptionError, match="--threads must be at least 1"):
        pool.check_threads(0, toy.X86)
    bare = dataclasses.replace(_network(1), target=target)
    text = link_object(bare, toy.assembled(bare))
    assert b"pthread" not in text
