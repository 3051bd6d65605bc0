"""Compiles many kernels in a few persistent worker processes, through the cache."""

from __future__ import annotations

import base64
import errno
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from irc.backends.tvm.cache import Cache, Compiled
from irc.errors import InternalError, IrcError, OutputError
from irc.targets.target import Target

Progress = Callable[[str, int, int], None]


class Worker:
    """One process; restarted after a crash. Its temporary files lie in a folder of its own, which goes with it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to `request`; a crash of the process is an answer with ok False."""
        if self._process is not None and self._process.poll() is not None:
            self._release()
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if not line.endswith("\n"):  # it died, perhaps in the middle of an answer
            code = process.wait()
            trace = self._last_words()
            self._release()
            return {
                "ok": False,
                "error": f"the compiling process ended with status {code}",
                "trace": trace,
                "crash": True,
            }
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process; `_release` closes it
        self._folder = tempfile.TemporaryDirectory(prefix="irc-worker-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "irc.backends.tvm.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "TMPDIR": self._folder.name},
        )

    def _last_words(self) -> str:
        """The end of what the process wrote to standard error."""
        size = self._log.seek(0, 2)
        self._log.seek(max(size - 4000, 0))
        return self._log.read().decode(errors="replace")

    def _release(self) -> None:
        """Forget a process that has ended."""
        assert self._process is not None
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError):  # what was not sent when it died
                if stream is not None:
                    stream.close()
        self._folder.cleanup()
        self._process = None

    def kill(self) -> None:
        """End the process now; an `ask` in another thread is then answered as after a crash."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()  # the end of its input ends it
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()


class Compiler:
    """Kernels and glue for one target. Use as a context manager; workers start when first needed."""

    def __init__(self, target: Target, cache: Cache, workers: int) -> None:
        self.target = target
        self.target_text = json.dumps(asdict(target), sort_keys=True)
        self.cache = cache
        self._workers = [Worker() for _ in range(max(workers, 1))]

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for worker in self._workers:
            if kind is not None:  # nobody waits for what they were doing
                worker.kill()
            worker.close()

    def compile(
        self, requests: dict[str, dict[str, Any]], progress: Progress, describe: Callable[[str], str]
    ) -> tuple[dict[str, Compiled], dict[str, dict[str, Any]]]:
        """Results by key, and the answers of those that failed. `requests`: key -> request,
        without its target where that is this compiler's."""
        done: dict[str, Compiled] = {}
        missing: queue.SimpleQueue[str] = queue.SimpleQueue()
        wanted = 0
        for key in requests:
            found = self.cache.get(key)
            if found is not None:
                done[key] = found
            else:
                missing.put(key)
                wanted += 1
        failed: dict[str, dict[str, Any]] = {}
        lock = threading.Lock()
        stopped = threading.Event()
        progress("kernels", len(done), len(requests))

        def run(worker: Worker) -> None:
            while not stopped.is_set():
                try:
                    key = missing.get_nowait()
                except queue.Empty:
                    return
                reply = worker.ask({"target": self.target_text, **requests[key]})
                with lock:
                    if reply["ok"]:
                        done[key] = Compiled(base64.b64decode(reply["object"]), reply["info"])
                        self.cache.put(key, done[key])
                    else:
                        failed[key] = reply
                    progress("kernels", len(done) + len(failed), len(requests))

        workers = self._workers[: max(wanted, 1)]
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def run_all(worker: Worker) -> None:
            try:
                run(worker)
                ended.put(None)
            except BaseException as error:
                ended.put(error)

        threads = [threading.Thread(target=run_all, args=(w,), daemon=True) for w in workers]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:  # not Thread.join: where that is interrupted, CPython 3.11 takes the thread for ended
                error = ended.get()
                if error is not None:
                    raise error
        except BaseException:  # Ctrl-C: the threads end as soon as their processes do
            stopped.set()
            while any(thread.is_alive() for thread in threads):
                for worker in workers:
                    worker.kill()
                time.sleep(0.01)
            raise
        return done, failed


def reproducer(request: dict[str, Any], target_text: str, error: str) -> Path:
    """A folder with what is needed to see a failed compilation again. Raises OSError, and leaves nothing then."""
    folder = Path(tempfile.mkdtemp(prefix="irc-kernel-"))
    try:
        (folder / "request.json").write_text(json.dumps({"target": target_text, **request}) + "\n")
        (folder / "error.txt").write_text(error + "\n")
        (folder / "README.txt").write_text("python -m irc.backends.tvm.worker < request.json\n")
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def kernel_error(what: str, request: dict[str, Any], target_text: str, reply: dict[str, Any]) -> IrcError:
    """OutputError where the disk was full or a limit on files reached, else InternalError with a reproducer."""
    trace = f"{reply['error']}\n{reply.get('trace', '')}"
    if any(os.strerror(code) in trace for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        return OutputError(
            "no space left for temporary files", where=tempfile.gettempdir(), hint="another folder in TMPDIR"
        )
    try:
        hint = f"the reproducer in {reproducer(request, target_text, trace)}"
    except OSError as error:
        hint = f"it again where temporary files can be written ({error.strerror}), for a reproducer"
    return InternalError(f"a kernel could not be compiled: {reply['error'].splitlines()[0]}", where=what, hint=hint)
