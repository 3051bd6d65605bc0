"""Check an artifact: its files against the hashes of the manifest, and its results against onnxruntime.

The reference is the ONNX file inside the artifact and, with --original, the model it was made from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--original", type=Path, metavar="MODEL", help="also show the difference from this model")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="samples to compare on (default: random)")
    parser.add_argument("--seed", type=arguments.seed, default=0, metavar="N")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.recheck import verify_artifact

    found = verify_artifact(args.artifact, original=args.original, data=args.data, seed=args.seed)
    if args.json:
        output.print_json(found.to_json())
        return 0
    from irc.report.model import instruction_lines, verification_lines

    facts = found.to_json()
    counted = {"counted": facts["instructions"]} if "instructions" in facts else {}
    for line in (*verification_lines(facts), *(f"instructions: {text}" for text in instruction_lines(counted))):
        print(line)
    for note in found.notes:
        output.note(note)
    return 0
