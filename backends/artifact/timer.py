"""Times of a network's steps, taken by machine code: a parallel-for that runs each task alone, between two looks at the
processor's clock. It works with every library of irc, also with one on disk; nothing of Python runs in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from irc.backends.artifact.function import Function
from irc.backends.artifact.load import Network
from irc.errors import UnsupportedError
from irc.targets.target import Target

# What was started before must have ended, and nothing may start early: the barriers of the processors' manuals.
_CLOCK = {
    "x86-64": (
        'call void asm sideeffect "lfence", "~{memory}"()',
        "%NAME = call i64 @llvm.readcyclecounter()",
        'call void asm sideeffect "lfence", "~{memory}"()',
    ),
    "aarch64": (
        'call void asm sideeffect "isb", "~{memory}"()',
        '%NAME = call i64 asm sideeffect "mrs $0, cntvct_el0", "=r,~{memory}"()',
        'call void asm sideeffect "isb", "~{memory}"()',
    ),
}
_EMPTY = 200
_LONG_ENOUGH = 0.02  # seconds between two looks at both clocks, which are a microsecond apart
TIMED, NOTHING = "irc_timed_for", "irc_nothing"

Ticks = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]


def timer_ll(target: Target) -> str:
    """LLVM IR text of a parallel-for that appends begin and end of its task to `user` (first word: how many)."""
    if target.arch not in _CLOCK or "linux" not in target.triple:
        raise UnsupportedError("times of single kernels cannot be taken on this target", where=target.name)

    def clock(name: str) -> list[str]:
        return ["  " + line.replace("NAME", name) for line in _CLOCK[target.arch]]

    return "\n".join(
        [
            'source_filename = "timer"',
            f'target triple = "{target.triple}"',
            "declare i64 @llvm.readcyclecounter()",
            f"define void @{NOTHING}(ptr %frame, i32 %part, i32 %parts) nounwind {{",
            "  ret void",
            "}",
            f"define void @{TIMED}(ptr %user, ptr %task, ptr %frame, i32 %parts) nounwind {{",
            "  %count = load i64, ptr %user",
            *clock("begin"),
            "  call void %task(ptr %frame, i32 0, i32 1)",
            *clock("end"),
            "  %next = add i64 %count, 2",
            "  store i64 %next, ptr %user",
            "  %at = getelementptr i64, ptr %user, i64 %next",
            "  %before = getelementptr i64, ptr %at, i64 -1",
            "  store i64 %begin, ptr %before",
            "  store i64 %end, ptr %at",
            "  ret void",
            "}",
            "",
        ]
    )


class StepTimer:
    """`timer` is the object of `timer_ll`. Use as a context manager; the network runs on one thread meanwhile."""

    def __init__(self, network: Network, timer: bytes, target: Target, steps: int) -> None:
        self._network, self._steps = network, steps
        self._timed = Function(timer, TIMED, target)
        self._nothing = Function(timer, NOTHING, target)
        self._ticks: Ticks = np.zeros(1 + 2 * max(steps + 1, _EMPTY), np.int64)

    def __enter__(self) -> StepTimer:
        return self

    def __exit__(self, *error: object) -> None:
        self._network.use_parallel_for(None, None)
        self._timed.close()
        self._nothing.close()

    def _empty(self) -> Ticks:
        """Begin and end of many tasks that do nothing, [n, 2]."""
        self._ticks[0] = 0
        arguments = self._timed.bind([self._ticks.ctypes.data, self._nothing.address, 0])[:4]
        for _ in range(_EMPTY):
            self._timed(arguments)
        return self._ticks[1 : 1 + 2 * _EMPTY].reshape(-1, 2).copy()

    def _now(self) -> tuple[int, float]:
        """The processor's clock, and the system's in seconds."""
        self._ticks[0] = 0
        self._timed(self._timed.bind([self._ticks.ctypes.data, self._nothing.address, 0])[:4])
        return int(self._ticks[1]), time.perf_counter()

    def seconds(self, run: Callable[[], object], rounds: int) -> tuple[Seconds, Seconds]:
        """Seconds of each parallel step, [rounds, steps], in the order of the program, and of each run in all.

        `run` runs the network once. Between two parallel steps lie serial ones: what passes there is the whole time
        less all steps.
        """
        empty = self._empty()
        nothing = float(np.median(empty[:, 1] - empty[:, 0]))
        spans = np.zeros((rounds, self._steps, 2), np.int64)
        whole = np.zeros(rounds)
        run()
        self._network.use_parallel_for(self._timed.address, self._ticks.ctypes.data)
        ticks_before, seconds_before = self._now()
        for i in range(rounds):
            self._ticks[0] = 0
            begin = time.perf_counter()
            run()
            whole[i] = time.perf_counter() - begin
            if self._ticks[0] != 2 * self._steps:
                raise UnsupportedError(f"{self._ticks[0] // 2} of {self._steps} kernels could be timed")
            spans[i] = self._ticks[1 : 1 + 2 * self._steps].reshape(-1, 2)
        self._network.use_parallel_for(None, None)
        time.sleep(_LONG_ENOUGH)
        ticks_after, seconds_after = self._now()
        rate = (ticks_after - ticks_before) / (seconds_after - seconds_before)
        ticks = spans[:, :, 1] - spans[:, :, 0] - nothing
        return np.maximum(ticks, 0) / rate, whole
