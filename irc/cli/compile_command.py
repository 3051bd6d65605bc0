"""Compile an ONNX model into a library without a runtime.

  irc compile model.onnx                      for this machine, into ./model-irc
  irc compile model.onnx --target arm -o out
  irc compile model.onnx --preset speed --calibration samples.npz --evaluation test.npz --max-drop 1
  irc compile model.onnx --target cortex-m4 --preset speed --calibration samples.npz --io int8
  irc compile model.onnx -o build/net --depfile build/net.d -q     in a rule of make, Ninja, ...

Nothing is written unless the compiled result has been compared with onnxruntime.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from irc.cli import arguments, output

if TYPE_CHECKING:
    from irc.driver.compilation import Compilation
    from irc.driver.options import CompileOptions
    from irc.driver.places import Places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    arguments.add_target(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the artifact (default: ./NAME-irc)")
    _add_files(parser)
    parser.add_argument("--name", default="", help="prefix of the C functions (default: from the file name)")
    arguments.add_passes(parser)
    arguments.add_calibration(parser, save=True)
    arguments.add_budget(parser)
    arguments.add_shapes(parser)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="compile in a pool of N threads (default: 1, no threads; irc.load takes any number)",
    )
    parser.add_argument(
        "--emit",
        metavar="PARTS",
        help="comma separated: archive,object,header,cpp,onnx,report,shared (default: all but object); or a folder "
        "as a framework wants it: arduino, zephyr, esp-idf",
    )
    parser.add_argument("--stop-after", metavar="PHASE", help="import, passes, plan or kernels: show the result there")
    parser.add_argument("--print-ir-after", action="append", default=[], metavar="PASS|all", help="IR text on stderr")
    parser.add_argument("--no-verify", action="store_true", help="write without comparing with onnxruntime")
    parser.add_argument(
        "--seed", type=arguments.seed, default=0, metavar="N", help="for passes and inputs that are random"
    )
    arguments.add_weights(parser)
    arguments.add_limits(parser)
    arguments.add_tuning(parser)
    arguments.add_cache(parser)
    arguments.add_json(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")


def _add_files(parser: argparse.ArgumentParser) -> None:
    """What rules of build systems need."""
    parser.add_argument(
        "--depfile",
        type=Path,
        metavar="FILE",
        help="write a rule for make with every file that was read, irc's own too; its target is the library",
    )
    for what in ("library", "header"):
        parser.add_argument(
            f"--{what}", type=Path, metavar="FILE", help=f"put the {what} there; without -o there is no folder then"
        )


def options(args: argparse.Namespace) -> CompileOptions:
    """Raises OptionError."""
    from irc.backends.artifact.write import DEFAULT_EMIT
    from irc.driver.options import CompileOptions
    from irc.targets import get_target
    from irc.targets.sizes import parse_size

    emit = frozenset(p for p in args.emit.split(",") if p) if args.emit else DEFAULT_EMIT
    return CompileOptions(
        model=args.model,
        target=get_target(args.target),
        output=args.output,
        name=args.name,
        passes=arguments.pipeline_text(args),
        calibration=args.calibration,
        statistics=args.statistics,
        save_statistics=args.save_statistics,
        evaluation=args.evaluation,
        metric=args.metric,
        max_drop=args.max_drop,
        shapes=arguments.shapes(args.shape),
        dims=arguments.dims(args.dim),
        threads=args.threads,
        emit=emit,
        stop_after=args.stop_after,
        verify=not args.no_verify,
        cache_dir=args.cache_dir,
        workers=args.jobs,
        seed=args.seed,
        tuning=args.tuning,
        weights=args.weights,
        ram=None if args.ram is None else parse_size(args.ram, "--ram"),
        flash=None if args.flash is None else parse_size(args.flash, "--flash"),
    )


def run(args: argparse.Namespace) -> int:
    chosen = options(args)
    if chosen.stop_after in ("import", "passes") and args.output is not None:
        from irc.driver.files import check_model_name

        check_model_name(args.output)
    from irc.driver.compile import compile_model
    from irc.pipeline.instruments import PrintAfter

    wanted = places(args)
    wanted.check(chosen)
    instruments = [PrintAfter(tuple(args.print_ir_after))] if args.print_ir_after else []
    with output.progress(quiet=args.quiet or args.json) as progress, wanted.options(chosen) as chosen:
        done = compile_model(chosen, progress=progress, instruments=instruments)
        if done.directory is not None:
            wanted.write(done)
    model_wanted = chosen.stop_after in ("import", "passes")
    if model_wanted and args.output is not None:
        from irc.driver.files import save_model

        save_model(done.model, args.output)
    if args.json:
        output.print_json(_json(done))
    elif model_wanted:
        if args.output is None:
            _show_model(done)
    elif not args.quiet:
        _show(done, wanted)
    return 0


def places(args: argparse.Namespace) -> Places:
    from irc.driver.places import Places, read_besides

    folder = args.output is not None or (args.library is None and args.header is None)
    return Places(args.library, args.header, args.depfile, folder, read_besides([args.target]))


def _json(done: Compilation) -> dict[str, object]:
    data = done.report.to_json() | {"seconds": done.report.seconds}
    data["directory"] = str(done.directory) if done.directory and done.directory.exists() else None
    return data


def _show_model(done: Compilation) -> None:
    """IR text on stdout."""
    from irc.ir.printer import print_model

    print(print_model(done.model))


def _show(done: Compilation, wanted: Places) -> None:
    from irc.report import text

    console = output.console()
    if done.directory is None:
        console.print(text.steps_table(done.report.steps))
        return
    text.show(done.report, console, str(done.directory if wanted.folder else wanted.library or wanted.header))
