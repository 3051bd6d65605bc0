"""Show what a model or an artifact holds: operators, parameters, multiply-adds, bytes and zeros, layer by layer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, metavar="MODEL|ARTIFACT")
    arguments.add_shapes(parser)
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--no-layers", action="store_true", help="totals only")
    layers.add_argument("--layers", action="store_true", help="of an artifact also the bytes of every layer")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.subject.is_dir():
        return _artifact(args)
    from irc.driver.options import check_file
    from irc.evaluation.cost import costs
    from irc.frontend import default_batch, load_model

    check_file(args.subject)
    model = load_model(args.subject, shapes=arguments.shapes(args.shape), dims=arguments.dims(args.dim))
    for note in default_batch(model):
        output.note(note)
    found = costs(model)
    if args.json:
        output.print_json({"model": model.name, "opset": model.opsets.get("", 0)} | found.to_json())
        return 0
    from irc.report.text import costs_tables

    console = output.console()
    for part in costs_tables(found, layers=not args.no_layers):
        console.print(part)
    return 0


def _artifact(args: argparse.Namespace) -> int:
    from irc.backends.artifact.features import levels_here
    from irc.backends.artifact.manifest import read_manifest

    manifest = read_manifest(args.subject)
    if args.json:
        output.print_json(manifest)
        return 0
    from irc.evaluation.cost import costs
    from irc.frontend import load_model
    from irc.report.storage import storage_tables
    from irc.report.text import costs_tables, manifest_table

    console = output.console()
    console.print(manifest_table(manifest, levels_here(manifest["target"])))
    if "storage" in manifest:
        for table in storage_tables(manifest["storage"], _start_ms(args.subject, manifest), layers=args.layers):
            console.print(table)
    model = args.subject / f"{manifest['name']}.onnx"
    if model.is_file() and not args.no_layers:
        for part in costs_tables(costs(load_model(model))):
            console.print(part)
    return 0


def _start_ms(folder: Path, manifest: Mapping[str, Any]) -> float | None:
    """Milliseconds in which the artifact's weights are decoded here; None where they are plain or it does not run."""
    from irc.driver.start import decoding_ms
    from irc.errors import IrcError

    if "decoder" not in manifest["storage"]:
        return None
    try:
        return decoding_ms(folder)
    except IrcError:
        return None
