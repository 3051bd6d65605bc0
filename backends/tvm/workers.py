"""Compiles many kernels in a few persistent worker processes, through the cache."""

from __future__ import annotations

import base64
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from irc.backends.tvm.cache import Cache, Compiled
from irc.errors import InternalError
from irc.targets.target import Target

Progress = Callable[[str, int, int], None]


class Worker:
    """One process; restarted after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to `request`; a crash of the process is an answer with ok False."""
        if self._process is None or self._process.poll() is not None:
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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "irc.backends.tvm.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
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
        self._process = None

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

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.close()

    def compile(
        self, requests: dict[str, dict[str, Any]], progress: Progress, describe: Callable[[str], str]
    ) -> tuple[dict[str, Compiled], dict[str, dict[str, Any]]]:
        """Results by key, and the answers of those that failed. `requests`: key -> request without its target."""
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
        progress("kernels", len(done), len(requests))

        def run(worker: Worker) -> None:
            while True:
                try:
                    key = missing.get_nowait()
                except queue.Empty:
                    return
                reply = worker.ask({**requests[key], "target": self.target_text})
                with lock:
                    if reply["ok"]:
                        done[key] = Compiled(base64.b64decode(reply["object"]), reply["info"])
                        self.cache.put(key, done[key])
                    else:
                        failed[key] = reply
                    progress("kernels", len(done) + len(failed), len(requests))

        threads = [threading.Thread(target=run, args=(w,)) for w in self._workers[: max(wanted, 1)]]
        with _started(threads):
            pass
        return done, failed


@contextmanager
def _started(threads: list[threading.Thread]) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def reproducer(request: dict[str, Any], target_text: str, error: str) -> Path:
    """A folder with what is needed to see a failed compilation again."""
    folder = Path(tempfile.mkdtemp(prefix="irc-kernel-"))
    (folder / "request.json").write_text(json.dumps({**request, "target": target_text}) + "\n")
    (folder / "error.txt").write_text(error + "\n")
    (folder / "README.txt").write_text("python -m irc.backends.tvm.worker < request.json\n")
    return folder


def kernel_error(what: str, request: dict[str, Any], target_text: str, reply: dict[str, Any]) -> InternalError:
    folder = reproducer(request, target_text, str(reply.get("trace", reply["error"])))
    return InternalError(
        f"a kernel could not be compiled: {reply['error'].splitlines()[0]}",
        where=what,
        hint=f"the reproducer in {folder}",
    )
