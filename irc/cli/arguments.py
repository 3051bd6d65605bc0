"""Arguments that several commands share, and a parser whose errors are irc's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from irc.errors import OptionError, suggest


class Parser(argparse.ArgumentParser):
    """argparse with OptionError for everything wrong, suggestions for misspelt options, and no guessing of prefixes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """The arguments; None where help was asked for and shown."""
        if "-h" in arguments or "--help" in arguments:
            self.print_help()
            return None
        self._check_options(arguments)
        parsed, extra = self.parse_known_args(arguments)
        if extra:
            raise OptionError(f"unexpected argument '{extra[0]}'", where=self.prog, hint=f"{self.prog} --help")
        return parsed

    def _check_options(self, arguments: Sequence[str]) -> None:
        """A misspelt option before argparse takes its value for a file name."""
        known = self._option_string_actions
        for argument in arguments:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:
                raise OptionError(f"there is no option '{name}'", where=self.prog, hint=suggest(name, known))

    def error(self, message: str) -> NoReturn:
        raise OptionError(message, where=self.prog, hint=f"{self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.dest
            raise OptionError(
                f"{name} cannot be '{value}'", where=self.prog, hint=suggest(str(value), map(str, action.choices))
            )


def add_model(parser: argparse.ArgumentParser, help: str = "an ONNX model") -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help=help)


def add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", action="append", default=[], metavar="INPUT=1x3x224x224", help="shape of an input (may be repeated)"
    )
    parser.add_argument(
        "--dim", action="append", default=[], metavar="NAME=N", help="value of a symbolic dimension (may be repeated)"
    )


def add_passes(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--passes", metavar="TEXT", help="pipeline text, for example 'none,quantize{weights=int8}'")
    group.add_argument("--preset", metavar="NAME", help="none (the default), speed, balanced or size; see irc passes")
    parser.add_argument(
        "--io",
        action="append",
        default=[],
        metavar="[PORT=]TYPE",
        help="int8 or uint8: a quantized network takes and gives integers, as they are, and float32 stays for others; "
        "of all inputs and outputs, or of PORT, a name, inputs or outputs (may be repeated)",
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", default="native", metavar="NAME", help="see irc targets, or FILE.toml (default: native)"
    )


def add_calibration(parser: argparse.ArgumentParser, *, save: bool = False) -> None:
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE.npz", help="samples to calibrate on, one array for each input"
    )
    parser.add_argument(
        "--statistics", type=Path, metavar="FILE.npz", help="what --save-statistics wrote: in place of the samples"
    )
    if save:
        parser.add_argument(
            "--save-statistics", type=Path, metavar="FILE.npz", help="write what the passes learn from the samples"
        )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")


def add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="kernel cache (default: ~/.cache/irc)")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="compiler processes (default: one per core)")


def add_tuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tuning", type=Path, metavar="RECORDS.json", help="use what irc tune measured")


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("plain", "coded", "huffman"),
        help="how the library stores its weights: as they are (the default, but for the preset size), or entropy-coded "
        "and decoded into RAM by NAME_init; huffman: a little less densely, by a decoder a fifth as large",
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    for name, what in (("ram", "workspace, inputs and outputs, context, stack"), ("flash", "code and weights")):
        parser.add_argument(
            f"--{name}", metavar="SIZE", help=f"bytes that the network may take: {what}; 64k is 65536 (else an error)"
        )


def add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--evaluation", type=Path, metavar="FILE.npz", help="labelled samples to score on")
    add_metric(parser)
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="accuracy budget; over it nothing is written, exit code 3"
    )


def add_metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        default="top1",
        metavar="NAME",
        help="top1 (the default), top5, auc, mse, agreement, or module:function(outputs, labels, inputs)",
    )


def seed(text: str) -> int:
    """For argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, not '{text}'")
    return int(text)


def shapes(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`x=1x3x224x224` texts. An empty right side is a scalar. Raises OptionError."""
    found = {}
    for text in given:
        name, sign, extents = text.rpartition("=")
        parts = extents.replace(",", "x").split("x") if extents else []
        if not sign or not name or not all(p.isdecimal() and int(p) > 0 for p in parts):
            raise OptionError("--shape cannot be read", expected="INPUT=1x3x224x224", got=text)
        found[name] = tuple(int(p) for p in parts)
    return found


def dims(given: Sequence[str]) -> dict[str, int]:
    """`batch=1` texts. Raises OptionError."""
    found = {}
    for text in given:
        name, sign, value = text.rpartition("=")
        if not sign or not name or not value.isdecimal() or int(value) < 1:
            raise OptionError("--dim cannot be read", expected="NAME=N with N at least 1", got=text)
        found[name] = int(value)
    return found


def pipeline_text(args: argparse.Namespace, default: str = "none") -> str:
    """What --passes or --preset ask for; `default` (the lossless clean-up) without them; and what --io asks for behind
    it. Raises OptionError."""
    from irc.pipeline.presets import PRESETS, with_io

    if args.preset is not None and args.preset not in PRESETS:
        raise OptionError(f"there is no preset '{args.preset}'", hint=suggest(args.preset, PRESETS))
    given = args.preset if args.preset is not None else args.passes
    return with_io(default if given is None else str(given), args.io)
