"""Compress a model and write it as standard ONNX, for onnxruntime, OpenVINO, TensorRT and others.

  irc compress model.onnx --calibration c.npz -o smaller.onnx
  irc compress model.onnx --passes 'none,quantize{weights=int4}' --calibration c.npz -o smaller.onnx
  irc compress model.onnx --preset balanced --calibration c.npz --evaluation test.npz --max-drop 1 -o smaller.onnx

Without --passes and --preset it is the preset speed. Integers stand between QuantizeLinear and DequantizeLinear.
Nothing is written unless onnxruntime runs the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output

_DEFAULT = "speed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    arguments.add_passes(parser)
    arguments.add_target(parser)
    arguments.add_calibration(parser, save=True)
    arguments.add_budget(parser)
    arguments.add_shapes(parser)
    parser.add_argument("--seed", type=arguments.seed, default=0, metavar="N")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.compress import compress

    with output.progress(quiet=args.json) as progress:
        made = compress(
            args.model,
            args.output,
            arguments.pipeline_text(args, default=_DEFAULT),
            target=args.target,
            calibration=args.calibration,
            evaluation=args.evaluation,
            metric=args.metric,
            max_drop=args.max_drop,
            shapes=arguments.shapes(args.shape),
            dims=arguments.dims(args.dim),
            seed=args.seed,
            statistics=args.statistics,
            save_statistics=args.save_statistics,
            progress=progress,
        )
    before, after = made.kinds
    if args.json:
        kinds = {"before": [k.to_json() for k in before], "after": [k.to_json() for k in after]}
        files = {"output": str(args.output), "opset": made.opset}
        output.print_json(made.done.report.to_json() | {"kinds": kinds} | files)
        return 0
    from irc.report import text

    console = output.console()
    console.print(text.kinds_table(before, after))
    text.show(made.done.report, console, f"{args.output} (opset {made.opset})")
    return 0
