"""C source (`--target c`) beside the same networks through LLVM, and beside the code of emx-onnx-cgen.

    python benchmarks/c_source.py --models FOLDER [--plugin libicount.so] [--emx emx-onnx-cgen] NAME...

Instructions: of one inference (two runs less one) under `qemu-x86_64 -cpu qemu64`, so with SSE2 at most, counted by a
plugin that prints "instructions: N". The source is compiled by `gcc -O2`; beside it stands the library for x86-64 with
the kernels of SSE2. Sizes: `size` of the object less the bytes of the weights,
with -Os and -O2, for this machine and for Cortex-M4; RAM: workspace and the largest stack frame against the temporary
arrays of the peer. A table in Markdown for each.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

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


def code_bytes(source: Path, *compiler: str) -> tuple[int, int]:
    """(bytes of code and descriptions, largest stack frame). Weights are what is called so in both sources."""
    folder = source.parent
    command = [*compiler, "-std=gnu99", "-w", "-fstack-usage", "-c", source.name, "-o", "size.o"]
    subprocess.run(command, check=True, cwd=folder)
    text = subprocess.run(["size", "size.o"], check=True, cwd=folder, capture_output=True, text=True).stdout
    frames = [int(line.split("\t")[1]) for line in (folder / "size.su").read_text().splitlines()]
    symbols = subprocess.run(["nm", "-S", "size.o"], check=True, cwd=folder, capture_output=True, text=True).stdout
    weights = re.findall(r"^\w+ (\w+) [rR] weights?_?\d+", symbols, re.MULTILINE)
    return int(text.splitlines()[-1].split()[0]) - sum(int(size, 16) for size in weights), max(frames)


def peer(emx: str, model: Path, folder: Path) -> tuple[Path, int]:
    """The peer's source, and bytes of its temporary arrays."""
    source = folder / "peer.c"
    command = [emx, "compile", "--large-weight-threshold", "0", str(model), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    text = source.read_text()
    if "#include <stdlib.h>" not in text:
        source.write_text(text.replace("#include <string.h>", "#include <string.h>\n#include <stdlib.h>", 1))
    arrays = re.findall(r"^ +(?:float|double) \(?\*?tmp\w+\)?((?:\[\w+\])+)", text, re.MULTILINE)
    return source, sum(map(_float_bytes, arrays))


def _float_bytes(dims: str) -> int:
    size = 4
    for extent in re.findall(r"\[(\w+)\]", dims):
        size *= int(extent) if extent.isdigit() else 1
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--plugin", type=Path, help="QEMU plugin that counts instructions")
    parser.add_argument("--emx", default="", help="path of emx-onnx-cgen; none: no second table")
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    sse2 = replace(get_target("x86-64"), upgrades=())
    sizes = []
    with tempfile.TemporaryDirectory() as made:
        if args.plugin:
            print("| network | C | LLVM, SSE2 | ratio |")
            print("| --- | ---: | ---: | ---: |")
        for name in args.names:
            model, folder = args.models / f"{name}.onnx", Path(made, name)
            source = compiled(model, get_target("c"))
            write_sources(source, folder / "c")
            if args.plugin:
                ours = instructions(executable(folder / "c", "net.c"), args.plugin)
                row = [name, f"{ours:,}"]
                write_sources(compiled(model, sse2), folder / "llvm")
                theirs = instructions(executable(folder / "llvm", "libnet.a"), args.plugin)
                row += [f"{theirs:,}", f"{ours / theirs:.2f}"]
                print("| " + " | ".join(row) + " |", flush=True)
            if args.emx:
                sizes += _sizes(args.emx, name, model, source, folder)
    if sizes:
        print("\n| network | compiler | code, irc | code, emx-onnx-cgen | RAM, irc | RAM, emx-onnx-cgen |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        print("\n".join(sizes))


def _sizes(emx: str, name: str, model: Path, source: Program, folder: Path) -> list[str]:
    other, arrays = peer(emx, model, folder)
    rows = []
    for machine, compiler in (("host", HOST), ("Cortex-M4", M4)):
        for level in ("-Os", "-O2"):
            code, frame = code_bytes(folder / "c" / "net.c", *compiler, level)
            theirs, their_frame = code_bytes(other, *compiler, level)
            ram = f"{source.workspace_bytes + frame:,} | {arrays + their_frame:,}"
            rows.append(f"| {name} | {machine} {level} | {code:,} | {theirs:,} | {ram} |")
    return rows


if __name__ == "__main__":
    main()
