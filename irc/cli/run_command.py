"""Run a compiled artifact on the arrays of an .npz file.

  irc run model-irc --inputs in.npz --outputs out.npz

An array has the shape of its input, or one more sample axis in front: then every sample is run. Real numbers for a
quantized input are quantized, and outputs are real numbers then; integers give integers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--inputs", type=Path, required=True, metavar="IN.npz")
    parser.add_argument("--outputs", type=Path, metavar="OUT.npz", help="write the outputs (default: show them)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as compiled")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.run import run_artifact, write_arrays

    outputs = run_artifact(args.artifact, args.inputs, threads=args.threads)
    if args.outputs is not None:
        write_arrays(args.outputs, outputs)
    facts = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in outputs.items()}
    if args.json:
        values = {} if args.outputs else {"values": {n: a.tolist() for n, a in outputs.items()}}
        output.print_json({"outputs": facts} | values)
        return 0
    for name, array in outputs.items():
        print(f"{name}: {array.dtype}{list(array.shape)}")
        if args.outputs is None:
            print(array)
    return 0
