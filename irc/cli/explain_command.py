"""Show what passes did to a model, what they left alone, and why.

irc explain model.onnx --passes 'none,quantize' --calibration samples.npz
"""

from __future__ import annotations

import argparse

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    arguments.add_passes(parser)
    arguments.add_target(parser)
    arguments.add_calibration(parser)
    arguments.add_shapes(parser)
    parser.add_argument("--seed", type=arguments.seed, default=0, metavar="N")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.opt import optimize

    with output.progress(quiet=args.json) as progress:
        done = optimize(
            args.model,
            arguments.pipeline_text(args),
            target=args.target,
            calibration=args.calibration,
            shapes=arguments.shapes(args.shape),
            dims=arguments.dims(args.dim),
            seed=args.seed,
            explain=True,
            progress=progress,
        )
    if args.json:
        output.print_json(done.pipeline_report.to_json())
        return 0
    from irc.report import text

    console = output.console()
    console.print(text.passes_table(done.report))
    refusals = done.pipeline_report.refusals
    console.print(text.refusals_table(refusals) if refusals else "nothing was left alone")
    return 0
