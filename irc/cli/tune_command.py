"""Measure the kernels of a model on this machine and record what beats the analytic choice.

  irc tune model.onnx --seconds 60 -o tuning.json
  irc compile model.onnx --tuning tuning.json

Give the same passes, shapes and target as to irc compile. Records hold for equal layers of other models too; a file
that exists is added to. Ctrl-C keeps what was found until then.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("tuning.json"), metavar="RECORDS.json", help="default: tuning.json"
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="time for all of it (default: 60)")
    arguments.add_target(parser)
    arguments.add_passes(parser)
    arguments.add_calibration(parser)
    arguments.add_shapes(parser)
    parser.add_argument("--seed", type=arguments.seed, default=0, metavar="N", help="for passes that are random")
    arguments.add_cache(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.options import CompileOptions
    from irc.driver.tune import tune
    from irc.targets import get_target

    options = CompileOptions(
        model=args.model,
        target=get_target(args.target),
        passes=arguments.pipeline_text(args),
        calibration=args.calibration,
        statistics=args.statistics,
        shapes=arguments.shapes(args.shape),
        dims=arguments.dims(args.dim),
        cache_dir=args.cache_dir,
        workers=args.jobs,
        seed=args.seed,
    )
    with output.progress(quiet=args.json) as progress:
        done = tune(options, args.output, seconds=args.seconds, progress=progress)
    if args.json:
        output.print_json(done.to_json() | {"file": str(args.output)})
    else:
        from irc.report import kernels

        console = output.console()
        console.print(kernels.tuned_table(done.records))
        for line in kernels.tuned_lines(done, str(args.output)):
            console.print(line, soft_wrap=True)
    if done.interrupted is not None:
        raise done.interrupted
    return 0
