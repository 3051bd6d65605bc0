"""Score a model or an artifact on data.

irc evaluate model.onnx --data test.npz --metric top1
irc evaluate model-irc --data test.npz --metric agreement --original model.onnx

Real numbers for quantized inputs are quantized, and outputs are dequantized before they are scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, metavar="MODEL|ARTIFACT")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="inputs by name, and 'labels'")
    arguments.add_metric(parser)
    parser.add_argument("--original", type=Path, metavar="MODEL", help="the model to compare with")
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help="exit code 3 when the drop is larger")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as compiled")
    arguments.add_shapes(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.score import score
    from irc.errors import BudgetError, OptionError

    if args.max_drop is not None and args.max_drop != args.max_drop:
        raise OptionError("--max-drop must be a number of points", got="nan")
    if args.max_drop is not None and args.original is None:
        raise OptionError("--max-drop needs something to compare with", hint="--original MODEL.onnx")
    with output.progress(quiet=args.json) as progress:
        found = score(
            args.subject,
            args.data,
            args.metric,
            original=args.original,
            shapes=arguments.shapes(args.shape),
            dims=arguments.dims(args.dim),
            threads=args.threads,
            progress=progress,
        )
    if args.json:
        output.print_json({"subject": args.subject.name} | found.to_json())
    else:
        from irc.report.text import accuracy_text

        print(accuracy_text(found.to_json() | {"shown": found.shown, "shown_original": found.shown_original}))
    if args.max_drop is not None and found.drop is not None and found.drop > args.max_drop:
        raise BudgetError(f"{args.metric} drops by {found.drop:.2f}", expected=f"at most {args.max_drop:g}")
    return 0
