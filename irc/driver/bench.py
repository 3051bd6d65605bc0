"""Latency of a compiled model beside other runtimes, all in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irc.driver import runners
from irc.driver.lower import Progress, build_in_memory, cache_folder
from irc.driver.options import CompileOptions, check_file
from irc.driver.samples import verification_feeds
from irc.errors import IrcError, OptionError, suggest
from irc.evaluation.latency import Latency, measure
from irc.ir.graph import Model
from irc.ir.quantization import Ports
from irc.ir.types import Array
from irc.targets import get_target

PEERS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Bench:
    """`latencies`: irc's first."""

    latencies: list[Latency]

    def to_json(self) -> list[dict[str, Any]]:
        base = self.latencies[0].median
        return [row.to_json() | {"times_irc": round(row.median / base, 4)} for row in self.latencies]


def check_peers(peers: Sequence[str]) -> None:
    """Raises OptionError for a runtime that is unknown or not installed."""
    from importlib.util import find_spec

    for peer in peers:
        if peer not in PEERS:
            raise OptionError(f"there is no runtime '{peer}' to compare with", hint=suggest(peer, PEERS))
        if find_spec(peer) is None:
            raise OptionError(f"{peer} is not installed", hint=f"pip install {peer}")


def bench(
    subject: Path,
    peers: Sequence[str] = (),
    *,
    passes: str = "none",
    target: str = "native",
    calibration: Path | None = None,
    statistics: Path | None = None,
    peer_model: Path | None = None,
    shapes: Mapping[str, Sequence[int]] = {},
    dims: Mapping[str, int] = {},
    threads: int = 1,
    seconds: float = 2.0,
    cache_dir: Path | None = None,
    workers: int = 0,
    tuning: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Bench:
    """Interleaved latencies. A model is compiled in memory first, without being verified or written."""
    check_peers(peers)
    if threads < 1:
        raise OptionError("--threads must be at least 1", got=str(threads))
    run, model, ports = (
        _artifact(subject, threads, peers, peer_model)
        if subject.is_dir()
        else _compiled(
            CompileOptions(
                subject,
                get_target(target),
                passes=passes,
                calibration=calibration,
                statistics=statistics,
                shapes=shapes,
                dims=dims,
                threads=threads,
                cache_dir=cache_dir,
                workers=workers,
                tuning=tuning,
            ),
            progress,
        )
    )
    feed = verification_feeds(model, None, 1, 0)[0]
    with_peers: dict[str, Callable[[], object]] = {"irc": lambda: run(feed)}
    for peer in peers:
        theirs = feed if peer_model is None else _fitting(peer_model, ports, feed)
        with_peers[peer] = _peer(peer, peer_model or model, theirs, threads)
    with pinned(threads):
        return Bench(measure(with_peers, seconds=seconds))


Run = Callable[[dict[str, Array]], Mapping[str, Array]]


def _compiled(options: CompileOptions, progress: Progress) -> tuple[Run, Model, Ports]:
    model, program = build_in_memory(options, progress)
    network = runners.in_process(program, cache_dir=cache_folder(options), threads=options.threads)
    return network.run, model, Ports.of(model.graph)


def _artifact(path: Path, threads: int, peers: Sequence[str], peer_model: Path | None) -> tuple[Run, Model, Ports]:
    from irc.backends.artifact.load import load_artifact
    from irc.driver.subject import artifact_model, network_ports, ports_model

    network = load_artifact(path, threads=threads)
    ports = network_ports(network.inputs, network.outputs)
    if peers and peer_model is None:
        return network.run, artifact_model(path), ports
    return network.run, ports_model(path.name, network.inputs), ports


def _fitting(model: Path, ports: Ports, feed: dict[str, Array]) -> dict[str, Array]:
    """`feed` with real numbers where a peer's own model takes them and the network its integers."""
    from irc.frontend import load_model

    check_file(model)
    real = {v.name for v in load_model(model).graph.inputs if v.dtype is not None and v.dtype.is_float}
    return feed | ports.real_feed({name: array for name, array in feed.items() if name in real})


def _peer(name: str, model: Model | Path, feed: dict[str, Array], threads: int) -> Callable[[], object]:
    """A closure that runs one inference of another runtime, set up as its documentation advises for latency."""
    if isinstance(model, Path):
        check_file(model)
    if name == "onnxruntime":
        from irc.evaluation.oracle import Oracle

        oracle = Oracle(model, optimize=True, threads=threads)
        return lambda: oracle.run(feed)
    return _openvino(model, feed, threads)


def _openvino(model: Model | Path, feed: dict[str, Array], threads: int) -> Callable[[], object]:
    import openvino

    from irc.export import to_bytes

    core = openvino.Core()
    try:
        read = core.read_model(str(model)) if isinstance(model, Path) else core.read_model(to_bytes(model), b"")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(read, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise IrcError("openvino cannot compile this model", got=str(error).strip().splitlines()[-1][:300]) from error
    return lambda: request.infer(feed)


class pinned:
    """Keeps the process on as many cores as there are threads, where the system can do that."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._before: set[int] | None = None

    def __enter__(self) -> None:
        if hasattr(os, "sched_setaffinity"):
            self._before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, set(sorted(self._before)[-self._threads :]))

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            os.sched_setaffinity(0, self._before)
