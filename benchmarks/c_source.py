"""C source (`--target c`) beside the same networks through LLVM, and beside the source of emx-onnx-cgen.

    python benchmarks/c_source.py [--models FOLDER] [--emx emx-onnx-cgen] [NAME...]

Without names: the float models of the MLPerf Tiny four in IRC_DATA. Instructions: of one inference (two runs less one)
under `qemu-x86_64 -cpu qemu64`, so with SSE2 at most, counted by a plugin. The source is compiled by `gcc -O2`; beside
it stands the library for x86-64 with the kernels of SSE2.

Sizes, where emx-onnx-cgen (PyPI) is installed: `size` of the object less the bytes of the weights, with -Os and -O2,
for this machine and, where arm-none-eabi-gcc is found, for Cortex-M4; RAM: ours is workspace, context and the three
largest stack frames, which is more than any chain of calls takes; the peer's its static data, what it allocates and its
largest frame. "limits": the source that `--flash` or `--ram` gives, without Winograd's transforms, whose code and
weights are larger; it stands there where it differs. Tables in Markdown.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from common import data_dir
from instructions import compiled_plugin
from prepare import ports

from irc.backends.artifact.glue import glue_ll
from irc.backends.artifact.header import header_text
from irc.backends.artifact.link import link
from irc.backends.artifact.write import archive_chunks
from irc.backends.c.source import source_text
from irc.backends.program import Program
from irc.backends.tvm.build import assemble_glue, build_program
from irc.driver.load import load_static
from irc.driver.options import CompileOptions
from irc.ir.clone import clone
from irc.targets import get_target
from irc.targets.target import Target

MAIN = r"""
#include <stdlib.h>
#include "net.h"
int main(int n, char **v)
{
    static net_ctx ctx;
    const void *in[NET_INPUTS + 1];
    void *out[NET_OUTPUTS + 1];
    void *workspace = aligned_alloc(64, (NET_WORKSPACE_BYTES + 127) / 64 * 64);
    (void)v;
    for (int i = 0; i < NET_INPUTS; i++) in[i] = calloc(1, net_inputs[i].bytes + 1);
    for (int i = 0; i < NET_OUTPUTS; i++) out[i] = calloc(1, net_outputs[i].bytes + 1);
    if (net_init(&ctx, NULL, 0) != IRC_OK) return 1;
    for (int i = 0; i < n; i++) if (net_run(&ctx, in, out, workspace) != IRC_OK) return 2;
    return 0;
}
"""
M4 = ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
HOST = ("gcc",)
FLOAT_MODELS = ["ad01_fp32", "kws_dscnn_fp32", "ic_resnet8_fp32", "vww_mobilenet_v1_025_fp32"]
CONTEXT = 64
"""Bytes of the context at most."""


def instructions(program: Path, plugin: Path) -> int:
    def count(*more: str) -> int:
        command = ["qemu-x86_64", "-cpu", "qemu64", "-plugin", str(plugin), str(program), *more]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(re.findall(r"instructions: (\d+)", done.stderr)[-1])

    return count("again") - count()


def compiled(model: Path, target: Target) -> Program:
    options = CompileOptions(model=model, target=target, name="net")
    return build_program(clone(load_static(options)), target, name="net")


def write_sources(program: Program, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.h").write_text(header_text(program))
    (folder / "main.c").write_text(MAIN)
    if program.target.arch == "c":
        (folder / "net.c").write_text(source_text(program))
        return
    linked = link(program, assemble_glue(glue_ll(program), program.target))
    with (folder / "libnet.a").open("wb") as file:
        file.writelines(archive_chunks(program, linked))


def executable(folder: Path, *parts: str) -> Path:
    command = ["gcc", "-std=gnu11", "-O2", "-static", "-o", "network", "main.c", *parts, "-lm"]
    subprocess.run(command, check=True, cwd=folder)
    return folder / "network"


@dataclass(frozen=True)
class Size:
    """Bytes of code with descriptions, of static data, and of stack frames, the largest first."""

    code: int
    data: int
    frames: list[int]


def size_of(source: Path, *compiler: str) -> Size:
    """Of an object compiled from `source`. Weights are what is called so in both sources."""
    folder = source.parent
    command = [*compiler, "-std=gnu99", "-w", "-fstack-usage", "-c", source.name, "-o", "size.o"]
    subprocess.run(command, check=True, cwd=folder)
    text = subprocess.run(["size", "size.o"], check=True, cwd=folder, capture_output=True, text=True).stdout
    frames = [int(line.split("\t")[1]) for line in (folder / "size.su").read_text().splitlines()]
    symbols = subprocess.run(["nm", "-S", "size.o"], check=True, cwd=folder, capture_output=True, text=True).stdout
    weights = re.findall(r"^\w+ (\w+) [rR] weights?_?\d*", symbols, re.MULTILINE)
    code, data, bss = map(int, text.splitlines()[-1].split()[:3])
    return Size(code - sum(int(size, 16) for size in weights), data + bss, sorted(frames, reverse=True))


def peer(emx: str, model: Path, folder: Path) -> tuple[Path, int]:
    """The peer's source, and bytes of the arrays that it allocates."""
    source = folder / "peer.c"
    command = [emx, "compile", "--large-weight-threshold", "0"]
    for port in ports(model):
        command += ["--input-dim", f"{port.name}:0=1"]
    done = subprocess.run([*command, str(model), str(source)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{emx} has not compiled {model.name}: {done.stderr.strip()[-300:]}")
    text = source.read_text()
    if "#include <stdlib.h>" not in text:
        source.write_text(text.replace("#include <string.h>", "#include <string.h>\n#include <stdlib.h>", 1))
    arrays = re.findall(r"^ +float \(\*tmp\w+\)((?:\[\d+\])+) = malloc", text, re.MULTILINE)
    return source, sum(4 * math.prod(map(int, re.findall(r"\d+", dims))) for dims in arrays)


def counted(name: str, source: Path, model: Path, plugin: Path) -> str:
    """The row of instructions of a network whose source is there."""
    ours = instructions(executable(source, "net.c"), plugin)
    folder = source.parent / "llvm"
    write_sources(compiled(model, replace(get_target("x86-64"), upgrades=())), folder)
    theirs = instructions(executable(folder, "libnet.a"), plugin)
    return f"| {name} | {ours:,} | {theirs:,} | {ours / theirs:.2f} |"


def sizes(name: str, emx: str, model: Path, folder: Path) -> list[str]:
    """Rows of sizes of a network: each compiler, each of our sources."""
    other, arrays = peer(emx, model, folder)
    target = get_target("c")
    rows: list[str] = []
    steps: list[str] = []
    for kind, used in (("", target), (", limits", replace(target, l2_bytes=0))):
        program = compiled(model, used)
        if steps == [step.symbol for step in program.steps]:
            break
        steps = [step.symbol for step in program.steps]
        write_sources(program, folder / f"c{kind}")
        for machine, compiler in (("this machine", HOST), ("Cortex-M4", M4)):
            if shutil.which(compiler[0]) is None:
                continue
            for level in ("-Os", "-O2"):
                ours = size_of(folder / f"c{kind}" / "net.c", *compiler, level)
                theirs = size_of(other, *compiler, level)
                ram = program.workspace_bytes + CONTEXT + ours.data + sum(ours.frames[:3])
                code = f"{ours.code:,} | {theirs.code:,} | {ours.code / theirs.code:.2f}"
                memory = f"{ram:,} | {arrays + theirs.data + theirs.frames[0]:,}"
                rows.append(f"| {name}{kind} | {machine} {level} | {code} | {memory} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of the models (default: models in IRC_DATA)")
    parser.add_argument("--plugin", type=Path, help="QEMU plugin that counts instructions (default: our own, compiled)")
    parser.add_argument("--emx", default="emx-onnx-cgen", help="path of emx-onnx-cgen")
    parser.add_argument("names", nargs="*", default=FLOAT_MODELS, help="of models, without .onnx")
    args = parser.parse_args()
    folder = args.models or data_dir() / "models"
    if unknown := [name for name in args.names if not (folder / f"{name}.onnx").is_file()]:
        sys.exit(f"no models in {folder}: {', '.join(unknown)}")
    has_peer = shutil.which(args.emx) is not None
    with tempfile.TemporaryDirectory() as made:
        if shutil.which("qemu-x86_64") is None or shutil.which("gcc") is None:
            print("instructions are not counted: needs gcc and qemu-x86_64 (Debian: qemu-user)", file=sys.stderr)
        else:
            plugin = args.plugin or Path(compiled_plugin(Path(made)))
            print("| network | C | LLVM, SSE2 | ratio |\n| --- | ---: | ---: | ---: |")
            for name in args.names:
                model, source = folder / f"{name}.onnx", Path(made, name, "c")
                write_sources(compiled(model, get_target("c")), source)
                print(counted(name, source, model, plugin), flush=True)
        if not has_peer:
            print(f"sizes are not compared: {args.emx} is not installed (PyPI: emx-onnx-cgen)", file=sys.stderr)
            return
        print("\n| network | compiler | code, irc | code, emx-onnx-cgen | ratio | RAM, irc | RAM, emx-onnx-cgen |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for name in args.names:
            place = Path(made, name)
            place.mkdir(exist_ok=True)
            print("\n".join(sizes(name, args.emx, folder / f"{name}.onnx", place)), flush=True)


if __name__ == "__main__":
    main()
