"""Running an artifact on a file of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from irc.calibrate.dataset import Dataset
from irc.calibrate.npz import open_npz
from irc.driver.options import check_file
from irc.driver.subject import network_ports, ports_model, real_run
from irc.export import replacing
from irc.ir.types import Array


def run_artifact(directory: Path, inputs: Path, *, threads: int | None = None) -> dict[str, Array]:
    """Outputs by name: of one run where the arrays have the shapes of the inputs, else of all samples, joined along
    the first axis. Real numbers for quantized inputs are quantized, and outputs are real numbers then.

    Raises DataError; OptionError where `directory` is no artifact.
    """
    from irc.backends.artifact.qemu import open_artifact

    check_file(inputs)
    network = open_artifact(directory, threads=threads)
    ports = network_ports(network.inputs, network.outputs)
    run = real_run(network.run, ports)
    columns = open_npz(inputs)
    if {n: c.shape for n, c in columns.items()} == {p.name: tuple(p.shape) for p in network.inputs}:
        with np.load(inputs) as arrays:
            return dict(run(dict(arrays)))
    data = Dataset.load(inputs, ports_model(directory.name, network.inputs), ports)
    found: dict[str, list[Array]] = {p.name: [] for p in network.outputs}
    for feed in data.feeds():
        for name, array in run(feed).items():
            found[name].append(array)
    joined = {}
    for name, arrays in found.items():
        batched = arrays[0].ndim > 0 and arrays[0].shape[0] == data.batch
        joined[name] = np.concatenate(arrays) if batched else np.stack(arrays)
    return joined


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """An .npz file, whole or not at all. Raises OutputError."""
    named: dict[str, Any] = dict(arrays)
    with replacing(path) as file:
        np.savez(file, **named)
