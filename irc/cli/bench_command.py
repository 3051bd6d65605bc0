"""Measure latency: median and spread of interleaved runs in one process, on pinned cores.

  irc bench model-irc
  irc bench model.onnx --against onnxruntime,openvino

The peers run the same model as irc: the one the passes left. Ratios repeat; absolute times drift with the machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, metavar="MODEL|ARTIFACT")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of every runtime (default: 1)")
    parser.add_argument("--against", default="", metavar="NAMES", help="comma separated: onnxruntime, openvino")
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
