"""List the passes with their options, and the presets."""

from __future__ import annotations

import argparse
from typing import Any

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="only this pass or preset")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.errors import OptionError, suggest
    from irc.pipeline.presets import PRESETS, SUMMARIES
    from irc.pipeline.table import known_passes

    known = [*known_passes(), *PRESETS]
    if args.name is not None and args.name not in known:
        raise OptionError(f"there is no pass or preset '{args.name}'", hint=suggest(args.name, known))
    passes = {n: _describe(n) for n in known_passes() if args.name in (None, n)}
    presets = {n: {"summary": SUMMARIES.get(n, ""), "passes": t} for n, t in PRESETS.items() if args.name in (None, n)}
    if args.json:
        output.print_json({"passes": passes, "presets": presets})
        return 0
    from rich.table import Table

    table = Table(box=None, header_style="bold", show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, facts in passes.items():
        table.add_row(name, facts["summary"])
        for option, text in facts["options"].items():
            table.add_row("", f"{option}: {text}")
    for name, preset in presets.items():
        table.add_row(f"preset {name}", preset["summary"])
        table.add_row("", preset["passes"])
    output.console().print(table)
    return 0


def _describe(name: str) -> dict[str, Any]:
    from irc.pipeline.options import describe, fields, option_types
    from irc.pipeline.table import pass_class

    found = pass_class(name)
    types = option_types(found)
    options = {f.name.replace("_", "-"): f"{describe(types[f.name])}{_default(f)}" for f in fields(found)}
    return {"summary": found.summary, "options": options}


def _default(field: Any) -> str:
    from dataclasses import MISSING

    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return " (required)"
    if isinstance(value, bool) or value is None:
        value = {True: "true", False: "false", None: "none"}[value]
    return f" (default {value if value != () else 'empty'})"
