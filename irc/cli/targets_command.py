"""List the targets that irc compiles for."""

from __future__ import annotations

import argparse

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_json(parser)
    parser.add_argument(
        "--for",
        dest="build",
        metavar="WORDS",
        help="print the target of a build: its system, processor, compiler, flags; --for='-mcpu=cortex-m4', say",
    )


def run(args: argparse.Namespace) -> int:
    if args.build is not None:
        from irc.targets.flags import target_for

        name = target_for(args.build)
        if args.json:
            output.print_json({"target": name})
        else:
            print(name)
        return 0
    from irc.targets import all_targets, get_target, runs_here

    targets = all_targets()
    native = get_target("native").name
    if args.json:
        output.print_json(
            {
                "native": native,
                "targets": {
                    name: {
                        "description": t.description,
                        "arch": t.arch,
                        "triple": t.triple,
                        "cpu": t.cpu,
                        "features": list(t.features),
                        "vector_bytes": t.vector_bytes,
                        "dot": t.dot,
                        "activations": t.activations,
                        "runs_here": runs_here(t),
                    }
                    for name, t in targets.items()
                },
            }
        )
        return 0
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for head in ("target", "what it is", "SIMD", "8-bit dot", "runs here"):
        table.add_column(head, no_wrap=head != "what it is")
    for name, t in targets.items():
        here = "native" if name == native else "yes" if runs_here(t) else ""
        table.add_row(name, t.description, f"{t.vector_bytes * 8} bit", t.dot, here)
    output.console().print(table)
    return 0
