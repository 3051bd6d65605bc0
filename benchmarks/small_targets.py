"""Cycles, RAM and flash of quantized networks on microcontrollers, from QEMU's boards.

    python benchmarks/small_targets.py [--targets cortex-m4,cortex-m55] [--models ic,kws] [--kinds given,irc]

Evaluation data come from IRC_DATA.

The MLPerf Tiny four: the QDQ twins of the evaluation data ("given"), and the float models quantized by irc on the
calibration split, with int8 inputs and outputs as the twins have them ("irc"). Cycles are estimated by `qemu_cycles.c`
(its head says how); one run is the difference of three runs and one, so that the start of the program does not count.
They repeat exactly. "estimate": by how much the instructions of the manifest, which are estimated from the code alone,
are off.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import Array, Task, data_dir

from irc.backends.artifact.qemu import Emulated
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.driver.runners import glue_object
from irc.pipeline.presets import with_io
from irc.targets import get_target

FLOAT = {
    "ic": "ic_resnet8_fp32",
    "vww": "vww_mobilenet_v1_025_fp32",
    "kws": "kws_dscnn_fp32",
    "ad": "ad01_fp32",
}
TWINS = {"ic": "pretrainedResnet_quant", "vww": "vww_96_int8", "kws": "kws_ref_model", "ad": "ad01_int8"}

CUBE = {"ic": 19.9e6, "vww": 10.7e6, "kws": 5.2e6, "ad": 0.575e6}
"""Cycles on a Cortex-M4 (STM32L4R5) that STMicroelectronics published for X-CUBE-AI in MLPerf Tiny."""

ARENA = {"ad": 3984, "kws": 24272, "ic": 55984, "vww": 103680}
"""Bytes of TensorFlow Lite Micro's arena for the same .tflite files (PyPI tflite-micro), without its stack."""


def counter(folder: Path) -> Path:
    """The plugin, compiled."""
    plugin = folder / "libcycles.so"
    source = Path(__file__).with_name("qemu_cycles.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(source)], check=True)
    return plugin


def counted(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^([a-z ]+): (\d+)$", text, re.MULTILINE)}


def one_run(network: Emulated, feed: dict[str, Array], plugin: str) -> dict[str, int]:
    """Counts of one run: instructions, cycles, and each class."""
    one, three = (counted(network.count(feed, plugin, runs=n)) for n in (1, 3))
    return {name: (value - one.get(name, 0)) // 2 for name, value in three.items()}


def options(task: str, kind: str, target: str, data: Path, cache: Path | None) -> CompileOptions:
    """How a row is compiled: a twin as it is, a float model with `--preset speed --io int8`."""
    model = data / "models" / (f"{TWINS[task]}_qdq.onnx" if kind == "given" else f"{FLOAT[task]}.onnx")
    made = CompileOptions(model, get_target(target), name=task, verify=False, stop_after="kernels", cache_dir=cache)
    if kind == "given":
        return made
    samples = Task.load(task)
    return replace(made, passes=with_io("speed", ["int8"]), calibration={samples.input: samples.calibration})


def row(task: str, kind: str, target: str, data: Path, cache: Path | None, plugin: Path) -> dict[str, float]:
    program = compile_model(options(task, kind, target, data, cache)).program
    assert program is not None
    rng = np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for port in program.inputs:
        bytes_ = port.dtype in ("int8", "uint8")
        low, high = (-128, 128) if port.dtype == "int8" else (0, 256)
        feed[port.name] = (rng.integers(low, high, port.shape) if bytes_ else rng.random(port.shape)).astype(port.dtype)
    core = ",core=m55" if target == "cortex-m55" else ""
    with Emulated(program, glue_object(program, cache)) as network:
        found = one_run(network, feed, f"{plugin}{core}")
        network.run(feed)
        stack = network.stack_bytes or 0
    estimated = (program.instructions or 0) / found["instructions"] - 1
    return {
        **found,
        "estimate": estimated,
        "stack": stack,
        "workspace": program.workspace_bytes,
        "weights": program.weights_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="cortex-m4,cortex-m55")
    parser.add_argument("--models", default="ic,vww,kws,ad")
    parser.add_argument("--kinds", default="given,irc")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--classes", action="store_true", help="how often each class of instructions is executed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plugin = counter(Path(folder))
        print(
            "| model | weights by | target | M cycles | of X-CUBE-AI | M instructions | estimate | workspace | stack |"
        )
        print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for task in args.models.split(","):
            for kind in args.kinds.split(","):
                for target in args.targets.split(","):
                    r = row(task, kind, target, data_dir(), args.cache, plugin)
                    ratio = f"{r['cycles'] / CUBE[task]:.2f}"
                    millions = (
                        f"{r['cycles'] / 1e6:.3f} | {ratio} | {r['instructions'] / 1e6:.3f} | {r['estimate']:+.1%}"
                    )
                    print(f"| {task} | {kind} | {target} | {millions} | {r['workspace']} | {r['stack']} |", flush=True)
                    if args.classes:
                        print("  ", {k: v for k, v in r.items() if k not in ("cycles", "instructions")})


if __name__ == "__main__":
    main()
