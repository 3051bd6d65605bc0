"""Measure latency: median and spread of interleaved runs in one process, on pinned cores.

  irc bench model-irc
  irc bench model.onnx --against onnxruntime,openvino
  irc bench model.onnx --layers

The peers run the same model as irc: the one the passes left. Ratios repeat; absolute times drift with the machine.
--layers shows every kernel: time, what it reaches of the machine's peak, bytes, and what bounds it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output
from irc.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, metavar="MODEL|ARTIFACT")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of every runtime (default: 1)")
    parser.add_argument("--against", default="", metavar="NAMES", help="comma separated: onnxruntime, openvino")
    parser.add_argument("--layers", action="store_true", help="times of single kernels, on one thread")
    parser.add_argument("--sort", action="store_true", help="with --layers: the longest first, not in order")
    parser.add_argument("--peer-model", type=Path, metavar="MODEL", help="let the peers run this model instead")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="time for each runtime (default: 2)")
    arguments.add_target(parser)
    arguments.add_passes(parser)
    arguments.add_calibration(parser)
    arguments.add_shapes(parser)
    arguments.add_tuning(parser)
    arguments.add_cache(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    _refuse_for_artifacts(args)
    if args.layers:
        return run_layers(args)
    from irc.driver.bench import bench, check_peers

    peers = tuple(p for p in args.against.split(",") if p)
    check_peers(peers)
    with output.progress(quiet=args.json) as progress:
        found = bench(
            args.subject,
            peers,
            passes=arguments.pipeline_text(args),
            target=args.target,
            calibration=args.calibration,
            statistics=args.statistics,
            peer_model=args.peer_model,
            shapes=arguments.shapes(args.shape),
            dims=arguments.dims(args.dim),
            threads=args.threads,
            seconds=args.seconds,
            cache_dir=args.cache_dir,
            workers=args.jobs,
            tuning=args.tuning,
            progress=progress,
        )
    if args.json:
        output.print_json({"subject": args.subject.name, "threads": args.threads, "runtimes": found.to_json()})
        return 0
    from irc.report.text import latency_table

    output.console().print(latency_table(found.latencies))
    return 0


def _refuse_for_artifacts(args: argparse.Namespace) -> None:
    """What says how a model is compiled means nothing for one that is. Raises OptionError."""
    given = {
        "--passes": args.passes is not None,
        "--preset": args.preset is not None,
        "--io": bool(args.io),
        "--calibration": args.calibration is not None,
        "--statistics": args.statistics is not None,
        "--tuning": args.tuning is not None,
        "--shape": bool(args.shape),
        "--dim": bool(args.dim),
        "--target": args.target != "native",
    }
    names = [name for name, is_given in given.items() if is_given]
    if names and args.subject.is_dir():
        raise OptionError(
            "an artifact is compiled already",
            where=str(args.subject),
            got=", ".join(names),
            hint="give them to irc compile, or bench the model",
        )


def run_layers(args: argparse.Namespace) -> int:
    from irc.driver.layers import layers

    if args.threads != 1 or args.against:
        raise OptionError("--layers times irc's kernels on one thread", hint="it without --threads and --against")
    with output.progress(quiet=args.json) as progress:
        found = layers(
            args.subject,
            passes=arguments.pipeline_text(args),
            target=args.target,
            calibration=args.calibration,
            statistics=args.statistics,
            shapes=arguments.shapes(args.shape),
            dims=arguments.dims(args.dim),
            seconds=args.seconds,
            cache_dir=args.cache_dir,
            workers=args.jobs,
            tuning=args.tuning,
            progress=progress,
        ).to_json()
    if args.sort:
        found["layers"].sort(key=lambda row: -row["us"])
    if args.json:
        output.print_json({"subject": args.subject.name, **found})
        return 0
    from irc.report.layers import layers_table, layers_totals

    console = output.console()
    console.print(layers_table(found["layers"]))
    console.print(layers_totals(found))
    return 0
