"""Show what passes did to a model, what they left alone and why, and what was chosen for each kernel.

  irc explain model.onnx --passes 'none,quantize' --calibration samples.npz
  irc explain model.onnx --target arm --tuning tuning.json

Cycles are the model's, for one thread; the bound is what takes most of them. From records come measured times.
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
    arguments.add_tuning(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.explain import explain_kernels
    from irc.driver.opt import optimize
    from irc.driver.options import check_file
    from irc.targets import get_target

    check_file(args.tuning)

    with output.progress(quiet=args.json) as progress:
        done = optimize(
            args.model,
            arguments.pipeline_text(args),
            target=args.target,
            calibration=args.calibration,
            statistics=args.statistics,
            shapes=arguments.shapes(args.shape),
            dims=arguments.dims(args.dim),
            seed=args.seed,
            explain=True,
            progress=progress,
        )
    kernels = explain_kernels(done.model, get_target(args.target), args.tuning)
    if args.json:
        rows = {"kernels": [row.to_json() for row in kernels.rows], "kernels_note": kernels.note}
        output.print_json(done.pipeline_report.to_json() | rows)
        return 0
    from irc.report import text
    from irc.report.kernels import kernels_table

    console = output.console()
    console.print(text.passes_table(done.report))
    refusals = done.pipeline_report.refusals
    console.print(text.refusals_table(refusals) if refusals else "nothing was left alone")
    if kernels.rows:
        console.print(kernels_table(kernels.rows))
    if kernels.note:
        console.print(kernels.note, soft_wrap=True)
    return 0
