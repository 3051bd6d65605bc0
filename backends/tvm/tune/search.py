"""The search: kernels by the time they take, for each the best of some candidates by successive halving.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (2016): all candidates
get a few rounds, the slower half goes, the rest gets twice as many rounds, until two are left. The better one then
meets the analytic choice once more, and has to win clearly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from irc.backends.tvm.cache import Compiled, code_digest
from irc.backends.tvm.plan.make import Plan
from irc.backends.tvm.plan.planner import Call
from irc.backends.tvm.specs import Spec, key, to_json
from irc.backends.tvm.tune.candidates import candidates, other_orders
from irc.backends.tvm.tune.classes import choice_of, class_key, describe, measured_on, tuned_fields, with_choice
from irc.backends.tvm.tune.measure import Bench
from irc.backends.tvm.tune.records import Record, Records
from irc.backends.tvm.workers import Compiler
from irc.targets.target import Target

Progress = Callable[[str, int, int], None]

_LIGHT = 0.004  # share of all measured time below which a kernel is not looked at
_FIRST_ROUNDS = 8
_FINAL_ROUNDS = 60
_CLEAR = 1.01  # times faster, at least, to replace the analytic choice


@dataclass
class Layer:
    """A class of kernels in a plan: one of its calls stands for all `calls` of them."""

    call: Call
    calls: int
    seconds: float = 0.0  # of one call with the analytic choice

    @property
    def weight(self) -> float:
        return self.seconds * self.calls


@dataclass
class Found:
    """What a search came to. `interrupted`: Ctrl-C; the records are those until then."""

    records: list[Record] = field(default_factory=list)
    layers: int = 0
    measured: int = 0
    interrupted: KeyboardInterrupt | None = None


class Search:
    """Measures the kernels of `plan`, which was made without records. `known`: what was found earlier.

    `batch` kernels are compiled at a time.
    """

    def __init__(
        self, plan: Plan, target: Target, known: Records, compiler: Compiler, batch: int, progress: Progress
    ) -> None:
        self._plan, self._target, self._known = plan, target, known
        self._compiler, self._batch, self._progress = compiler, batch, progress
        self._code = code_digest()
        weights = {p.storage for c in plan.calls for p in c.args if plan.planner.storages[p.storage].kind == "weights"}
        self._traffic = sum(plan.planner.storages[n].nbytes for n in weights)

    def run(self, seconds: float) -> Found:
        """Search for about `seconds`, heaviest kernels first. Ctrl-C ends it early."""
        end = time.perf_counter() + seconds
        found = Found()
        try:
            layers = self._weigh(end)
            found.layers = len(layers)
            for i, layer in enumerate(layers):
                self._progress("tune", i, len(layers))
                now = time.perf_counter()
                rest = sum(other.weight for other in layers[i:])
                share = (end - now) * layer.weight / rest
                if i and now >= end:
                    break
                found.records.append(self._best(layer, now + max(share, 0.2)))
                found.measured += 1
            self._progress("tune", len(layers), len(layers))
        except KeyboardInterrupt as signal:
            found.interrupted = signal
        return found

    def _weigh(self, end: float) -> list[Layer]:
        """The classes that have something to choose and take time worth it, heaviest first."""
        classes: dict[str, Layer] = {}
        for call in self._plan.calls:
            if not tuned_fields(call.spec):
                continue
            name = class_key(call.spec, self._target)
            classes.setdefault(name, Layer(call, 0)).calls += 1
        layers = list(classes.values())
        objects = self._compile([layer.call.spec for layer in layers])
        for i, layer in enumerate(layers):
            self._progress("weigh", i, len(layers))
            spec = layer.call.spec
            if spec in objects and (i == 0 or time.perf_counter() < end):
                with self._bench(layer.call) as bench, _pinned():
                    bench.add(spec, *objects[spec])
                    layer.seconds = float(np.median(bench.times([spec], 5, end)[spec]))
        total = sum(layer.weight for layer in layers)
        heavy = [layer for layer in layers if layer.weight > _LIGHT * total]
        return sorted(heavy, key=lambda layer: -layer.weight)

    def _bench(self, call: Call) -> Bench:
        return Bench(self._plan, self._target, call, self._traffic)

    def _compile(self, specs: Sequence[Spec]) -> dict[Spec, tuple[bytes, str]]:
        """(object, symbol) of each that can be compiled. Through the cache."""
        keys = {spec: key(spec, self._target, self._code) for spec in specs}
        requests = {
            k: {"kind": "kernel", "spec": to_json(spec), "symbol": "irc_k_" + k[:24]} for spec, k in keys.items()
        }
        done: Mapping[str, Compiled]
        done, _ = self._compiler.compile(requests, lambda what, n, total: None, lambda k: k)
        return {spec: (done[k].data, "irc_k_" + k[:24]) for spec, k in keys.items() if k in done}

    def _best(self, layer: Layer, deadline: float) -> Record:
        """Candidates come in batches as long as half of the time is left; then they are measured."""
        analytic = layer.call.spec
        wanted = candidates(analytic, self._target)
        earlier = self._known.find(analytic, self._target)
        before = None if earlier is None else with_choice(analytic, earlier.choice)
        if before is not None:
            wanted = list(dict.fromkeys([analytic, before, *wanted]))
        with self._bench(layer.call) as bench:
            ready: list[Spec] = []
            started = time.perf_counter()
            self._add(bench, [analytic], ready)
            self._add_in_time(bench, wanted[1:], ready, started + (deadline - started) * 0.5)
            left = self._halve(bench, ready, deadline - (deadline - started) * 0.2)
            more = [spec for spec in other_orders(left) if spec not in ready]
            if more and time.perf_counter() < deadline:
                fresh: list[Spec] = []
                self._add(bench, more, fresh)
                left = self._halve(bench, [*left, *fresh], deadline)
            winner = next((spec for spec in left if spec != analytic), analytic)
            return self._decide(bench, analytic, winner, deadline)

    def _add(self, bench: Bench, specs: Sequence[Spec], ready: list[Spec]) -> None:
        ready.extend(spec for spec, made in self._compile(specs).items() if bench.add(spec, *made))

    def _add_in_time(self, bench: Bench, specs: list[Spec], ready: list[Spec], deadline: float) -> None:
        for at in range(0, len(specs), self._batch):
            if time.perf_counter() >= deadline:
                return
            self._add(bench, specs[at : at + self._batch], ready)

    def _halve(self, bench: Bench, specs: list[Spec], deadline: float) -> list[Spec]:
        """The best two, better first."""
        rounds, left = _FIRST_ROUNDS, specs
        with _pinned():
            while True:
                times = bench.times(left, rounds, deadline)
                left = sorted(left, key=lambda spec: _typical(times[spec]))
                if len(left) <= 2 or time.perf_counter() > deadline:
                    return left[:2]
                left, rounds = left[: max(2, (len(left) + 1) // 2)], rounds * 2

    def _decide(self, bench: Bench, analytic: Spec, winner: Spec, deadline: float) -> Record:
        """A last duel; the analytic choice keeps its place when it is not clearly lost."""
        pair = [analytic, winner] if winner != analytic else [analytic]
        with _pinned():
            times = bench.times(pair, _FINAL_ROUNDS, max(deadline, time.perf_counter() + 0.1))
        before, after = _typical(times[analytic]), _typical(times[winner])
        if before < after * _CLEAR:
            winner, after = analytic, before
        return Record(
            kernel=class_key(analytic, self._target),
            target=measured_on(analytic, self._target),
            code=self._code,
            choice=choice_of(winner),
            analytic=choice_of(analytic),
            seconds=after,
            analytic_seconds=before,
            text=describe(analytic),
        )


def _typical(times: Sequence[float]) -> float:
    """The lower quartile: what a call takes when nothing else disturbs it, without the luck of a minimum."""
    return float(np.percentile(times, 25))


@contextmanager
def _pinned() -> Iterator[None]:
    """On one core, where the system can do that; only while measuring, as new processes inherit it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
