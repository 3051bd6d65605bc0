"""RAM and flash of quantized networks on microcontrollers, beside TensorFlow Lite Micro's.

    python benchmarks/small_memory.py [--targets cortex-m4] [--models ad,kws,ic,vww] [--kinds given,irc]

Evaluation data come from IRC_DATA. Rows are the MLPerf Tiny four: the QDQ twins of the evaluation data ("given"), and
the float models quantized by irc, with int8 inputs and outputs too ("irc").

RAM is workspace (inputs and outputs in it), context and stack; TensorFlow Lite Micro's is its arena alone. Flash is
code, constants and weights of the object, without what a linker adds of the C library (`needs` names it); the other
figure is the .tflite file, to which its interpreter and kernels come.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from common import data_dir
from small_targets import ARENA, TWINS, options

from irc.backends.artifact.footprint import footprint
from irc.backends.artifact.link import link
from irc.driver.compile import compile_model
from irc.driver.runners import glue_object


def row(task: str, kind: str, target: str, data: Path, cache: Path | None) -> str:
    chosen = replace(options(task, kind, target, data, cache), ram=1 << 30, flash=1 << 30)
    program = compile_model(chosen).program
    assert program is not None
    found = footprint(program, link(program, glue_object(program, cache)))
    file = (data / "models" / f"{TWINS[task]}.tflite").stat().st_size
    ram = f"{found.workspace} + {found.context} + {found.stack} = {found.ram} | {ARENA[task]}"
    share = f"{found.ram / ARENA[task]:.2f} | {program.statistics['workspace_lower_bound']}"
    code = found.flash - found.weights
    flash = f"{code} + {found.weights} = {found.flash} | {file} | {found.flash - file:+d}"
    return f"| {task} | {kind} | {target} | {ram} | {share} | {flash} | {' '.join(program.outside) or 'nothing'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="cortex-m4")
    parser.add_argument("--models", default="ad,kws,ic,vww")
    parser.add_argument("--kinds", default="given,irc")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    columns = (
        "model | weights by | target | workspace + context + stack = RAM | arena | of it | workspace at least | "
        "code + weights = flash | .tflite | more than it | needs"
    )
    print(f"| {columns} |")
    print("|" + " --- |" * (columns.count("|") + 1))
    for task in args.models.split(","):
        for kind in args.kinds.split(","):
            for target in args.targets.split(","):
                print(row(task, kind, target, data_dir(), args.cache), flush=True)


if __name__ == "__main__":
    main()
