"""What entropy coding makes of the weights of real networks: bytes, entropy, and how fast they are decoded.

    python benchmarks/coding.py [--passes none,speed,size] [--tasks ic,kws] [--models FILE.onnx ...]
                                [--json FILE] [--write docs/coding.md]

Tasks are those of the evaluation data (IRC_DATA), calibrated on their calibration split; other models get random
calibration data (bytes and times only). The decoder runs on one core of this machine, the fastest of ten times.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import Array, Task, machine, table

from irc.backends.artifact.coder.choose import coded_program
from irc.backends.artifact.load import load_program
from irc.backends.artifact.storage import blob_rows
from irc.driver.lower import build_in_memory, cache_folder
from irc.driver.options import CompileOptions
from irc.driver.runners import glue_object
from irc.errors import IrcError
from irc.frontend import default_batch, load_model
from irc.targets.catalogue import get_target

TASKS = "ic,kws,vww,ad,cifar,imagenet,mnist"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Row:
    """One network. Bytes of all constants: in memory, in the library, by their entropy."""

    network: str
    passes: str
    raw: int
    coded: int
    bound: float
    ms: float

    def cells(self) -> list[object]:
        over, speed = self.coded / self.bound - 1, self.raw / 1e3 / self.ms
        sizes = (f"{n:,.0f}" for n in (self.raw, self.coded, self.bound))
        return [self.network, self.passes, *sizes, f"{over:+.2%}", f"{self.ms:.2f}", f"{speed:.0f}"]


def measure(name: str, model: Path, passes: str, calibration: dict[str, Array]) -> Row:
    """Compiles in memory, codes, and decodes."""
    data = None if passes == "none" else calibration
    options = CompileOptions(model, get_target("native"), name="network", passes=passes, calibration=data)
    program = coded_program(build_in_memory(options, lambda *_: None)[1], "rans")
    assert program.coded is not None
    bound = sum(row.bound for row in blob_rows(program))
    raw = sum(blob.data.nbytes for blob in program.weights)
    with load_program(program, glue_object(program, cache_folder(options))) as network:
        seconds = min(network.init_seconds() for _ in range(10))
    return Row(name, passes, raw, len(program.coded.data), bound, seconds * 1e3)


def random_calibration(path: Path) -> dict[str, Array]:
    model = load_model(path)
    default_batch(model)
    rng = np.random.default_rng(0)
    found = {}
    for value in model.graph.inputs:
        shape, dtype = (4, *value.static_shape()[1:]), value.tensor.dtype
        is_float = dtype.value.startswith("float")
        array = rng.normal(0, 1, shape) if is_float else rng.integers(0, 100, shape)
        found[value.name] = array.astype(dtype.numpy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", default="none,speed", help="presets, comma separated (default: none,speed)")
    parser.add_argument("--tasks", default=TASKS, help=f"comma separated (default: {TASKS})")
    parser.add_argument("--models", nargs="*", type=Path, default=[], metavar="FILE.onnx")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="replaces the measured part of a page")
    given = parser.parse_args()
    subjects = []
    for name in filter(None, given.tasks.split(",")):
        task = Task.load(name)
        subjects.append((task.model.stem, task.model, {task.input: task.calibration}))
    subjects += [(path.stem, path, random_calibration(path)) for path in given.models]
    rows = []
    for name, path, calibration in subjects:
        for passes in given.passes.split(","):
            try:
                rows.append(measure(name, path, passes, calibration))
            except IrcError as error:
                print(f"{name}, {passes}: {error}", flush=True)
                continue
            print(*rows[-1].cells(), flush=True)
    header = ("network", "preset", "bytes", "coded", "entropy", "over it", "decoded in ms", "MB/s")
    text = table(header, [row.cells() for row in rows])
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2))
    if given.write:
        page = given.write.read_text()
        body = f"{BEGIN}{machine()['cpu']}, one core; `python benchmarks/coding.py`.\n\n{text}\n{END}"
        given.write.write_text(re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: body, page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
