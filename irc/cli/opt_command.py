"""Run passes on a model and write it as ONNX (or as IR text, where the name ends in .irc).

irc opt model.onnx --passes 'none,prune{sparsity=0.5}' -o smaller.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    arguments.add_passes(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    arguments.add_target(parser)
    arguments.add_calibration(parser, save=True)
    arguments.add_shapes(parser)
    parser.add_argument("--print-ir-after", action="append", default=[], metavar="PASS|all", help="IR text on stderr")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write IR text and ONNX after every pass")
    parser.add_argument("--seed", type=arguments.seed, default=0, metavar="N")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.files import check_model_name, save_model
    from irc.driver.opt import optimize
    from irc.pipeline.instruments import Dump, Instrument, PrintAfter

    check_model_name(args.output)
    instruments: list[Instrument] = []
    if args.print_ir_after:
        instruments.append(PrintAfter(tuple(args.print_ir_after)))
    if args.dump is not None:
        instruments.append(Dump(args.dump))
    with output.progress(quiet=args.json) as progress:
        done = optimize(
            args.model,
            arguments.pipeline_text(args),
            target=args.target,
            calibration=args.calibration,
            statistics=args.statistics,
            save_statistics=args.save_statistics,
            shapes=arguments.shapes(args.shape),
            dims=arguments.dims(args.dim),
            seed=args.seed,
            instruments=instruments,
            progress=progress,
        )
    save_model(done.model, args.output)
    if args.json:
        output.print_json(done.report.to_json() | {"output": str(args.output)})
        return 0
    from irc.report import text

    console = output.console()
    console.print(text.passes_table(done.report))
    text.show(done.report, console, str(args.output))
    return 0
