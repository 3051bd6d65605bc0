"""List the targets that irc compiles for."""

from __future__ import annotations

import argparse

from irc.cli import arguments, output
from irc.targets.target import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show all of one target, or of a FILE.toml")
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
    if args.name is not None:
        return _show(args.name, args.json)
    from irc.targets import all_targets, get_target, runs_here

    targets = all_targets()
    native = get_target("native").name
    if args.json:
        from irc.targets.custom import target_record

        records = {name: target_record(t) | {"runs_here": runs_here(t)} for name, t in targets.items()}
        output.print_json({"native": native, "targets": records})
        return 0
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for head in ("target", "what it is", "ISA", "vectors", "FPU", "8-bit dot", "RAM/flash", "form", "how it runs here"):
        table.add_column(head, no_wrap=head not in ("what it is", "how it runs here"))
    for name, t in targets.items():
        here = "native" if name == native else _here(t)
        table.add_row(name, t.description, _isa(t), _vectors(t), t.fpu, t.dot, _memory(t), t.object_format, here)
    output.console().print(table)
    return 0


def _show(name: str, as_json: bool) -> int:
    """Everything about one target."""
    from irc.targets import get_target, runs_here
    from irc.targets.custom import target_record

    target = get_target(name)
    record = target_record(target) | {"runs_here": runs_here(target)}
    if as_json:
        output.print_json(record)
        return 0
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in record.items():
        text = " ".join(value) if isinstance(value, list) else str(value)
        table.add_row(key, text or "-")
    table.add_row("how it runs here", _here(target))
    output.console().print(table)
    return 0


def _isa(target: Target) -> str:
    return target.arch if target.arch != "arm32" else target.triple.partition("-")[0].replace("thumb", "arm")


def _vectors(target: Target) -> str:
    return "-" if target.vector_bytes <= 4 else f"{target.vector_bytes * 8} bit"


def _memory(target: Target) -> str:
    sizes = [_size(n) for n in (target.ram_bytes, target.flash_bytes)]
    return "/".join(sizes) if any((target.ram_bytes, target.flash_bytes)) else "-"


def _size(count: int) -> str:
    return f"{count // 1024}k" if count else "-"


def _here(target: Target) -> str:
    """In words; what is missing where something is."""
    from irc.targets import runs_here

    if runs_here(target):
        return "in process"
    from irc.backends.artifact.machines import missing_tools

    if target.runner == "cc":
        return "system's C compiler"
    missing = missing_tools(target) if target.runner else ""
    if missing:
        return missing
    if target.runner == "qemu-system":
        return f"{target.qemu} -M {target.board}"
    if target.runner == "qemu-user":
        return target.qemu
    return "node" if target.runner == "node" else "not at all: checked in host code"
