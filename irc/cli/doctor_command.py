"""Check the installation: libraries, tools for other machines, caches. Ends with exit code 2 if something is missing
that irc cannot work without.
"""

from __future__ import annotations

import argparse

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.driver.doctor import examine

    findings = examine()
    good = all(f.state != "bad" for f in findings)
    if args.json:
        output.print_json({"good": good, "findings": [f.to_json() for f in findings]})
        return 0 if good else 2
    from rich.table import Table
    from rich.text import Text

    marks = {"good": Text("ok", "green"), "missing": Text("--", "yellow"), "bad": Text("!!", "bold red")}
    table = Table.grid(padding=(0, 2))
    for f in findings:
        table.add_row(marks[f.state], f.what, f.found, Text(f.advice, "dim"))
    output.console().print(table)
    return 0 if good else 2
