"""How many instructions one inference takes on 64-bit Arm, counted by the emulator, beside what other runtimes take.

    python benchmarks/instructions.py [--target neoverse-v1] [--models ic,kws,vww,ad] [--zoo FOLDER]
    python benchmarks/instructions.py --zoo FOLDER --models mobilenet_v2,resnet18

qemu runs the network with a plugin that adds up the instructions of every block it enters. The difference between
three runs and one is that of two runs, without the start of the process. Counts repeat exactly; they see neither stalls
nor cache misses, and so stand for time only roughly.

The last column says by how much the manifest's estimate, which is made from the code alone, is off.

The MLPerf Tiny four of IRC_DATA are compiled as their QDQ twins ("given") and as float models quantized by irc
("irc"); mobilenet_v2.onnx and resnet18.onnx of `--zoo` in float32, and in 8 bits calibrated on random data.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import Array, data_dir, table
from prepare import ports, random_samples

from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.driver.runners import glue_object
from irc.targets import get_target


@dataclass(frozen=True)
class Peer:
    """Instructions of one inference of a peer, and of the leanest one that is known, where that is another."""

    name: str
    count: float
    best: tuple[str, float] | None = None


# Counted with the same plugin under `qemu-aarch64 -cpu max,sve=off` (dot products and 8-bit matrix products), one
# thread: the aarch64 wheels of PyPI, ai-edge-litert 2.3.0 (XNNPACK and KleidiAI), onnxruntime 1.31.1 and ncnn (float32,
# float16 off).
PEERS: Mapping[tuple[str, bool], Peer] = {
    ("ic", True): Peer("LiteRT", 1.20e6),
    ("kws", True): Peer("LiteRT", 0.75e6),
    ("vww", True): Peer("LiteRT", 1.86e6),
    ("ad", True): Peer("LiteRT", 0.0465e6),
    ("mobilenet_v2", True): Peer("onnxruntime", 55.1e6),
    ("resnet18", True): Peer("onnxruntime", 194.8e6),
    ("mobilenet_v2", False): Peer("onnxruntime", 180.9e6, ("ncnn", 93.1e6)),
    ("resnet18", False): Peer("onnxruntime", 665.8e6, ("ncnn", 239.2e6)),
}
"""By network and whether it has 8 bits."""

TINY = ("ic", "kws", "vww", "ad")
ZOO = ("mobilenet_v2", "resnet18")

# The interface of qemu's plugins (docs/devel/tcg-plugins in its sources), as far as it is used: its header is not
# installed everywhere. 0 is QEMU_PLUGIN_INLINE_ADD_U64.
_PLUGIN = r"""
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint64_t id_t_;
__attribute__((visibility("default"))) int qemu_plugin_version = 1;
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, void (*)(id_t_, void *));
extern size_t qemu_plugin_tb_n_insns(const void *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(void *, int, void *, uint64_t);
extern void qemu_plugin_register_atexit_cb(id_t_, void (*)(id_t_, void *), void *);
static uint64_t count;
static void translated(id_t_ id, void *block) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &count, qemu_plugin_tb_n_insns(block));
}
static void ended(id_t_ id, void *data) { fprintf(stderr, "instructions: %" PRIu64 "\n", count); }
__attribute__((visibility("default")))
int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
"""


def missing(target: str = "arm") -> str:
    """What counting lacks on this machine; empty where it can be done."""
    return missing_tools(get_target(target))


def compiled_plugin(folder: Path) -> str:
    """The plugin, compiled by the machine's gcc, unless it is in `folder` already."""
    plugin = folder / "libcount.so"
    if not plugin.is_file():
        source = folder / "count.c"
        source.write_text(_PLUGIN)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(plugin), str(source)], check=True)
    return str(plugin)


def count(artifact: Path, feed: Mapping[str, Array], folder: Path) -> float:
    """Instructions of one run of an artifact for arm. `feed`: one sample; `folder`: for the plugin."""
    with Emulated.artifact(artifact) as network:
        return one_run(network, feed, compiled_plugin(folder))


def one_run(network: Emulated, feed: Mapping[str, Array], plugin: str) -> float:
    """Instructions of one run of a network."""
    sample = {k: np.ascontiguousarray(v) for k, v in feed.items()}
    one, three = (_counted(network.count(sample, plugin, runs=n)) for n in (1, 3))
    return (three - one) / 2


def _counted(text: str) -> int:
    found = re.search(r"instructions: (\d+)", text)
    assert found is not None, text
    return int(found.group(1))


@dataclass(frozen=True)
class Row:
    """A network, who quantized it ("" for float32), and how it is compiled."""

    network: str
    weights: str
    options: CompileOptions


def rows(target: str, names: list[str], zoo: Path | None, cache: Path | None) -> Iterator[Row]:
    from small_targets import options  # the same models and calibration as on microcontrollers

    for name in names:
        if name not in ZOO:
            for kind in ("given", "irc"):
                yield Row(name, kind, options(name, kind, target, data_dir(), cache))
    for name in names:
        if name not in ZOO:
            continue
        assert zoo is not None, "the arguments have been looked at"
        model = zoo / f"{name}.onnx"
        plain = CompileOptions(
            model, get_target(target), name=name, verify=False, stop_after="kernels", cache_dir=cache
        )
        samples = {k: v.reshape(-1, *v.shape[2:]) for k, v in random_samples(ports(model), 16, 0).items()}
        yield Row(name, "irc", replace(plain, passes="speed", calibration=samples))
        yield Row(name, "", plain)


def measured(row: Row, plugin: str, cache: Path | None) -> tuple[float, int | None]:
    """Instructions of one run: counted, and as irc estimates them."""
    program = compile_model(row.options).program
    assert program is not None
    rng = np.random.default_rng(1)
    feed: dict[str, Array] = {}
    for port in program.inputs:
        drawn = rng.integers(0, 128, port.shape) if "int" in port.dtype else rng.standard_normal(port.shape)
        feed[port.name] = drawn.astype(port.dtype)
    with Emulated(program, glue_object(program, cache)) as network:
        return one_run(network, feed, plugin), program.instructions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="neoverse-v1", help="the best one for the CPU that peers are counted on")
    parser.add_argument("--models", help="default: the four, and with --zoo mobilenet_v2 and resnet18")
    parser.add_argument("--zoo", type=Path, help="folder of mobilenet_v2.onnx and resnet18.onnx")
    parser.add_argument("--cache", type=Path, help="kernel cache")
    args = parser.parse_args()
    if lacks := missing(args.target):
        sys.exit(lacks)
    names = args.models.split(",") if args.models else [*TINY, *(ZOO if args.zoo else ())]
    if unknown := [n for n in names if n not in (*TINY, *(ZOO if args.zoo else ()))]:
        sys.exit(f"unknown networks: {', '.join(unknown)} ({', '.join(ZOO)} need --zoo)")
    header = [
        "network",
        "weights by",
        "million instructions",
        "peer",
        "its millions",
        "ratio",
        "to the leanest",
        "estimate",
    ]
    print(table(header, []))
    with tempfile.TemporaryDirectory() as folder:
        plugin = compiled_plugin(Path(folder))
        for row in rows(args.target, names, args.zoo, args.cache):
            mine, estimated = measured(row, plugin, args.cache)
            peer = PEERS[row.network, bool(row.weights)]
            best = peer.best or (peer.name, peer.count)
            cells = [f"{mine / 1e6:.3f}", peer.name, f"{peer.count / 1e6:.3f}", f"{mine / peer.count:.2f}"]
            error = "" if estimated is None else f"{estimated / mine - 1:+.1%}"
            cells = [row.network, row.weights or "float32", *cells, f"{mine / best[1]:.2f} ({best[0]})", error]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
